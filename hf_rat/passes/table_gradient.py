"""The gradient of the word embeddings, which is as large as their table: made once, and when activations are gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from hf_rat.passes.dropout import RandomState
from hf_rat.passes.sites import Site


class TableGradient:
    """Puts off the gradient of the tables that the sites of one batch look up.

    Where a site is a look-up in a table that learns, passes may take a look-up that is made here in the place of their
    own. Cut off from the table (`withhold`), the clean pass takes up no memory for the table's gradient while the
    adversarial passes hold their activations; `give_back` makes up for it at the end. Shared by several passes or
    buckets (`share`), the gradient is made once and not for each of them.

    Args:
        inputs: of the model.
        open_site: name of a site -> the site.
        may_look_up: the embeddings may be looked up outside the model's own forward; otherwise nothing is put off.
        owed: what the batch that this is a part of puts off, to which this is added; None: it is no part.
    """

    def __init__(
        self,
        inputs: Mapping[str, Any],
        open_site: Callable[[str], Site],
        may_look_up: bool,
        owed: list[tuple[Site, Tensor | None, Tensor]] | None = None,
    ) -> None:
        self._inputs, self._open_site, self._may_look_up = inputs, open_site, may_look_up
        self.owed = [] if owed is None else owed  # (site, ids, leaf)

    def withhold(self, name: str, leaf: Tensor) -> Tensor | None:
        """What stands for the output of a site, perturbed by `leaf` and cut off from its table; None without one.

        The backward leaves in `leaf.grad` what the table misses.
        """
        found = self._look_up(name)
        if found is None:
            return None
        site = self._open_site(name)
        self.owed.append((site, site.table_ids(self._inputs), leaf))
        return found.detach() + leaf

    def share(self, name: str, move: Tensor) -> Tensor | None:
        """What stands for the output of a site in several passes, perturbed by `move`; None if it is no table."""
        found = self._look_up(name)
        return None if found is None else found + move

    @property
    def is_owed(self) -> bool:
        """Whether a backward withheld something from a table."""
        return bool(self.owed)

    def give_back(self, factor: Tensor) -> Tensor | float:
        """A scalar of value zero whose backward gives the tables what was withheld from them.

        Args:
            factor: a scalar that multiplies it: how that backward scales losses, against how those before did.
        """
        total: Tensor | float = 0.0
        while self.owed:
            site, ids, leaf = self.owed.pop()
            if leaf.grad is not None and ids is not None:
                product = (site.module(ids).float() * (leaf.grad * factor)).sum().nan_to_num(0.0, 0.0, 0.0)
                total = total + product - product.detach()
        return total

    def _look_up(self, name: str) -> Tensor | None:
        """The output of a site, (batch, time, dim), with its graph; None without a table that learns."""
        site = self._open_site(name)
        ids = site.table_ids(self._inputs) if self._may_look_up else None
        if ids is None:
            return None
        before = RandomState(ids.device)
        found: Tensor = site.module(ids)
        if RandomState(ids.device) == before:
            return found
        # Word dropout, or the Trainer's NEFTune: every run of the module puts out something else.
        before.restore()
        return None
