"""What the model card says about the regularizer."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_rat.regularizers.recipes import RECIPES, Recipe
from hf_rat.regularizers.terms import FULL_STRENGTH, Scaled, Sum, Term
from hf_rat.rehearsal import rehearse


def regularization_section(regularizer: Term, log_history: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the expression, what it costs, each recipe's card, and the components of the last logged loss.

    Args:
        regularizer: what the model was trained with.
        log_history: the Trainer's, one dict per log.
    """
    lines = [
        "## Regularization",
        "",
        f"Trained with hf-rat {importlib.metadata.version('hf-rat')}, regularizer",
        "",
        f"    {regularizer!r}",
        "",
        f"One training step makes {rehearse(regularizer, FULL_STRENGTH)} over the batch (plain training: 1 and 1).",
        "",
    ]
    for name in dict.fromkeys(_recipes(regularizer)):
        card = inspect.getdoc(RECIPES[name]) or ""
        lines += [f"**{name}**: {' '.join(card.split(chr(10) * 2)[0].split())}", "", *_equation(card), ""]
    components: Mapping[str, Any] = next(
        (log for log in reversed(log_history) if any(name.startswith("loss_") for name in log)), {}
    )
    rows = [(name, value) for name, value in components.items() if name == "loss" or name.startswith("loss_")]
    if rows:
        lines += [
            f"Components of the training loss at step {components.get('step')}:",
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
