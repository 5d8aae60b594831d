"""An average of a model's weights over its optimizer steps, as a model that runs.

SMART stays near one. Others are averages for evaluation, and that of NT-ASGD, which begins when its trigger says so.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from hf_rat.passes.outputs import logits_of
from hf_rat.regularizers.terms import Proximal, Term, all_terms


class AveragedWeights:
    """A copy of a model whose weights are an average over time, run without dropout and without gradients.

    Every tensor that a checkpoint keeps is averaged once, under however many names it goes (tied weights), buffers as
    weights: the statistics of a batch normalisation are then those of the averaged model as nearly as an average can
    tell. Integers are copied, and so are the buffers that no checkpoint keeps, which follow from the configuration.
    Weights of less than 32 bits are averaged in fp32: the small steps of a slow average would round away.

    Args:
        model: the unwrapped model, with no hook of ours on it yet.
        beta: how much of the average is kept at each update: `average = beta * average + (1 - beta) * model`, from the
            weights that the model has now. None is the plain mean of the weights at the updates.
        file: under what name `save` writes it into a checkpoint; a model may have several averages.

    Attributes:
        model: the averaged model, in evaluation mode.
        updates: how many there were.

    Raises:
        ValueError: beta is outside [0, 1].
    """

    def __init__(self, model: nn.Module, beta: float | None = None, file: str = "averaged_model.safetensors") -> None:
        self._average = get_swa_multi_avg_fn() if beta is None else get_ema_multi_avg_fn(beta)
        self.file = file
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        kept = _kept(self.model)
        self._fine = {name: value.float() for name, value in kept.items() if _is_coarse(value)}

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> Any:
        """What the averaged model puts out."""
        return self.model(**inputs)

    def logits(self, inputs: dict[str, Any]) -> Tensor:
        """Those of the averaged model."""
        return logits_of(self(**inputs), type(self.model).__name__)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights of `model` as they are now into the average."""
        mine, theirs = _kept(self.model), _kept(model)
        averages, news, copies = [], [], []
        for name, value in mine.items():
            new, is_buffer = theirs[name].detach(), not isinstance(value, nn.Parameter)
            if not (value.is_floating_point() or value.is_complex()):
                copies.append((value, new))
            # A constant stays as it is: the mean of two infinities would be NaN.
            elif not is_buffer or not torch.equal(value, new.to(value)):
                average = self._fine.get(name, value)
                if is_buffer and average is value:
                    average = value.clone()  # buffers may be views of each other: all are read before one is written
                averages.append(average)
                news.append(new.to(average))
                if average is not value:
                    copies.append((value, average))
        if averages:
            self._average(averages, news, self.updates)
        once, others = set(map(id, mine.values())), dict(model.named_buffers())
        for name, buffer in self.model.named_buffers():
            # One of another shape is a cache that grows with the texts; each model fills its own.
            if id(buffer) not in once and name in others and others[name].shape == buffer.shape:
                copies.append((buffer, others[name]))
        for value, new in copies:
            value.copy_(new)
        self.updates += 1

    def save(self, folder: str | Path) -> None:
        """Write the averages, in the precision in which they are kept, and the number of updates."""
        kept = {name: self._fine.get(name, value) for name, value in _kept(self.model).items()}
        # Buffers may be views of each other, which the format refuses.
        whole = {name: value if isinstance(value, nn.Parameter) else value.clone() for name, value in kept.items()}
        tensors = {name: value.detach().contiguous() for name, value in whole.items()}
        save_file(tensors, str(Path(folder) / self.file), metadata={"format": "pt", "updates": str(self.updates)})

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
            kept, names = _kept(self.model), set(saved.keys())
            if apart := sorted(names ^ kept.keys()):
                where = "in the file only" if apart[0] in names else "in the model only"
                raise ValueError(f"{path} is not the average of this model: {apart[0]} is {where}")
            for name, value in kept.items():
                tensor = saved.get_tensor(name)
                if name in self._fine:
                    self._fine[name].copy_(tensor)
                value.copy_(tensor)
            self.updates = int((saved.metadata() or {}).get("updates", 0))


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


def _is_coarse(value: Tensor) -> bool:
    return value.is_floating_point() and value.dtype.itemsize < 4
