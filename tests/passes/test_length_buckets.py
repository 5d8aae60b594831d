"""A batch that is split by length gives the loss and the gradients of the padded batch."""

from itertools import combinations

import keyed
import pytest
import runs
import tiny
import tiny_tasks
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ConvBertConfig,
    ConvBertForSequenceClassification,
    Trainer,
)
from transformers.loss.loss_utils import LOSS_MAPPING

from hf_rat import (
    Regularization,
    RegularizationMixin,
    RegularizedTrainer,
    parse,
)
from hf_rat.engine import bucketing_policy as length_buckets
from hf_rat.engine import regularization
from hf_rat.models import RNNConfig, RNNForSequenceClassification
from hf_rat.passes.length_buckets import Bucket, buckets, join, partition

WITHOUT_TEXTS = ("l2_sp", "noisy_tune")  # what they ask is no matter of the batch, and nothing at the first step
_ASKING = [expression for name, expression in runs.SETTINGS.items() if name not in WITHOUT_TEXTS]
EVERY = [*_ASKING, *runs.COMPOSED, "rat(epsilon=0.5, scope='table')", "pgd(epsilon=0.5, scope='table')"]


@pytest.fixture
def split(monkeypatch):
    """Forwards cost nothing beside their tokens: every length gets a bucket of its own."""
    monkeypatch.setattr(regularization, "overhead", lambda model: 0.0)


def batch(labels=3, count=12):
    rows = runs.examples(count, labels)
    return runs.collate(rows)


# -- where to cut ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overhead", [0, 1, 5, 30])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_partition_is_cheaper(seed, overhead):
    lengths = sorted(torch.randint(1, 30, (9,), generator=torch.Generator().manual_seed(seed)).tolist())

    def cost(ends):
        return sum((end - start) * lengths[end - 1] + overhead for start, end in zip([0, *ends], ends, strict=False))

    every = [[*inner, 9] for size in range(9) for inner in combinations(range(1, 9), size)]
    assert cost(partition(lengths, overhead)) == min(map(cost, every))


def test_each_example_is_in_one_bucket_and_none_is_cut():
    inputs = batch()
    split = buckets(inputs, overhead=0)
    assert sorted(torch.cat([bucket.rows for bucket in split]).tolist()) == list(range(12))
    for bucket in split:
        mask = inputs["attention_mask"][bucket.rows]
        assert mask[:, bucket.length :].sum() == 0
        assert mask[:, bucket.length - 1].any()


