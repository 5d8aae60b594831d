"""Gradient clipping that leaves out the embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers import Trainer

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class Clipping(_Base):
    """Base of a Trainer: obeys `clip_embeddings` of the arguments.

    Without it `max_grad_norm` bounds the norm of all gradients but those of embedding tables, which are not clipped
    (Miyato et al. 2017, Park et al. 2019). The logged `grad_norm` is that norm.
    """

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's.

        Raises:
            ValueError: `clip_embeddings` is false, and nothing is clipped, the model trains no embeddings, or an
                engine clips whole models only.
        """
        if not getattr(self.args, "clip_embeddings", True):
            asked = "clip_embeddings=False"
            if self.args.max_grad_norm <= 0:
                raise ValueError(f"{asked}: max_grad_norm={self.args.max_grad_norm} clips nothing; set it above 0")
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                engine = "DeepSpeed" if self.is_deepspeed_enabled else "FSDP"
                raise ValueError(f"{asked}: {engine} clips the gradients of whole models; leave it out")
            if not any(p.requires_grad for p in _tables(cast(nn.Module, self.model)).values()):
                raise ValueError(f"{asked}: {type(self.model).__name__} trains no nn.Embedding; leave it out")
        return super().train(*args, **kwargs)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Called once before each optimizer step, when all its gradients are there."""
        if getattr(self.args, "clip_embeddings", True):
            return super()._clip_grad_norm(model)
        tables = _tables(model)
        clipped = [p for p in model.parameters() if id(p) not in tables]
        norm = self.accelerator.clip_grad_norm_(clipped, self.args.max_grad_norm)  # which unscales those of fp16, all
        left_out: Tensor = get_total_norm([p.grad for p in tables.values() if p.grad is not None])
        # Whoever asks whether gradients are finite asks this norm.
        return norm + 0.0 * left_out.to(norm.device)


def _tables(model: nn.Module) -> dict[int, nn.Parameter]:
    """The parameters of embedding tables, by id: a decoder that is tied to one is one."""
    tables = (m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)))
    return {id(p): p for module in tables for p in module.parameters(recurse=False)}
