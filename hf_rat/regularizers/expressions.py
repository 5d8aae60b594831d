"""Reads a regularizer from text, `rdrop + 0.5 * vat(epsilon=2)`, and runs none of the text."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from hf_rat.regularizers.recipe import RECIPES, unknown_argument
from hf_rat.regularizers.terms import Term


def parse(text: str, overrides: Mapping[str, Any] | None = None, argument: str = "regularizer") -> Term:
    """The regularizer that `text` describes.

    Args:
        text: recipe names, calls with literal arguments, `+`, and `factor *`. `parse(repr(r)) == r` for any recipe r.
        overrides: argument -> value, given to every recipe in the text that has the argument.
        argument: what the user gave the text as, for errors.

    Raises:
        ValueError: one line that says what was not understood, or which override is unused or set twice.
    """
    overrides, given = dict(overrides or {}), f"{argument}={text!r}"
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f'{given} cannot be read; write for instance "rat(epsilon=0.1) + 0.5 * vat"') from None
    used: set[str] = set()
    term = _term(tree, given, overrides, used)
    unused = sorted(set(overrides) - used)
    if unused:
        raise ValueError(f"reg_{unused[0]}={overrides[unused[0]]!r} is set, but nothing in {given} has {unused[0]}")
    return term


def as_term(given: Any, argument: str = "regularizer") -> Term:
    """The regularizer that was given as a term or as text.

    Raises:
        ValueError: `given` is neither, or its text cannot be read.
    """
    if isinstance(given, Term):
        return given
    if isinstance(given, str):
        return parse(given, argument=argument)
    name = next((name for name, recipe in RECIPES.items() if recipe is given), None)
    if name is not None:
        raise ValueError(f"{argument}={name} is the recipe itself; call it: {argument}={name}()")
    raise ValueError(
        f"{argument}={given!r} is neither a regularizer nor its text; write for instance {argument}=rat(epsilon=0.1) "
        f'or {argument}="rat(epsilon=0.1)"'
    )


def _term(node: ast.expr, given: str, overrides: Mapping[str, Any], used: set[str]) -> Term:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _term(node.left, given, overrides, used) + _term(node.right, given, overrides, used)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        factor, term = (node.left, node.right) if _is_number(node.left) else (node.right, node.left)
        if _is_number(factor):
            return _literal(factor, given) * _term(term, given, overrides, used)
    if isinstance(node, ast.Name):
        return _call(node.id, [], [], given, overrides, used)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
        args = [_literal(arg, given) for arg in node.args]
        kwargs = [(str(keyword.arg), _literal(keyword.value, given)) for keyword in node.keywords]
        return _call(node.func.id, args, kwargs, given, overrides, used)
    raise ValueError(f"{given}: {ast.unparse(node)!r} is neither a recipe, a sum, nor a number times a recipe")


def _call(
    name: str,
    args: list[Any],
    keywords: list[tuple[str, Any]],
    given: str,
    overrides: Mapping[str, Any],
    used: set[str],
) -> Term:
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ";"
        raise ValueError(f"{given} names an unknown regularizer {name!r}{hint} known: {', '.join(sorted(RECIPES))}")
    parameters = list(inspect.signature(RECIPES[name]).parameters)
    if len(args) > len(parameters):
        raise ValueError(f"{name} takes at most {len(parameters)} arguments, and {len(args)} were given")
    kwargs = dict(zip(parameters, args, strict=False))
    for argument, value in keywords:
        if argument not in parameters:
            raise ValueError(unknown_argument(name, argument))
        if argument in kwargs:
            raise ValueError(f"{argument} is set twice: {name}({argument}={kwargs[argument]!r}, {argument}={value!r})")
        kwargs[argument] = value
    for argument, value in overrides.items():
        if argument in parameters:
            if argument in kwargs:
                raise ValueError(
                    f"{argument} is set twice: {name}({argument}={kwargs[argument]!r}) and reg_{argument}={value!r}"
                )
            kwargs[argument] = value
            used.add(argument)
    return RECIPES[name](**kwargs)


def _is_number(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        return _is_number(node.operand)
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _literal(node: ast.expr, given: str) -> Any:
    try:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):  # a fraction, as 1/3
            return ast.literal_eval(node.left) / ast.literal_eval(node.right)
        return ast.literal_eval(node)
    except (ValueError, TypeError, ArithmeticError):
        raise ValueError(f"{given}: {ast.unparse(node)!r} is not a number, a string, a tuple or None") from None
