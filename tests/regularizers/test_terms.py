"""Laws of the algebra: which settings turn one recipe into another, how terms add and scale, and what a sum is."""

import pytest
import runs
import torch
from tiny import assert_same_gradients, gradients, tiny_batch, tiny_model

from hf_rat import Point, Regularization, fgm, freelb, parse, plain, rat, rdrop, vat
from hf_rat.engine.cost import rehearse
from hf_rat.regularizers import (
    L2,
    RECIPES,
    Adversarial,
    Ascent,
    Consistency,
    Gradient,
    Linf,
    Noise,
    Smoothness,
    TaskLoss,
    Term,
)
from hf_rat.regularizers.terms import count_groups

pytestmark = pytest.mark.filterwarnings("ignore:.*has no dropout")

SUMS = [
    "fgm + rdrop",
    "rdrop + 0.5 * vat",
    "rat(epsilon=0.1) + 0.5 * adversarial_dropout(rate=0.2)",
    "rat + fgm(epsilon=0.2) + 0.3 * pgd",
    "plain + freelb",
    "0.5 * (freelb + neftune) + rdrop(passes=3)",
    "smart(epsilon=0.01) + r3f(epsilon=0.01) + pi_model",
    "freelb + fgm + vat(steps=2)",
    "expectation_linear + fraternal",
    "2 * (rat(alpha=0.3, passes=3) + 0.1 * pgd(start=0.2))",
]
EVERYTHING = [*runs.SETTINGS, *SUMS]


def step(regularizer, dropout=0.1, seed=5, how="backward", batch=None, at=0, **settings):
    """(named losses, every parameter's gradient) of one micro-batch."""
    regularizer = parse(regularizer) if isinstance(regularizer, str) else regularizer
    model = tiny_model(dropout=dropout)
    regularization = Regularization(regularizer, model, **settings)
    torch.manual_seed(seed)
    batch = tiny_batch() if batch is None else batch
    if how == "backward":
        losses = regularization.backward(batch, step=at)
    else:
        losses = regularization.losses(batch, step=at)
        assert all(parameter.grad is None for parameter in model.parameters()), "a search moved a gradient"
        torch.stack(list(losses.values())).sum().backward()
        losses = {name: value.detach() for name, value in losses.items()}
    return losses, gradients(model)


def total(losses):
    return float(sum(losses.values()))


def same(one, other, losses=True):
    """The same total (and, unless told otherwise, that is all the names need), and the same gradients."""
    assert total(one[0]) == pytest.approx(total(other[0]), rel=1e-5)
    if losses:
        assert one[0].keys() == other[0].keys()
        for name, value in one[0].items():
            assert float(value) == pytest.approx(float(other[0][name]), rel=1e-4, abs=1e-7), name
    assert_same_gradients(one[1], other[1])


def combined(a, one, b, other):
    """a * one + b * other, of gradients."""
    return {name: a * one[name] + b * other[name] for name in one}


# -- streaming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "step", "expected"),
    [
        ("plain", 0, 1),
        ("fgm", 0, 2),  # the clean task loss, and the one there
        ("rdrop", 0, 1),
        ("rat", 0, 2),
        ("rat(begin=3)", 2, 1),
        ("rat(begin=3)", 3, 2),
        ("freelb(steps=4)", 0, 4),  # every point it visits, and no clean one
        ("pgd(steps=4)", 0, 2),
        ("vat", 0, 2),  # the clean task loss, and the smoothness there, whose reference is fixed
        ("plain + freelb(steps=4)", 0, 5),
        ("freelb(steps=4) + fgm + vat", 0, 7),
        ("fgm + 0.0 * freelb", 0, 2),
    ],
)
def test_how_many_groups_there_are_is_arithmetic(expression, step, expected):
    assert count_groups(parse(expression), step) == expected
    assert rehearse(parse(expression), step).groups == expected


def test_what_is_asked_at_every_point_is_asked_as_often_as_it_visits_points():
    every = Ascent(L2(1.0), step=0.1, steps=3, every=True)
    twice = Adversarial(every, fgm())
    assert count_groups(twice, 0) == rehearse(twice, 0).groups == 6
    assert count_groups(Adversarial(every, Consistency("kl")), 0) == 3


def test_a_term_that_does_not_say_how_many_groups_it_has_is_refused():
    with pytest.raises(TypeError, match="Silent defines elsewhere and not count_elsewhere"):

        class Silent(Term):
            def elsewhere(self, point):
                yield lambda: {"silent": point.task}


def test_a_term_that_says_another_number_of_groups_is_told():
    class Wrong(Term):
        learns_here = False

        def elsewhere(self, point):
            yield lambda: {"one": Point(point.batch).task}

        def count_elsewhere(self, step):
            return 2

    with pytest.raises(RuntimeError, match="has 1 groups of losses, and its count_elsewhere or visits say 2"):
        rehearse(Wrong(), 0)


