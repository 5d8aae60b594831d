"""The commands, their pages of help, and what of a command line is wrong already before anything is imported."""

from __future__ import annotations

import argparse
import ast
import difflib
import functools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hf_rat.cli._source import Flag, cards, read
from hf_rat.finetuning.blame import not_a_flag

_GROUPS = {
    "RegularizedTrainingArguments": "regularizer",
    "ModelArguments": "model",
    "WordModelArguments": "model",
    "TagArguments": "data",
    "DropoutArguments": "model",
    "SequenceArguments": "model",
    "PixelArguments": "data",
    "TemporalOrderArguments": "data",
    "LanguageModelArguments": "model",
    "FileArguments": "data",
    "DataTrainingArguments": "data",
}
"""dataclass of flags -> group of the help; what others have is training's."""
_NAMES = 24  # width of the column of names
_WIDTH = 78 - _NAMES  # of the column beside it, on a terminal of 80


@dataclass(frozen=True)
class Command:
    """A module of this folder.

    Args:
        name: as one types it.
        module: has a docstring, whose first line is the command's in the list of all, and `main(argv) -> int`.
        about: the docstring.
        dataclasses: module -> names of dataclasses: its constant `FLAGS`, where its flags are those of dataclasses.
        common: group -> flags of its short help: its constant `COMMON`.
        own_defaults: flags whose default is not the dataclass's, and therefore not shown: its constant `OWN_DEFAULTS`.
    """

    name: str
    module: str
    about: str
    dataclasses: Mapping[str, Sequence[str]]
    common: Mapping[str, Sequence[str]]
    own_defaults: Sequence[str]

    @property
    def summary(self) -> str:
        return self.about.partition("\n")[0]

    @functools.cached_property
    def flags(self) -> dict[str, Flag]:
        """name -> flag."""
        found: dict[str, Flag] = {}
        for module, names in self.dataclasses.items():
            for name in names:
                found |= read(module).flags(name)
        return found

    def check(self, words: Sequence[str]) -> None:
        """Refuse a flag that no dataclass has, and a method that does not exist.

        Args:
            words: the command line after the command's name. A flag may be cut short, as argparse allows.

        Raises:
            ValueError: one line that names the flag.
        """
        if not self.dataclasses:
            return
        options = [f"--{name}" for name in self.flags]
        options += [f"--no_{name}" for name, flag in self.flags.items() if flag.default is True]
        options += [f"--{option[2:].replace('_', '-')}" for option in options]
        for index, word in enumerate(words):
            if word == "--":
                return
            option, equals, value = word.partition("=")
            if word.startswith("--") and not any(known.startswith(option) for known in options):
                raise ValueError(not_a_flag(word, list(self.flags), f"hf-rat {self.name}"))
            if option == "--reg":
                require_methods(value if equals else "".join(words[index + 1 : index + 2]), "--reg")

    def help(self, everything: bool) -> str:
        """The page of help: the flags that most people need, or every flag."""
        parser = argparse.ArgumentParser(
            prog=f"hf-rat {self.name}",
            usage="%(prog)s [FLAGS.json | FLAGS.yaml] [--flag value ...]",
            description=self.about.replace("%", "%%"),
            add_help=False,
            formatter_class=_Page,
        )
        for title, names in self._groups(everything).items():
            group = parser.add_argument_group(title)
            for name in names:
                flag = self.flags[name]
                default = None if name in self.own_defaults else flag.default
                _add(group, flag, flag.help if everything else _short(flag.help), default)
        more = "" if everything else f"hf-rat {self.name} --help-all lists every flag.\n"
        text = parser.format_help()
        return f"{text}\nmethods of --reg\n{methods()}\n\n{more}hf-rat methods NAME prints the card of a method."

    def _groups(self, everything: bool) -> dict[str, list[str]]:
        """group -> its flags, those of the short help first."""
        groups = {title: list(names) for title, names in self.common.items()}
        said = {name for names in groups.values() for name in names}
        for name, flag in self.flags.items() if everything else ():
            if name not in said:
                groups.setdefault(_GROUPS.get(flag.owner, "training"), []).append(name)
        return groups


class Parser(argparse.ArgumentParser):
    """Of commands whose flags are no dataclass's: what is wrong is one line, not the usage of the command."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))


class _Page(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=_NAMES)


def _add(group: argparse._ArgumentGroup, flag: Flag, text: str, default: Any) -> None:
    if default is not None and default is not False and default != "":
        text = f"{text} [{default}]"
    text = text.replace("%", "%%")
    if flag.kind.startswith("bool"):
        group.add_argument(f"--{flag.name}", action="store_true", help=text)
    else:
        kind = flag.kind.partition(" ")[0]
        group.add_argument(f"--{flag.name}", metavar={"int": "N", "float": "X"}.get(kind, "TEXT"), help=text)


def _short(text: str) -> str:
    """The first sentence, on two lines at most."""
    return textwrap.shorten(text.partition(". ")[0].rstrip("."), 2 * _WIDTH, placeholder=" ...")


def add_verdict_flags(parser: argparse.ArgumentParser) -> None:
    """What a finished comparison is told by: `--baseline`, `--score`, `--alike`."""
    parser.add_argument(
        "--baseline", metavar="METHOD", help="what the others are compared with [plain, else the first]"
    )
    parser.add_argument("--score", metavar="NAME", help="accuracy, f1, loss, ... [the first that is no loss]")
    parser.add_argument(
        "--alike",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "METHOD"),
        help="methods that differ from cell to cell as one row NAME: --alike fgm 'fgm(epsilon=1)' 'fgm(epsilon=2)'",
    )


def methods() -> str:
    """A line for each method."""
    return "\n".join(
        f"  {name}".ljust(_NAMES) + textwrap.shorten(card.summary, _WIDTH, placeholder=" ...")
        for name, card in cards().items()
    )


def require_methods(text: str, flag: str) -> None:
    """Refuse an expression that names a recipe which does not exist; one that cannot be read is left to others.

    Raises:
        ValueError: one line that names the flag.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for name in _recipe_names(tree):
        if name not in cards():
            near = difflib.get_close_matches(name, cards(), n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ";"
            raise ValueError(f"{flag} names an unknown regularizer {name!r}{hint} known: {', '.join(sorted(cards()))}")


def _recipe_names(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.BinOp):
        yield from _recipe_names(node.left)
        yield from _recipe_names(node.right)
    elif isinstance(node, ast.Call):
        yield from _recipe_names(node.func)
    elif isinstance(node, ast.Name):
        yield node.id


@functools.cache
def commands() -> dict[str, Command]:
    """name -> command, of every module of this folder but `main` and those with a leading underscore."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        if path.stem != "main":
            module, name = f"hf_rat.cli.{path.stem}", path.stem.replace("_", "-")
            source = read(module)
            about = ast.get_docstring(source.tree) or ""
            constants = (source.constant(constant, {}) for constant in ("FLAGS", "COMMON", "OWN_DEFAULTS"))
            found[name] = Command(name, module, about, *constants)
    return found
