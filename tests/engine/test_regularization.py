"""A regularizer at work: what it costs, when it begins, what is not finite, and what a checkpoint keeps."""

import inspect
import warnings

import pytest
import runs
import torch
from tiny import assert_same_gradients, gradients, tiny_batch, tiny_model
from torch import nn

from hf_rat import Regularization, adversarial_dropout, fgm, parse, plain, rat, rdrop, smart
from hf_rat.models.configuration_rnn import RNNConfig
from hf_rat.models.modeling_rnn import RNNForSequenceClassification
from hf_rat.regularizers import L2, RECIPES, Gradient, Smoothness

quiet = pytest.mark.filterwarnings("ignore:.*has no dropout")

SETTINGS = [
    *runs.SETTINGS,
    "pgd(steps=1)",
    "pgd(steps=2, start=0.1)",
    "freelb(steps=5)",
    "vat(steps=3)",
    "smart(steps=2)",
    "smart(mu=0)",
    "rdrop(passes=4)",
    "rat(passes=3)",
    "rat(dropouts=(0.1, 0.3))",
    "adversarial_dropout(start_mask='base')",
    "adversarial_dropout(steps=3, fixed=True)",
    "adversarial_dropout(base='random', steps=2)",
    "adversarial_dropout(base='random', fixed=True)",
    "rat(alpha=0)",
    "fgm + rdrop",
    "rat + fgm",
    "rdrop(passes=3) + vat",
    "freelb + pgd + 0.5 * neftune",
    "smart + adversarial_dropout + pi_model",
    "expectation_linear + 0 * vat",
]


class Counter:
    """Counts passes over the batch at a model: forwards, and traversals from the logits backwards."""

    def __init__(self, model, size):
        self.forwards = self.traversals = 0.0
        self.size = size
        model.register_forward_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs, outputs):
        if not torch.is_grad_enabled() and next(module.parameters()).requires_grad:
            return  # a look at the model, before its first batch, is no pass
        passes = kwargs["input_ids"].shape[0] / self.size
        self.forwards += passes
        if outputs.logits.requires_grad:
            outputs.logits.register_hook(lambda gradient: self._back(passes))

    def _back(self, passes):
        self.traversals += passes


def counted(expression, how):
    model, batch = tiny_model(dropout=0.1), tiny_batch()
    regularization = Regularization(parse(expression), model)
    seen = Counter(model, 4)
    anchor = regularization.weights.anchor
    copies = [kept for kept in (regularization.teacher, anchor and anchor.copy) if kept is not None]
    others = [Counter(kept.model, 4) for kept in copies]
    for site in regularization._sites.names:  # looking at the model once is no pass
        regularization._sites.open(site).geometry(batch)
    regularization._require_rates(batch)
    seen.forwards = 0.0
    if how == "streaming":
        regularization.backward(batch)
    else:
        torch.stack(list(regularization.losses(batch).values())).sum().backward()
    forwards = seen.forwards + sum(other.forwards for other in others)
    return forwards, seen.traversals, regularization.cost()


@pytest.mark.parametrize("expression", SETTINGS)
def test_the_cost_is_what_is_seen_at_the_model(expression):
    forwards, traversals, cost = counted(expression, "streaming")
    assert cost.forwards == forwards
    assert cost.backwards + cost.slopes == traversals


