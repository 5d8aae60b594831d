"""The output of the word embeddings: where most perturbations enter a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hf_rat.regularizers.dropout import random_devices
from hf_rat.regularizers.places import Place

EMBEDDINGS = "embeddings"


class _Seen(Exception):
    """Raised by a hook to end a look at the model as soon as it has seen enough."""


class EmbeddingSite:
    """The output of the word embeddings, before position embeddings, normalisation and dropout.

    Args:
        model: the unwrapped model. Its encoder's embeddings are taken when it is an encoder-decoder.

    Raises:
        ValueError: the model has no input embeddings.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.module = _input_embeddings(model)
        self.move: Tensor | None = None
        self.fired = False
        self._cut = False
        self._time_first: bool | None = None
        self._looking = False
        self._norm: float | None = None
        self._handle = self.module.register_forward_hook(self._hook)

    def close(self) -> None:
        self._handle.remove()

    def _hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._looking:
            self._seen = (args[0] if args else None, output)
            raise _Seen
        # Only the first call of a forward: an encoder-decoder may run one module on both of its sides.
        if self.move is None or self.fired:
            return None
        self.fired = True
        if self._cut:
            output = output.detach()
        # The move is fp32, hence the sum too: 1e-5 of noise vanishes in a half precision sum.
        return (output + self.move).to(output.dtype)

    @contextmanager
    def entered(self, move: Tensor | None, cut: bool = False) -> Iterator[None]:
        """Forwards inside run with `move` (batch, time, dim) added to the embeddings; None leaves them alone.

        With `cut` no gradient flows into the embeddings themselves: see `owed`.
        """
        self.fired = False
        self._cut = cut
        self.move = move.transpose(0, 1) if move is not None and self._time_first else move
        try:
            yield
            if move is not None and not self.fired:
                raise RuntimeError(
                    f"the perturbation never reached {type(self.model).__name__}: its {type(self.module).__name__} "
                    "did not run; pass input_ids rather than inputs_embeds"
                )
        finally:
            self.move = None

    @property
    def can_cut(self) -> bool:
        """Whether `owed` can make up for a cut: the embeddings are a trained look-up and nothing else."""
        return isinstance(self.module, nn.Embedding) and self.module.weight.requires_grad

    def owed(self, inputs: Mapping[str, Any], slope: Tensor) -> Tensor:
        """A scalar of value zero whose backward gives the embeddings the gradient that a cut pass withheld.

        The table's gradient is as large as the table. Withheld in the clean pass and given back together with the last
        one, it does not take up memory while the adversarial passes hold their activations.
        """
        product = (self.module(inputs["input_ids"]).float() * slope).sum().nan_to_num(0.0, 0.0, 0.0)
        return product - product.detach()

    def place(self, inputs: Mapping[str, Any]) -> Place:
        """The geometry of a batch. The first call looks at the model to learn its batch axis and the width."""
        ids = inputs.get("input_ids")
        if not isinstance(ids, Tensor):
            raise ValueError(
                f"the batch has no input_ids (it has {', '.join(inputs)}): perturbing the embeddings needs them"
            )
        if self._time_first is None:
            self._look(inputs, ids)
        attention = inputs.get("attention_mask")
        mask = attention.bool() if isinstance(attention, Tensor) and attention.shape == ids.shape else None
        return Place(
            shape=(*ids.shape, self._width),
            device=ids.device,
            mask=mask,
            ids=ids,
            padding_idx=getattr(self.module, "padding_idx", None),
            embedding_norm=self.embedding_norm,
        )

    @property
    def embedding_norm(self) -> float:
        """Mean L2 norm of the table's rows when it was first asked for; training keeps this length."""
        if self._norm is None:
            weight = getattr(self.module, "weight", None)
            if weight is None:
                return 1.0
            mean = weight.detach().float().norm(dim=-1).mean()
            self._norm = float(mean.full_tensor() if isinstance(mean, DTensor) else mean)
        return self._norm

    @embedding_norm.setter
    def embedding_norm(self, value: float) -> None:
        self._norm = value

    def _look(self, inputs: Mapping[str, Any], ids: Tensor) -> None:
        """Run the model up to its embeddings, which tells whether they run at all and where their batch axis is."""
        self._looking = True
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=random_devices(ids)):
                self.model(**inputs)
        except _Seen:
            pass
        else:
            raise ValueError(
                f"{type(self.model).__name__} does not run the {type(self.module).__name__} that "
                "get_input_embeddings() names, so its embeddings cannot be perturbed"
            )
        finally:
            self._looking = False
        seen, output = self._seen
        del self._seen
        self._width = output.shape[-1]
        batch_first = output.shape[:-1] == ids.shape
        time_first = output.shape[:-1] == ids.T.shape
        if batch_first and time_first and seen is not None:  # as many examples as tokens: only the ids can tell
            batch_first = bool((seen == ids).all())
        if not (batch_first or time_first):
            raise ValueError(
                f"the embeddings of {type(self.model).__name__} have shape {tuple(output.shape)}, which is neither "
                f"(batch, time, dim) nor (time, batch, dim) for input_ids of shape {tuple(ids.shape)}"
            )
        self._time_first = not batch_first


def _input_embeddings(model: nn.Module) -> nn.Module:
    owner = model
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        # get_input_embeddings() of BART and T5 classifiers names a module that never runs.
        owner = model.get_encoder()  # type: ignore[operator]
    try:
        module = owner.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        module = None
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"{type(model).__name__} has no input embeddings (get_input_embeddings() names none), "
            "so there is nothing for an embedding perturbation to move"
        )
    return module
