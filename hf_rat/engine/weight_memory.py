"""What a regularizer remembers of the weights: where they began, a momentum, a slope over the whole optimizer step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_rat.engine.anchor import anchor_of
from hf_rat.engine.engine import Engine
from hf_rat.engine.open_sites import OpenSites
from hf_rat.passes.batch import Ahead, Batch
from hf_rat.passes.sites import WeightsSite
from hf_rat.regularizers.ahead import look_ahead, sites_ahead
from hf_rat.regularizers.terms import Term, all_terms
from hf_rat.regularizers.weight_perturbations import Mixed, Momentum
from hf_rat.regularizers.weight_terms import Distance, NoisyStart

_MOMENTA = ("exp_avg", "momentum_buffer")
"""What optimizers call theirs."""


class WeightMemory:
    """Keeps, for the sites of weights of a regularizer, what lasts longer than a micro-batch.

    A centre is what the weights are when this is opened, before the first step. `save` writes centres and momenta into
    a checkpoint; the state has a hash of each centre, so that a run which goes on from other weights, and takes those
    for its centre, is found out.

    Args:
        regularizer: the term.
        engine: who runs it.
        optimizer: whose momentum a perturbation may read.

    Attributes:
        anchor: the model that training began with, where the regularizer asks for it.

    Raises:
        ValueError: the regularizer asks for what DeepSpeed cannot do.
    """

    file = "weight_memory.safetensors"

    def __init__(self, regularizer: Term, engine: Engine, optimizer: Any = None) -> None:
        self._regularizer, self._engine, self._optimizer = regularizer, engine, optimizer
        self.anchor = anchor_of(regularizer, engine.unwrapped)
        self._centred: dict[str, WeightsSite] = {}
        self._starts: list[tuple[NoisyStart, WeightsSite]] = []
        self._momenta: dict[str, tuple[Momentum, WeightsSite]] = {}
        self._slopes: dict[str, Tensor] = {}
        self._hashes: dict[str, str] = {}
        self._ahead: list[Ahead] = []
        self._begun, self._step = False, -1
        terms = list(all_terms(regularizer))
        if engine.steps_in_backward and any(
            isinstance(term, NoisyStart) or isinstance(term.perturb, Momentum) for term in terms
        ):
            raise ValueError(
                f"{regularizer!r} under DeepSpeed, whose optimizer has weights and momenta of its own; use DDP"
            )

    def open(self, sites: OpenSites) -> OpenSites:
        """Take the centres, at the sites of the regularizer, and return those.

        Raises:
            ValueError: two momenta at one site.
        """
        terms = list(all_terms(self._regularizer))
        mixed = [term.perturb.site for term in terms if isinstance(term.perturb, Mixed)]
        centred = sorted({*mixed, *(term.site for term in terms if isinstance(term, Distance))})
        self._centred = {name: sites.open(name) for name in centred}  # type: ignore[misc]
        for site in self._centred.values():
            site.centre = site.values()
        self._starts = [(t, sites.open(t.site)) for t in terms if isinstance(t, NoisyStart)]  # type: ignore[misc]
        for at in {term.perturb for term in terms if isinstance(term.perturb, Momentum)}:
            self._open_momentum(at, sites)
        return sites

    def _open_momentum(self, at: Momentum, sites: OpenSites) -> None:
        if at.site in self._momenta:
            raise ValueError(f"{self._regularizer!r} asks for two momenta of the same weights; keep one of them")
        site: WeightsSite = sites.open(at.site)  # type: ignore[assignment]
        self._momenta[at.site] = at, site
        site.hear = partial(self._hear, at.site)

    # -- in a step ---------------------------------------------------------------------------------------------------

    def look_ahead(self, term: Term, batches: Iterable[tuple[Batch, Tensor | None]], step: int) -> None:
        """Take the slopes of all micro-batches of an optimizer step, of this process and of the others.

        Args:
            term: the regularizer, whose schedule knows the run.
            batches: each with the factor that makes its mean loss a part of the step's; None: they count alike.
            step: the optimizer step; where nothing asks for such slopes no batch is looked at.
        """
        self._start(step)
        self._ahead = []
        if not sites_ahead(term, step):
            return
        slopes: dict[str, Tensor] = {}
        for batch, weight in batches:
            found = look_ahead(term, batch)
            self._ahead.append(Ahead(found.masks, slopes))
            for name, slope in found.slopes.items():
                slope = slope if weight is None else torch.where(weight > 0, weight * slope, 0.0)
                slopes[name] = slopes[name] + slope if name in slopes else slope
        slopes.update({name: self._engine.sum(slopes[name]) for name in sorted(slopes)})

    def begin(self, batch: Batch) -> None:
        """Before the passes over a micro-batch, which is told what the look ahead has found."""
        self._start(batch.step)
        if batch.step != self._step:  # one before that was skipped has left its slopes
            self._step, self._slopes = batch.step, {}
        for at, site in self._momenta.values():
            if at.source == "optimizer":
                site.direction = self._optimizer_momentum(site, batch.step)
        if self._ahead:
            batch.ahead = self._ahead.pop(0)
            batch.updated = True

    @torch.no_grad()
    def _start(self, step: int) -> None:
        """Add the noise that a run begins with, once."""
        begins, self._begun = step == 0 and not self._begun, True
        for term, site in self._starts if begins else ():
            noise = term.spread.noise(term.spread.radius, site.geometry({}))
            # The first process's, on all of them.
            first = self._engine.processes == 1 or torch.distributed.get_rank() == 0
            noise = self._engine.sum(noise if first else torch.zeros_like(noise))
            for parameter, part in zip(site.parameters.values(), site.split(noise), strict=True):
                parameter.add_(part)
            torch.clear_autocast_cache()

    def _hear(self, name: str, slope: Tensor) -> None:
        scale = self._engine.scale(torch.ones((), device=slope.device))
        slope = slope.detach() / scale
        self._slopes[name] = self._slopes[name] + slope if name in self._slopes else slope

    def after_step(self, changed: bool = True) -> None:
        """After an optimizer step: momenta go on, if it changed the weights."""
        for name in sorted(self._slopes):
            at, site = self._momenta[name]
            slope = self._engine.sum(self._slopes[name])
            if changed and bool(torch.isfinite(slope).all()):
                kept = 0.0 if site.direction is None else at.beta * site.direction
                site.direction = kept + (1 - at.beta) * slope
        self._slopes = {}

    def _optimizer_momentum(self, site: WeightsSite, step: int) -> Tensor | None:
        if self._optimizer is None:
            raise ValueError(
                f"{self._regularizer!r} reads the optimizer's momentum: give it to "
                "Regularization(..., optimizer=optimizer), or use momentum='own'"
            )
        states = [self._optimizer.state.get(parameter, {}) for parameter in site.parameters.values()]
        known = next((name for name in _MOMENTA if any(state.get(name) is not None for state in states)), None)
        if known is None:
            if step > 0 and any(states):
                raise ValueError(
                    f"{self._regularizer!r}: {type(self._optimizer).__name__} keeps none of {', '.join(_MOMENTA)}; "
                    "use momentum='own'"
                )
            return None
        found = [state.get(known) for state in states]
        pairs = zip(found, site.parameters.values(), strict=True)
        return site.flat([torch.zeros_like(p) if m is None else m.detach() for m, p in pairs])

    # -- in checkpoints ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings: a hash of each centre."""
        return {"centres": {name: self._hash(name) for name in self._centres()}, "begun": self._begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`, after `load`, or opened on the model as it was when training began.

        Raises:
            ValueError: a centre is not the one that training began with.
        """
        known = state.get("centres", {})
        for name in self._centres():
            if known.get(name) != self._hash(name):
                raise ValueError(
                    f"{self._regularizer!r} has a centre, the weights that training began with, and those here are "
                    f"{'others' if name in known else 'of a run that kept none'}; load it from the checkpoint with "
                    "regularization.weights.load(folder), or open Regularization before loading the weights"
                )
        self._begun = bool(state.get("begun", False))

    def save(self, folder: str | Path) -> None:
        """Write centres and momenta into a checkpoint; nothing where there are none."""
        if self.anchor is not None and self.anchor.copy is not None:
            self.anchor.copy.save(folder)
        if tensors := self._tensors():
            names = {name: list(site.parameters) for name, site in self._sites().items()}
            metadata = {"format": "pt", "names": json.dumps(names)}
            save_file({key: value.contiguous() for key, value in tensors.items()}, self._path(folder), metadata)

    def load(self, folder: str | Path) -> None:
        """Go on with what `save` wrote.

        Raises:
            ValueError: the file is not there, or is of other weights.
        """
        if self.anchor is not None and self.anchor.copy is not None:
            self.anchor.copy.load(folder)
        self._hashes = {}
        if not self._centred and not any(at.source == "own" for at, _ in self._momenta.values()):
            return
        if not Path(self._path(folder)).is_file():
            raise ValueError(
                f"{self._path(folder)} is missing: this checkpoint was made by a run that kept no centre or momentum, "
                f"which {self._regularizer!r} goes on with"
            )
        with safe_open(self._path(folder), framework="pt") as saved:
            names, keys = json.loads((saved.metadata() or {}).get("names", "{}")), set(saved.keys())
            for name, site in self._sites().items():
                if names.get(name) != list(site.parameters):
                    raise ValueError(f"{self._path(folder)} is not of the weights that {self._regularizer!r} is about")
                for kind in ("centre", "direction"):
                    if f"{kind} of {name}" in keys:
                        like = next(iter(site.parameters.values()))
                        setattr(site, kind, saved.get_tensor(f"{kind} of {name}").to(like.device))

    def _path(self, folder: str | Path) -> str:
        return str(Path(folder) / self.file)

    def _sites(self) -> dict[str, WeightsSite]:
        own = {name: site for name, (at, site) in self._momenta.items() if at.source == "own"}
        return {**self._centred, **own}

    def _tensors(self) -> dict[str, Tensor]:
        kinds = {"centre": self._centred, "direction": self._sites()}
        found = {f"{kind} of {name}": getattr(s, kind) for kind, sites in kinds.items() for name, s in sites.items()}
        return {key: value for key, value in found.items() if value is not None}

    def _centres(self) -> dict[str, dict[str, Tensor]]:
        found = {name: {"": site.centre} for name, site in self._centred.items() if site.centre is not None}
        copied = None if self.anchor is None or self.anchor.copy is None else self.anchor.copy.model
        if copied is not None:
            found["anchor"] = dict(copied.state_dict())
        return found

    def _hash(self, name: str) -> str:
        if name not in self._hashes:  # a centre stays what it is
            digest = hashlib.sha256()
            for key, value in sorted(self._centres()[name].items()):
                digest.update(key.encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            self._hashes[name] = digest.hexdigest()
        return self._hashes[name]
