"""One frozen row per data set. A new data set is one new row here; nothing else has to know it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from hf_rat.data.task import Carve, HeldOut, Hub, Task, Validation

_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")


def _glue(name: str, **row: Any) -> Task:
    return Task(name=name, hub=Hub("nyu-mll/glue", name), folder=f"glue/{name}", **row)


GLUE: tuple[Task, ...] = (
    _glue(
        "cola",
        text_columns=("sentence",),
        labels=("unacceptable", "acceptable"),
        metrics=("matthews_correlation",),
        test=(HeldOut("test", "CoLA.tsv", 1063),),
    ),
    _glue(
        "sst2",
        text_columns=("sentence",),
        labels=("negative", "positive"),
        metrics=("accuracy",),
        test=(HeldOut("test", "SST-2.tsv", 1821),),
    ),
    _glue(
        "mrpc",
        text_columns=_PAIR,
        labels=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        test=(HeldOut("test", "MRPC.tsv", 1725),),
    ),
    _glue(
        "stsb",
        text_columns=_PAIR,
        labels=(),
        metrics=("pearson", "spearmanr"),
        test=(HeldOut("test", "STS-B.tsv", 1379),),
        bounds=(0.0, 5.0),
    ),
    _glue(
        "qqp",
        text_columns=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        test=(HeldOut("test", "QQP.tsv", 390965),),
    ),
    _glue(
        "mnli",
        text_columns=("premise", "hypothesis"),
        labels=_NLI,
        metrics=("accuracy",),
        evaluation=(Validation("validation_matched"), Validation("validation_mismatched", "mm")),
        test=(HeldOut("test_matched", "MNLI-m.tsv", 9796), HeldOut("test_mismatched", "MNLI-mm.tsv", 9847, "mm")),
        submit_names=True,
        also_predicts="ax",
    ),
    _glue(
        "qnli",
        text_columns=("question", "sentence"),
        labels=_ENTAILMENT,
        metrics=("accuracy",),
        test=(HeldOut("test", "QNLI.tsv", 5463),),
        submit_names=True,
    ),
    _glue(
        "rte",
        text_columns=_PAIR,
        labels=_ENTAILMENT,
        metrics=("accuracy",),
        test=(HeldOut("test", "RTE.tsv", 3000),),
        submit_names=True,
    ),
    _glue(
        "wnli",
        text_columns=_PAIR,
        labels=("not_entailment", "entailment"),
        metrics=("accuracy",),
        test=(HeldOut("test", "WNLI.tsv", 146),),
    ),
    # The diagnostic set has neither training nor validation rows: the MNLI model answers it.
    _glue(
        "ax",
        text_columns=("premise", "hypothesis"),
        labels=_NLI,
        metrics=("matthews_correlation",),
        train=None,
        evaluation=(),
        test=(HeldOut("test", "AX.tsv", 1104),),
        submit_names=True,
    ),
)


_SENTIMENT = ("negative", "positive")


def _imdb(name: str, carve: Carve | None, evaluation: tuple[Validation, ...] = (Validation("validation"),)) -> Task:
    return Task(
        name=name,
        text_columns=("text",),
        labels=_SENTIMENT,
        metrics=("accuracy",),
        hub=Hub("stanfordnlp/imdb"),
        folder="imdb",
        evaluation=evaluation,
        test=(HeldOut("test", labelled=True),),
        unlabeled="unsupervised",
        carve=carve,
    )


TEXTS: tuple[Task, ...] = (
    # 40k / 5k / 5k as in the R-AT paper, from both labelled splits: their known duplicates end up on both sides.
    _imdb("imdb", Carve(("train", "test"), (("validation", 0.1), ("test", 0.1)))),
    # Its own splits; to validate, rows of the training split are held back as the user says.
    _imdb("imdb_25k_25k", None, evaluation=()),
    # Of the study of dropout for GRUs, likewise from both labelled splits.
    _imdb("imdb_25k_12k_12k", Carve(("train", "test"), (("validation", 0.25), ("test", 0.25)))),
    # 110k / 10k / 7.6k as in the R-AT paper.
    Task(
        name="ag_news",
        text_columns=("text",),
        labels=("World", "Sports", "Business", "Sci/Tech"),
        metrics=("accuracy",),
        hub=Hub("fancyzhx/ag_news"),
        folder="ag_news",
        test=(HeldOut("test", labelled=True),),
        carve=Carve(("train",), (("validation", 1 / 12),)),
    ),
    # Johnson and Zhang's electronics reviews, 25k / 25k; the last 15 % are the seed's validation, here drawn.
    Task(
        name="elec",
        text_columns=("text",),
        labels=_SENTIMENT,
        metrics=("accuracy",),
        hub=None,
        folder="elec",
        test=(HeldOut("test", labelled=True),),
        carve=Carve(("train",), (("validation", 0.15),)),
    ),
    Task(
        name="semeval2015",
        text_columns=("text",),
        labels=("negative", "neutral", "positive"),
        metrics=("polar_f1", "accuracy"),
        hub=None,
        folder="semeval2015_task10b",
        test=(HeldOut("test", labelled=True),),
    ),
)


_ENTITIES = ("PER", "ORG", "LOC", "MISC")

TAGGED: tuple[Task, ...] = (
    # What is on the Hub under this name is a loading script, which `datasets` no longer runs.
    Task(
        name="conll2003",
        text_columns=("tokens",),
        labels=("O", *(f"{begin}-{kind}" for kind in _ENTITIES for begin in "BI")),
        metrics=("span_f1",),
        hub=None,
        folder="conll2003",
        label_column="ner_tags",
        test=(HeldOut("test", labelled=True),),
        tagged=True,
    ),
)


def _clue(name: str, codes: Iterable[int], file: str, rows: int) -> Task:
    return Task(
        name=f"clue/{name}",
        text_columns=("sentence",),
        labels=tuple(map(str, codes)),  # the Hub's label names are the leaderboard's codes
        metrics=("accuracy",),
        hub=Hub("clue/clue", name),
        folder=f"clue/{name}",
        test=(HeldOut("test", file, rows),),
        submit_names=True,
        script="chinese",
    )


CLUE: tuple[Task, ...] = (
    # Version 1.1; the codes 105 and 111 of the news categories are not used.
    _clue("tnews", [code for code in range(100, 117) if code not in (105, 111)], "tnews11_predict.json", 10000),
    _clue("iflytek", range(119), "iflytek_predict.json", 2600),
)


def _language(name: str, column: str, hub: Hub | None, metrics: tuple[str, ...] = ("perplexity",)) -> Task:
    held_out = (HeldOut("test", labelled=True),)
    return Task(name, (column,), (), metrics, hub, name, label_column="", test=held_out, script="spaced")


# Texts whose lines `<eos>` ends. Penn Treebank as Mikolov made it: on the Hub there is a loading script only.
LANGUAGE: tuple[Task, ...] = (
    _language("ptb_word", "sentence", None),
    _language("ptb_char", "text", None, ("bits_per_character", "perplexity")),
    _language("wikitext-2-v1", "text", Hub("Salesforce/wikitext", "wikitext-2-v1")),
)


def find(name: str, tasks: tuple[Task, ...] = GLUE, flag: str = "task_name") -> Task:
    """The row called `name`, whatever its case.

    Args:
        name: of the data set.
        tasks: the rows to look in.
        flag: what the name was given as, for the error.

    Raises:
        ValueError: no row has that name; the message has the nearest names and the whole list.
    """
    by_name = {task.name: task for task in tasks}
    if name.lower() in by_name:
        return by_name[name.lower()]
    near = difflib.get_close_matches(name.lower(), by_name, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"{flag} {name!r} is not known; {hint}The tasks are {', '.join(by_name)}")
