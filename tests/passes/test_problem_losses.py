"""Every kind of task: the losses and gradients of R-Drop and R-AT by hand, and every recipe on it.

The oracles read the model's logits and nothing else. They feed `inputs_embeds` (no hook of ours), pick the rows that
count one by one, and draw dropout masks from torch's generator in the order in which the equation names the passes.
"""

import pytest
import torch
from test_models import TABLE
from tiny import assert_same_gradients, gradients
from tiny_tasks import TASKS, collate, task_model, task_rows
from torch.nn import functional as F

from hf_rat import Regularization, rat, rdrop
from hf_rat.regularizers import RECIPES

pytestmark = pytest.mark.filterwarnings("ignore:.*has no dropout")


def batch_of(task, size=4):
    return collate(task_rows(task, size))


def embed(model, batch):
    owner = model.get_encoder() if model.config.is_encoder_decoder else model
    return owner.get_input_embeddings()(batch["input_ids"])


def counting(task, labels):
    """(row, position, target) of each prediction that counts."""
    ahead = 1 if task in ("causal_lm", "causal_lm_llama") else 0
    places = [(i, t) for i in range(labels.shape[0]) for t in range(labels.shape[1] - ahead)]
    return [(i, t, int(labels[i, t + ahead])) for i, t in places if labels[i, t + ahead] != -100]


def run(task, model, batch, embeddings):
    """(task loss, one row of logits per distribution that counts for it)."""
    inputs = {name: value for name, value in batch.items() if name != "input_ids"}
    outputs = model(inputs_embeds=embeddings, **inputs)
    if task == "question_answering":
        losses = [
            F.cross_entropy(outputs.start_logits, batch["start_positions"]),
            F.cross_entropy(outputs.end_logits, batch["end_positions"]),
        ]
        return sum(losses) / 2, torch.cat([outputs.start_logits, outputs.end_logits])
    if task == "multiple_choice":
        return F.cross_entropy(outputs.logits, batch["labels"]), outputs.logits
    rows = counting(task, batch["labels"])
    logits = torch.stack([outputs.logits[i, t] for i, t, _ in rows])
    return F.cross_entropy(logits, torch.tensor([target for _, _, target in rows])), logits


def bi_kl(p, q):
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return 0.5 * ((p.exp() - q.exp()) * (p - q)).sum(-1).mean()


def doubled(batch):
    return {name: torch.cat([value, value]) for name, value in batch.items()}


def two_passes(task, model, batch, move=0.0):
    """(task loss, divergence) of two dropout passes, run as one batch of both."""
    twice = doubled(batch)
    both, logits = run(task, model, twice, embed(model, twice) + move)
    if task == "question_answering":
        starts, ends = logits.chunk(2)
        pairs = zip(starts.chunk(2), ends.chunk(2), strict=True)
        first, second = (torch.cat(pair) for pair in pairs)
    else:
        first, second = logits.chunk(2)
    return both, bi_kl(first, second)


def rdrop_by_hand(task, model, batch):
    both, apart = two_passes(task, model, batch)
    return {"task": both, "consistency": 0.7 * apart}


def rat_by_hand(task, model, batch):
    x = embed(model, batch)
    clean, _ = run(task, model, batch, x)
    (g,) = torch.autograd.grad(clean, x, retain_graph=True)
    # One example has one norm: over its tokens, and over its choices.
    length = g.flatten(1).norm(dim=1).view(-1, *[1] * (g.dim() - 1))
    move = torch.where(length > 0, 0.3 * g / length, 0.0)
    both, apart = two_passes(task, model, batch, torch.cat([move, move]))
    return {"task": clean, "adversarial_task": both, "adversarial_consistency": 0.7 * apart}


ORACLES = [(rdrop(alpha=0.7), rdrop_by_hand), (rat(epsilon=0.3, alpha=0.7), rat_by_hand)]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("regularizer", "by_hand"), ORACLES, ids=["rdrop", "rat"])
def test_losses_and_gradients_are_those_by_hand(regularizer, by_hand, task):
    batch, ours, theirs = batch_of(task), task_model(task, 0.1), task_model(task, 0.1)
    torch.manual_seed(1)
    losses = Regularization(regularizer, ours).backward(batch)
    torch.manual_seed(1)
    expected = by_hand(task, theirs, batch)
    sum(expected.values()).backward()
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert value > 1e-3, f"{name} proves nothing"
        assert float(losses[name]) == pytest.approx(value.item(), rel=1e-4), name
    assert_same_gradients(gradients(ours), gradients(theirs), 1e-3)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_recipe_on_every_task(name, task):
    row, batch = TABLE[name], batch_of(task)
    for dropout in (0.1, 0.0):
        model = task_model(task, dropout)
        losses = Regularization(RECIPES[name](**row.arguments), model).backward(batch)
        assert losses.keys() == row.losses
        assert all(torch.isfinite(value) for value in losses.values())
        found = gradients(model)
        assert any(gradient.any() for gradient in found.values())
        assert all(torch.isfinite(gradient).all() for gradient in found.values())
        if dropout == 0 and row.climbs:
            assert float(losses[row.climbs]) > task_model(task)(**batch).loss.item()
        if dropout > 0:
            for part in row.losses & {"consistency", "smoothness", "adversarial_consistency"}:
                assert losses[part] > 0, part
        elif name in ("vat", "smart", "r3f", "adversarial_dropout"):
            assert losses["smoothness"] > 0