@pytest.mark.parametrize(
    ("expression", "forwards", "backwards", "slopes"),
    [
        ("plain", 1, 1, 0),
        ("fgm", 2, 2, 0),
        ("fgsm", 2, 2, 0),
        ("pgd(steps=3)", 4, 2, 2),
        ("pgd(steps=3, start=0.1)", 5, 2, 3),
        ("freelb(steps=3)", 3, 3, 0),
        ("neftune", 1, 1, 0),
        ("rdrop", 2, 2, 0),
        ("rdrop(passes=4)", 4, 4, 0),
        ("rat", 3, 3, 0),
        ("rat(passes=3)", 4, 4, 0),
        ("fraternal", 2, 2, 0),
        ("pi_model", 2, 2, 0),
        ("expectation_linear", 2, 2, 0),
        ("vat", 3, 2, 1),
        ("vat(steps=2)", 4, 2, 2),
        ("smart", 4, 2, 1),
        ("smart(mu=0)", 3, 2, 1),
        ("r3f", 2, 2, 0),
        ("adversarial_dropout", 3, 2, 1),
        ("sam", 2, 2, 0),
        ("sam(over='step')", 2, 2, 0),
        ("asam", 2, 2, 0),
        ("momentum_sam", 1, 1, 0),
        ("awp", 2, 2, 0),
        ("awp(inputs=0.1)", 3, 2, 1),
        ("mixout", 1, 1, 0),
        ("l2_sp", 1, 1, 0),
        ("anchor", 2, 1, 0),
        ("noisy_tune", 1, 1, 0),
        ("plain + sam", 2, 2, 0),
        ("rat + sam", 4, 4, 0),
        ("adversarial_dropout(fixed=True, steps=3)", 5, 2, 3),
        ("adversarial_dropout(base='random')", 4, 3, 1),
        ("adversarial_dropout(base='random', fixed=True, steps=2)", 5, 2, 2),
    ],
)
def test_the_cost_is_what_the_card_says(expression, forwards, backwards, slopes):
    cost = Regularization(parse(expression), tiny_model(dropout=0.1)).cost()
    assert (cost.forwards, cost.backwards, cost.slopes) == (forwards, backwards, slopes)


def test_a_cost_in_words():
    cost = Regularization(parse("vat"), tiny_model(dropout=0.1)).cost()
    assert str(cost) == "3 forward and 2 backward passes and 1 for slopes"
    assert str(Regularization(plain(), tiny_model()).cost()) == "1 forward and 1 backward passes"


@pytest.mark.parametrize("expression", SETTINGS)
def test_asking_for_the_cost_draws_no_random_numbers_and_runs_no_model(expression):
    model = tiny_model(dropout=0.1)
    state = torch.get_rng_state()
    regularization = Regularization(parse(expression), model)
    seen = Counter(model, 4)
    with torch.no_grad():
        regularization.cost()
    assert torch.equal(torch.get_rng_state(), state)
    assert seen.forwards == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_plain_is_the_model_bit_for_bit():
    model, batch = tiny_model(dropout=0.1), tiny_batch()
    torch.manual_seed(5)
    loss = model(**batch).loss
    loss.backward()
    expected = gradients(model)
    model.zero_grad()
    torch.manual_seed(5)
    losses = Regularization(plain(), model).backward(batch)
    assert list(losses) == ["task"]
    assert torch.equal(losses["task"], loss.detach())
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients(model).items())


# -- schedules -------------------------------------------------------------------------------------------------------


@quiet
@pytest.mark.parametrize("name", [name for name in RECIPES if "begin" in inspect.signature(RECIPES[name]).parameters])
def test_before_it_begins_a_recipe_is_plain(name):
    regularization = Regularization(RECIPES[name](begin=3), tiny_model())
    assert regularization.cost().forwards == Regularization(RECIPES[name](), tiny_model()).cost().forwards
    for step in (0, 2):
        assert (regularization.cost(step).forwards, regularization.cost(step).backwards) == (1, 1)
        assert list(regularization.backward(tiny_batch(), step=step)) == ["task"]
    assert regularization.cost(3) == regularization.cost()
    always = Regularization(RECIPES[name](), tiny_model()).backward(tiny_batch(), step=3)
    assert regularization.backward(tiny_batch(), step=3).keys() == always.keys()


@quiet
@pytest.mark.parametrize("name", ["fgm", "rat", "pgd", "vat"])
def test_the_regularizing_part_grows_linearly_over_the_warmup(name):
    """Full weight from step begin + warmup on; the clean task loss is never scaled."""
    begin, warmup = 2, 3

    def at(step, **schedule):
        torch.manual_seed(5)
        return Regularization(RECIPES[name](**schedule), tiny_model()).backward(tiny_batch(), step=step)

    full = at(0)
    for step, weight in ((1, 0.0), (2, 0.25), (3, 0.5), (4, 0.75), (5, 1.0), (6, 1.0), (1000, 1.0)):
        losses = at(step, begin=begin, warmup=warmup)
        assert losses.keys() == ({"task"} if weight == 0 else full.keys())
        for part, value in losses.items():
            expected = float(full[part]) * (1 if part == "task" else weight)
            assert float(value) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_a_schedule_inside_a_sum_is_its_own():
    regularization = Regularization(parse("fgm(begin=2) + vat"), tiny_model(dropout=0.1))
    assert regularization.backward(tiny_batch(), step=1).keys() == {"task", "smoothness"}
    assert regularization.backward(tiny_batch(), step=2).keys() == {"task", "adversarial_task", "smoothness"}


