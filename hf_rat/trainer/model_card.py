"""What the model card says: how the model came about, how it scores, how it is used, and the regularizer."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard
from transformers import PreTrainedTokenizerBase
from transformers.modelcard import TrainingSummary

from hf_rat.engine.cost import rehearse
from hf_rat.regularizers.algebra import FULL_STRENGTH, Scaled, Sum, Term
from hf_rat.regularizers.recipe import RECIPES, Recipe
from hf_rat.regularizers.schedules import schedules


def regularization_section(
    regularizer: Term, log_history: Sequence[Mapping[str, Any]], average: str | None = None
) -> str:
    """Markdown: the expression, what it costs, each recipe's card, and the components of the last logged loss.

    Args:
        regularizer: what the model was trained with.
        log_history: the Trainer's, one dict per log.
        average: what the weights are the average of, where they are one.
    """
    lines = [
        "## Regularization",
        "",
        f"Trained with hf-rat {importlib.metadata.version('hf-rat')}, regularizer",
        "",
        f"    {regularizer!r}",
        "",
        f"One training step{'' if not any(schedules(regularizer)) else ', while all of it is on,'} makes "
        f"{rehearse(regularizer, FULL_STRENGTH)} over the batch (plain training: 1 and 1).",
        "",
    ]
    if average is not None:
        lines += [f"The weights are an average: {average}. The scores are those of the averaged model.", ""]
    for name in dict.fromkeys(_recipes(regularizer)):
        card = inspect.getdoc(RECIPES[name]) or ""
        lines += [f"**{name}**: {' '.join(card.split(chr(10) * 2)[0].split())}", "", *_equation(card), ""]
        if (reference := _reference(card)) is not None:
            lines += [f"Paper: {reference}", ""]
    components: Mapping[str, Any] = next(
        (log for log in reversed(log_history) if any(name.startswith("loss_") for name in log)), {}
    )
    rows = [(name, value) for name, value in components.items() if name == "loss" or name.startswith("loss_")]
    if rows:
        lines += [
            f"Components of the training loss at step {components.get('step')} (`loss` is their sum; the loss that",
            "evaluation reports is the task's alone):",
            "",
            "| component | value |",
            "|---|---|",
        ]
        lines += [f"| {name} | {value:.4f} |" for name, value in rows]
        lines.append("")
    return "\n".join(lines)


def _recipes(term: Term) -> Iterator[str]:
    if isinstance(term, Recipe):
        yield term.name
    elif isinstance(term, Sum):
        yield from _recipes(term.left)
        yield from _recipes(term.right)
    elif isinstance(term, Scaled):
        yield from _recipes(term.term)


def _equation(card: str) -> list[str]:
    """The card's second paragraph, which is the equation, as an indented block."""
    paragraphs = card.split("\n\n")
    return ["    " + line.strip() for line in paragraphs[1].splitlines()] if len(paragraphs) > 1 else []


def _reference(card: str) -> str | None:
    """The card's reference on one line, its addresses as links."""
    found = re.search(r"^Reference: (.+?)(?=^\S|\Z)", card, re.DOTALL | re.MULTILINE)
    if found is None:
        return None
    return re.sub(r"https://\S+?(?=[,\s]|$)", lambda address: f"<{address[0]}>", " ".join(found[1].split()))


# End of a class's name -> task of the Hub and of `transformers.pipeline`.
_TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForImageClassification": "image-classification",
    "ForAudioClassification": "audio-classification",
}
# Name of a score -> what the Hub calls its kind.
_KINDS = {"pearson": "pearsonr", "loss": "loss"}
# Sections of the Trainer's draft that nobody has filled in.
_EMPTY = re.compile(
    r"^## (?:Model description|Intended uses & limitations|Training and evaluation data)\n+"
    r"More information needed\n+",
    re.MULTILINE,
)
_BEGINNING = re.compile(r"^This model (?:was trained from scratch|is a fine-tuned version).*$", re.MULTILINE)


def with_pictures(text: str, folder: Path) -> str:
    """A card that shows every PNG of its folder; those that it shows already are left as they are.

    Args:
        text: of the card, without its head.
        folder: of the card and of the pictures.
    """
    names = sorted(path.name for path in folder.glob("*.png"))
    lines = [
        f"![{name.removesuffix('.png').replace('_', ' ').capitalize()}]({quote(name)})"
        for name in names
        if f"]({quote(name)})" not in text
    ]
    if not lines:
        return text
    head, section, rest = text.partition("## Regularization")
    shown = "\n\n".join([head.rstrip(), *lines])
    return f"{shown}\n\n{section}{rest}" if section else f"{shown}\n"


