"""Regularizing a part of each micro-batch: `examples=`, `which=`.

The law at random: over all subsets of a micro-batch, the mean of the gradients is that of the whole batch. Dropout and
noise are keyed by example (keyed.py), so that an example has the same masks whatever subset it is in.
"""

import copy
import inspect
import itertools
import json

import keyed
import launches
import pytest
import tiny
import tiny_tasks
import torch
from tiny import assert_same_gradients, gradients, tiny_batch, tiny_model
from torch import nn
from torch.nn import functional as F

from hf_rat import Regularization, parse
from hf_rat.engine.chosen_examples import ChosenExamples
from hf_rat.engine.probes import PassProbe
from hf_rat.passes.part import Part
from hf_rat.regularizers import RECIPES, terms
from hf_rat.regularizers.recipes import fgm, rat

pytestmark = pytest.mark.filterwarnings("ignore:.*has no dropout", "ignore:.*was exactly 0 in the first")

STRONG = {
    "fgm": "fgm(epsilon=0.5{})",
    "fgsm": "fgsm(epsilon=0.05{})",
    "pgd": "pgd(epsilon=0.5, step=0.3, steps=2, start=0.2{})",
    "rdrop": "rdrop(passes=3{})",
    "rat": "rat(epsilon=0.5{})",
    "fraternal": "fraternal(alpha=0.5{})",
    "pi_model": "pi_model(alpha=3.0{})",
    "expectation_linear": "expectation_linear(alpha=0.5{})",
    "vat": "vat(epsilon=0.5, start=0.3{})",
    "smart": "smart(epsilon=0.1, step=0.1, start=0.05{})",
    "mean_teacher": "mean_teacher(alpha=9.0{})",
    "r3f": "r3f(epsilon=0.2{})",
    "adversarial_dropout": "adversarial_dropout(rate=0.2{})",
    "anchor": "anchor(alpha=1.0{})",
}
"""The recipes that can be asked of a part, so strong that what they add is far from nothing."""

SAME_MASKS = [name for name in STRONG if name not in ("pgd", "vat", "smart", "adversarial_dropout")]
"""Those that draw for an example what they draw of the whole batch; the others have a first pass of the part's own."""

COMPOSED = [
    "fgm(epsilon=0.5{0}) + 0.5 * fraternal()",
    "fgm(epsilon=0.5{0}) + 0.5 * pi_model(alpha=2.0{0})",
    "rat(epsilon=0.9, unit='relative', scope='example'{0}) + pi_model(alpha=2.0)",
    "rat(epsilon=0.5, scope='table'{0})",
    "rat(epsilons=(0.5, 0.2), dropouts=(0.1, 0.3){0})",
]

FIRST_SLOPE = ["fgm(epsilon=0.5{0}) + rdrop(alpha=2.0{0})", "rdrop(alpha=2.0{0}) + fgm(epsilon=0.5)"]
"""What seeks along the slope of the task loss then has the slope of the one pass that all examples run."""


@pytest.fixture(autouse=True)
def _keyed(monkeypatch):
    start, identified = terms._start, keyed._identified

    def started(term, point):
        found = start(term, point)
        keyed._examples[0] = keyed._identified(found.batch.inputs["input_ids"])
        return found

    def by_all_texts(ids, mask=None):
        return identified(ids.flatten(1), torch.ones_like(ids).flatten(1))

    monkeypatch.setattr(keyed, "_identified", by_all_texts)
    monkeypatch.setattr(PassProbe, "why_one_by_one", lambda self, inputs: "so that they draw alike")
    with keyed.noise(), keyed.by_bucket():
        monkeypatch.setattr(terms, "_start", started)
        yield


def choose(monkeypatch, *orders):
    """The next choices take the first examples of these orders."""
    left = iter(orders)
    monkeypatch.setattr(ChosenExamples, "permute", lambda self, size: torch.tensor(next(left)))