class Own(Term):
    """Of a user: the task loss at a point found with the slope of the task loss, and once more."""

    def elsewhere(self, point):
        move = point.slope("embeddings").sign()
        yield lambda: {"own": point.at("embeddings", 0.1 * move).task}
        yield lambda: {"own_too": point.at("embeddings", -0.1 * move).task}

    def count_elsewhere(self, step):
        return 2

    @property
    def learns_here(self):
        return False


def test_a_term_of_ones_own_is_one_group_of_losses_after_the_other():
    losses, found = step(plain() + Own(), dropout=0.0)
    assert losses.keys() == {"task", "own", "own_too"}
    assert losses["own_too"] < losses["task"] < losses["own"]
    same((losses, found), step(plain() + Own(), dropout=0.0, how="losses"))


@pytest.mark.parametrize("expression", EVERYTHING)
def test_back_propagating_group_by_group_is_one_backward_of_the_sum(expression):
    streamed = step(expression)
    same(streamed, step(expression, how="losses"))
    same(streamed, step(expression, single_backward=True))


@pytest.mark.parametrize("expression", EVERYTHING)
def test_named_losses_sum_to_the_loss_that_is_back_propagated(expression):
    model = tiny_model(dropout=0.1)
    regularization = Regularization(parse(expression), model)
    loss, named = regularization.backward_all_but_last(tiny_batch())
    assert loss.requires_grad
    assert loss.item() == pytest.approx(total(named), rel=1e-5)
    assert not any(value.requires_grad for value in named.values())
    assert all(value.dim() == 0 for value in named.values())


@pytest.mark.parametrize("expression", EVERYTHING)
def test_accumulation_divides_gradients_and_not_the_losses(expression):
    model, batch = tiny_model(dropout=0.1), tiny_batch()
    regularization = Regularization(parse(expression), model)
    torch.manual_seed(5)
    losses = regularization.backward(batch, accumulation=4)
    whole = step(expression)
    assert total(losses) == pytest.approx(total(whole[0]), rel=1e-5)
    assert_same_gradients({name: 4 * g for name, g in gradients(model).items()}, whole[1])