@pytest.mark.parametrize(
    "change",
    [
        {"attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])},  # padded on the left
        {"attention_mask": torch.tensor([[1, 0, 1], [1, 1, 1]])},
        {"attention_mask": None},
        {"bbox": torch.zeros(2, 3, 4)},  # per token or not? nobody can tell
        {"input_ids": torch.ones(2, 2, 3)},
    ],
    ids=str,
)
def test_a_batch_that_cannot_be_cut_stays_whole(change):
    whole = {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    assert len(buckets(whole, 0)) == 2
    assert buckets({**whole, **change}, 0) == []


def test_padding_of_all_examples_is_cut_off():
    inputs = {"input_ids": torch.ones(2, 8, dtype=torch.long), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    inputs["attention_mask"][:, 5:] = 0
    (bucket,) = buckets(inputs, 0)
    assert bucket.length == 5
    inputs["attention_mask"][:] = 0  # nothing but padding: one token is left
    assert [bucket.length for bucket in buckets(inputs, 0)] == [1]


def test_what_is_joined_was_cut():
    x = torch.randn(4, 5, 2)
    x[[0, 2], 3:] = 0
    split = [Bucket(torch.tensor([2, 0]), 3, 5), Bucket(torch.tensor([3, 1]), 5, 5)]
    parts = [bucket.move(x) for bucket in split]
    assert [tuple(part.shape) for part in parts] == [(2, 3, 2), (2, 5, 2)]
    assert torch.equal(join(parts, split), x)
    twice = [bucket.tile(2, 4) for bucket in split]
    assert torch.equal(join([bucket.move(torch.cat([x, -x])) for bucket in twice], twice), torch.cat([x, -x]))


# -- the same losses and gradients -----------------------------------------------------------------------------------


def one_step(expression, model, inputs, length_buckets, accelerator=None):
    """Named losses, gradients, and the shape of the input of each forward."""
    shapes = []
    model.zero_grad()
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    one = Regularization(parse(expression), model, length_buckets=length_buckets, accelerator=accelerator)
    try:
        with keyed.noise(), keyed.by_bucket():
            keyed.begin(inputs["input_ids"], inputs["attention_mask"])
            losses = one.backward(inputs)
    finally:
        one.close()
        handle.remove()
    return losses, tiny.gradients(model), shapes


def in_bf16(model, inputs):
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**inputs)
    return outputs.loss, outputs.logits


@pytest.mark.parametrize("forwards", [1, 2])
def test_autocast_casts_the_weights_once_for_all_buckets(forwards, split):
    """And their gradients; the model of a Trainer has an autocast of its own around each forward."""
    model = tiny.tiny_model(dropout=0.0, num_hidden_layers=1)
    shape = model.bert.encoder.layer[0].intermediate.dense.weight.shape
    regularization = Regularization(parse(("plain", "fgm")[forwards - 1]), model, run=in_bf16, length_buckets="auto")
    regularization.backward(batch())  # the first batch is looked at before
    with torch.profiler.profile(record_shapes=True) as profile:
        regularization.backward(batch())
    casts = [e for e in profile.events() if e.name == "aten::_to_copy" and e.input_shapes[0] == list(shape)]
    assert len(casts) == 2 * forwards  # there, and the gradient back


def test_the_autocast_around_a_step_is_left_as_it_is(split):
    def run(model, inputs):
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        outputs = model(**inputs)
        return outputs.loss.float(), outputs.logits.float()

    for around, expected in (
        (torch.autocast("cpu", torch.float16), (True, torch.float16)),
        (torch.autocast("cpu", enabled=False), (False, torch.bfloat16)),
    ):
        seen = []
        with around:
            Regularization(parse("fgm"), tiny.tiny_model(), run=run, length_buckets="auto").backward(batch())
        assert len(seen) > 2
        assert set(seen) == {expected}


@pytest.mark.parametrize(("expression", "tables"), [("fgm", 2), ("rat", 2), ("freelb(steps=3)", 3)])
def test_the_tables_gradient_is_made_once_for_a_point_and_not_for_each_bucket(expression, tables, split):
    """It is as large as the table, of which a bucket needs a few rows."""
    model = tiny.tiny_model(dropout=0.1)
    made = []

    def count(module, args, output):
        if output.requires_grad:  # the first look at the model needs none
            output.register_hook(lambda gradient: made.append(gradient.shape))

    model.bert.embeddings.word_embeddings.register_forward_hook(count)
    Regularization(parse(expression), model).backward(batch())
    assert len(made) == tables, made


@pytest.mark.parametrize("expression", [e for e in EVERY if e != "plain"])
def test_buckets_change_nothing(expression, split):
    model, inputs = tiny.tiny_model(dropout=0.1, _attn_implementation="eager"), batch()
    whole, gradients, whole_shapes = one_step(expression, model, inputs, "off")
    parts, of_parts, shapes = one_step(expression, model, inputs, "auto")
    assert sum(n * length for n, length in shapes) < sum(n * length for n, length in whole_shapes)
    assert sum(n for n, _ in shapes) == sum(n for n, _ in whole_shapes)
    assert parts.keys() == whole.keys()
    for name, value in whole.items():
        assert value > 1e-3, f"{name} is {value}: it proves nothing"
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(of_parts[name], gradient, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("expression", ["rat(epsilon=0.5)", "rdrop(passes=3) + 0.5 * vat(epsilon=0.5, start=0.5)"])
def test_labels_by_position_weigh_exactly(expression, split):
    model = tiny_tasks.task_model("token_classification", dropout=0.1)
    inputs = tiny_tasks.collate(tiny_tasks.task_rows("token_classification", 8))
    assert len(set((inputs["labels"] != -100).sum(1).tolist())) > 3  # one example has no label at all
    whole, gradients, whole_shapes = one_step(expression, model, inputs, "off")
    parts, of_parts, shapes = one_step(expression, model, inputs, "auto")
    assert sum(n * length for n, length in shapes) < sum(n * length for n, length in whole_shapes)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)
    tiny.assert_same_gradients(of_parts, gradients)


def test_a_regression_may_have_a_value_that_means_ignored_elsewhere(split):
    model, inputs = tiny.tiny_model(labels=1), batch()
    inputs["labels"] = torch.arange(12.0)
    inputs["labels"][2] = -100.0
    losses = [one_step("fgm(epsilon=0.5)", model, inputs, how)[0] for how in ("off", "auto")]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: tiny_tasks.task_model("question_answering"), "not known to judge every example by itself"),
        (lambda: tiny_tasks.task_model("causal_lm"), "not known"),
        (lambda: tiny.tiny_model("t5"), "encoder-decoder"),
        (lambda: nn.Linear(2, 2), "not known"),
        (lambda: _with_batch_norm(), "couples the examples"),
        (
            lambda: RNNForSequenceClassification(RNNConfig(vocab_size=9, hidden_size=4)),
            "recurrent layers skip padding",
        ),
    ],
)
def test_what_may_not_be_split_is_left_whole_and_says_why(model, reason):
    assert reason in str(length_buckets.why_not_bucketed("auto", False, ["embeddings"], model(), None))


