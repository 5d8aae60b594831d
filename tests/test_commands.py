"""Every command and every flag that a page shows is one of today, or the page says at which commit it ran."""

import re
import shlex
from argparse import ArgumentParser
from dataclasses import fields
from itertools import chain
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from hf_rat.cli import compare
from hf_rat.cli.analyze import STUDIES
from hf_rat.cli.main import main
from hf_rat.experiments.choosing import sampled
from hf_rat.finetuning.flags import DataTrainingArguments, ModelArguments, build, given_flags
from hf_rat.finetuning.language_model_flags import LanguageModelArguments
from hf_rat.finetuning.sequence_flags import PixelArguments, TemporalOrderArguments
from hf_rat.finetuning.tag_flags import TagArguments
from hf_rat.finetuning.word_model_flags import WordModelArguments
from hf_rat.regularizers import parse
from hf_rat.trainer.training_args import RegularizedTrainingArguments

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted(path for folder in ("results", "papers") for path in (ROOT / folder).rglob("*.md"))
# The script's name -> the command that it is.
SCRIPTS = {"run_glue.py": "glue", "run_textcls.py": "textcls"}
AN_OLD_COMMIT = re.compile(r"at commit `?[0-9a-f]{7,40}\b")


# A shell function with the flags that several commands share, and what calls it.
RUN = re.compile(r'^run\(\) \{\n +(.*) "\$@"\n\}\n(.*)', re.DOTALL)


def unfolded(block: str) -> str:
    """A fenced block with the commands that its function `run` makes, with one seed, each on a line of its own."""
    found = RUN.match(block)
    if found is None:
        return block
    shared, calls = found.groups()
    return "\n".join(
        f"{shared} {call}".replace("$seed", "1") for call in re.findall(r"^ *run (.*)$", calls, re.MULTILINE)
    )


def code(page: str) -> list[str]:
    """The lines of a page's fenced blocks, continued ones joined, and its code spans."""
    blocks = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    fenced = "\n".join(map(unfolded, blocks))
    rest = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    return fenced.replace("\\\n", " ").splitlines() + re.findall(r"(?<!`)`([^`\n]+)`(?!`)", rest)


def commands(page: str) -> list[list[str]]:
    """The command lines of ours on a page, from the name of the command on. "..." is left out."""
    found = []
    for line in code(page):
        for part in re.split(r" (?:&&|\|\|?|;) ", line):
            if not re.search(r"\bhf-rat [a-z]|run_(glue|textcls)\.py( |$)", part):
                continue
            words = [word for word in shlex.split(part, comments=True) if word != "..."]
            for at, word in enumerate(words, 1):
                if word == "hf-rat" or Path(word).name in SCRIPTS:
                    found.append([*filter(None, [SCRIPTS.get(Path(word).name)]), *words[at:]])
                    break
    return found


FINE_TUNING = (ModelArguments, DataTrainingArguments)
FLAGS = {
    "glue": FINE_TUNING,
    "textcls": (*FINE_TUNING, WordModelArguments),
    "ner": (*FINE_TUNING, WordModelArguments, TagArguments),
    "lm": (*FINE_TUNING, WordModelArguments, LanguageModelArguments),
    "mnist": (PixelArguments,),
    "temporal-order": (TemporalOrderArguments,),
}


def check(command: list[str]) -> None:
    """Read a command line as the command itself does.

    Raises:
        ValueError: it would be refused.
    """
    name, *flags = command
    if name in FLAGS and flags:
        given = given_flags(flags, f"hf-rat {name}", base=(*FLAGS[name], RegularizedTrainingArguments))
        for dataclass_ in FLAGS[name]:
            build(dataclass_, given)
        parse(given.get("reg", "plain"))
    elif name == "compare" and flags:
        experiment = compare.parse(flags)
        for run in sampled(experiment).plan():
            if run.seed == experiment.seeds[0]:
                check(list(run.command))
    else:
        try:
            status = main([name, "--help"])
        except SystemExit as end:
            status = end.code
        assert not status, f"hf-rat has no command {name}"


SHOWN = {
    (str(path.relative_to(ROOT)), shlex.join(command))
    for path in PAGES
    if not AN_OLD_COMMIT.search(page := path.read_text(encoding="utf-8"))
    for command in commands(page)
}


def test_every_command_is_one_of_today():
    assert len(SHOWN) > 20
    seen, wrong = set(), []
    for page, command in sorted(SHOWN):
        # Runs that differ in their seed alone are read once.
        if (short := re.sub(r"--seed \d+|--output_dir \S+", "", command)) not in seen:
            seen.add(short)
            try:
                check(shlex.split(command))
            except (ValueError, AssertionError) as error:
                wrong.append(f"{page}: {command}: {error}")
    assert not wrong, "\n".join(wrong)


def test_every_flag_that_the_documentation_names_is_one_of_today():
    """Those in code spans that begin with a flag: ours or Accelerate's. Another program has flags of its own."""
    ours = {RegularizedTrainingArguments, *chain(*FLAGS.values())}
    names = {f.name for dataclass_ in ours for f in fields(dataclass_)}
    known = {f"--{no}{name}" for name in names for no in ("", "no_")} | {"--methods", "--seeds", "--help", "--version"}
    known |= {"--models", "--datasets", "--images", "--masks", "--draws", "--rate"}  # of compare, and of masks
    known |= {"--split", "--max_samples"}  # of analyze
    known |= {"--help-all", "--alike", "--baseline", "--score", "--best", "--trials", "--race", "--controls", "--jobs"}
    known |= {"--output", "--title", "--card"}  # of report
    known |= launch_command_parser()._option_string_actions.keys()
    for study in STUDIES.values():
        parser = ArgumentParser()
        study.add_flags(parser)
        known |= parser._option_string_actions.keys()
    wrong = []
    for path in PAGES:
        if "results" in path.parts:
            continue
        for span in code(path.read_text(encoding="utf-8")):
            if span.startswith("--"):
                flags = set(re.findall(r"(?<![\w-])--[a-zA-Z_]\w*", span))
                wrong += [f"{path.name}: {span}: {flag}" for flag in sorted(flags - known)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ("```bash\npip install x && accelerate launch \\\n    --n 2 run_glue.py --reg rat\n```", "glue --reg rat"),
        ("say `hf-rat compare --methods plain 'rat(epsilon=1)' ...`", "compare --methods plain rat(epsilon=1)"),
        (
            '```bash\nrun() {\n    hf-rat glue --bf16 "$@"\n}\nfor seed in 1 2; do\n    run --seed $seed\ndone\n```',
            "glue --bf16 --seed 1",
        ),
        ("```python\nhf_rat.rat()\n```\nand `hf_rat/rat.py`", None),
    ],
)
def test_commands_are_found(page, found):
    assert commands(page) == ([found.split()] if found else [])


@pytest.mark.parametrize(
    "command",
    ["glue --reg rta", "glue --recipes paper", "textcls --model textgnn", "compare --methods plain --seeds x"],
)
def test_a_command_of_another_day_is_found(command):
    with pytest.raises(ValueError, match=r"rta|recipes|textgnn|seeds"):
        check(command.split())
