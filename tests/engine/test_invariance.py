"""How a batch is cut up changes nothing: 16 examples = 4 x 4 accumulated = 2 processes x 8, for every recipe.

Losses, each logged component and the gradient norm agree to 1e-5. Without dropout the divergences of R-Drop and R-AT
would be zero and prove nothing, so dropout is on, and it and all noise are keyed by example (see keyed.py). The
24 examples make two steps of 16 and 8: the second is a short last window where the first is 4 x 4. Where labels are by
position, micro-batches and processes have unequal numbers of them.

`scope="table"` and `over="microbatch"` are exempt: they take one norm over a process's micro-batch. So is mixout,
which draws its weights for each.
"""

import json
from functools import cache

import keyed
import launches
import peft
import pytest
import runs
import tiny
import tiny_tasks
import torch
import two_processes
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_rat import Regularization, parse
from hf_rat.regularizers import RECIPES

EVERY = runs.INVARIANT
WHOLE = {"per_device_train_batch_size": 16}
CUT = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}


@pytest.fixture(autouse=True, scope="module")
def _keyed():
    # The compiler learns torch's functions by name once, and must not learn the keyed dropout in the place of torch's.
    torch.compile(torch.nn.functional.dropout, backend="eager")(torch.ones(1))
    with keyed.noise():
        yield


def run(expression, **settings):
    return runs.run(expression, keyed.KeyedTrainer, **settings)


@cache
def whole(expression):
    """The reference: one process, no accumulation."""
    return run(expression, **WHOLE)


def changes_rates(expression):
    return "dropouts" in expression or "expectation_linear" in expression


def test_no_recipe_is_idle():
    assert runs.STRONG.keys() <= RECIPES.keys()
    for expression in EVERY:
        last = whole(expression).logs[-1]
        components = {name: value for name, value in last.items() if name.startswith("loss_")}
        assert expression == "plain" or components
        idle = f"{expression}: {components} proves nothing; give it a row in STRONG of tests/support/runs.py"
        assert all(value > 0.005 for value in components.values()), idle


