"""Who runs the passes and backwards of a model: one process, DDP, FSDP2 or DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, extract_model_from_parallel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from hf_rat.passes.execution import Execution, Pass


class Engine:
    """One face for all engines.

    Args:
        model: as the loop calls it.
        accelerator: None for a bare loop, also one over several processes with DDP or `fully_shard`.

    Attributes:
        unwrapped: the model inside.
        model: what a pass calls.
        is_sharded: `fully_shard` (FSDP2) spreads the weights over the processes.
        steps_in_backward: every backward makes an optimizer step (DeepSpeed), so that there must be one only.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator | None) -> None:
        self.model = model
        self.unwrapped = extract_model_from_parallel(model, keep_torch_compile=False)
        self._accelerator = accelerator
        kind = None if accelerator is None else accelerator.distributed_type
        self.steps_in_backward = kind == DistributedType.DEEPSPEED
        # Not by the parameters: between a forward and its backward they are whole.
        self.is_sharded = any(isinstance(module, FSDPModule) for module in self.unwrapped.modules())
        # DeepSpeed has one backward, hence nothing to postpone. A process of FSDP2 that postponed its exchange would
        # hold the gradients of the whole model.
        self._exchanges_always = self.is_sharded or self.steps_in_backward
        self._shares_without_accelerator = (
            accelerator is None
            and (self.is_sharded or isinstance(model, nn.parallel.DistributedDataParallel))
            and torch.distributed.is_initialized()
        )

    def execution(
        self, run: Callable[[nn.Module, dict[str, Any]], Pass], *, streaming: bool, lean: bool, **settings: Any
    ) -> Execution:
        """How passes run under this engine.

        Args:
            run: (model, inputs) -> (mean task loss, logits).
            streaming: groups are back-propagated one by one.
            lean: several passes at a point run again in the backward, without what wraps the model.
            settings: the other arguments of `Execution`.
        """
        return Execution(
            run=partial(run, self.model),
            # DeepSpeed takes any traversal that begins at its own output for the backward that it waits for.
            search=partial(run, self.unwrapped) if self.steps_in_backward else None,
            rerun=partial(run, self.unwrapped) if lean else None,
            below=partial(run, self.unwrapped),
            streaming=streaming,
            separate_slope_pass=self.steps_in_backward,
            no_sync=self.no_sync,
            scale=self.scale,
            # A table that FSDP shards can be looked up inside the model's own forward only.
            may_look_up=not self.is_sharded,
            **settings,
        )

    def has_single_backward(self, asked: bool | None) -> bool:
        """Whether a micro-batch has one backward; None leaves it to the engine.

        Raises:
            ValueError: it was said to have several, and the engine steps on each.
        """
        if self.steps_in_backward and asked is False:
            raise ValueError("single_backward is False, and DeepSpeed makes a step on every backward; use None")
        return self.steps_in_backward if asked is None else asked

    def backward(self, loss: Tensor) -> None:
        if self._accelerator is None:
            loss.backward()
        else:
            self._accelerator.backward(loss)

    def nothing(self, losses: Iterable[Tensor]) -> Tensor:
        """Zero, whose backward gives a gradient of zeros to the parameters that the losses depend on.

        An exchange of gradients waits for all of those. Zero times the losses would not do: where they are not finite,
        zero times their slopes is NaN.
        """
        if self.steps_in_backward:  # DeepSpeed waits for a traversal that begins at its own output
            return 0.0 * torch.stack(list(losses)).nan_to_num().sum()
        if self.is_sharded:  # what the losses depend on are whole copies, which are gone
            held = [p.to_local() if isinstance(p, DTensor) else p for p in self.unwrapped.parameters()]
        else:
            held = _parameters_under(losses) or list(self.unwrapped.parameters())
        held = [parameter for parameter in held if parameter.requires_grad]
        return torch.stack([parameter.flatten()[:0].sum().float() for parameter in held]).sum()

    @property
    def leaves_gradients(self) -> bool:
        """Whether the gradients of the step, as the optimizer will use them, are there after this backward."""
        if self._accelerator is None:
            return True
        # With a loss scale they are not; the scaler looks at them, and lowers the scale.
        unscaled = self._accelerator.scaler is None and not self.steps_in_backward
        return unscaled and self._accelerator.sync_gradients

    def no_sync(self) -> AbstractContextManager[Any]:
        """Backwards inside leave the exchange of gradients to a later one."""
        if self._exchanges_always:
            return nullcontext()
        if self._accelerator is None:
            no_sync: AbstractContextManager[Any] = getattr(self.model, "no_sync", nullcontext)()
            return no_sync
        return self._accelerator.no_sync(self.model)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the loss scale of fp16."""
        if self.steps_in_backward:
            return loss * getattr(getattr(self.model, "optimizer", None), "cur_scale", 1.0)
        if self._accelerator is None or self._accelerator.scaler is None:
            return loss
        return self._accelerator.scaler.scale(loss)

    def undo(self, accumulation: int, device: torch.device) -> Tensor:
        """What a gradient is multiplied by to be that of a loss before it was divided and scaled for `backward`."""
        return accumulation * self.accumulation / self.scale(torch.ones((), device=device))

    @property
    def accumulation(self) -> int:
        """By how many micro-batches `backward` divides a loss by itself."""
        return 1 if self._accelerator is None else self._accelerator.gradient_accumulation_steps

    @property
    def processes(self) -> int:
        """Over how many processes gradients are averaged."""
        if self._shares_without_accelerator:
            return torch.distributed.get_world_size()
        return 1 if self._accelerator is None else self._accelerator.num_processes

    def sum(self, x: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        if self.processes == 1:
            return x
        if self._accelerator is None:
            x = x.clone()
            torch.distributed.all_reduce(x)
            return x
        total: Tensor = self._accelerator.reduce(x.to(self._accelerator.device), reduction="sum")
        return total

    def everywhere(self, holds: Tensor) -> Tensor:
        """(n,) bool: what holds on every process."""
        return holds if self.processes == 1 else self.sum(holds.float()) == self.processes


def _parameters_under(losses: Iterable[Tensor]) -> list[Tensor]:
    """The parameters that the losses depend on, each once."""
    found: list[Tensor] = []
    seen = set()
    left = [loss.grad_fn for loss in losses]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter):
            found.append(variable)
        left += [following for following, _ in node.next_functions]
    return found
