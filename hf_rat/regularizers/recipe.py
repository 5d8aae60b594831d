"""What makes a function a recipe: it checks its arguments, obeys its schedule, and is found by its name."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec

from hf_rat.passes.part import CHOICES, Part
from hf_rat.passes.sites import EMBEDDINGS, MASKS, MIXED, SITES, TOP, is_weights
from hf_rat.regularizers.balls import SCOPES, UNITS
from hf_rat.regularizers.divergences import NAMES
from hf_rat.regularizers.parts import over_part
from hf_rat.regularizers.perturbations import START_MASKS
from hf_rat.regularizers.schedules import Scheduled
from hf_rat.regularizers.terms import Term
from hf_rat.regularizers.top import Top, as_top, readable
from hf_rat.regularizers.weight_balls import NORMS
from hf_rat.regularizers.weight_perturbations import OVER, SOURCES

P = ParamSpec("P")

BASES = ("ones", "random")

ALWAYS: dict[str, Any] = {"begin": 0, "warmup": 0, "end": None, "every": 1, "below": None}
"""The arguments that make a schedule, with the values that make none."""
PART: dict[str, Any] = {"examples": 1.0, "which": "random"}
"""The arguments that ask the further passes of a part of each micro-batch, with the values that ask all of it."""
AT_TOP: dict[str, Any] = {"epsilon": 0.02, "unit": "relative"}
"""The defaults with `top`: what crosses the cut has another length in each model, and grows with the text."""

RECIPES: dict[str, Callable[..., Term]] = {}
"""name -> what makes it, of every function that `recipe` or `expression` decorates, in their order."""


@dataclass(frozen=True, repr=False)
class Recipe(Term):
    """A term that remembers the call that made it: its repr is that call."""

    name: str
    arguments: tuple[tuple[str, Any], ...]
    body: Term

    def parts(self, step: int) -> Any:
        return self.body.parts(step)

    def __repr__(self) -> str:
        silent = {**ALWAYS, **PART, "site": EMBEDDINGS, "target": None, "top": None}
        shown = (
            f"{name}={readable(value) if name == 'top' else repr(value)}"
            for name, value in self.arguments
            if name not in silent or value != silent[name]
        )
        return f"{self.name}({', '.join(shown)})"


def recipe(build: Callable[P, Term]) -> Callable[P, Recipe]:
    """Make a function that returns a term a recipe, which RECIPES and so the command line find by its name.

    A recipe checks each argument by CHECKS, asks its term when its schedule says, and remembers how it was called.
    """
    signature = inspect.signature(build)

    @functools.wraps(build)
    def call(*args: P.args, **kwargs: P.kwargs) -> Recipe:
        unknown = [name for name in kwargs if name not in signature.parameters]
        if unknown:
            raise ValueError(unknown_argument(build.__name__, unknown[0]))
        bound = signature.bind(*args, **kwargs)
        if bound.arguments.get("top") is not None:
            bound.arguments.update({n: x for n, x in AT_TOP.items() if n in signature.parameters} | bound.arguments)
        bound.apply_defaults()
        arguments = {name: _checked(build.__name__, name, value) for name, value in bound.arguments.items()}
        top = arguments.get("top")
        body = build(**(arguments if top is None else _at_top(build.__name__, arguments)))  # type: ignore[call-arg]
        body = body if top is None else Top(body, top)
        if any(arguments[name] != PART[name] for name in PART if name in arguments):
            body = _over_part(build.__name__, body, arguments)
        # The below of swa, which has no schedule, is its average's.
        schedule = {name: arguments[name] for name in ALWAYS if name in arguments and "every" in arguments}
        if any(value != ALWAYS[name] for name, value in schedule.items()):
            _require_order(build.__name__, **schedule)
            body = Scheduled(body, **schedule)
        return Recipe(build.__name__, tuple(arguments.items()), body)

    RECIPES[build.__name__] = call
    return call


def expression(build: Callable[[], Term]) -> Callable[[], Term]:
    """Make a function a name for an expression of recipes, found as they are; what it gives is shown as that."""
    return RECIPES.setdefault(build.__name__, build)


def _over_part(recipe_name: str, body: Term, arguments: dict[str, Any]) -> Term:
    part = Part(arguments["examples"], arguments["which"])
    if part.share == 1:
        raise ValueError(f"{recipe_name}(which={part.which!r}) chooses among the examples; give examples below 1 too")
    if (top := arguments.get("top")) is not None:
        raise ValueError(
            f"{recipe_name}(examples={part.share!r}, top={readable(top)}): what crosses the cut is of all examples; "
            "leave out one of them"
        )
    if is_weights(arguments.get("site", "")):
        raise ValueError(
            f"{recipe_name}(examples={part.share!r}, site={arguments['site']!r}): at other weights the same examples "
            "must run as at these, under the same dropout masks; leave out examples"
        )
    return over_part(body, part)


def recipes_that(fit: Callable[[Term], bool]) -> list[str]:
    """Names of the recipes whose regularizer, with default arguments, fulfils a condition."""
    return [name for name, build in RECIPES.items() if fit(build())]


def unknown_argument(recipe_name: str, argument: str) -> str:
    """The message for an argument that a recipe does not have."""
    known = list(inspect.signature(RECIPES[recipe_name]).parameters)
    near = difflib.get_close_matches(argument, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{recipe_name} has no argument {argument!r}{hint} (it has: {', '.join(known) or 'none'})"


def _share(of: str) -> Callable[[Any], str | None]:
    said = f"a share of {of}, above 0 and at most 1"
    return lambda value: None if _number(0, 1)(value) is None and value > 0 else said


def _at_top(recipe_name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The same, whose perturbation enters at the cut.

    Raises:
        ValueError: one of them is about the words, which are below it, or about another place.
    """
    for name, wrong in (("scope", "table"), ("unit", "embedding")):
        if arguments.get(name) == wrong:
            raise ValueError(
                f"{recipe_name}({name}={wrong!r}, top={readable(arguments['top'])}): {wrong} is about the table of "
                f"words, and with top the perturbation enters above it; leave {name} or top out"
            )
    if arguments.get("site", EMBEDDINGS) != EMBEDDINGS:
        raise ValueError(
            f"{recipe_name}(site={arguments['site']!r}, top={readable(arguments['top'])}): with top the perturbation "
            "enters the lowest layer of the top; leave site or top out"
        )
    return {**arguments, "site": TOP} if "site" in arguments else arguments