def test_a_sum_before_anything_begins_has_one_task_loss():
    regularization = Regularization(parse("freelb(begin=2) + rdrop(begin=2)"), tiny_model(dropout=0.1))
    assert list(regularization.backward(tiny_batch(), step=0)) == ["task"]
    assert regularization.cost(0).forwards == 1


# -- what is not finite ----------------------------------------------------------------------------------------------


def corrupt(model, value, calls):
    """The classifier's output becomes `value` in some calls (counted from 0), through a graph that goes on."""
    count = []

    def hook(module, args, output):
        if not torch.is_grad_enabled():  # a look at the model is no call
            return None
        count.append(1)
        return output * value if len(count) - 1 in calls else None

    model.classifier.register_forward_hook(hook)


@pytest.mark.parametrize("how", ["streaming", "single"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("expression", ["fgm", "rat", "fgsm", "pgd(steps=1)"])
def test_a_loss_that_is_not_finite_is_dropped_and_the_rest_is_plain(expression, value, how):
    model, batch = tiny_model(dropout=0.1), tiny_batch()
    regularization = Regularization(parse(expression), model, single_backward=how == "single")
    corrupt(model, value, {1})
    torch.manual_seed(5)
    losses = regularization.backward(batch)
    assert list(losses) == ["task"]
    assert regularization.nonfinite.steps == 1
    expected = tiny_model(dropout=0.1)
    torch.manual_seed(5)
    expected(**batch).loss.backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())
    assert_same_gradients(gradients(model), gradients(expected))


def test_nothing_finite_at_all_is_a_step_of_nothing():
    model = tiny_model(dropout=0.1)
    regularization = Regularization(rdrop(), model)
    corrupt(model, float("nan"), {0})
    assert regularization.backward(tiny_batch()) == {}
    assert regularization.nonfinite.steps == 1
    assert not any(gradient.any() for gradient in gradients(model).values())


def test_only_the_losses_that_are_not_finite_are_dropped():
    model = tiny_model(dropout=0.1)
    regularization = Regularization(parse("freelb(steps=3, start=0.1) + fgm"), model)
    # fgm's clean pass is call 0; freelb's three points come in the groups after it.
    corrupt(model, float("nan"), {2})
    losses = regularization.backward(tiny_batch())
    assert regularization.nonfinite.steps == 1
    assert losses.keys() == {"task", "adversarial_task"}
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


def test_a_step_counts_once_however_many_micro_batches_were_not_finite():
    model = tiny_model(dropout=0.1)
    regularization = Regularization(fgm(), model)
    corrupt(model, float("nan"), {1, 3, 5})
    for _ in range(2):
        regularization.backward(tiny_batch(), step=0)
    assert regularization.nonfinite.steps == 1
    regularization.backward(tiny_batch(), step=1)
    assert regularization.nonfinite.steps == 2
    regularization.backward(tiny_batch(), step=2)
    assert regularization.nonfinite.steps == 2


@quiet
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("expression", ["fgm", "fgsm", "rat", "pgd", "freelb(start=0)", "fgm(scope='table')"])
def test_a_slope_that_is_not_finite_gives_no_perturbation(expression, bad):
    """The gradient is spoilt on its way into frozen embeddings: the weights above them have good ones."""
    model = tiny_model()
    model.get_input_embeddings().requires_grad_(False)
    regularization = Regularization(parse(expression), model)
    moves = []

    def spoil(module, args, output):
        moves.append((output - module.weight[args[0]]).detach())
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * bad)

    model.get_input_embeddings().register_forward_hook(spoil)
    losses = regularization.backward(tiny_batch())
    assert len(moves) > 1
    assert not any(move.any() for move in moves)
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


def test_a_clean_loss_that_is_not_finite_gives_no_perturbation_either():
    model = tiny_model()
    regularization = Regularization(fgm(), model)
    corrupt(model, float("nan"), {0})
    losses = regularization.backward(tiny_batch())
    assert list(losses) == ["adversarial_task"]
    expected = tiny_model()
    loss = expected(**tiny_batch()).loss
    loss.backward()
    assert float(losses["adversarial_task"]) == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(gradients(model), gradients(expected))