@pytest.mark.parametrize("expression", EVERY)
def test_accumulation_changes_nothing(expression):
    cut = run(expression, **CUT)
    runs.assert_same_logs(cut.logs, whole(expression).logs)
    for name, weight in whole(expression).weights.items():
        torch.testing.assert_close(cut.weights[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("expression", EVERY)
def test_a_single_backward_changes_nothing(expression):
    runs.assert_same_logs(run(expression, reg_single_backward=True, **CUT).logs, whole(expression).logs)


@pytest.mark.parametrize("expression", EVERY)
def test_checkpointing_changes_nothing(expression):
    if changes_rates(expression):
        with pytest.raises(ValueError, match="activation checkpointing"):
            run(expression, activation_checkpointing=True, **CUT)
    else:
        runs.assert_same_logs(run(expression, activation_checkpointing=True, **CUT).logs, whole(expression).logs)


@pytest.mark.parametrize("expression", EVERY)
def test_accumulation_changes_nothing_in_bf16(expression):
    # bf16 keeps 8 bits: one rounding is 4e-3. Batches of other sizes round elsewhere, and a flip of the first step's
    # adversarial mask or sign is carried into the second, so only the first is compared.
    one_step = {"count": 16, "bf16": True}
    runs.assert_same_logs(run(expression, **CUT, **one_step).logs, run(expression, **WHOLE, **one_step).logs, 3e-2)


def lora():
    torch.manual_seed(0)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=["query", "value"], lora_dropout=0.1, init_lora_weights=False
    )
    return peft.get_peft_model(tiny.tiny_model(dropout=0.1, _attn_implementation="eager"), config)


@pytest.mark.parametrize("expression", EVERY)
def test_accumulation_changes_nothing_with_lora(expression):
    before = {name: value.clone() for name, value in lora().state_dict().items()}
    cut = run(expression, model=lora(), **CUT)
    runs.assert_same_logs(cut.logs, run(expression, model=lora(), **WHOLE).logs)
    frozen = [name for name in before if "lora_" not in name and "modules_to_save" not in name]
    assert len(frozen) > 10
    runs.assert_same_weights({n: cut.weights[n] for n in frozen}, {n: before[n] for n in frozen})


# -- compiled --------------------------------------------------------------------------------------------------------


class BagOfWords(nn.Module):
    """A classifier that compiles in a second: word embeddings, dropout, mean, one hidden layer, dropout, logits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(tiny.VOCABULARY, 16)
        self.hidden = nn.Linear(16, 16)
        self.output = nn.Linear(16, 3)
        self.dropout = nn.Dropout(0.1)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask, labels=None):
        words = self.dropout(self.embedding(input_ids)) * attention_mask.unsqueeze(-1)
        logits = self.output(self.dropout(torch.tanh(self.hidden(words.sum(1)))))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def collate_to_one_length(rows):
    return runs.collate([*rows, {"input_ids": [1] * 7, "labels": 0}], drop=1)


def compiled_and_not(expression, model):
    options = {"data_collator": collate_to_one_length}
    eager = run(expression, model=model(), count=16, options=options, **WHOLE)
    torch._dynamo.reset()
    cut = run(
        expression,
        model=model(),
        count=16,
        options=options,
        torch_compile=True,
        torch_compile_backend="aot_eager",
        **CUT,
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    return cut.logs, eager.logs


# Keyed dropout does not see the rate that a pass is given once it is compiled; see the test after the next.
# A compiled model cannot be cut; see test_top.py.
@pytest.mark.parametrize("expression", [e for e in EVERY if not changes_rates(e) and "top=" not in e])
def test_compiling_changes_nothing(expression):
    runs.assert_same_logs(*compiled_and_not(expression, BagOfWords))


def one_layer():
    """BERT writes the kind of problem into its config in its first forward, and would be compiled anew for that."""
    once = {"num_hidden_layers": 1, "problem_type": "single_label_classification"}
    return tiny.tiny_model(dropout=0.1, _attn_implementation="eager", **once)


@pytest.mark.slow
def test_compiling_a_transformer_changes_nothing():
    runs.assert_same_logs(*compiled_and_not(runs.SETTINGS["rat"], one_layer))


def test_a_compiled_pass_has_its_own_rate():
    torch._dynamo.reset()
    batch = tiny.tiny_batch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "dropout", keyed.TORCH_DROPOUT)
        model = BagOfWords().train()
        compiled = torch.compile(model, backend="aot_eager")
        regularization = Regularization(parse("rat(epsilon=0, dropouts=(0.0, 0.0))"), compiled)
        named = regularization.losses(batch)
    assert named["adversarial_consistency"] == 0, "both adversarial passes run without dropout"
    assert named["adversarial_task"].item() == pytest.approx(model.eval()(**batch).loss.item(), rel=1e-6)
    assert named["task"].item() != pytest.approx(named["adversarial_task"].item(), rel=1e-4), "the clean one has it"


# -- labels by position ----------------------------------------------------------------------------------------------

LABELS_ONE_BY_ONE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16}


@cache
def whole_task(expression, task):
    return run_task(expression, task, **WHOLE)


def run_task(expression, task, **settings):
    options = tiny_tasks.options(task)
    return run(expression, model=tiny_tasks.task_model(task, 0.1), options=options, **settings)


def unequal(task):
    """How many labels count in each example."""
    return {sum(label != tiny_tasks.IGNORED for label in row["labels"]) for row in tiny_tasks.task_rows(task, 24)}


# One by one, the fourth example is a micro-batch in which nothing counts.
@pytest.mark.parametrize("cut", [CUT, LABELS_ONE_BY_ONE], ids=["4 x 4", "16 x 1"])
@pytest.mark.parametrize("task", tiny_tasks.INVARIANT)
@pytest.mark.parametrize("expression", runs.BY_POSITION)
def test_every_label_counts_alike(expression, task, cut):
    assert len(unequal(task)) > 2
    assert 0 in unequal(task)
    one, several = whole_task(expression, task), run_task(expression, task, **cut)
    assert all(value > 1e-3 for log in one.logs for name, value in log.items() if name.startswith("loss_"))
    runs.assert_same_logs(several.logs, one.logs)
    assert all(log.get("nonfinite_steps", 0) == 0 for log in several.logs)
    for name, weight in one.weights.items():
        torch.testing.assert_close(several.weights[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("expression", EVERY)
def test_every_label_counts_alike_for_every_recipe(expression):
    runs.assert_same_logs(run_task(expression, "causal_lm", **CUT).logs, whole_task(expression, "causal_lm").logs)


# -- two processes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two_processes.py wrote: once for all tests below."""
    result = tmp_path_factory.mktemp("two") / "result.json"
    launches.fork(launches.HERE / "two_processes.py", result, processes=2)
    return json.loads(result.read_text(encoding="utf-8"))


@pytest.mark.parametrize("grouping", two_processes.GROUPINGS)
@pytest.mark.parametrize("expression", EVERY)
def test_two_processes_change_nothing(two, expression, grouping):
    seen = two["grouped"][expression][grouping]
    reference = whole(expression).logs[: len(seen["logs"])]
    runs.assert_same_logs(seen["logs"], reference)
    assert seen["equal"], "the processes ended with different weights"


@pytest.mark.parametrize("grouping", two_processes.GROUPINGS)
@pytest.mark.parametrize("expression", EVERY)
def test_gradients_are_exchanged_once_per_step(two, expression, grouping):
    seen = two["grouped"][expression][grouping]
    assert seen["exchanges"] == len(seen["logs"])


@pytest.mark.parametrize("expression", two_processes.SPLIT)
def test_length_buckets_change_nothing_in_two_processes(two, expression):
    seen = two["split"][expression]
    runs.assert_same_logs(seen["logs"], whole(expression).logs[:1])
    assert seen["equal"]
    assert seen["exchanges"] == 1


@pytest.mark.parametrize("expression", two_processes.LEAN)
def test_lean_memory_changes_nothing_in_two_processes(two, expression):
    seen = two["lean"][expression]
    runs.assert_same_logs(seen["logs"], run(expression, reg_memory="lean", **WHOLE).logs[:1])
    assert seen["equal"]
    assert seen["exchanges"] == 1


@pytest.mark.parametrize("grouping", two_processes.BY_POSITION)
@pytest.mark.parametrize("task", tiny_tasks.INVARIANT)
@pytest.mark.parametrize("expression", runs.BY_POSITION)
def test_every_label_counts_alike_on_two_processes(two, expression, task, grouping):
    seen = two["by position"][f"{expression} on {task}"][grouping]
    runs.assert_same_logs(seen["logs"], whole_task(expression, task).logs[: len(seen["logs"])])
    assert seen["exchanges"] == len(seen["logs"])
    assert seen["equal"]


@pytest.mark.parametrize("grouping", [None, *two_processes.GROUPINGS])
def test_the_grouping_changes_nothing_beside_unlabeled_batches(two, grouping):
    """Each process takes its own part of the unlabeled examples; together they are those of one process."""
    options = {"unlabeled_dataset": runs.examples(40, seed=1), "data_collator": runs.collate_any}
    reference = run(runs.UNLABELED, count=16, options=options, **WHOLE).logs
    assert reference[0]["loss_unlabeled_smoothness"] > 0.005
    assert reference[0]["loss_unlabeled_noisy_smoothness"] > 0.005
    if grouping is None:
        seen = {"logs": run(runs.UNLABELED, count=16, options=options, **CUT).logs}
    else:
        seen = two["unlabeled"][grouping]
        assert seen["exchanges"] == 1
        assert seen["equal"]
    runs.assert_same_logs(seen["logs"], reference)


@pytest.mark.parametrize(("process", "sizes"), [("None", [8, 16]), ("0", [8, 8, 8]), ("1", [8, 8, 8])])
def test_processes_of_which_one_may_not_double_the_batch_run_alike(two, process, sizes):
    """The pass of the clean batch, and the two adversarial ones."""
    seen = two["draws for the batch in"][process]
    assert seen["sizes"] == [sizes, sizes]
    assert seen["equal"]


@pytest.mark.parametrize("name", two_processes.AVERAGED)
def test_two_processes_keep_the_average_of_one(two, name):
    how = two_processes.AVERAGED[name]
    options = {"eval_dataset": runs.examples(16, seed=2)}
    settings = {"average": how["average"], "options": options, **WHOLE, **two_processes.EVALUATED}
    one = runs.trainer(how["reg"], keyed.KeyedTrainer, **settings)
    one.train()
    seen = two["averaged"][name]
    runs.assert_same_logs(seen["logs"], runs.ran(one).logs)
    evaluated = [log["eval_loss"] for log in one.state.log_history if "eval_loss" in log]
    assert seen["eval losses"] == pytest.approx(evaluated, rel=1e-5)
    assert len(evaluated) == 3
    assert one.averaged_steps > 0
    assert seen["equal"], "the processes ended with different averages"


@pytest.mark.parametrize("case", ["adversarial pass", "adversarial pass, single backward"])
def test_a_bad_adversarial_pass_on_one_process_is_left_out_on_both(two, case):
    seen, plain = two["bad"][case], two["bad"]["plain"]
    assert seen["finite"]
    assert seen["equal"]
    (log,) = seen["logs"]
    assert log["nonfinite_steps"] == 1
    assert set(log) == {"loss", "loss_task", "grad_norm", "nonfinite_steps"}
    # What is left is plain training, on both.
    assert log["loss"] == pytest.approx(plain["logs"][0]["loss"], rel=1e-6)
    assert log["grad_norm"] == pytest.approx(plain["logs"][0]["grad_norm"], rel=1e-5)
    assert seen["exchanges"] == 1


def test_a_bad_clean_pass_on_one_process_is_left_out_on_both(two):
    seen = two["bad"]["clean pass"]
    assert seen["finite"]
    assert seen["equal"]
    assert seen["moved"], "the adversarial passes are still learned from"
    assert "loss_task" not in seen["logs"][0]
    assert seen["logs"][0]["loss"] == pytest.approx(
        seen["logs"][0]["loss_adversarial_task"] + seen["logs"][0]["loss_adversarial_consistency"], abs=1e-6
    )


def test_a_bad_gradient_on_one_process_skips_the_step_on_both(two):
    seen = two["bad"]["gradient"]
    assert seen["logs"][0]["nonfinite_steps"] == 1
    assert seen["finite"]
    assert seen["equal"]
    assert not seen["moved"]