def _convbert():
    sizes = {"hidden_size": 16, "embedding_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ConvBertConfig(**sizes, vocab_size=tiny.VOCABULARY, intermediate_size=24, initializer_range=0.3)
    return ConvBertForSequenceClassification(config)


@pytest.mark.parametrize("family", [*tiny.FAMILIES, "convbert"])
def test_only_models_for_which_padding_is_nothing_are_split(family):
    torch.manual_seed(0)
    model = (_convbert() if family == "convbert" else tiny.tiny_model(family)).eval()
    inputs = {name: x for name, x in batch().items() if name != "labels"}
    split = buckets(inputs, 0)
    assert len(split) > 2
    with torch.no_grad():
        whole = model(**inputs).logits
        parts = join([model(**bucket.inputs(inputs)).logits for bucket in split], split)
    alike = torch.allclose(parts, whole, rtol=1e-4, atol=1e-5)
    because = length_buckets.why_not_bucketed("auto", False, ["embeddings"], model, None)
    assert alike == (family not in ("xlnet", "convbert"))
    assert alike or "depends on the padding" in str(because)


def _with_batch_norm():
    model = tiny.tiny_model()
    model.bert.pooler.add_module("normalized", nn.BatchNorm1d(4))
    return model


def class_weighted(logits, labels, *args, **kwargs):
    """A mean over the weights of the classes, of which a bucket has others than the batch."""
    return nn.functional.cross_entropy(logits, labels, torch.tensor([1.0, 10.0, 100.0]))


def with_a_loss_function(monkeypatch):
    model = tiny.tiny_model("modernbert")
    model.loss_function = lambda labels, logits, **kwargs: class_weighted(logits, labels)
    return model


def with_a_loss_for_all(monkeypatch):
    loss = LOSS_MAPPING["ForSequenceClassification"]
    monkeypatch.setitem(
        LOSS_MAPPING, "ForSequenceClassification", lambda labels, logits, **_: 2 * loss(labels, logits)
    )
    return tiny.tiny_model("modernbert")


def with_a_forward(monkeypatch):
    """As a patch of an instance does it."""
    model, forward = tiny.tiny_model(), type(tiny.tiny_model()).forward

    def weigh(self, labels=None, **inputs):
        outputs = forward(self, **inputs)
        outputs.loss = class_weighted(outputs.logits, labels)
        return outputs

    model.forward = weigh.__get__(model)
    return model


def with_a_forward_for_all(monkeypatch):
    model = with_a_forward(monkeypatch)
    monkeypatch.setattr(type(model), "forward", model.forward.__func__)
    del model.forward
    return model


class Weighted(BertForSequenceClassification):
    """Registered for an Auto class, as custom models are."""

    def forward(self, labels=None, **inputs):
        outputs = super().forward(**inputs)
        outputs.loss = class_weighted(outputs.logits, labels)
        return outputs


def with_a_class(monkeypatch):
    model = tiny.tiny_model()
    model.__class__ = Weighted
    monkeypatch.setattr(length_buckets, "KNOWN", ({BertConfig: Weighted},))
    return model


@pytest.mark.parametrize(
    "build", [with_a_loss_function, with_a_loss_for_all, with_a_forward, with_a_forward_for_all, with_a_class]
)
def test_a_loss_that_is_not_known_to_be_a_mean_over_examples_leaves_the_batch_whole(build, split, monkeypatch):
    model = build(monkeypatch)
    inputs = batch()
    expected = model(**inputs).loss
    regularization = Regularization(parse("fgm(epsilon=0.5)"), model)
    assert regularization.backward(inputs)["task"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert "may give another loss than a mean over examples" in str(regularization.why_not_bucketed)


def test_autocast_of_accelerate_is_no_loss_of_ones_own():
    AcceleratorState._reset_state(reset_partial_state=True)  # that of a test before
    model = tiny.tiny_model(dropout=0.1)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    try:
        prepared = accelerator.prepare(model)
        assert Regularization(parse("rat"), prepared, accelerator=accelerator).why_not_bucketed is None
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_it_can_be_switched_off_and_a_run_of_ones_own_switches_it_off():
    model = tiny.tiny_model()
    assert Regularization(parse("rat"), model).why_not_bucketed is None
    assert Regularization(parse("plain"), model).why_not_bucketed == "training is plain"
    assert Regularization(parse("rat"), model, length_buckets="off").why_not_bucketed == "length_buckets is off"
    inside = Regularization(parse('rat(site="bert.encoder.layer.0")'), model)
    assert inside.why_not_bucketed == "the output of bert.encoder.layer.0 may not be cut with the tokens"
    own = Regularization(parse("rat"), model, run=lambda model, inputs: (None, model(**inputs).logits))
    assert own.why_not_bucketed == "length_buckets is off"
    with pytest.raises(ValueError, match="length_buckets='maybe' must be one of auto, off"):
        Regularization(parse("rat"), model, length_buckets="maybe")


def test_the_trainer_splits_and_a_loss_function_switches_it_off(split):
    def because(**options):
        trainer = runs.trainer("rat(epsilon=0.5)", model=tiny.tiny_model(dropout=0.1), **options)
        trainer.train()
        return trainer.regularization.why_not_bucketed

    assert because() is None
    assert because(length_buckets="off") == "length_buckets is off"

    def contrast(outputs, labels, num_items_in_batch):
        return outputs.logits.var()

    assert because(options={"compute_loss_func": contrast}) == "length_buckets is off"

    class Weighting(Trainer):
        """Its mean is one over the weights of the classes, and a bucket has others than the batch."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = nn.functional.cross_entropy(outputs.logits, labels, torch.tensor([1.0, 10.0, 100.0]))
            return (loss, outputs) if return_outputs else loss

    class Behind(RegularizationMixin, Weighting):
        pass

    class InFront(Weighting, RegularizedTrainer):
        pass

    assert because(kind=Behind) == "length_buckets is off"
    assert because(kind=InFront) == "length_buckets is off"