# -- what a model must be --------------------------------------------------------------------------------------------

NEED_DROPOUT = (
    "rdrop",
    "rat",
    "fraternal",
    "pi_model",
    "expectation_linear",
    "adversarial_dropout(start_mask='base')",
)

WIDE = {"hidden_size": 32}
"""So that the rate of adversarial_dropout, 0.05 by default, flips a unit."""


@pytest.mark.parametrize("expression", NEED_DROPOUT)
def test_passes_that_differ_by_nothing_are_warned_about(expression):
    regularization = Regularization(parse(expression), tiny_model(**WIDE))
    with pytest.warns(UserWarning, match="BertForSequenceClassification has no dropout: the passes that") as caught:
        regularization.backward(tiny_batch())
    assert len(caught) == 1
    assert all("\n" not in str(warning.message) for warning in caught)


@pytest.mark.parametrize("expression", [name for name in SETTINGS if "smart" not in name])
def test_no_warning_where_passes_differ(expression):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Regularization(parse(expression), tiny_model(dropout=0.1, **WIDE)).backward(tiny_batch())
        if expression in ("fgm", "vat", "r3f", "pgd", "freelb", "plain", "neftune", "adversarial_dropout"):
            Regularization(parse(expression), tiny_model(**WIDE)).backward(tiny_batch())


def test_dropout_in_attention_alone_is_dropout():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Regularization(rdrop(), tiny_model("llama", dropout=0.1)).backward(tiny_batch())
    with pytest.warns(UserWarning, match="LlamaForSequenceClassification has no dropout"):
        Regularization(rdrop(), tiny_model("llama")).backward(tiny_batch())


def test_dropout_inside_recurrent_layers_is_dropout():
    rates = {"recurrent_dropouts": {"variational": 0.2, "per_step": []}, "classifier_dropout": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = RNNForSequenceClassification(RNNConfig(vocab_size=60, hidden_size=4, num_labels=3, **rates))
        Regularization(rdrop(), model).backward(tiny_batch())
    rates["recurrent_dropouts"] = {"variational": 0.0}
    model = RNNForSequenceClassification(RNNConfig(vocab_size=60, hidden_size=4, num_labels=3, **rates))
    with pytest.warns(UserWarning, match="RNNForSequenceClassification has no dropout"):
        Regularization(rdrop(), model).backward(tiny_batch())


def test_a_model_in_plain_torch_needs_no_config():
    model = Classifier(dropout=0.1)
    losses = Regularization(rat() + adversarial_dropout(rate=0.3), model).backward(tiny_batch())
    assert losses.keys() == {"task", "adversarial_task", "adversarial_consistency", "smoothness"}
    assert all(gradient.any() for gradient in gradients(model).values())


def test_a_loop_can_run_the_model_its_own_way():
    """A `run` of one's own: another task loss, here with weighted classes, is used at every point."""
    model, batch = tiny_model(), tiny_batch()
    weights = torch.tensor([0.2, 1.0, 3.0])

    def run(model, inputs):
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        return nn.functional.cross_entropy(logits, labels, weight=weights), logits

    losses = Regularization(fgm(epsilon=0.3), model, run=run).backward(batch)
    table = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    inputs = {"attention_mask": batch["attention_mask"]}
    logits = model(inputs_embeds=table, **inputs).logits
    task = nn.functional.cross_entropy(logits, batch["labels"], weight=weights)
    (slope,) = torch.autograd.grad(task, table)
    moved = table + 0.3 * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1)
    logits = model(inputs_embeds=moved, **inputs).logits
    adversarial = nn.functional.cross_entropy(logits, batch["labels"], weight=weights)
    assert float(losses["task"]) == pytest.approx(task.item(), rel=1e-5)
    assert float(losses["adversarial_task"]) == pytest.approx(adversarial.item(), rel=1e-5)


# -- what a checkpoint keeps -----------------------------------------------------------------------------------------


