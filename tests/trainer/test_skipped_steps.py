"""An optimizer step that changed nothing: what a regularizer keeps between steps stays, and the run goes on."""

import pytest
import runs
from accelerate import Accelerator
from transformers import TrainerCallback
from two_processes import BadPass

STEPS, SKIPPED = 5, 2


def epsilon(regularization):
    return list(regularization.adaptive.logs().values())


def momentum(regularization):
    return [site.direction.tolist() for _, site in regularization.weights._momenta.values()]


KEEPS = {"fgm(epsilon=0.5, unit='relative', target=0.3)": epsilon, "momentum_sam(epsilon=0.3)": momentum}


class Kept(TrainerCallback):
    """What the regularizer has after each step."""

    def __init__(self, read, trainer):
        self.read, self.trainer, self.found = read, trainer, []

    def on_step_end(self, *args, **kwargs):
        self.found.append(self.read(self.trainer.regularization))


@pytest.mark.parametrize("how", ["a gradient that is not finite", "the loss scale"])
@pytest.mark.parametrize("expression", KEEPS)
def test_nothing_moves_in_it_and_the_next_step_is_as_ever(expression, how, tmp_path, monkeypatch):
    one = runs.trainer(expression, max_steps=STEPS, output_dir=str(tmp_path))
    kept = Kept(KEEPS[expression], one)
    one.add_callback(kept)
    if how == "the loss scale":  # what Accelerate says of an fp16 run; the Trainer asks, then we do
        said = iter([step == SKIPPED for step in range(1, STEPS + 1) for _ in range(2)])
        monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda _: next(said)))
        one.train()
    else:
        passes = one.regularization.cost().forwards
        BadPass(one.model, passes * SKIPPED, gradient=True)
        with pytest.warns(UserWarning, match="is not finite"):
            one.train()
    assert len(kept.found) == STEPS
    assert kept.found[SKIPPED - 1] == kept.found[SKIPPED - 2]
    for before, after in zip(kept.found[SKIPPED - 1 :], kept.found[SKIPPED:], strict=False):
        assert before != after
