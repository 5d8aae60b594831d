"""An average of a model's weights over its optimizer steps, kept beside them.

Terms compare with one (`smart`, `mean_teacher`), trainers evaluate and save one, NT-ASGD begins one when its trigger
says so. The rules are those of `torch.optim.swa_utils`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from hf_rat.passes.outputs import logits_of
from hf_rat.regularizers.terms import Proximal, Term, all_terms

RAW_FILE = "raw_model.safetensors"
"""Where a checkpoint whose model is an average keeps the weights that training goes on from."""


class AveragedWeights:
    """The weights of a model, averaged over time; with `runs` also as a model that runs, without dropout or gradients.

    Every tensor that a checkpoint keeps is averaged once, under however many names it goes (tied weights), buffers as
    weights (`use_buffers` of swa_utils): the statistics of a batch normalisation are then those of the averaged model
    as nearly as an average can tell. Integers are copied, and so are the buffers that no checkpoint keeps, which
    follow from the configuration. Where adapters are around the model, what they leave frozen is neither averaged nor
    copied. Weights of less than 32 bits are averaged in fp32: the small steps of a slow average would round away.

        average = AveragedWeights(model, beta=0.99)
        ...                                # after each optimizer step
        average.update(model)
        with average.applied(model):       # the model is the averaged one in here, whatever wraps it
            evaluate(model)

    Args:
        model: the unwrapped model, with no hook of ours on it yet.
        beta: how much of the average is kept at each update: `average = beta * average + (1 - beta) * model`, from the
            weights that the model has now. None is the plain mean of the weights at the updates.
        file: under what name `save` writes it into a checkpoint; a model may have several averages.
        runs: keep a copy of the model with the averages in it, for calling.

    Attributes:
        model: the averaged model, in evaluation mode; None without `runs`.
        updates: how many there were.

    Raises:
        ValueError: beta is outside [0, 1].
    """

    def __init__(
        self,
        model: nn.Module,
        beta: float | None = None,
        file: str = "averaged_model.safetensors",
        runs: bool = True,
    ) -> None:
        self._average = get_swa_multi_avg_fn() if beta is None else get_ema_multi_avg_fn(beta)
        self.beta, self.file = beta, file
        self.updates = 0
        self.model: nn.Module | None = None
        left = _left_by_adapters(model)
        averaged = {name: value.detach() for name, value in _kept(model).items() if id(value) not in left}
        self._shown: dict[str, Tensor] = {}
        if runs:
            # What adapters leave as it is belongs to both models.
            self.model = copy.deepcopy(model, dict(left)).eval().requires_grad_(False)
            kept = _kept(self.model)
            self._shown = {name: kept[name] for name in averaged}
        self._averages = {
            name: value.float() if _is_coarse(value) else self._shown[name] if runs else value.clone()
            for name, value in averaged.items()
        }

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> Any:
        """What the averaged model puts out."""
        assert self.model is not None
        return self.model(**inputs)

    def logits(self, inputs: dict[str, Any]) -> Tensor:
        """Those of the averaged model."""
        return logits_of(self(**inputs), type(self.model).__name__)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights of `model` as they are now into the average.

        Raises:
            ValueError: weights are trained that adapters left frozen when the average began.
        """
        theirs = _kept(model)
        averages, news, copies = [], [], []
        for name, value in theirs.items():
            if name not in self._averages:
                if value.requires_grad:
                    raise ValueError(f"{name} is trained, and was frozen when the average began; begin a new one")
                continue
            average, new, is_buffer = self._averages[name], value.detach(), not isinstance(value, nn.Parameter)
            if not (value.is_floating_point() or value.is_complex()):
                copies.append((average, new))
            # A constant stays as it is: the mean of two infinities would be NaN.
            elif not is_buffer or not torch.equal(average, new.to(average)):
                # Buffers may be views of each other: all are read before one is written.
                averages.append(average.clone() if is_buffer else average)
                news.append(new.to(average))
                if is_buffer:
                    copies.append((average, averages[-1]))
        if averages:
            self._average(averages, news, self.updates)
        for average, new in copies:
            average.copy_(new)
        if self.model is not None:
            self._show()
            once, others = set(map(id, self._shown.values())), dict(model.named_buffers())
            for name, buffer in self.model.named_buffers():
                # One of another shape is a cache that grows with the texts; each model fills its own.
                if id(buffer) not in once and name in others and others[name].shape == buffer.shape:
                    buffer.copy_(others[name])
        self.updates += 1

    def copy_to(self, model: nn.Module) -> None:
        """Give the averages to a model, in its precision."""
        _write(self._averages, model)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model has the averages inside; its own weights come back bit for bit, also after an error or Ctrl-C."""
        kept = _kept(model)
        own = {name: kept[name].detach().clone() for name in self._averages}
        try:
            self.copy_to(model)
            yield
        finally:
            _write(own, model)

    def save(self, folder: str | Path) -> None:
        """Write the averages, in the precision in which they are kept, and the number of updates."""
        _save(self._averages, Path(folder) / self.file, updates=str(self.updates))

    def save_raw(self, model: nn.Module, folder: str | Path) -> None:
        """Write the model's own weights, of what is averaged, into a checkpoint whose model is the average."""
        kept = _kept(model)
        _save({name: kept[name] for name in self._averages}, Path(folder) / RAW_FILE)

    @torch.no_grad()
    def load(self, folder: str | Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            ValueError: the file is not there, or is not of this model.
        """
        path = Path(folder) / self.file
        if not path.is_file():
            raise ValueError(f"{path} is missing: this checkpoint was made by a run that kept no such average")
        with safe_open(str(path), framework="pt") as saved:
            names = set(saved.keys())
            if apart := sorted(names ^ self._averages.keys()):
                where = "in the file only" if apart[0] in names else "in the model only"
                raise ValueError(f"{path} is not the average of this model: {apart[0]} is {where}")
            for name, average in self._averages.items():
                average.copy_(saved.get_tensor(name))
            self.updates = int((saved.metadata() or {}).get("updates", 0))
        self._show()

    @torch.no_grad()
    def _show(self) -> None:
        """The copy that runs has the averages of fewer bits in its own precision; the others it shares."""
        for name, value in self._shown.items():
            if value is not self._averages[name]:
                value.copy_(self._averages[name])


def load_raw(model: nn.Module, folder: str | Path) -> None:
    """Give a model the weights that `save_raw` wrote, if it did.

    Raises:
        ValueError: they are another model's.
    """
    path = Path(folder) / RAW_FILE
    if path.is_file():
        values = load_file(str(path))
        if apart := sorted(values.keys() - _kept(model).keys()):
            raise ValueError(f"{path} is not of this model: {apart[0]} is in the file only")
        _write(values, model)


def proximal_average(regularizer: Term, model: nn.Module) -> AveragedWeights | None:
    """The average that a regularizer's proximal term stays near; None where it has no such term.

    Raises:
        ValueError: it has several, of different beta.
    """
    betas = [term.beta for term in all_terms(regularizer) if isinstance(term, Proximal)]
    if len(set(betas)) > 1:
        raise ValueError(f"{regularizer!r} asks for averages with beta {betas}; one model keeps one average")
    return AveragedWeights(model, betas[0], "teacher.safetensors") if betas else None


def _kept(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that a checkpoint keeps, each once, under the first of its names."""
    found = {id(value): (name, value) for name, value in reversed(model.state_dict(keep_vars=True).items())}
    return dict(entry for entry in reversed(found.values()) if isinstance(entry[1], Tensor))


def _left_by_adapters(model: nn.Module) -> dict[int, nn.Parameter]:
    """id -> parameter, of those that stay as they are where PEFT's adapters are around a model."""
    adapted = hasattr(model, "peft_config")
    return {id(value): value for value in model.parameters() if adapted and not value.requires_grad}


def _save(values: Mapping[str, Tensor], path: Path, **metadata: str) -> None:
    tensors, seen = {}, set()
    for name, value in values.items():
        # Buffers may be views of each other, which the format refuses.
        storage = value.untyped_storage().data_ptr()
        tensors[name] = (value.clone() if storage in seen else value).detach().contiguous()
        seen.add(storage)
    save_file(tensors, str(path), metadata={"format": "pt", **metadata})


@torch.no_grad()
def _write(values: Mapping[str, Tensor], model: nn.Module) -> None:
    kept = _kept(model)
    for name, value in values.items():
        kept[name].copy_(value)
    torch.clear_autocast_cache()  # whose casts are of the weights before


def _is_coarse(value: Tensor) -> bool:
    return value.is_floating_point() and value.dtype.itemsize < 4