def test_the_unit_of_epsilon_survives_training_and_a_checkpoint():
    model, batch = tiny_model(), tiny_batch()
    regularizer = fgm(epsilon=0.1, unit="embedding")
    first = Regularization(regularizer, model)
    torch.manual_seed(5)
    expected = first.backward(batch)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(10)
    kept = first.state_dict()
    first.close()
    again = Regularization(regularizer, model)
    again.load_state_dict(kept)
    assert kept["embedding_norms"] == again.state_dict()["embedding_norms"]
    assert kept["regularizer"] == repr(regularizer)
    with torch.no_grad():
        model.get_input_embeddings().weight.div_(10)
    torch.testing.assert_close(again.backward(batch), expected)


def test_a_unit_that_could_not_be_measured_survives_a_checkpoint(monkeypatch):
    """A scaled table that FSDP2 shards has none."""
    monkeypatch.setattr("hf_rat.passes.sites.embeddings.mean_norm", lambda module: None)
    kept = Regularization(fgm(), tiny_model()).state_dict()
    again = Regularization(fgm(), tiny_model())
    again.load_state_dict(kept)
    assert kept["embedding_norms"] == again.state_dict()["embedding_norms"] == {"embeddings": None}


def test_the_count_of_non_finite_steps_survives_a_checkpoint():
    regularization = Regularization(fgm(), tiny_model())
    regularization.load_state_dict({"nonfinite_steps": 3})
    regularization.nonfinite.count(7)
    assert regularization.state_dict()["nonfinite_steps"] == 4


def test_the_average_of_smart_survives_a_checkpoint(tmp_path):
    model = tiny_model(dropout=0.1)
    first = Regularization(smart(), model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    first.after_step()
    first.teacher.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.safetensors"]
    second = Regularization(smart(), tiny_model(dropout=0.1))
    second.teacher.load(tmp_path)
    for name, value in first.teacher.model.state_dict().items():
        assert torch.equal(second.teacher.model.state_dict()[name], value)


def test_a_checkpoint_without_the_average_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"teacher\.safetensors is missing") as error:
        Regularization(smart(), tiny_model(dropout=0.1)).teacher.load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_average_is_not_trained_has_no_hook_of_ours_and_no_dropout():
    regularization = Regularization(smart() + fgm(), tiny_model(dropout=0.1))
    teacher = regularization.teacher.model
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module._forward_hooks for module in teacher.modules())
    regularization.backward(tiny_batch())
    assert all(parameter.grad is None for parameter in teacher.parameters())


# -- compiled --------------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """A classifier in plain torch, quick to compile."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.embedding, self.inner = nn.Embedding(60, 8, padding_idx=0), nn.Linear(8, 8)
        self.drop, self.output = nn.Dropout(dropout), nn.Linear(8, 3)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask, labels):
        hidden = self.inner(self.drop(self.embedding(input_ids))).tanh()
        mask = attention_mask.unsqueeze(-1)
        logits = self.output((hidden * mask).sum(1) / mask.sum(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@quiet
@pytest.mark.parametrize(
    ("family", "expression"),
    [
        (None, "rat(passes=3)"),
        (None, "vat(steps=2)"),
        (None, "freelb"),
        (None, "adversarial_dropout(rate=0.4)"),
        pytest.param("bert", "rat", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_model_does_the_same(family, expression):
    torch._dynamo.reset()
    eager, compiled = (tiny_model(family, num_hidden_layers=1) if family else Classifier() for _ in range(2))
    compiled.load_state_dict(eager.state_dict())
    wrapped = torch.compile(compiled, backend="aot_eager")
    regularizations = [Regularization(parse(expression), model) for model in (eager, wrapped)]
    for seed in range(3):
        found = []
        for regularization in regularizations:
            torch.manual_seed(seed)
            found.append(regularization.backward(tiny_batch(seed=seed)))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
        if expression.startswith("rat"):
            assert found[0]["adversarial_task"] > found[0]["task"]
        assert_same_gradients(gradients(compiled), gradients(eager))
        for regularization in regularizations:
            regularization.unwrapped.zero_grad()


def test_a_search_alone_leaves_no_gradient_in_the_parameters():
    model = tiny_model(dropout=0.1)
    term = Smoothness(Gradient(L2(1.0), start=0.1, steps=3), "kl")
    named = Regularization(term, model).losses(tiny_batch(kind="none"))
    assert named.keys() == {"smoothness"}
    assert all(parameter.grad is None for parameter in model.parameters())
