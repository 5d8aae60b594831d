"""How passes run, which is the same for every batch of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_rat.passes.length_buckets import Bucket
from hf_rat.passes.running_buffers import RunningBuffers
from hf_rat.passes.sites import Site

Pass = tuple[Tensor | None, Tensor]
"""Mean task loss, or None without labels; logits."""

Run = Callable[[dict[str, Any]], Pass]


@dataclass(frozen=True)
class Execution:
    """Who runs passes of a model, and how. Made once for a run; a batch adds what it holds.

    Args:
        run: inputs -> (mean task loss or None without labels, logits).
        open_site: name of a site -> the site, opened on the model on first use.
        search: like `run`, for passes that teach nothing; None runs those like all others. (DeepSpeed takes any
            traversal that begins at its own output for the backward that it waits for.)
        rerun: like `run`, for passes that keep no activations and run again in the backward; None keeps all of them.
            It runs the model without what wraps it (DDP prepares its gradient exchange in each forward).
        below: like `run`, for the layers below a cut, where it does not come to an end: of the model without what
            wraps it.
        streaming: the engine back-propagates groups one by one, so that a backward may leave a slope behind; otherwise
            all graphs are kept for one backward, and slopes are taken separately.
        separate_slope_pass: a slope that was announced is taken in passes of its own, because the engine cannot
            traverse a graph twice.
        no_sync: passes that teach nothing run inside this context (they compute no gradients of parameters).
        scale: multiplies a loss before a slope is taken (the fp16 loss scale; slopes are used for direction only).
        share_of: an adaptive perturbation -> how much of its size it has in this step, in (0, 1].
        teacher: inputs -> logits of the averaged model, for the proximal term.
        anchor: inputs -> logits of the model that training began with.
        may_look_up: the embeddings may be looked up outside the model's own forward.
        frames: (inputs, logits) -> (batch, frames) bool, which outputs of a `ctc` are not padding; None: all of them.
        why_one_by_one: inputs -> why the passes at a point run one by one; None where they run as one doubled batch.
        require_repeatable: raises a ValueError where a pass cannot draw the same random numbers again.
        split: inputs -> their buckets of like length; nothing where they are run whole.
        permute: n -> (n,) int64, the order in which examples are chosen at random.
        running: the buffers of the model that its forward changes (running statistics); None lets passes change them.
    """

    run: Run
    open_site: Callable[[str], Site]
    search: Run | None = None
    rerun: Run | None = None
    below: Run | None = None
    streaming: bool = True
    separate_slope_pass: bool = False
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext
    scale: Callable[[Tensor], Tensor] = lambda loss: loss
    share_of: Callable[[Any], float] = lambda at: 1.0
    teacher: Callable[[dict[str, Any]], Tensor] | None = None
    anchor: Callable[[dict[str, Any]], Tensor] | None = None
    may_look_up: bool = False
    frames: Callable[[Mapping[str, Any], Tensor], Tensor | None] = lambda inputs, logits: None
    why_one_by_one: Callable[[dict[str, Any]], str | None] = lambda inputs: None
    require_repeatable: Callable[[dict[str, Any]], None] = lambda inputs: None
    split: Callable[[Mapping[str, Any]], Sequence[Bucket]] = lambda inputs: ()
    permute: Callable[[int], Tensor] = torch.arange
    running: RunningBuffers | None = None
