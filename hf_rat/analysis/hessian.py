"""Products of a loss's Hessian with vectors, its largest eigenvalues, and its trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_rat.analysis.directions import trained_weights
from hf_rat.analysis.evaluation import Batches, Score, labels_that_count

Vector = np.ndarray
"""(weights,) float64: the trained weights one after the other, in the order of `model.named_parameters()`."""
WAYS = ("double backward", "central differences")


class Hessian:
    """Of the mean loss over batches, at the weights as they are.

    It writes to gradients and, for differences, to weights: use it inside of `unchanged(model)`.

    Args:
        model: which returns its loss.
        batches: what its forward takes, with labels, on its device.
        way: "double backward" is exact; "central differences" of gradients, (g(w + h v) - g(w - h v)) / 2h with
            h ||v|| = eps^(1/3) ||w||, asks for first derivatives only. None: the first, if the first batch has it.
        say: told why, where None comes to differences.

    Attributes:
        size: how many weights are trained.
        way: which one it is.

    Raises:
        ValueError: an unknown way, no batch, or nothing is trained.
    """

    def __init__(
        self, model: nn.Module, batches: Batches, way: str | None = None, say: Callable[[str], Any] = print
    ) -> None:
        if way is not None and way not in WAYS:
            raise ValueError(f"way={way!r} is none of {', '.join(WAYS)}")
        if not batches:
            raise ValueError("batches is empty: a loss needs examples")
        self._model, self._batches = model, batches
        self._parameters = list(trained_weights(model).values())
        self._sizes = [p.numel() for p in self._parameters]
        self.size = sum(self._sizes)
        self._counts = [labels_that_count(batch) for batch in batches]
        self.way = way or self._found(say)

    def _found(self, say: Callable[[str], Any]) -> str:
        try:
            self._doubly(self._split(np.ones(self.size)), self._batches[:1])
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).strip().partition("\n")[0]
            say(f"{type(self._model).__name__} has no second derivatives ({reason}): differences of its gradients")
            return "central differences"
        return "double backward"

    def product(self, vector: Vector) -> Vector:
        """H v, (weights,) float64."""
        vector = np.asarray(vector, dtype=np.float64).reshape(-1)
        if self.way == "double backward":
            return self._doubly(self._split(vector), self._batches)
        length = float(np.linalg.norm(vector))
        if length == 0.0:
            return np.zeros(self.size)
        here = [p.detach().clone() for p in self._parameters]
        own = math.sqrt(sum(float(w.double().square().sum()) for w in here))
        step = torch.finfo(here[0].dtype).eps ** (1 / 3) * (own or 1.0) / length
        slopes = []
        try:
            for side in (step, -step):
                self._write(here, self._split(vector), side)
                slopes.append(self.slope()[1])
        finally:
            self._write(here, here, 0.0)
        return (slopes[0] - slopes[1]) / (2 * step)

    def slope(self) -> tuple[float, Vector]:
        """The mean loss, and its gradient (weights,) float64."""
        mean, slope = 0.0, np.zeros(self.size)
        for loss, share in self._losses(self._batches):
            mean += share * float(loss.detach())
            slope += share * self._flat(torch.autograd.grad(loss, self._parameters, allow_unused=True))
        return mean, slope

    def _doubly(self, vector: list[Tensor], batches: Batches) -> Vector:
        found = np.zeros(self.size)
        with _second_derivatives(self._model):
            for loss, share in self._losses(batches):
                slopes = torch.autograd.grad(loss, self._parameters, create_graph=True, allow_unused=True)
                pairs = [(g, v) for g, v in zip(slopes, vector, strict=True) if g is not None and g.requires_grad]
                if not pairs:
                    continue
                for p in self._parameters:
                    p.grad = None
                # Not autograd.grad: it walks to the weights only, around the error of a function that has no second
                # derivatives, and takes these for zero.
                torch.stack([(g * v).sum() for g, v in pairs]).sum().backward()
                found += share * self._flat([p.grad for p in self._parameters])
        return found

    def _losses(self, batches: Batches) -> Iterator[tuple[Tensor, float]]:
        """Each batch's loss, and its share in the mean."""
        for batch, count in zip(batches, self._counts, strict=False):
            with torch.enable_grad():
                score = Score.of(self._model(**batch), batch, type(self._model).__name__)
            yield score.loss, count / sum(self._counts)

    def _split(self, vector: Vector) -> list[Tensor]:
        parts = np.split(vector, np.cumsum(self._sizes)[:-1])
        return [torch.from_numpy(x).to(p).view_as(p) for x, p in zip(parts, self._parameters, strict=True)]

    def _flat(self, tensors: Any) -> Vector:
        parts = [
            np.zeros(size) if x is None else x.detach().double().cpu().numpy().reshape(-1)
            for x, size in zip(tensors, self._sizes, strict=True)
        ]
        return np.concatenate(parts)

    @torch.no_grad()
    def _write(self, here: list[Tensor], direction: list[Tensor], step: float) -> None:
        for p, w, d in zip(self._parameters, here, direction, strict=True):
            torch.add(w, d, alpha=step, out=p.data)