def moved(model):
    """Weights other than those that training began with."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)


def run(regularizer, model, batches, labels=None, **settings):
    """(named losses, gradients) of a step over some micro-batches; what remembers the beginning was made before."""
    regularization = Regularization(parse(regularizer), model, length_buckets="off", **settings)
    moved(model)
    named = {}
    for batch in batches:
        keyed.begin(batch["input_ids"], batch["attention_mask"])
        losses = regularization.backward(batch, accumulation=len(batches), num_labels=labels)
        named = {name: named.get(name, 0.0) + float(x) / len(batches) for name, x in losses.items()}
    regularization.close()
    return named, gradients(model)


def mean(several):
    return {name: torch.stack([one[name] for one in several]).mean(0) for name in several[0]}


def assert_unbiased(monkeypatch, expression, model, batch, least=2e-3, **settings):
    """Over all choices of all but one example; and each choice by itself is another gradient."""
    size = len(batch["input_ids"])
    _, whole = run(expression.format(""), model(), [batch], **settings)
    found = []
    share = f", examples={(size - 1) / size:.2f}"
    for chosen in itertools.combinations(range(size), size - 1):
        choose(monkeypatch, [*chosen, *(row for row in range(size) if row not in chosen)])
        found.append(run(expression.format(share), model(), [batch], **settings)[1])
    assert_same_gradients(mean(found), whole)
    apart = max(float((one[name] - whole[name]).abs().max()) for one in found for name in whole)
    assert apart > least, "the choice changes nothing"


def test_the_recipes_with_passes_beside_the_clean_one_have_it():
    having = {name for name, build in RECIPES.items() if "examples" in inspect.signature(build).parameters}
    assert having == STRONG.keys()


@pytest.mark.parametrize("expression", [*(STRONG[name] for name in SAME_MASKS), *COMPOSED])
def test_on_average_over_all_choices_it_is_the_whole_batch(expression, monkeypatch):
    def model():
        return tiny_model(dropout=0.2, _attn_implementation="eager")

    assert_unbiased(monkeypatch, expression, model, tiny_batch(3))


OTHER_MASKS = [*(STRONG[name] for name in STRONG if name not in SAME_MASKS), *FIRST_SLOPE]


@pytest.mark.parametrize("expression", OTHER_MASKS)
def test_on_average_too_where_examples_have_other_masks(expression, monkeypatch):
    assert_unbiased(monkeypatch, expression, tiny_model, tiny_batch(3))


@pytest.mark.parametrize("kind", ["multi", "regression"])
def test_on_average_for_other_labels(kind, monkeypatch):
    labels = 1 if kind == "regression" else 3

    def model():
        return tiny_model(dropout=0.2, labels=labels, _attn_implementation="eager")

    assert_unbiased(monkeypatch, STRONG["rat"], model, tiny_batch(3, kind=kind))


UNEQUAL = [
    ("rat", "token_classification"),
    ("rdrop", "causal_lm"),
    ("rat", "seq2seq"),
    ("rdrop", "question_answering"),
]


@pytest.mark.parametrize(("name", "task"), UNEQUAL)
def test_on_average_where_examples_have_unequal_numbers_of_labels(name, task, monkeypatch):
    """One of the four has no label that counts, so that a choice may have next to none."""
    batch = tiny_tasks.collate(tiny_tasks.task_rows(task, 4))

    def model():
        return tiny_tasks.task_model(task, 0.2)

    assert_unbiased(monkeypatch, STRONG[name], model, batch, least=1e-3)


def test_on_average_where_an_example_is_several_texts(monkeypatch):
    """Their masks are not keyed by the example, so that there are none."""
    batch = tiny_tasks.collate(tiny_tasks.task_rows("multiple_choice", 4))
    assert_unbiased(monkeypatch, STRONG["rat"], lambda: tiny_tasks.task_model("multiple_choice"), batch, least=1e-3)


def test_a_choice_without_any_label_counts_nothing(monkeypatch):
    batch = tiny_tasks.collate(tiny_tasks.task_rows("token_classification", 4))
    choose(monkeypatch, [3, 0, 1, 2])
    named, found = run("rat(examples=0.25)", tiny_tasks.task_model("token_classification", 0.2), [batch])
    _, plain = run("plain", tiny_tasks.task_model("token_classification", 0.2), [batch])
    assert named["adversarial_task"] == named["adversarial_consistency"] == 0
    assert_same_gradients(found, plain)


def test_on_average_over_accumulated_micro_batches(monkeypatch):
    """4 = 2 x 2 with labels by position, of which micro-batches have unequal numbers, and so have the chosen ones."""
    rows = tiny_tasks.task_rows("token_classification", 4)
    batch = tiny_tasks.collate(rows)
    cut = [{name: x[half] for name, x in batch.items()} for half in (slice(2), slice(2, 4))]
    labels = int((batch["labels"] != -100).sum())

    def model():
        return tiny_tasks.task_model("token_classification", 0.2)

    _, whole = run("fgm(epsilon=0.5)", model(), [batch])
    found = []
    for first, second in itertools.product([[0, 1], [1, 0]], repeat=2):
        choose(monkeypatch, first, second)
        found.append(run("fgm(epsilon=0.5, examples=0.5)", model(), cut, labels)[1])
    assert_same_gradients(mean(found), whole)


def test_on_average_over_two_processes(tmp_path):
    launches.fork(launches.HERE / "part_processes.py", tmp_path / "seen.json", processes=2)
    seen = json.loads((tmp_path / "seen.json").read_text())
    first, second = seen["choices"]
    assert first != second  # each process has choices of its own
    for name, whole in seen["whole"].items():
        torch.testing.assert_close(torch.tensor(seen["mean"][name]), torch.tensor(whole), rtol=1e-4, atol=1e-5)
    assert max(torch.tensor(x).abs().max() for x in seen["whole"].values()) > 0.01


# -- by hand ---------------------------------------------------------------------------------------------------------


def fgm_by_hand(model, batch, rows, epsilon):
    """L(x) + the mean over the chosen rows of L(x + r), without dropout."""
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    rest = {name: batch[name] for name in ("attention_mask", "labels")}
    clean = model(inputs_embeds=embeddings, **rest)
    slope = torch.autograd.grad(clean.loss, embeddings, retain_graph=True)[0] * batch["attention_mask"].unsqueeze(-1)
    r = epsilon * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1)
    other = {name: x[rows] for name, x in rest.items()}
    return clean, model(inputs_embeds=(embeddings + r)[rows], **other).loss


@pytest.mark.parametrize("single_backward", [False, True])
@pytest.mark.parametrize("which", ["random", "hardest"])
def test_fgm_by_hand(which, single_backward, monkeypatch):
    batch, model = tiny_batch(5), tiny_model()
    choose(monkeypatch, [3, 0, 4, 1, 2])
    expression = f"fgm(epsilon=0.5, examples=0.6, which={which!r})"
    named, found = run(expression, model, [batch], single_backward=single_backward)
    model.zero_grad()
    logits = model(**batch).logits
    hardest = F.cross_entropy(logits, batch["labels"], reduction="none").argsort(descending=True)[:3]
    assert sorted(hardest.tolist()) != [0, 3, 4]
    clean, adversarial = fgm_by_hand(model, batch, [0, 3, 4] if which == "random" else hardest, 0.5)
    assert named == pytest.approx(
        {"task": float(clean.loss.detach()), "adversarial_task": float(adversarial.detach())}, rel=1e-5
    )
    (clean.loss + adversarial).backward()
    assert_same_gradients(found, gradients(model))


@pytest.mark.parametrize("task", ["token_classification", "causal_lm", "question_answering", "multiple_choice"])
def test_the_hardest_by_asking_of_each_example_alone(task):
    rows = tiny_tasks.task_rows(task, 4)
    batch, model = tiny_tasks.collate(rows), tiny_tasks.task_model(task)
    alone = [
        float(model(**{name: x[k : k + 1] for name, x in batch.items()}).loss.detach().nan_to_num()) for k in range(4)
    ]
    regularization = Regularization(fgm(examples=0.5, which="hardest"), model, length_buckets="off")
    seen = []
    model.register_forward_pre_hook(lambda module, args, inputs: seen.append(inputs["input_ids"]), with_kwargs=True)
    regularization.backward(batch)
    hardest = sorted(sorted(range(4), key=alone.__getitem__)[2:])
    assert torch.equal(seen[-1], batch["input_ids"][hardest])


# -- what it is not --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRONG)
def test_all_examples_are_no_argument(name):
    assert parse(STRONG[name].format(", examples=1.0")) == parse(STRONG[name].format(""))
    assert "examples" not in repr(parse(STRONG[name].format(", examples=1.0, which='random'")))
    some = parse(STRONG[name].format(", examples=0.25, which='hardest'"))
    assert parse(repr(some)) == some != parse(STRONG[name].format(", examples=0.25"))


def test_the_choice_disturbs_no_other_random_number():
    """The clean pass, its dropout and what is drawn next are those of training without a choice."""
    states = []
    for examples in (1.0, 0.5):
        torch.manual_seed(3)
        regularization = Regularization(rat(epsilon=0.0, alpha=0.0, passes=2, examples=examples), tiny_model())
        named = regularization.backward(tiny_batch(8))
        states.append((torch.get_rng_state(), named["task"]))
    assert torch.equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


def orders(regularization, count=4):
    return [regularization._chosen.permute(16).tolist() for _ in range(count)]


def test_choices_go_on_from_a_checkpoint():
    torch.manual_seed(7)
    one = Regularization(fgm(examples=0.5), tiny_model())
    orders(one)
    state = json.loads(json.dumps(one.state_dict()))
    then = orders(one)
    torch.manual_seed(8)
    other = Regularization(fgm(examples=0.5), tiny_model())
    assert orders(other) != then
    other.load_state_dict(state)
    assert orders(other) == then
    assert len({tuple(order) for order in then}) == 4


SHARES = [(0.5, 16, 8), (0.5, 1, 1), (0.1, 3, 1), (0.5, 3, 2), (0.9, 16, 14)]


@pytest.mark.parametrize(("share", "size", "count"), SHARES)
def test_how_many(share, size, count):
    assert Part(share).count(size) == count


def test_micro_batches_of_one_are_told_and_are_whole():
    batch, model = tiny_batch(1), tiny_model(dropout=0.2, _attn_implementation="eager")
    _, whole = run("rat(epsilon=0.5)", copy.deepcopy(model), [batch])
    with pytest.warns(UserWarning, match="micro-batch of 1 at least one is chosen, which is all"):
        _, found = run("rat(epsilon=0.5, examples=0.5)", model, [batch])
    assert_same_gradients(found, whole)


# -- with everything else --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fgm", "rat", "rdrop", "vat"])
def test_length_buckets_change_nothing(name, monkeypatch):
    batch = {**tiny_batch(8)}
    batch["attention_mask"] = batch["attention_mask"].clone()
    batch["input_ids"] = batch["input_ids"].clone()
    for row in (1, 2, 5):  # short ones, half of which are chosen
        batch["attention_mask"][row, 3:] = 0
        batch["input_ids"][row, 3:] = tiny.PAD
    found, tokens = [], []
    for buckets in ("off", "auto"):
        choose(monkeypatch, [1, 2, 4, 7, 0, 3, 5, 6])
        model = tiny_model()
        regularization = Regularization(parse(STRONG[name].format(", examples=0.5")), model, length_buckets=buckets)
        monkeypatch.setattr(regularization, "_bucket_overhead", 1.0)
        seen = []
        hook = lambda m, args, inputs, seen=seen: seen.append(inputs["input_ids"].numel())  # noqa: E731
        model.register_forward_pre_hook(hook, with_kwargs=True)
        keyed.begin(batch["input_ids"], batch["attention_mask"])
        regularization.backward(batch)
        found.append(gradients(model))
        tokens.append(seen)
    assert_same_gradients(*found)
    assert regularization.why_not_bucketed is None
    assert len(tokens[1]) > len(tokens[0])
    assert 4 * 7 in tokens[0]
    assert 2 * 3 in tokens[1]  # the two short ones that are chosen


def test_lean_memory_changes_nothing(monkeypatch):
    for name in ("rat", "rdrop"):
        found = []
        for memory in ("fast", "lean"):
            choose(monkeypatch, [0, 2, 1, 3])
            model = tiny_model(dropout=0.2, _attn_implementation="eager")
            found.append(run(STRONG[name].format(", examples=0.5"), model, [tiny_batch()], memory=memory)[1])
        assert_same_gradients(*found)


@pytest.mark.parametrize("which", ["random", "hardest"])
def test_the_rise_that_epsilon_is_held_at_is_that_of_the_chosen_ones(which, monkeypatch):
    batch, model = tiny_batch(), tiny_model()
    choose(monkeypatch, [0, 2, 1, 3])
    expression = f"fgm(epsilon=0.9, unit='relative', target=0.3, examples=0.5, which={which!r})"
    regularization = Regularization(parse(expression), model, length_buckets="off")
    named = regularization.backward(batch)
    losses = F.cross_entropy(model(**batch).logits, batch["labels"], reduction="none").detach()
    rows = [0, 2] if which == "random" else losses.topk(2).indices
    ((here, there),) = (x.tolist() for x in regularization.adaptive.sums.values())
    assert here == pytest.approx(float(losses[rows].mean()), rel=1e-5)
    assert there == pytest.approx(float(named["adversarial_task"]))


def test_unlabeled_examples_are_chosen_too(monkeypatch):
    unlabeled = {name: x for name, x in tiny_batch(6, seed=1).items() if name != "labels"}
    choose(monkeypatch, [0, 1, 2, 3], [5, 1, 4, 0, 2, 3])
    regularization = Regularization("vat(epsilon=0.5, start=0.3, examples=0.5)", tiny_model(), length_buckets="off")
    named = regularization.backward(tiny_batch(), unlabeled=unlabeled)
    assert named["unlabeled_smoothness"] > 0
    chosen = {name: x[[1, 4, 5]] for name, x in unlabeled.items()}
    # Without a graph to share, what is drawn alike is the direction of the start.
    keyed.begin(chosen["input_ids"], chosen["attention_mask"])
    hard = Regularization("vat(examples=0.5, which='hardest')", tiny_model(), length_buckets="off")
    with pytest.raises(ValueError, match="these examples have no labels"):
        hard.backward(tiny_batch(), unlabeled=unlabeled)


def test_a_schedule_asks_for_it_when_it_is_on():
    term = parse("rdrop(examples=0.5, begin=2)")
    off, on = (Regularization(term, tiny_model(dropout=0.2)).cost(step) for step in (1, 2))
    assert (off.forwards, off.backwards) == (1, 1)
    assert (on.forwards, on.backwards, on.graphs) == (1.5, 1.5, 1.5)
    assert str(on) == "1.5 forward and 1.5 backward passes"


# -- refusals --------------------------------------------------------------------------------------------------------


class Own(nn.Module):
    """A user's module; `reduce` makes the loss of the losses of the examples, `mixed` mixes the examples first."""

    def __init__(self, reduce=torch.mean, mixed=False, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.out = nn.Embedding(tiny.VOCABULARY, 8), nn.Linear(8, 3)
        self.reduce, self.mixed, self.scale = reduce, mixed, scale

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask, labels=None, names=None):
        x = self.words(input_ids).mean(1)
        logits = self.out(x - x.mean(0) if self.mixed else x)
        return self.reduce(self.scale * F.cross_entropy(logits, labels, reduction="none")), logits


