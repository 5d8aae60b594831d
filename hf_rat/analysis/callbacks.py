"""What is measured while a model trains."""

from __future__ import annotations

import json
from collections.abc import Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from hf_rat.analysis.dropout_gap import dropout_gap
from hf_rat.analysis.input_gradient import input_gradient_norms
from hf_rat.analysis.logits import Batches
from hf_rat.data.whole_files import write_json
from hf_rat.passes.dropout import RandomState
from hf_rat.passes.sites import EMBEDDINGS

FILE = "gap_history.json"


class GapRecorder(TrainerCallback):
    """Measure dropout's gap and the norm of the input gradient before the first step and at each evaluation.

    Add it by `trainer.add_callback(GapRecorder(trainer))`. The training is the same to the last bit with it. What is
    found goes into the log (`state.log_history` and the trackers), and into `gap_history.json` in the output folder, a
    record for each time: "step", "epoch", "gap_input_gradient_norm" (the mean of `input_gradient_norms`), and with
    masks "gap_variance", "gap_agreement" (not of a regression), "gap_fd", "gap_el", and each score of the whole model,
    of one pass with dropout and of the passes' average: "gap_whole_nll", "gap_one_pass_nll", "gap_averaged_nll". It is
    measured at the model's own weights, also where an average of them is evaluated.

    Args:
        trainer: any Trainer with an evaluation set of rows that can be taken by number.
        sample: rows of the evaluation set, drawn by `seed`; all, if there are fewer.
        masks: sub-models, an even number of at least 4; 0 for a model without dropout: the gradient alone.
        site: as of `input_gradient_norms`.
        seed: of the sample and of the masks, the same each time.

    Raises:
        ValueError: when training begins: there is no such evaluation set, nothing is evaluated while it trains, the
            model has no dropout, or its weights are in shards.
    """

    def __init__(
        self, trainer: Any, sample: int = 200, masks: int = 10, site: str = EMBEDDINGS, seed: int = 0
    ) -> None:
        self._trainer, self.sample, self.masks, self.site, self.seed = trainer, sample, masks, site, seed
        self._batches: Batches = ()
        self.history: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.eval_strategy == IntervalStrategy.NO:
            raise ValueError("GapRecorder measures at each evaluation: give an eval_strategy, steps or epoch")
        if self._trainer.is_fsdp_enabled or self._trainer.is_deepspeed_enabled:
            raise ValueError("GapRecorder cannot look at a model whose weights are in shards (FSDP, DeepSpeed)")
        self._batches = self._draw(args)
        self.history = [one for one in self._kept(args) if one["step"] < state.global_step]
        self._record(args, state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer.is_in_train:
            self._record(args, state)

    def _record(self, args: Any, state: Any) -> None:
        model = self._trainer.accelerator.unwrap_model(self._trainer.model, keep_torch_compile=False)
        norm = float(input_gradient_norms(model, self._batches, self.site).mean())
        found = {"input_gradient_norm": norm}
        if self.masks:
            gap = dropout_gap(model, self._batches, self.masks, self.seed, "GapRecorder")
            found |= {"variance": gap.variance, "fd": gap.terms["fd"], "el": gap.terms["el"]}
            found |= {} if gap.agreement is None else {"agreement": gap.agreement}
            for name in ("whole", "one_pass", "averaged"):
                found |= {f"{name}_{score}": value for score, value in getattr(gap, name).items()}
        logs = {f"gap_{name}": value for name, value in found.items()}
        self._trainer.log(dict(logs))
        record = {"step": state.global_step, "epoch": float(state.epoch or 0.0), **logs}
        self.history = [one for one in self.history if one["step"] != state.global_step] + [record]
        if self._trainer.is_world_process_zero():
            folder = Path(str(args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / FILE, self.history)

    def _kept(self, args: Any) -> list[dict[str, float]]:
        """What a run that is resumed has recorded."""
        path = Path(str(args.output_dir)) / FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []

    def _draw(self, args: Any) -> Batches:
        dataset = self._trainer.eval_dataset
        if isinstance(dataset, dict) and not hasattr(dataset, "features"):  # several evaluation sets
            dataset = next(iter(dataset.values()), None)
        if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
            raise ValueError(f"GapRecorder needs an eval_dataset of rows that can be taken by number, not {dataset!r}")
        rows: Any = dataset
        count = min(self.sample, len(rows))
        chosen = sorted(np.random.default_rng(self.seed).choice(len(rows), count, replace=False).tolist())
        collate = self._trainer._get_collator_with_removed_columns(self._trainer.data_collator, description="gap")
        before = RandomState(args.device)
        parts = [chosen[start : start + args.eval_batch_size] for start in range(0, count, args.eval_batch_size)]
        found = [self._trainer._prepare_inputs(collate([rows[number] for number in part])) for part in parts]
        before.restore()
        kept = [{name: x for name, x in batch.items() if isinstance(x, torch.Tensor)} for batch in found]
        if "labels" not in kept[0]:
            raise ValueError(f"GapRecorder: the evaluation batches have {', '.join(kept[0])}; labels are needed")
        return kept