def complete_card(path: Path, trainer: Any, example: Any, given: Mapping[str, Any]) -> None:
    """Finish the draft that the Trainer has written.

    Adds the scores as the Hub reads them, the task, how the model came about, the pictures in the folder, code that
    uses the model, and the section on the regularizer; takes out what is empty.

    Args:
        path: of the draft, in the folder of the model.
        trainer: that wrote it.
        example: what the code gives to the model: a text, or for two of them {"text": ..., "text_pair": ...}.
        given: keyword arguments of `create_model_card`.
    """
    summary = TrainingSummary.from_trainer(trainer, **given)
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapter = getattr(model, "peft_config", None)
    base: Any = model.get_base_model() if adapter else model
    task = _first(summary.tasks) or next(
        (task for end, task in _TASKS.items() if type(base).__name__.endswith(end)), None
    )
    origin = _origin(trainer, base, given)
    card = ModelCard.load(path)
    card.data.pipeline_tag = task
    on_hub = origin is not None and not Path(origin).exists()
    card.data.base_model = origin if on_hub else None
    # PEFT's draft has its own tags only, and one with the path of a local base.
    tags = dict.fromkeys([*(card.data.tags or []), *(summary.tags or [])])
    card.data.tags = [tag for tag in tags if on_hub or not tag.startswith("base_model:")]
    scores = {name: value for name, value in (summary.eval_results or {}).items() if isinstance(value, int | float)}
    data = _data(summary.dataset, trainer)
    if scores and task is not None:
        card.data.model_name = summary.model_name
        card.data.eval_results = [
            EvalResult(
                task_type=task,
                dataset_type=_first(summary.dataset_tags) or "unknown",
                dataset_name=data,
                dataset_args=_first(summary.dataset_args),
                metric_type=_KINDS.get(name.lower(), name.lower()),
                metric_name=name,
                metric_value=value,
            )
            for name, value in scores.items()
        ]
    text = _EMPTY.sub("", card.text)
    text = _BEGINNING.sub(lambda _: _tell_origin(adapter, base, origin, data), text, count=1)
    text = text.replace("| Training Loss |", "| Training loss (sum of components) |").replace(
        "| Validation Loss |", "| Validation loss (task) |"
    )
    text = with_pictures(text, path.parent)
    use = _use(trainer, base, adapter, task, example)
    steps, average = trainer.averaged_steps, None
    if steps:
        average = f"`{trainer.average!r}` of those after {steps} optimizer steps"
    section = regularization_section(trainer.regularizer, trainer.state.log_history, average)
    head, training, rest = text.partition("## Training procedure")
    card.text = f"{head.rstrip()}\n\n{use}{training}{rest.rstrip()}\n\n{section}"
    path.write_text(str(card), encoding="utf-8")


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and value else value or None


def _origin(trainer: Any, base: Any, given: Mapping[str, Any]) -> str | None:
    """The name or folder of the weights that training began with; None from scratch."""
    name = given.get("finetuned_from") or getattr(base.config, "_name_or_path", "")
    return name if name and Path(name) != Path(str(trainer.args.output_dir)) else None


def _data(given: Any, trainer: Any) -> str:
    names = [given] if isinstance(given, str) else [name for name in given or () if name]
    if names:
        return " and ".join(names)
    rows = trainer.train_dataset
    return f"data without a name ({len(rows)} rows)" if hasattr(rows, "__len__") else "data without a name"


def _tell_origin(adapter: Any, base: Any, origin: str | None, data: str) -> str:
    kind = type(base).__name__
    if origin is None:
        return f"This model, a {kind}, was trained from scratch on {data}."
    local = Path(origin).exists()
    name = f"`{Path(origin).name}` (a local folder)" if local else f"[{origin}](https://huggingface.co/{origin})"
    if adapter:
        (one, *_) = adapter.values()
        named = getattr(one.peft_type, "value", one.peft_type)
        return f"This is a {named} adapter of {name}, a {kind}: the adapter was trained on {data}, its base was not."
    return f"This model is {name}, fine-tuned as a {kind} on {data}."


def _use(trainer: Any, base: Any, adapter: Any, task: str | None, example: Any) -> str:
    """Markdown: code that loads the model from where it is and uses it."""
    where = trainer.hub_model_id if trainer.args.push_to_hub else str(trainer.args.output_dir)
    has_tokenizer = isinstance(trainer.processing_class, PreTrainedTokenizerBase)
    brings_code = getattr(base, "_auto_class", None) is not None
    trust = ", trust_remote_code=True" if brings_code else ""
    auto = next((end for end in _TASKS if type(base).__name__.endswith(end)), "")
    auto = "AutoModel" + ("ForCausalLM" if auto == "LMHeadModel" else auto)
    lines = ["## How to use it", "", "```python"]
    if adapter:
        names = f", id2label={base.config.id2label!r}" if "ForSequenceClassification" in auto else ""
        lines += [
            f"from peft import {auto.replace('AutoModel', 'AutoPeftModel', 1)}",
            *(["from transformers import AutoTokenizer, pipeline"] if has_tokenizer and task else []),
            "",
            f'model = {auto.replace("AutoModel", "AutoPeftModel", 1)}.from_pretrained("{where}"{names})',
        ]
        if has_tokenizer and task:
            lines += [
                f'tokenizer = AutoTokenizer.from_pretrained("{where}")',
                f'use = pipeline("{task}", model=model, tokenizer=tokenizer)',
                f"print(use({example!r}))",
            ]
    elif has_tokenizer and task in ("text-classification", "token-classification", "fill-mask", "text-generation"):
        if task == "fill-mask":
            example = f"A text with {trainer.processing_class.mask_token} in it."
        lines += [
            "from transformers import pipeline",
            "",
            f'use = pipeline("{task}", model="{where}"{trust})',
            f"print(use({example!r}))",
        ]
    else:
        lines += [
            f"from transformers import {auto}",
            "",
            f'model = {auto}.from_pretrained("{where}"{trust})',
        ]
    return "\n".join([*lines, "```", "", ""])
