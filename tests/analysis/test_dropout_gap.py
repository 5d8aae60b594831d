"""Dropout's gap on models of a user's own, compared with passes made by hand."""

import itertools

import numpy as np
import pytest
import torch
from scipy.special import softmax
from tiny import tiny_batch, tiny_model
from torch import nn
from torch.nn import functional as F

from hf_rat.analysis.dropout_gap import agreement, dropout_gap, remark
from hf_rat.analysis.gap_pictures import picture_of_gap
from hf_rat.analysis.input_gradient import input_gradient_norms
from hf_rat.passes.dropout import RandomState

MASKS, UNITS = 6, 8


class Net(nn.Module):
    """A bag of words with dropout in a function, and batch normalisation."""

    def __init__(self, outputs=3, rate=0.5):
        super().__init__()
        self.table, self.hidden = nn.Embedding(20, 5), nn.Linear(5, UNITS)
        self.norm, self.head, self.rate = nn.BatchNorm1d(UNITS), nn.Linear(UNITS, outputs), rate

    def get_input_embeddings(self):
        return self.table

    def features(self, vectors, attention_mask):
        mean = (vectors * attention_mask.unsqueeze(-1)).sum(1) / attention_mask.sum(1, keepdim=True)
        return torch.tanh(self.norm(self.hidden(mean)))

    def forward(self, input_ids, attention_mask, labels=None):
        h = self.features(self.table(input_ids), attention_mask)
        logits = self.head(F.dropout(h, self.rate, self.training))
        if labels is None:
            return {"logits": logits}
        if logits.shape[-1] == 1:
            return {"loss": (logits[:, 0] - labels).square().mean(), "logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def batch_of(size, length, outputs=3):
    ids = torch.randint(1, 20, (size, length))
    mask = torch.ones_like(ids)
    mask[0, 2:] = 0
    labels = torch.randn(size) * 3 if outputs == 1 else torch.randint(outputs, (size,))
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.fixture(params=[3, 1], ids=["classes", "numbers"])
def made(request):
    torch.manual_seed(0)
    model = Net(request.param)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model, [batch_of(size, length, request.param) for size, length in ((5, 4), (7, 6), (3, 3))]


def passes_by_hand(model, batches, seed):
    """Whole: (rows, outputs); sub-models: (masks, rows, outputs)."""
    model.eval()
    with torch.no_grad():
        features = [model.features(model.table(batch["input_ids"]), batch["attention_mask"]) for batch in batches]
        torch.manual_seed(seed)
        each = [torch.cat([model.head(F.dropout(h, model.rate)) for h in features]) for _ in range(MASKS)]
        whole = torch.cat([model.head(h) for h in features])
    return whole.double().numpy(), torch.stack(each).double().numpy()


def test_all_of_it_by_hand(made):
    model, batches = made
    whole, each = passes_by_hand(model, batches, seed=3)
    labels = torch.cat([batch["labels"] for batch in batches]).numpy()
    found = dropout_gap(model, batches, MASKS, seed=3)
    rows = range(len(labels))
    if whole.shape[-1] == 1:
        values, mean = each[..., 0], each[..., 0].mean(0)
        assert found.whole == {"mse": pytest.approx(((whole[:, 0] - labels) ** 2).mean())}
        assert found.averaged == {"mse": pytest.approx(((mean - labels) ** 2).mean())}
        assert found.one_pass == {"mse": pytest.approx(((values - labels) ** 2).mean())}
        assert found.averaged_from_whole == pytest.approx(((mean - whole[:, 0]) ** 2).mean())
        assert found.agreement is found.averaged_as_whole is None
        assert found.variance == pytest.approx(values.var(0, ddof=1).mean())
    else:
        p, q = softmax(each, -1), softmax(whole, -1)
        mean, best = p.mean(0), p.argmax(-1)
        accuracies = [(one == labels).mean() for one in best]
        nlls = [-np.log(one[rows, labels]).mean() for one in p]
        assert found.whole == pytest.approx(
            {"accuracy": (q.argmax(-1) == labels).mean(), "nll": -np.log(q[rows, labels]).mean()}
        )
        assert found.one_pass == pytest.approx({"accuracy": np.mean(accuracies), "nll": np.mean(nlls)})
        assert found.one_pass_deviation["nll"] == pytest.approx(np.std(nlls, ddof=1))
        assert found.averaged["nll"] == pytest.approx(-np.log(mean[rows, labels]).mean())
        assert found.averaged["nll"] <= found.one_pass["nll"], "-log is convex"
        assert found.averaged_from_whole == pytest.approx((mean * np.log(mean / q)).sum(-1).mean())
        assert found.averaged_as_whole == pytest.approx((mean.argmax(-1) == q.argmax(-1)).mean())
        pairs = [(a == b).mean() for a, b in itertools.combinations(best, 2)]
        assert found.agreement == pytest.approx(np.mean(pairs))
        assert found.variance == pytest.approx(p.var(0, ddof=1).mean())
    assert found.terms["el"] == pytest.approx(((each - whole) ** 2).mean())
    assert found.terms["fd"] == pytest.approx(((each[::2] - each[1::2]) ** 2).mean())
    assert found.terms["quarter_fd_at_most_el"] is True
    assert picture_of_gap({"a": found, "b": found}).startswith(b"\x89PNG")


def test_agreement_of_all_and_of_none():
    assert agreement(torch.tensor([[1, 0]] * 4)) == 1.0
    assert agreement(torch.tensor([[0], [1], [2], [3]])) == 0.0


def test_remark_1_at_one_layer(made):
    model, batches = made
    found = remark(model, batches, "logits", rate=0.3, steps=2, masks=MASKS, seed=1)
    torch.manual_seed(1)
    moves = [-torch.empty(UNITS).bernoulli_(0.3) for _ in range(MASKS)]
    model.eval()
    with torch.no_grad():
        h = torch.cat([model.features(model.table(b["input_ids"]), b["attention_mask"]) for b in batches])
        whole = model.head(h)

        def answer(off):
            mask = torch.ones(UNITS)
            mask[list(off)] = 0
            return model.head(h * mask * UNITS / mask.sum())

        each = torch.stack([answer(move.nonzero()[:, 0].tolist()) for move in moves]).double()
        farther = torch.stack(
            [(answer(pair) - whole).square().mean(1) for pair in itertools.combinations(range(8), 2)]
        )
    assert found["el"] == pytest.approx(float((each - whole).square().mean()))
    assert found["fd"] == pytest.approx(float((each[::2] - each[1::2]).square().mean()))
    assert found["units_off"] == {"add": 2, "add_largest_sampled": max(int(-move.sum()) for move in moves)}
    # The best pair of units, found by trying all, is at least as far; random ones are nearer.
    assert float(farther.mean()) < found["add"] <= float(farther.max(0).values.mean()) + 1e-6
    named = remark(model, batches, "head", rate=0.3, steps=2, masks=MASKS, seed=1)
    assert named == found
    with pytest.raises(ValueError, match=r"rate=0.05: of the 8 units at 'logits' that is less than one"):
        remark(model, batches, rate=0.05)


def test_the_gradient_by_hand_and_as_a_slope(made):
    model, batches = made
    model.eval()
    by_hand, rises = [], []
    for batch in batches:
        for row in range(len(batch["labels"])):
            ids, mask, label = (batch[name][row : row + 1] for name in ("input_ids", "attention_mask", "labels"))
            vectors = model.table(ids).detach().requires_grad_()

            def loss(vectors, mask=mask, label=label):
                logits = model.head(model.features(vectors, mask))
                return (logits[0] - label).square().mean() if logits.shape[-1] == 1 else F.cross_entropy(logits, label)

            (slope,) = torch.autograd.grad(loss(vectors), vectors)
            by_hand.append(float(slope.norm()))
            step = 1e-3 * slope / slope.norm()
            rises.append((loss(vectors + step) - loss(vectors - step)).item() / 2e-3)
    found = input_gradient_norms(model, batches)
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found, rises, rtol=2e-2, atol=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("family", ["bert", "gpt2", "textcnn", "han", "t5"])
def test_other_models(family):
    model, batch = tiny_model(family, dropout=0.3), tiny_batch()
    found = dropout_gap(model, [batch], 4)
    assert found.variance > 0
    assert float(input_gradient_norms(model, [batch]).min()) > 0
    alone = {name: x[:1] for name, x in batch.items()}
    torch.testing.assert_close(
        input_gradient_norms(model, [alone])[0], input_gradient_norms(model, [batch])[0], rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    "measure",
    [
        lambda model, batches: dropout_gap(model, batches, MASKS),
        lambda model, batches: remark(model, batches, rate=0.3, masks=MASKS),
        input_gradient_norms,
    ],
    ids=["gap", "remark", "gradient"],
)
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_stays_as_it_is(made, measure, fails):
    model, batches = made
    model.train()
    model.hidden.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, numbers = [module.training for module in model.modules()], RandomState(torch.device("cpu"))
    if fails:
        batches = [*batches, {**batches[0], "attention_mask": torch.ones(1, 99)}]
        with pytest.raises(RuntimeError):
            measure(model, batches)
    else:
        measure(model, batches)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert model.table.weight.grad is None
    assert RandomState(torch.device("cpu")) == numbers
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_bad_input_is_one_line(made):
    model, batches = made
    with pytest.raises(ValueError, match=r"^RUN a: masks=5; an even number"):
        dropout_gap(model, batches, 5, asked="RUN a")
    model.rate = 0.0
    with pytest.raises(ValueError, match=r"^RUN a: Net has no dropout"):
        dropout_gap(model, batches, asked="RUN a")
    with pytest.raises(ValueError, match="labels are needed"):
        dropout_gap(model, [{"input_ids": batches[0]["input_ids"]}])
