"""The flags of files of one's own, and of data whose columns are not known beforehand."""

from dataclasses import dataclass, field

from hf_rat.data.reading import QUOTING, Reading


# No postponed annotations in this module: HfArgumentParser reads the types of the fields.
@dataclass
class FileArguments:
    """Which files are read, how, and which columns are texts and labels."""

    train_file: str | None = field(
        default=None, metadata={"help": "A csv, tsv, json, jsonl, parquet or CoNLL (ner) file."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same, for validation."})
    test_file: str | None = field(default=None, metadata={"help": "The same, for --do_predict."})
    unlabeled_file: str | None = field(
        default=None,
        metadata={
            "help": "The same, of texts without labels: for --pretrain_lm and --semi_supervised of run_textcls.py."
        },
    )
    unlabeled_size: int | None = field(
        default=None, metadata={"help": "Use N of the texts without labels, drawn by a fixed seed."}
    )
    text_column_names: str | None = field(
        default=None,
        metadata={
            "help": "One or two columns, comma separated. Without it: by name (text, sentence1,sentence2, ...)."
        },
    )
    label_column_name: str | None = field(default=None, metadata={"help": "Column of the labels. Without it: label."})
    do_regression: bool | None = field(
        default=None,
        metadata={"help": "Whether labels are numbers to approach, not classes. Without it: by the data."},
    )
    encoding: str = field(
        default="utf-8", metadata={"help": "Of csv, tsv, json and jsonl files: latin-1, utf-16, ..."}
    )
    quoting: str | None = field(
        default=None,
        metadata={
            "help": "minimal: fields may be in double quotes, csv's default; none: quotes are characters, tsv's.",
            "choices": tuple(QUOTING),
        },
    )
    column_names: str | None = field(
        default=None, metadata={"help": "Columns of csv and tsv files whose first line is a row, comma separated."}
    )

    def __post_init__(self) -> None:
        try:
            "".encode(self.encoding)
        except LookupError:
            raise ValueError(f"--encoding {self.encoding!r} is none of Python's, such as utf-8 or latin-1") from None
        if self.quoting is not None and self.quoting not in QUOTING:
            raise ValueError(f"--quoting {self.quoting!r} is not known; there are {', '.join(QUOTING)}")
        for name in ("encoding", "quoting", "column_names"):
            if getattr(self, name) != getattr(FileArguments, name) and not (self.files or self.unlabeled_file):
                raise ValueError(f"--{name} {getattr(self, name)!r} is of files of your own: give --train_file")
        names = self.names("column_names")
        if len(set(names)) < len(names) or not all(names):
            raise ValueError(f"--column_names {self.column_names!r}: each column needs a name of its own")

    def names(self, flag: str) -> tuple[str, ...]:
        """The columns that a flag names."""
        return tuple(name.strip() for name in getattr(self, flag).split(",")) if getattr(self, flag) else ()

    @property
    def files(self) -> dict[str, str]:
        """split -> file, of the files that are given."""
        named = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: path for split, path in named.items() if path is not None}

    def reading(self, cache_dir: str | None = None, tagged: bool = False) -> Reading:
        """How the files are read; `tagged`: whether each word has a label of its own."""
        columns, texts = self.names("column_names"), self.names("text_column_names")
        return Reading(self.encoding, self.quoting, columns, texts, cache_dir, tagged)
