"""DeepSpeed: its contract on a stand-in, always; ZeRO-1, 2 and 3 themselves where the package is installed.

The stand-in has the three properties that DeepSpeed's engine has and that a regularizer could break: each backward is
an optimizer step, a traversal that begins at the engine's output outside `backward` is taken for one, and a graph is
traversed once (ZeRO-3 gives its weights away behind the first traversal).
"""

import importlib.util
import json
from types import SimpleNamespace

import deepspeed_processes
import keyed
import launches
import pytest
import runs
import tiny
import torch
from accelerate.utils import DistributedType
from test_nonfinite import FaintLoss, moves_of
from torch import nn
from torch.nn import functional as F

from hf_rat import Regularization, parse

OWN_WEIGHTS = ("momentum_sam", "noisy_tune")
EVERY = [
    e for e in (*runs.SETTINGS.values(), *runs.COMPOSED) if e.partition("(")[0] not in OWN_WEIGHTS and "top=" not in e
]


@pytest.fixture(autouse=True, scope="module")
def _keyed():
    with keyed.noise():
        yield


# -- the contract ----------------------------------------------------------------------------------------------------


class StandIn(nn.Module):
    """Wraps a model as DeepSpeed's engine does; `steps` counts its optimizer steps."""

    def __init__(self, module, scale=1.0):
        super().__init__()
        self.module = module
        self.optimizer = SimpleNamespace(cur_scale=scale)
        self.steps, self._forwards, self._running, self._traversed = 0, 0, False, set()
        self._sgd = torch.optim.SGD(module.parameters(), lr=0.1)

    def forward(self, **inputs):
        self._forwards += 1
        outputs = self.module(**inputs)
        for name in ("loss", "logits"):
            if isinstance(outputs.get(name), torch.Tensor) and outputs[name].requires_grad:
                outputs[name].register_hook(self._traversal(f"{name} of forward {self._forwards}"))
        return outputs

    def _traversal(self, which):
        def hook(_):
            assert self._running, f"{which} was traversed outside backward"
            assert which not in self._traversed, f"{which} was traversed twice"
            self._traversed.add(which)

        return hook

    def backward(self, loss):
        self._running = True
        (loss * self.optimizer.cur_scale).backward()
        self._running = False
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.optimizer.cur_scale
        self._sgd.step()
        self._sgd.zero_grad()
        self.steps += 1


class StandInAccelerator:
    """What a regularization uses of an Accelerator."""

    distributed_type = DistributedType.DEEPSPEED
    num_processes = 1
    gradient_accumulation_steps = 1
    scaler = None

    def __init__(self, engine):
        self.backward = engine.backward

    def no_sync(self, model):
        raise AssertionError("no_sync is not for ZeRO-2 and ZeRO-3")


@pytest.fixture
def stand_in(monkeypatch):
    """(expression, model, scale) -> the stand-in and a regularization on it."""
    monkeypatch.setattr(
        "hf_rat.engine.engine.extract_model_from_parallel", lambda model, **_: getattr(model, "module", model)
    )

    def build(expression, model, scale=1.0):
        engine = StandIn(model, scale)
        return engine, Regularization(parse(expression), engine, accelerator=StandInAccelerator(engine))

    return build


def micro_batches():
    rows = runs.examples(12)
    return [runs.collate(rows[first : first + 4]) for first in (0, 4, 8)]


def model():
    return tiny.tiny_model(dropout=0.1, _attn_implementation="eager")


