"""What is going to be asked of the passes at a point."""

from __future__ import annotations

from dataclasses import dataclass

from hf_rat.passes.part import Part


@dataclass(frozen=True)
class Plan:
    """What is going to be asked of the passes at a point, known before they run.

    Args:
        passes: how many.
        rates: a dropout rate for each pass; None leaves that of the point.
        slope_sites: sites at which the slope of the task loss will be asked for.
        share_masks: other points will replay the dropout masks of the first pass.
        also_masks: sites at which passes run with a mask even if the point is not moved there. (A recurrent layer with
            a mask takes other kernels, which round and draw dropout in their own way.)
        further: (part of the batch, how many more passes over it), as the clean ones.
        beside: the passes are such further ones, beside others that keep their activations.
        graph: something is learned from the passes themselves.
        search: the passes give slopes, and nothing is learned from them.
    """

    passes: int = 1
    rates: tuple[float, ...] | None = None
    slope_sites: frozenset[str] = frozenset()
    share_masks: bool = False
    also_masks: frozenset[str] = frozenset()
    further: tuple[tuple[Part, int], ...] = ()
    beside: bool = False
    graph: bool = True
    search: bool = False

    @property
    def teaches(self) -> bool:
        """Whether the passes are back-propagated to the parameters."""
        return self.graph and not self.search


ONE_PASS = Plan()
