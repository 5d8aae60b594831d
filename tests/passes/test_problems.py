"""Kinds of task: how they are told apart, which outputs count, and what is a mean over what."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_divergences import categorical, logits

from hf_rat.passes.batch import Batch
from hf_rat.passes.execution import Execution
from hf_rat.passes.problems import (
    MULTIPLE_CHOICE,
    NEXT_TOKENS,
    PROBLEM_TYPES,
    QUESTION_ANSWERING,
    TOKENS,
    count_labels,
)
from hf_rat.passes.recognition import recognize
from hf_rat.regularizers.divergences import NAMES, mean_divergence

SINGLE, MULTI, REGRESSION = PROBLEM_TYPES
IDS = torch.ones(2, 3, dtype=torch.long)


def a_model(**config):
    return SimpleNamespace(config=SimpleNamespace(**config))


class ForMultipleChoice(SimpleNamespace):
    pass


class WithAdapters(SimpleNamespace):
    def get_base_model(self):
        return self.base


@pytest.mark.parametrize(
    ("model", "labels", "expected"),
    [
        (a_model(num_labels=3), torch.tensor([0, 2]), SINGLE),
        (a_model(num_labels=3), torch.zeros(2, 3), MULTI),
        (a_model(num_labels=1), torch.zeros(2), REGRESSION),
        (a_model(num_labels=1), torch.tensor([0, 1]), REGRESSION),
        (a_model(num_labels=3), torch.tensor([[0], [2]]), SINGLE),
        (a_model(num_labels=3, problem_type=MULTI), IDS, MULTI),
        (a_model(num_labels=3, problem_type=REGRESSION), torch.zeros(2, 3), REGRESSION),
        (SimpleNamespace(), torch.tensor([0, 1]), SINGLE),
        (a_model(num_labels=1), IDS, TOKENS),
        (a_model(num_labels=3, problem_type=SINGLE), IDS, TOKENS),
        (ForMultipleChoice(config=SimpleNamespace(num_labels=1)), torch.tensor([0, 1]), MULTIPLE_CHOICE),
        (WithAdapters(base=ForMultipleChoice()), torch.tensor([0, 1]), MULTIPLE_CHOICE),
    ],
    ids=str,
)
def test_the_kind_follows_the_heads_of_transformers(model, labels, expected):
    assert recognize(model, {"input_ids": IDS, "labels": labels}).problem == expected


def test_without_labels_an_unset_problem_type_means_classes():
    assert recognize(a_model(num_labels=3), {"input_ids": IDS}).problem == SINGLE


def test_shifted_labels_and_answers_are_kinds_of_their_own():
    assert recognize(a_model(), {"labels": IDS}, shifted=True).problem == NEXT_TOKENS
    assert recognize(a_model(), {"labels": torch.tensor([0, 1])}, shifted=True).problem == SINGLE
    assert recognize(a_model(), {"input_ids": IDS, "start_positions": IDS[:, 0]}).problem == QUESTION_ANSWERING


def test_an_unknown_problem_type_is_named():
    with pytest.raises(ValueError, match=r"config\.problem_type is 'ranking'; expected one of") as error:
        recognize(a_model(problem_type="ranking"), {})
    assert "\n" not in str(error.value)


# -- what counts -----------------------------------------------------------------------------------------------------


def divergence(name, problem, inputs, z, w):
    return float(
        mean_divergence(Batch({"input_ids": IDS, **inputs}, lambda: problem, Execution(None, None)), name, z, w)
    )


def by_scipy(name, z, w, places):
    z, w = z.double().numpy(), w.double().numpy()
    return np.mean([categorical(name, z[place], w[place]) for place in places])


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_is_over_examples(name):
    z, w = logits(4, 3, seed=1), logits(4, 3, seed=2)
    expected = by_scipy(name, z, w, range(4))
    assert divergence(name, SINGLE, {"labels": torch.zeros(4)}, z, w) == pytest.approx(expected, rel=1e-4)


LABELS = torch.tensor([[1, 2, -100], [3, -100, -100]])
NEXT_LABELS = torch.tensor([[-100, 1, 2], [0, 3, -100]])  # the first label of a row is predicted by nothing
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])


@pytest.mark.parametrize(
    ("problem", "inputs", "places"),
    [
        (TOKENS, {"labels": LABELS, "attention_mask": MASK}, [(0, 0), (0, 1), (1, 0)]),
        (NEXT_TOKENS, {"labels": NEXT_LABELS, "attention_mask": MASK}, [(0, 0), (0, 1), (1, 0)]),
        (NEXT_TOKENS, {"shift_labels": LABELS, "labels": IDS}, [(0, 0), (0, 1), (1, 0)]),
        (NEXT_TOKENS, {"attention_mask": MASK}, [(0, 0), (0, 1), (0, 2), (1, 0)]),
        (SINGLE, {"attention_mask": MASK}, [(0, 0), (0, 1), (0, 2), (1, 0)]),
        (TOKENS, {"attention_mask": MASK, "decoder_input_ids": IDS}, [(i, t) for i in (0, 1) for t in range(3)]),
        (
            TOKENS,
            {"attention_mask": IDS, "decoder_input_ids": IDS, "decoder_attention_mask": MASK},
            [(0, 0), (0, 1), (0, 2), (1, 0)],
        ),
        (TOKENS, {}, [(i, t) for i in (0, 1) for t in range(3)]),
    ],
    ids=str,
)
def test_the_mean_is_over_positions_that_count(problem, inputs, places):
    z, w = logits(2, 3, 4, seed=1), logits(2, 3, 4, seed=2)
    assert divergence("kl", problem, inputs, z, w) == pytest.approx(by_scipy("kl", z, w, places), rel=1e-4)


def test_starts_and_ends_of_answers_count_half_each():
    z, w = logits(3, 2, 5, seed=1), logits(3, 2, 5, seed=2)
    inputs = {"start_positions": torch.tensor([0, 4, 5]), "end_positions": torch.tensor([7, 4, 5])}
    expected = (by_scipy("js", z, w, [(0, 0), (1, 0)]) + by_scipy("js", z, w, [(1, 1)])) / 2
    assert divergence("js", QUESTION_ANSWERING, inputs, z, w) == pytest.approx(expected, rel=1e-4)
    everywhere = [(i, end) for i in range(3) for end in (0, 1)]
    assert divergence("js", QUESTION_ANSWERING, {}, z, w) == pytest.approx(by_scipy("js", z, w, everywhere), rel=1e-4)


@pytest.mark.parametrize("problem", [TOKENS, NEXT_TOKENS])
def test_where_nothing_counts_a_divergence_is_zero(problem):
    z, w = logits(2, 3, 4, seed=1).requires_grad_(), logits(2, 3, 4, seed=2)
    batch = Batch({"input_ids": IDS, "labels": torch.full((2, 3), -100)}, lambda: problem, Execution(None, None))
    value = mean_divergence(batch, "kl", z, w)
    value.backward()
    assert value == 0
    assert not z.grad.any()


def test_labels_that_do_not_fit_the_logits_are_refused():
    z = logits(2, 5, 4)  # a prompt of two virtual tokens, say
    with pytest.raises(ValueError, match=r"\(2, 3\) and the logits \(2, 5, 4\)") as error:
        divergence("kl", TOKENS, {"labels": LABELS}, z, z)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("problem", "inputs", "expected"),
    [
        (SINGLE, {"labels": torch.tensor([0, 1, -100])}, 2),
        (REGRESSION, {"labels": torch.tensor([0.5, 1.0, 2.0])}, 3),
        (QUESTION_ANSWERING, {"start_positions": torch.tensor([0, 1]), "end_positions": torch.tensor([0, 1])}, 2),
        (TOKENS, {"labels": NEXT_LABELS}, 4),
        (NEXT_TOKENS, {"labels": NEXT_LABELS}, 3),
        (NEXT_TOKENS, {"shift_labels": NEXT_LABELS}, 4),
    ],
    ids=str,
)
def test_labels_are_counted_as_the_task_loss_counts_them(problem, inputs, expected):
    assert count_labels(problem, inputs) == expected