@pytest.mark.parametrize("expression", EVERY)
def test_each_micro_batch_is_one_backward_and_the_weights_are_those_of_a_plain_loop(stand_in, expression):
    engine, ours = stand_in(expression, model())
    hand = model()
    theirs = Regularization(parse(expression), hand)
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.1)
    for step, batch in enumerate(micro_batches()):
        losses = []
        for regularization in (theirs, ours):
            keyed.begin(batch["input_ids"], batch["attention_mask"])
            named = regularization.backward(batch, step=step)
            losses.append({name: value.item() for name, value in named.items()})
            if regularization is theirs:
                optimizer.step()
                optimizer.zero_grad()
            regularization.after_step()
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        assert engine.steps == step + 1
    for name, weight in hand.state_dict().items():
        torch.testing.assert_close(engine.module.state_dict()[name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("expression", OWN_WEIGHTS)
def test_what_the_optimizer_of_deepspeed_would_undo_is_refused(stand_in, expression):
    with pytest.raises(
        ValueError, match="under DeepSpeed, whose optimizer has weights and momenta of its own; use DDP"
    ):
        stand_in(expression, model())


# Where a slope is taken of passes that are learned from too, these passes run once more before.
PASSES = {"plain": (1, 1), "rdrop": (2, 2), "vat": (3, 3), "fgm": (2, 3), "rat": (3, 4), "freelb": (3, 5)}
"""Recipe -> forwards of one micro-batch, elsewhere and under DeepSpeed."""


@pytest.mark.parametrize(("recipe", "passes"), PASSES.items())
def test_the_price_of_a_single_backward(stand_in, recipe, passes):
    batch, seen = micro_batches()[0], []
    models = (model(), model())
    regularizations = (Regularization(parse(recipe), models[0]), stand_in(recipe, models[1])[1])
    for one, regularization in zip(models, regularizations, strict=True):
        rows = []

        def hear(module, args, output, rows=rows):
            rows.extend([len(output)] * torch.is_grad_enabled())  # a look at the model is no pass

        one.classifier.register_forward_hook(hear)
        keyed.begin(batch["input_ids"], batch["attention_mask"])
        regularization.backward(batch)
        seen.append(sum(rows) / len(batch["labels"]))
    assert tuple(seen) == passes
    assert tuple(regularization.cost().forwards for regularization in regularizations) == passes


@pytest.mark.parametrize("recipe", PASSES)
def test_a_single_backward_holds_every_graph(recipe):
    one_by_one, single = (Regularization(parse(recipe), model(), single_backward=how).cost() for how in (False, True))
    assert single.graphs == single.backwards == one_by_one.backwards


@pytest.mark.parametrize(
    "expression", ["fgm(epsilon=0.5)", "pgd(epsilon=0.5, step=0.5, start=0.1)", "freelb(start=0)"]
)
def test_slopes_carry_the_loss_scale_of_deepspeed(stand_in, expression):
    batch = tiny.tiny_batch()
    keyed.begin(batch["input_ids"], batch["attention_mask"])
    exact = moves_of(Regularization(parse(expression), FaintLoss()), batch)
    keyed.begin(batch["input_ids"], batch["attention_mask"])
    scaled = moves_of(stand_in(expression, FaintLoss().half(), 2.0**24)[1], batch)
    assert len(scaled) >= len(exact) > 0
    assert F.cosine_similarity(scaled[-1].flatten(1), exact[-1].flatten(1)).min() > 0.999


def test_several_backwards_and_lean_memory_are_refused_and_batches_stay_whole(stand_in):
    engine, _ = stand_in("rat", model())
    how = {"accelerator": StandInAccelerator(engine)}
    with pytest.raises(ValueError, match="use None"):
        Regularization(parse("rat"), engine, single_backward=False, **how)
    with pytest.raises(ValueError, match="DeepSpeed cannot"):
        Regularization(parse("rat"), engine, memory="lean", **how)
    whole = Regularization(parse("rat"), engine, length_buckets="auto", **how).why_not_bucketed
    assert whole == "DeepSpeed wants the same forwards on every process"


# -- the package -----------------------------------------------------------------------------------------------------

REFUSED = {"3": dict.fromkeys([*runs.AVERAGED, "fgm(epsilon=0.1, unit='embedding')"], "ZeRO-3 shards")}
REFUSED["3"] |= {e: "ZeRO-3 shards them" for e in runs.INVARIANT if e.partition("(")[0] in runs.AT_WEIGHTS}
UNDONE = {e: "under DeepSpeed" for e in runs.INVARIANT if e.partition("(")[0] in OWN_WEIGHTS}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_zero_on_two_processes_changes_nothing(stage, tmp_path):
    result = tmp_path / "result.json"
    script = str(launches.HERE / "deepspeed_processes.py")
    command = [*launches.TORCHRUN, "--nproc-per-node", "2", script, stage, str(result)]
    launches.run(command, seconds=500, DS_ACCELERATOR="cpu")
    results = json.loads(result.read_text(encoding="utf-8"))
    for expression, seen in results["by example"].items():
        refused = {**UNDONE, **REFUSED.get(stage, {})}.get(expression)
        if refused:
            assert refused in seen["refused"], expression
        else:
            whole = runs.run(expression, keyed.KeyedTrainer, per_device_train_batch_size=16)
            runs.assert_same_logs(seen["logs"], whole.logs)
    for expression, seen in results["by position"].items():
        model = deepspeed_processes.language_model()
        whole = runs.run(expression, keyed.KeyedTrainer, per_device_train_batch_size=16, **model)
        runs.assert_same_logs(seen["logs"], whole.logs)
    bad = results["bad gradient"]
    assert [log["nonfinite_steps"] for log in bad["logs"]] == [1, 1]
    assert bad["finite"]
