"""Whether the batches of a run are split by length (passes/length_buckets.py), and what a bucket more costs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
from transformers.loss.loss_utils import LOSS_MAPPING

from hf_rat.passes.adapters import without_adapters
from hf_rat.passes.sites import SITES, is_weights

SPLITTING = ("auto", "off")
"""What may be asked of a run: see `Regularization`."""

KNOWN: tuple[Any, ...] = (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING)
"""Config class -> model class, whose loss is a mean over labels; the companion models are there too."""

LENGTH_MATTERS = frozenset({"big_bird", "convbert", "nystromformer", "xlnet", "yoso"})
"""Model types whose output for an example changes with how far it is padded."""

# What a forward and backward cost on one core of a CPU; only the ratios matter. Measured with MiniLM, where a bucket
# more costs 40 to 50 tokens, in fp32 and in bf16.
MODULE_SECONDS = 1.5e-4
"""For each module, beside its arithmetic: python, and starting kernels."""
WEIGHT_SECONDS = 2e-9
"""For each weight, however few the tokens: reading it, and adding up its gradient."""
FLOP_SECONDS = 1.5e-11
"""For each floating point operation."""


def why_not_bucketed(
    asked: str, plain: bool, sites: Sequence[str], model: nn.Module, accelerator: Accelerator | None
) -> str | None:
    """Why the batches of a run are not split by length; None where they are.

    Args:
        asked: one of `SPLITTING`.
        plain: training is plain.
        sites: where the regularizer perturbs the model.
        model: the unwrapped model.
        accelerator: of the run, or None.

    Raises:
        ValueError: `asked` is none of them.
    """
    if asked not in SPLITTING:
        raise ValueError(f"length_buckets={asked!r} must be one of {', '.join(SPLITTING)}")
    if asked == "off":
        return "length_buckets is off"
    if plain:
        return "training is plain"
    module = next((site for site in sites if site not in SITES and not is_weights(site)), None)
    if module is not None:
        return f"the output of {module} may not be cut with the tokens"
    base = without_adapters(model)
    config: Any = getattr(base, "config", None)
    if any(isinstance(module, FSDPModule) for module in base.modules()):
        return "FSDP2 wants the same forwards on every process"
    if type(base) not in [known.get(type(config), None) for known in KNOWN]:
        # The loss of any other model may not be a mean over labels, and its inputs may not be cut as ours are.
        return f"{type(base).__name__} is not known to judge every example by itself"
    changed = _own_loss(base)
    if changed is not None:
        return f"{changed} of {type(base).__name__} may give another loss than a mean over examples"
    if config.is_encoder_decoder:
        return f"{type(base).__name__} is an encoder-decoder"
    if config.model_type in LENGTH_MATTERS:
        return f"the output of {type(base).__name__} depends on the padding"
    coupled = next((m for m in base.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)), None)
    if coupled is not None:
        return f"{type(coupled).__name__} couples the examples of a batch"
    if any(isinstance(module, nn.RNNBase) for module in base.modules()):
        return "recurrent layers skip padding by themselves"
    if next(base.parameters()).device.type != "cpu":
        return "that was measured faster on CPUs only"
    if accelerator is not None:
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            return "DeepSpeed wants the same forwards on every process"
        if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
            return "a compiled model would be compiled again for each length"
    return None


def _own_loss(model: nn.Module) -> str | None:
    """What of a model of a known class may have been replaced, so that its loss is another one; None for nothing."""
    # Accelerate puts its autocast around the forward of an instance.
    own = vars(model).get("_original_forward", vars(model).get("forward"))
    if not _is_ours(type(model)):
        return "the class"
    if not _is_ours(inspect.unwrap(type(model).forward)) or (
        own is not None and getattr(own, "__func__", None) is not type(model).forward
    ):
        return "the forward"
    named = type(model).__name__
    usual = next(
        (task for task in ("ForSequenceClassification", "ForTokenClassification") if named.endswith(task)), ""
    )
    loss = getattr(model, "loss_function", None)
    if loss is not None and (loss is not LOSS_MAPPING.get(usual) or not _is_ours(loss)):
        return "the loss_function"
    return None


def _is_ours(function: Any) -> bool:
    """Whether a function or class is one of transformers, or of the models here."""
    return f"{getattr(function, '__module__', None)}.".startswith(("transformers.", "hf_rat.models."))


def overhead(model: nn.Module) -> float:
    """What a forward and backward of `model` cost however short the batch, in tokens."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    weights = sum(p.numel() for p in model.parameters() if id(p) not in embeddings)
    weights = max(1, weights)
    fixed = MODULE_SECONDS * sum(1 for _ in model.modules()) + WEIGHT_SECONDS * weights
    return fixed / (6 * weights * FLOP_SECONDS)