@contextmanager
def _second_derivatives(model: nn.Module) -> Iterator[None]:
    """Inside, attention and recurrent layers of ours run in plain autograd, which fused kernels have no part in."""
    loops = [module for module in model.modules() if getattr(module, "double_backward", None) is False]
    switched: list[Any] = [module for module in model.modules() if hasattr(module, "set_attn_implementation")]
    kinds = [(module, module.config._attn_implementation) for module in switched]
    kinds = [(module, name) for module, name in kinds if name not in (None, "eager", "sdpa")]
    try:
        for module in loops:
            module.double_backward = True  # type: ignore[assignment]
        for module, _ in kinds:
            module.set_attn_implementation("eager")
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module in loops:
            module.double_backward = False  # type: ignore[assignment]
        for module, name in kinds:
            module.set_attn_implementation(name)


def top_eigenvalues(hessian: Hessian, count: int = 3, seed: int = 0, tolerance: float = 1e-3) -> tuple[Vector, Vector]:
    """The largest eigenvalues, by Lanczos' method (ARPACK).

    Args:
        hessian: of how many weights whatever.
        count: how many eigenvalues, fewer than weights.
        seed: of the vector to begin with.
        tolerance: of an eigenvalue, relative to it.

    Returns:
        (count,), the largest first, and their eigenvectors (weights, count), float64.

    Raises:
        ValueError: no such count, or they are not found to that tolerance.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    if not 1 <= count < hessian.size:
        raise ValueError(f"count={count!r} of eigenvalues: expected 1 to {hessian.size - 1}, the weights less one")
    operator = LinearOperator((hessian.size, hessian.size), matvec=hessian.product, dtype=np.float64)
    begin = np.random.default_rng(seed).standard_normal(hessian.size)
    if not hessian.product(begin).any():  # the loss is flat or linear, where ARPACK finds no direction
        return np.zeros(count), np.eye(hessian.size, count)
    try:
        values, vectors = eigsh(operator, k=count, which="LA", v0=begin, tol=tolerance)
    except ArpackNoConvergence as error:
        raise ValueError(
            f"count={count!r}: {len(error.eigenvalues)} eigenvalues were found to a tolerance of {tolerance}; ask for "
            "fewer, or a larger tolerance"
        ) from error
    order = np.argsort(values)[::-1]
    return values[order], vectors[:, order]


def trace(
    hessian: Hessian, probes: int = 10, seed: int = 0, known: tuple[Vector, Vector] | None = None
) -> tuple[float, float]:
    """The trace: known eigenvalues, and for the rest the mean of z' H z over random signs z (Hutchinson).

    Args:
        hessian: of how many weights whatever.
        probes: how many z, at least 2; each is one product.
        seed: of the signs.
        known: some eigenvalues and eigenvectors, as `top_eigenvalues` gives them: z is then drawn orthogonal to them,
            which takes out most of its spread (the thought of Hutch++, Meyer et al. 2021).

    Returns:
        The trace and its standard error.

    Raises:
        ValueError: fewer than 2 probes.
    """
    if probes < 2:
        raise ValueError(f"probes={probes!r}: a standard error needs at least 2")
    values, vectors = known if known is not None else (np.zeros(0), np.zeros((hessian.size, 0)))
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(probes):
        z = generator.choice([-1.0, 1.0], hessian.size)
        z -= vectors @ (vectors.T @ z)
        found.append(float(z @ hessian.product(z)))
    return float(values.sum() + np.mean(found)), float(np.std(found, ddof=1) / math.sqrt(probes))
