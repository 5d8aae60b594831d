"""Runs that begin again, in a search, after another run or after running out of memory, begin clean."""

import pytest
import runs
import tiny
from transformers import TrainerCallback

from hf_rat import RegularizedTrainer, fgm

SEQUENTIAL = {"train_sampling_strategy": "sequential"}


def without_dropout():
    return tiny.tiny_model(dropout=0.0, _attn_implementation="eager")


class CountHooks(TrainerCallback):
    """Notes, at each step, the regularizer and the hooks on the word embeddings."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model, **kwargs):
        hooks = len(model.get_input_embeddings()._forward_hooks)
        self.seen.append((repr(self.trainer.regularization.regularizer), hooks))


def hooks_left(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_a_search_builds_each_trial_its_regularizer_and_hooks_never_pile_up():
    pytest.importorskip("optuna")
    notes, models = CountHooks(), []

    def model_init():
        models.append(tiny.tiny_model(dropout=0.1))
        return models[-1]

    notes.trainer = one = RegularizedTrainer(
        args=runs.arguments(reg="fgm", max_steps=2, learning_rate=1e-2),
        model_init=model_init,
        train_dataset=runs.examples(16),
        eval_dataset=runs.examples(8),
        data_collator=runs.collate,
        callbacks=[notes],
    )
    tried = []

    def space(trial):
        tried.append(trial.suggest_float("reg_epsilon", 0.1, 0.9))
        return {"reg_epsilon": tried[-1]}

    best = one.hyperparameter_search(
        hp_space=space, n_trials=3, direction="minimize", backend="optuna", compute_objective=lambda m: m["eval_loss"]
    )
    assert len(set(tried)) == 3
    assert best.hyperparameters["reg_epsilon"] in tried
    assert notes.seen == [(repr(fgm(epsilon=epsilon)), 1) for epsilon in tried for _ in range(2)]
    assert [hooks_left(model) for model in models] == [0] * len(models)


def test_training_twice_leaves_no_hooks():
    notes = CountHooks()
    notes.trainer = one = runs.trainer("rat + adversarial_dropout", count=4, options={"callbacks": [notes]})
    for _ in range(2):
        one.train()
        assert hooks_left(one.model) == 0
    assert [hooks for _, hooks in notes.seen] == [1, 1]


@pytest.mark.parametrize("failing", [1, 2])
def test_running_out_of_memory_leaves_nothing_behind(failing):
    """The clean or the adversarial pass of the first step fails, and the run begins again with smaller batches."""
    settings = {"count": 8, **SEQUENTIAL}
    passes = []

    def out_of_memory(*_):
        passes.append(1)
        if len(passes) == failing:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB.")

    one = runs.trainer(
        "fgm(epsilon=0.5)",
        model=without_dropout(),
        auto_find_batch_size=True,
        per_device_train_batch_size=8,
        **settings,
    )
    one.model.classifier.register_forward_hook(out_of_memory)
    one.train()
    smaller = one._train_batch_size
    assert smaller < 8
    reference = runs.run("fgm(epsilon=0.5)", model=without_dropout(), per_device_train_batch_size=smaller, **settings)
    assert runs.ran(one).logs == reference.logs
    runs.assert_same_weights(runs.ran(one).weights, reference.weights)
    assert hooks_left(one.model) == 1, "only the hook of this test is left"
