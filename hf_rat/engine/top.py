"""The cut that a regularizer asks for, opened on a model under an engine."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import nn
from torch._dynamo import OptimizedModule

from hf_rat.engine.engine import Engine
from hf_rat.passes.cut import Cut
from hf_rat.passes.layers import find_place
from hf_rat.regularizers.terms import Term
from hf_rat.regularizers.top import readable, top_of


def cut_of(regularizer: Term, model: nn.Module, engine: Engine, accelerator: Accelerator | None) -> Cut | None:
    """The cut of a regularizer; None where its passes run the whole model.

    Args:
        regularizer: the term.
        model: as the loop calls it.
        engine: runs it.
        accelerator: of the run, or None.

    Raises:
        ValueError: the model has no such layer, or the engine runs it as a whole only.
    """
    top = top_of(regularizer)
    if top is None:
        return None
    asked, unwrapped = f"top={readable(top)}", engine.unwrapped
    compiles = accelerator is not None and accelerator.state.dynamo_plugin.backend != DynamoBackend.NO
    compiled = any(isinstance(m, OptimizedModule) or m._compiled_call_impl is not None for m in model.modules())
    if compiles or compiled:
        raise ValueError(
            f"{asked} runs a part of the model, and a compiled one is run as it was compiled; do not compile"
        )
    if engine.is_sharded or engine.steps_in_backward:
        name = "FSDP2" if engine.is_sharded else "DeepSpeed"
        raise ValueError(f"{asked} runs a part of the model by itself, which {name} cannot; use DDP")
    return Cut(unwrapped, find_place(unwrapped, top), asked)
