"""The baselines of step_cost.py: one training step's loss and gradients, written by hand without hf_rat.

Each function takes a model in training mode whose gradients are cleared, and a batch with labels; it leaves the
gradients of its loss in ``.grad`` and returns the detached loss. They follow what the methods' authors released
(``authors_rat``), or what is commonly pasted into training loops (``classic_fgm``, ``classic_rdrop``).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

Batch = Mapping[str, Tensor]


def plain(model: nn.Module, batch: Batch) -> Tensor:
    """The task loss: one forward, one backward."""
    loss = model(**batch).loss
    loss.backward()
    return loss.detach()


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """``(KL(P || Q) + KL(Q || P)) / 2`` of two ``(batch, classes)`` logits, mean over the batch."""
    p, q = log_softmax(first, dim=-1), log_softmax(second, dim=-1)
    there = kl_div(q, p, reduction="batchmean", log_target=True)
    back = kl_div(p, q, reduction="batchmean", log_target=True)
    return (there + back) / 2


def embedding_table(model: nn.Module) -> nn.Parameter:
    """The word-embedding matrix, which the table-level methods move."""
    return model.get_input_embeddings().weight  # type: ignore[operator]


def farthest(slope: Tensor, epsilon: float) -> Tensor:
    """The shift of length ``epsilon`` along ``slope``, whose norm is taken over the whole matrix and batch."""
    norm = slope.norm()
    return epsilon * slope / norm if norm > 0 and norm.isfinite() else torch.zeros_like(slope)


def classic_fgm(model: nn.Module, batch: Batch, epsilon: float = 1.0) -> Tensor:
    """FGM on the embedding matrix: two forwards, two backwards, their gradients added."""
    table = embedding_table(model)
    clean = model(**batch).loss
    clean.backward()
    assert table.grad is not None
    original = table.data
    table.data = original + farthest(table.grad, epsilon)
    adversarial = model(**batch).loss
    adversarial.backward()
    table.data = original
    return (clean + adversarial).detach()


def classic_rdrop(model: nn.Module, batch: Batch, alpha: float = 1.0) -> Tensor:
    """R-Drop by two forwards and one backward of the sum: mean task loss of the two plus ``alpha`` x symmetric KL."""
    first, second = model(**batch), model(**batch)
    loss = (first.loss + second.loss) / 2 + alpha * symmetric_kl(first.logits, second.logits)
    loss.backward()
    return loss.detach()


def authors_rat(model: nn.Module, batch: Batch, epsilon: float = 1.0, alpha: float = 0.5) -> Tensor:
    """R-AT in the order of the authors' training loop.

    The clean pass is back-propagated for the gradient of the embedding matrix and its graph is kept; the matrix is
    moved by pointing it at other storage, two passes run on it, it is put back, the gradients are cleared and the sum
    of all losses is back-propagated, so that the clean graph is traversed a second time: three forwards, four
    backwards. The symmetric KL is the paper's mean over the batch; the released code sums it, at the same cost.
    """
    table = embedding_table(model)
    clean = model(**batch).loss
    clean.backward(retain_graph=True)
    assert table.grad is not None
    original = table.data
    table.data = original + farthest(table.grad, epsilon)
    first, second = model(**batch), model(**batch)
    loss = clean + (first.loss + second.loss) / 2 + alpha * symmetric_kl(first.logits, second.logits)
    table.data = original
    model.zero_grad()
    loss.backward()
    return loss.detach()
