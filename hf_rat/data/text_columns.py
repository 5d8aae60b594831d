"""Which columns of a data set are texts: by their names, or because there is but one."""

from __future__ import annotations

from datasets import Dataset, Value

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
)
SINGLE = ("text", "sentence")
_ARGUMENT = "text_column_names"


def text_columns_of(rows: Dataset, label_column: str) -> tuple[str, ...]:
    """The text columns of a data set that has no row in `tasks.py`: a known pair, else `text` or `sentence`, else the
    one column that is text.

    Raises:
        ValueError: no column is text, or several may be.
    """
    names = [name for name in rows.column_names if name != label_column]
    pairs = [pair for pair in PAIRS if {*pair} <= {*names}]
    single = [(name,) for name in SINGLE if name in names and not any(name in pair for pair in pairs)]
    found = [*pairs, *single] or [(name,) for name in names if _type(rows, name) == "text"]
    if len(found) == 1:
        return found[0]
    if not found:
        types = ", ".join(f"{name} ({_type(rows, name)})" for name in names)
        raise ValueError(
            f"{_ARGUMENT}: none of the columns is text; beside the label {label_column!r} there is "
            f"{types or 'nothing'}. A column that is named there is read as text from a csv or tsv file"
        )
    several = " or ".join(",".join(columns) for columns in found)
    raise ValueError(f"{_ARGUMENT} is needed: the text may be {several}; name one, or two that are read as a pair")


def _type(rows: Dataset, column: str) -> str:
    feature = rows.features[column]
    if not isinstance(feature, Value):
        return "lists, objects or several types"
    if feature.dtype not in ("string", "large_string"):
        return feature.dtype
    return "text"
