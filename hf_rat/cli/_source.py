"""What modules say of themselves, read as text: to import torch for a page of help would take seconds."""

from __future__ import annotations

import ast
import functools
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Transformers' own `__init__` finds names when they are used; the one name that is followed there is this module's.
_DEFINED_IN = {"transformers": "transformers.training_args"}


@dataclass(frozen=True)
class Flag:
    """A field of a dataclass of flags.

    Args:
        name: without dashes.
        kind: its annotation.
        default: None also where the text does not tell.
        help: empty where there is none.
        owner: the dataclass that declares it.
    """

    name: str
    kind: str
    default: Any
    help: str
    owner: str


@dataclass(frozen=True)
class Card:
    """A recipe: its name, its arguments with their defaults, and its docstring."""

    name: str
    arguments: dict[str, Any]
    text: str

    @property
    def summary(self) -> str:
        return self.text.partition("\n")[0]


class Source(dict[str, Any]):
    """A module as text; as a mapping, name -> value of its constants."""

    def __init__(self, module: str) -> None:
        super().__init__()
        top, *inner = module.split(".")
        spec = find_spec(top)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"no module named {top!r}")
        path = Path(spec.origin).parent.joinpath(*inner)
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        self.tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        self.imported: dict[str, tuple[str, str]] = {}
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                origin = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    self.imported[alias.asname or alias.name] = (_DEFINED_IN.get(origin, origin), alias.name)

    def __missing__(self, name: str) -> Any:
        for node in self.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if name in (target.id for target in targets if isinstance(target, ast.Name)):
                self[name] = self.value(node.value)  # type: ignore[attr-defined]
                return self[name]
        if name not in self.imported:
            raise KeyError(name)
        origin, original = self.imported[name]
        return read(origin)[original]

    def constant(self, name: str, otherwise: Any) -> Any:
        """The value of a constant, `otherwise` where the module has none of that name."""
        try:
            return self[name]
        except KeyError:
            return otherwise

    def keys_of(self, name: str) -> list[Any]:
        """The keys of a constant that is a dictionary, whatever its values are."""
        for node in self.tree.body:
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Dict)
                and ast.unparse(node.targets[0]) == name
            ):
                return [self.value(key) for key in node.value.keys if key is not None]
        raise KeyError(name)

    def value(self, node: ast.expr) -> Any:
        """What an expression of constants is."""
        return eval(compile(ast.Expression(node), "<constant>", "eval"), {}, self)

    def flags(self, dataclass_: str) -> dict[str, Flag]:
        """name -> flag, of a dataclass with those that it inherits, in the order of its fields."""
        node = next((n for n in self.tree.body if isinstance(n, ast.ClassDef) and n.name == dataclass_), None)
        if node is None:
            origin, original = self.imported.get(dataclass_, ("builtins", dataclass_))
            return {} if origin.partition(".")[0] in sys.stdlib_module_names else read(origin).flags(original)
        found: dict[str, Flag] = {}
        for base in node.bases:
            found |= self.flags(ast.unparse(base))
        for line in node.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                kind = ast.unparse(line.annotation)
                options = {}
                if isinstance(line.value, ast.Call):
                    options = {keyword.arg: keyword.value for keyword in line.value.keywords}
                elif line.value is not None:
                    options = {"default": line.value}
                if "ClassVar" in kind or (isinstance(skip := options.get("init"), ast.Constant) and not skip.value):
                    continue
                metadata = options.get("metadata")
                entries = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
                texts = [self.value(text) for key, text in entries if key is not None and self.value(key) == "help"]
                default = self._default(options.get("default"))
                found[line.target.id] = Flag(line.target.id, kind, default, "".join(texts), dataclass_)
        return found

    def _default(self, node: ast.expr | None) -> Any:
        try:
            return None if node is None else self.value(node)
        except NameError:  # found out when the class is made, as the optimizer that this torch has
            return None


@functools.cache
def read(module: str) -> Source:
    """A module of an installed package, which is not imported."""
    return Source(module)


@functools.cache
def cards() -> dict[str, Card]:
    """name -> card, of every recipe, in their order."""
    source = read("hf_rat.regularizers.recipes")
    found = {}
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef) and {"recipe", "expression"} & set(map(ast.unparse, node.decorator_list)):
            names = [argument.arg for argument in node.args.args]
            arguments = dict(zip(names, map(source.value, node.args.defaults), strict=True))
            found[node.name] = Card(node.name, arguments, ast.get_docstring(node) or "")
    return found