@pytest.mark.parametrize("expression", ["fgm", "rat", "pgd", "freelb", "vat"])
def test_what_earlier_micro_batches_left_in_grad_changes_no_direction(expression):
    model, batch = tiny_model(dropout=0.1), tiny_batch()
    regularization = Regularization(parse(expression), model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    torch.manual_seed(5)
    losses = regularization.backward(batch)
    alone = step(expression)
    assert total(losses) == pytest.approx(total(alone[0]), rel=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient - 100.0, alone[1][name], rtol=1e-3, atol=1e-4)


# -- which settings turn one recipe into another ---------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["example", "table"])
def test_one_step_of_pgd_as_long_as_epsilon_is_fgm(scope):
    one_step = step(f"pgd(epsilon=0.4, step=0.4, steps=1, scope={scope!r})")
    same(one_step, step(f"fgm(epsilon=0.4, scope={scope!r})"))


def test_freelb_of_one_step_from_zero_is_plain():
    same(step("freelb(steps=1, start=0)"), step("plain"), losses=False)


@pytest.mark.parametrize("name", ["vat", "smart", "r3f", "adversarial_dropout", "pi_model", "expectation_linear"])
def test_alpha_zero_is_plain_and_costs_as_much(name):
    regularizer = RECIPES[name](alpha=0)
    same(step(regularizer), step("plain"))
    cost = Regularization(regularizer, tiny_model(dropout=0.1)).cost()
    assert (cost.forwards, cost.backwards, cost.slopes, cost.groups) == (1, 1, 0, 1)


@pytest.mark.parametrize("passes", [2, 3])
def test_rdrop_of_alpha_zero_is_the_mean_of_its_passes(passes):
    model, batch = tiny_model(dropout=0.1), tiny_batch()
    torch.manual_seed(5)
    tiled = {name: value.repeat(passes, *[1] * (value.dim() - 1)) for name, value in batch.items()}
    logits = model(**tiled).logits.chunk(passes)
    losses = [torch.nn.functional.cross_entropy(z, batch["labels"]) for z in logits]
    (sum(losses) / passes).backward()
    assert losses[0].item() != losses[1].item()
    ours = step(rdrop(alpha=0, passes=passes))
    assert total(ours[0]) == pytest.approx(sum(losses).item() / passes, rel=1e-5)
    assert_same_gradients(ours[1], gradients(model))


def test_rat_of_epsilon_zero_is_plain_plus_rdrop():
    model, batch = tiny_model(dropout=0.1), tiny_batch()
    parts = [Regularization(part, model) for part in (plain(), rdrop(alpha=2))]
    torch.manual_seed(5)
    losses = [part.backward(batch) for part in parts]
    ours = step(rat(epsilon=0, alpha=2))
    assert float(ours[0]["task"]) == pytest.approx(float(losses[0]["task"]), rel=1e-5)
    assert float(ours[0]["adversarial_task"]) == pytest.approx(float(losses[1]["task"]), rel=1e-5)
    assert float(ours[0]["adversarial_consistency"]) == pytest.approx(float(losses[1]["consistency"]), rel=1e-4)
    assert_same_gradients(ours[1], gradients(model))


@pytest.mark.parametrize("scope", ["example", "table"])
@pytest.mark.parametrize("passes", [2, 3])
def test_rat_without_dropout_is_fgm(passes, scope):
    ours = step(rat(epsilon=0.4, alpha=3, passes=passes, scope=scope), dropout=0)
    assert float(ours[0]["adversarial_consistency"]) == pytest.approx(0, abs=1e-6)
    same(ours, step(fgm(epsilon=0.4, scope=scope), dropout=0), losses=False)


def test_rat_of_alpha_zero_asks_for_no_divergence():
    ours = step(rat(epsilon=0.4, alpha=0))
    assert ours[0].keys() == {"task", "adversarial_task"}


def test_fgm_of_epsilon_zero_is_two_task_losses():
    model, batch = tiny_model(dropout=0.1), tiny_batch()
    torch.manual_seed(5)
    losses = [model(**batch).loss, model(**batch).loss]
    sum(losses).backward()
    ours = step(fgm(epsilon=0))
    assert total(ours[0]) == pytest.approx(sum(losses).item(), rel=1e-5)
    assert_same_gradients(ours[1], gradients(model))


def test_equal_epsilons_are_one_epsilon():
    same(step(rat(epsilon=0.4)), step(rat(epsilons=(0.4, 0.4))))


def test_dropout_rates_equal_to_the_models_own_are_its_own():
    """Then the passes run one by one instead of as one tiled batch, which must change nothing."""
    same(step(rat(dropouts=(0.1, 0.1)), dropout=0), step(rat(), dropout=0))


# -- sums and factors ------------------------------------------------------------------------------------------------

PAIRS = [
    ("fgm", "rdrop"),
    ("rat(epsilon=0.2)", "fgsm"),
    ("pgd", "rdrop(passes=3)"),
    ("plain", "fgm"),
    ("fgm", "fgm(epsilon=0.1)"),
    ("fraternal", "expectation_linear"),
    ("freelb(start=0)", "pi_model"),
    ("freelb(start=0)", "freelb(start=0, steps=2)"),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_sums_commute(one, other):
    same(step(f"{one} + {other}", dropout=0), step(f"{other} + {one}", dropout=0))


def test_sums_associate():
    one, other, third = parse("fgm"), parse("rdrop"), parse("pgd")
    same(step((one + other) + third, dropout=0), step(one + (other + third), dropout=0))


@pytest.mark.parametrize(("one", "other"), [pair for pair in PAIRS if not pair[0].startswith("freelb")])
def test_a_sum_has_one_clean_task_loss_and_both_regularizing_parts(one, other):
    """Without dropout every clean task loss is the same, so a sum is one + other - plain."""
    both = step(f"{one} + {other}", dropout=0)
    left, right, clean = (step(expression, dropout=0) for expression in (one, other, "plain"))
    assert float(both[0]["task"]) == pytest.approx(float(clean[0]["task"]), rel=1e-5)
    assert total(both[0]) == pytest.approx(total(left[0]) + total(right[0]) - total(clean[0]), rel=1e-5)
    assert_same_gradients(both[1], combined(1, combined(1, left[1], 1, right[1]), -1, clean[1]))


@pytest.mark.parametrize("sum_of", [lambda a, b: a + b, lambda a, b: b + a])
def test_the_clean_task_loss_of_a_sum_is_that_of_the_operand_with_most_passes(sum_of):
    expected = step(rdrop(passes=3, alpha=0))[0]["task"]
    for alpha in (0, 1):
        losses, _ = step(sum_of(fgm(), rdrop(passes=3, alpha=alpha)))
        assert float(losses["task"]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("expression", ["freelb(start=0)", "neftune(epsilon=0)"])
def test_what_replaces_the_task_loss_is_added_in_a_sum(expression):
    alone, clean = step(expression, dropout=0), step("plain", dropout=0)
    both = step(f"plain + {expression}", dropout=0)
    assert both[0].keys() == alone[0].keys() | {"task"}
    assert total(both[0]) == pytest.approx(total(alone[0]) + total(clean[0]), rel=1e-5)
    assert_same_gradients(both[1], combined(1, alone[1], 1, clean[1]))


@pytest.mark.parametrize("factor", [0.5, 3.0])
@pytest.mark.parametrize("expression", ["fgm", "rat", "pgd", "rdrop", "fraternal", "vat", "r3f(epsilon=0.1)"])
def test_a_factor_scales_the_regularizing_part_alone(expression, factor):
    whole, scaled, clean = (step(e, dropout=0) for e in (expression, f"{factor} * {expression}", "plain"))
    assert scaled[0].keys() == whole[0].keys()
    for name, value in whole[0].items():
        times = 1 if name == "task" else factor
        assert float(scaled[0][name]) == pytest.approx(times * float(value), rel=1e-4, abs=1e-7)
    assert_same_gradients(scaled[1], combined(factor, whole[1], 1 - factor, clean[1]))


def test_a_factor_scales_all_of_what_replaces_the_task_loss():
    whole, scaled = step("freelb", dropout=0), step("0.5 * freelb", dropout=0)
    assert total(scaled[0]) == pytest.approx(0.5 * total(whole[0]), rel=1e-5)
    assert_same_gradients(scaled[1], combined(0.5, whole[1], 0, whole[1]))


def test_factors_multiply_and_distribute():
    same(step("2 * (0.5 * fgm)"), step("fgm"))
    same(step("0.5 * (fgm + rdrop)", dropout=0), step("0.5 * fgm + 0.5 * rdrop", dropout=0))
    same(step("0.5 * rdrop(alpha=2)"), step("rdrop(alpha=1)"))
    same(step("3 * vat(alpha=2)"), step("vat(alpha=6)"))


def test_a_factor_of_zero_is_plain_and_skips_the_passes():
    same(step("0 * (fgm + vat + pgd)"), step("plain"))
    assert Regularization(parse("0 * (fgm + vat)"), tiny_model()).cost().forwards == 1


def test_a_factor_that_leaves_no_loss_is_refused():
    with pytest.raises(ValueError, match="leaves no loss to train on") as error:
        Regularization(0 * freelb(), tiny_model())
    assert "\n" not in str(error.value)


# -- terms that are no recipe ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "term",
    [
        Smoothness(Gradient(L2(0.5), start=0.1), "kl"),
        Smoothness(Noise(Linf(0.1)), "bi_kl", fixed=False),
        Consistency("js", passes=3),
        Adversarial(Noise(L2(3.0)), Consistency("bi_kl")),
        0.5 * Consistency("kl") + Smoothness(Gradient(L2(0.5), start=0.1), "js"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("labels", ["single", "none"])
def test_terms_without_a_task_loss_need_no_labels(term, labels):
    losses, found = step(term, batch=tiny_batch(kind=labels))
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())
    assert any(gradient.any() for gradient in found.values())
    same((losses, found), step(term, batch=tiny_batch(kind="none"), how="losses"))


@pytest.mark.parametrize("expression", EVERYTHING)
def test_a_task_loss_without_labels_is_one_line(expression):
    with pytest.raises(
        ValueError, match="returned no loss for a batch of input_ids, attention_mask: the task loss needs labels"
    ) as error:
        step(expression, batch=tiny_batch(kind="none"))
    assert "\n" not in str(error.value)


def test_vat_on_labelled_and_unlabelled_batches_together():
    """Semi-supervised training: vat's smoothness term on a batch without labels, the whole of vat on one with them."""
    smoothness = Smoothness(Gradient(L2(1.0), start=0.1), "kl")
    model = tiny_model(dropout=0.1)
    labelled, unlabelled = Regularization(vat(), model), Regularization(smoothness, model)
    torch.manual_seed(5)
    assert labelled.backward(tiny_batch()).keys() == {"task", "smoothness"}
    before = gradients(model)
    assert unlabelled.backward(tiny_batch(kind="none", seed=1)).keys() == {"smoothness"}
    assert any(not torch.equal(before[name], gradient) for name, gradient in gradients(model).items())


def test_a_new_method_is_an_expression():
    """FGM that climbs the task loss in a box and asks for agreement there: nothing but the parts there are."""
    term = TaskLoss() + Adversarial(Gradient(Linf(0.02)), 0.5 * Consistency("js", passes=2))
    assert step(term)[0].keys() == {"task", "adversarial_consistency"}


def test_plain_adds_nothing_to_rdrop_and_rat_of_epsilon_zero_is_one_task_loss_more():
    """What the card of rat says, in numbers."""
    model, batch = tiny_model(), tiny_batch()
    task = model(**batch).loss.item()
    rdrop_alone, with_plain, at_zero = (
        total(step(term, dropout=0)[0]) for term in (rdrop(), plain() + rdrop(), rat(epsilon=0))
    )
    assert with_plain == pytest.approx(rdrop_alone, rel=1e-6)
    assert at_zero == pytest.approx(task + rdrop_alone, rel=1e-6)