def test_a_users_own_mean_is_right(monkeypatch):
    assert_unbiased(monkeypatch, "rat(epsilon=0.5{})", lambda: Own(scale=3.0), tiny_batch(), least=1e-4)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Own(torch.sum), "the loss of Own is no mean over them"),
        (Own(torch.amax), "the loss of Own is no mean over them"),
        (Own(mixed=True), "the logits of Own for one depend on the others"),
    ],
)
def test_a_loss_that_is_no_mean_over_examples_is_refused(model, says):
    regularization = Regularization(fgm(examples=0.5), model)
    with pytest.raises(ValueError, match=says) as refused:
        regularization.backward(tiny_batch())
    assert "\n" not in str(refused.value)
    assert not gradients(model)["words.weight"].any()


def test_the_hardest_of_a_loss_that_nobody_knows_are_refused():
    regularization = Regularization(fgm(examples=0.5, which="hardest"), Own(scale=3.0))
    with pytest.raises(ValueError, match="nobody can tell the hardest of them: the loss of Own is none of the usual"):
        regularization.backward(tiny_batch())


def test_statistics_over_a_batch_are_refused():
    model = tiny_model()
    model.classifier = nn.Sequential(nn.BatchNorm1d(16), model.classifier)
    with pytest.raises(ValueError, match="BatchNorm1d of BertForSequenceClassification couples those of a batch"):
        Regularization(fgm(examples=0.5), model)
    Regularization(fgm(), model)


def test_inputs_whose_rows_nobody_can_tell_are_refused():
    regularization = Regularization(fgm(examples=0.5), Own())
    with pytest.raises(ValueError, match="nobody can tell them: names is a list"):
        regularization.backward({**tiny_batch(), "names": ["a", "b", "c", "d"]})


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("fgm(which='hardest')", "chooses among the examples; give examples below 1"),
        ("fgm(examples=0.5, site='weights')", "under the same dropout masks; leave out examples"),
        ("freelb(examples=0.5)", "freelb has no argument 'examples'"),
        ("fgm(examples=0)", "examples must be a share of the examples, above 0 and at most 1"),
        ("fgm(examples=1.5)", "examples must be a share of the examples, above 0 and at most 1"),
        ("fgm(examples=0.5, which='easiest')", "which must be one of random, hardest"),
    ],
)
def test_what_cannot_be_asked(expression, says):
    with pytest.raises(ValueError, match=says) as refused:
        parse(expression)
    assert "\n" not in str(refused.value)