def _number(low: float, high: float = math.inf, open_high: bool = False) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if ok and low <= value and (value < high if open_high else value <= high):
            return None
        return f"a finite number of at least {low:g}" + ("" if high == math.inf else f" and below {high:g}")

    return check


def _whole(low: int) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        ok = isinstance(value, int) and not isinstance(value, bool) and value >= low
        return None if ok else f"a whole number of at least {low}"

    return check


def _positive(value: Any) -> str | None:
    return None if _number(0)(value) is None and value > 0 else "a finite number above 0"


def _when(low: int) -> Callable[[Any], str | None]:
    """A place in a run: see schedules.py."""

    def check(value: Any) -> str | None:
        if isinstance(value, float) and 0 < value < 1:
            return None
        return _whole(low)(value) and (
            f"a whole number of steps, at least {low}, or a share of all steps, a fraction above 0 and below 1"
        )

    return check


def _or_none(check: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    return lambda value: None if value is None else check(value)


def _require_order(recipe_name: str, begin: float, end: float | None = None, **others: Any) -> None:
    """Refuse an end that does not come after the begin; a share and a step are compared when the run is known."""
    if end is not None and isinstance(begin, float) == isinstance(end, float) and end <= begin:
        raise ValueError(f"{recipe_name}(begin={begin!r}, end={end!r}): end must come after begin")


def _choice(names: tuple[str, ...]) -> Callable[[Any], str | None]:
    return lambda value: None if value in names else f"one of {', '.join(names)}"


def _yes_or_no(value: Any) -> str | None:
    return None if isinstance(value, bool) else "True or False"


def _top(value: Any) -> str | None:
    if (isinstance(value, float) and 0 < value < 1) or (isinstance(value, str) and re.fullmatch(r"[\w.]+", value)):
        return None
    return "the share of the layers that are the top, a fraction above 0 and below 1, or the name of its lowest layer"


def _place_name(value: Any) -> str | None:
    if isinstance(value, str) and re.fullmatch(r"[\w.]+|weights:\S+", value):
        return None
    return f"{', '.join(name for name in SITES if name not in (*MASKS, MIXED))} or the name of a module"


def _several(check: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    def each(value: Any) -> str | None:
        if value is None or (isinstance(value, tuple) and value and not any(check(item) for item in value)):
            return None
        return f"a tuple, one value per pass, each {check(None)}"

    return each


def require_positive(recipe_name: str, name: str, value: float) -> None:
    """Refuse a search for a divergence that starts where the divergence is flat.

    Raises:
        ValueError: the size of the start is zero.
    """
    if value <= 0:
        raise ValueError(
            f"{recipe_name}({name}={value!r}): {name} must be positive, since a divergence has no slope at its minimum"
        )


def require_weights(recipe_name: str, site: str) -> None:
    """Refuse a site that is not at the weights.

    Raises:
        ValueError: it is another one.
    """
    if not is_weights(site):
        raise ValueError(
            f"{recipe_name}(site={site!r}): {recipe_name} is about weights; site must be 'weights', or "
            "'weights:PATTERN' with a pattern of their names"
        )


CHECKS: dict[str, Callable[[Any], str | None]] = {
    **dict.fromkeys(("epsilon", "step", "start", "alpha", "mu", "eta", "inputs"), _number(0)),
    **dict.fromkeys(("rate", "beta", "after"), _number(0, 1, open_high=True)),
    "steps": _whole(1),
    "passes": _whole(2),
    "begin": _when(0),
    "warmup": _when(0),
    "end": _or_none(_when(1)),
    "every": _whole(1),
    "target": _or_none(_positive),
    "below": _or_none(_share("the first loss")),
    "scope": _choice(SCOPES),
    "unit": _choice(UNITS),
    "start_mask": _choice(START_MASKS),
    "site": _place_name,
    "base": _choice(BASES),
    "fixed": _yes_or_no,
    "divergence": _choice(tuple(NAMES)),
    "epsilons": _several(_number(0)),
    "dropouts": _several(_number(0, 1, open_high=True)),
    "top": _or_none(_top),
    "over": _choice(OVER),
    "norm": _choice(NORMS),
    "momentum": _choice(SOURCES),
    "examples": _share("the examples"),
    "which": _choice(CHOICES),
}
"""Name of an argument, the same in every recipe -> what its value must be, or None where it is that."""


def _checked(recipe_name: str, name: str, value: Any) -> Any:
    value = as_top(value) if name == "top" else value
    value = tuple(_plain_number(item) for item in value) if isinstance(value, (list, tuple)) else _plain_number(value)
    expected = CHECKS[name](value)
    if expected:
        raise ValueError(f"{recipe_name}({name}={value!r}): {name} must be {expected}")
    return value


def _plain_number(value: Any) -> Any:
    """numpy's float64 is a float, but its repr is no literal."""
    return float(value) if isinstance(value, float) else value
