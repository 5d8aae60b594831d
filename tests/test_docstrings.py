"""An argument that a class documents exists. (Of functions, ruff's DOC102 says so.)"""

import importlib
import inspect
import pkgutil
import re
import textwrap

import pytest

import hf_rat


def documented(doc):
    """The names under "Args:", where two may share a line."""
    section = re.search(r"^Args:\n((?:[ ]+\S.*\n|\n)*)", inspect.cleandoc(doc) + "\n", re.MULTILINE)
    entries = re.findall(r"^([\w*][\w*, ]*):", textwrap.dedent(section[1]), re.MULTILINE) if section else []
    return {name.strip(" *") for entry in entries for name in entry.split(",")}


def undocumented(kind):
    """What a class documents and neither takes nor declares."""
    known = set(inspect.signature(kind).parameters)
    return documented(kind.__doc__ or "") - known.union(
        *(vars(base).get("__annotations__", ()) for base in kind.__mro__)
    )


MODULES = [found.name for found in pkgutil.walk_packages(hf_rat.__path__, "hf_rat.")]
CLASSES = {
    value
    for name in MODULES
    for value in vars(importlib.import_module(name)).values()
    if inspect.isclass(value) and value.__module__ == name and documented(value.__doc__ or "")
}


def test_there_are_such_classes():
    assert len(CLASSES) > 20


@pytest.mark.parametrize("kind", sorted(CLASSES, key=lambda kind: kind.__qualname__), ids=lambda kind: kind.__name__)
def test_every_documented_argument_of_a_class_exists(kind):
    assert not undocumented(kind)


def test_one_that_does_not_exist_is_found():
    class Kind:
        """A kind.

        Args:
            size, rate: two that
                exist: they do.
            climbs: one that does not.

        Raises:
            ValueError: never.
        """

        def __init__(self, size, rate):
            pass

    assert undocumented(Kind) == {"climbs"}
