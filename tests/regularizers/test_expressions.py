"""Expressions: `parse(repr(r)) == r`, arithmetic binds as in Python, and nothing in the text is ever run."""

import inspect

import numpy as np
import pytest

from hf_rat import fgm, freelb, parse, plain, rat, rdrop, smart, vat
from hf_rat.regularizers.expressions import parse as parse_there
from hf_rat.regularizers.recipe import CHECKS, RECIPES
from hf_rat.regularizers.terms import TaskLoss

NESTED = [
    rdrop() + 0.5 * vat(),
    0.5 * (rdrop() + vat()),
    fgm() + (rdrop() + vat()),
    (fgm() + rdrop()) + vat(),
    2 * (0.5 * fgm()),
    0.25 * (fgm() + 3 * (rdrop() + 0.1 * (vat() + freelb()))) + plain(),
    1e-5 * fgm(epsilon=1e-7),
    0 * vat() + plain(),
    rat(passes=3, epsilons=(0.1, 0.2, 0.3), dropouts=(0.0, 0.1, 0.5), begin=3, warmup=2),
    rat(scope="table", divergence="js", unit="embedding"),
    rat(epsilon=0.5, unit="relative", target=0.3, begin=0.3, warmup=0.1, end=0.9, every=4),
    rat(top=1 / 3) + 0.5 * rdrop(top=1 / 3, begin=2),
    fgm(top="bert.encoder.layer.8", epsilon=1 / 3),
    fgm(top=0.123456789),
    0.5 * fgm(begin=1) + vat(end=100, begin=0.5) + freelb(every=2),
]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_reads_back_as_itself(name):
    default = RECIPES[name]()
    assert parse(repr(default)) == default
    assert parse(name) == default
    assert parse(f"{name}()") == default
    begin = {"begin": 5} if "begin" in inspect.signature(RECIPES[name]).parameters else {}
    later = RECIPES[name](**begin)
    assert parse(repr(later)) == later
    assert (later == default) == (not begin)


@pytest.mark.parametrize("regularizer", NESTED, ids=repr)
def test_sums_and_factors_read_back_as_themselves(regularizer):
    assert parse(repr(regularizer)) == regularizer
    assert repr(parse(repr(regularizer))) == repr(regularizer)


def test_a_repr_leaves_out_what_is_off():
    assert repr(vat(epsilon=2.0)) == "vat(epsilon=2.0, alpha=1.0, start=0.1, steps=1, unit='absolute')"
    assert "begin=2" in repr(vat(begin=2))
    assert "warmup=2" in repr(vat(warmup=2))


def test_a_share_stays_a_share_and_a_step_a_step():
    share, step = parse("fgm(begin=0.3, end=0.9)"), parse("fgm(begin=1, end=9)")
    assert [type(value) for name, value in share.arguments if name in ("begin", "end")] == [float, float]
    assert [type(value) for name, value in step.arguments if name in ("begin", "end")] == [int, int]
    assert repr(share).endswith("begin=0.3, end=0.9)")
    assert repr(step).endswith("begin=1, end=9)")
    assert refusal("fgm(begin=1.0)").endswith("or a share of all steps, a fraction above 0 and below 1")


def test_a_fraction_stays_readable():
    third = parse("fgm(top=1/3)")
    assert third == fgm(top=1 / 3) == parse("fgm", {"top": "1/3"}) == parse("fgm(top='1/3')")
    assert "top=1/3" in repr(third)
    assert "top=0.5" in repr(parse("fgm(top=1/2)"))
    assert parse("fgm(epsilon=1/8)") == fgm(epsilon=0.125)
    for text in ("fgm(top=1/0)", "fgm(top='a'/2)", "fgm(top=1/(2/3))", f"fgm(top={10**400}/3)"):
        assert refusal(text).endswith("is not a number, a string, a tuple or None")


def test_with_top_epsilon_is_a_share_unless_it_is_said():
    assert dict(fgm(top=0.5).arguments)["unit"] == "relative"
    assert dict(fgm(top=0.5, unit="absolute").arguments)["unit"] == "absolute"
    assert dict(fgm().arguments)["unit"] == "absolute"


def test_numpy_numbers_read_back_too():
    swept = rat(epsilon=np.float64(0.1), epsilons=list(np.linspace(0.1, 0.2, 2)))
    assert parse(repr(swept)) == swept == rat(epsilon=0.1, epsilons=(0.1, 0.2))


def test_arithmetic_binds_as_in_python():
    assert parse("rdrop + 0.5 * vat") == rdrop() + 0.5 * vat()
    assert parse("0.5 * rdrop + vat") == 0.5 * rdrop() + vat()
    assert parse("0.5*rdrop+vat") == parse("(0.5*rdrop)+vat") != parse("0.5*(rdrop+vat)")
    assert parse("rdrop * 0.5") == parse("0.5 * rdrop") == 0.5 * rdrop()
    assert parse("fgm + rdrop + vat") == (fgm() + rdrop()) + vat()
    assert parse(" rat( 0.1 , alpha = 0.8 ) ") == rat(epsilon=0.1, alpha=0.8)
    assert parse("2 * (0.5 * rdrop)") == 2 * (0.5 * rdrop())


def test_the_text_of_a_sum_is_that_of_its_operands():
    assert repr(rdrop() + 0.5 * vat()) == f"{rdrop()!r} + 0.5 * {vat()!r}"
    assert repr(0.5 * (rdrop() + vat())) == f"0.5 * ({rdrop()!r} + {vat()!r})"


def test_regularizers_compare_by_value_and_are_hashable():
    assert rat(epsilon=0.1) == rat(0.1)
    assert rat(epsilon=0.1) != rat(epsilon=0.2)
    assert len({rat(), rat(), vat()}) == 2
    assert rdrop() + vat() != vat() + rdrop()


# -- overrides -------------------------------------------------------------------------------------------------------


def test_an_override_reaches_every_recipe_that_has_the_argument():
    assert parse("rdrop + 0.5*vat", {"alpha": 2.0}) == rdrop(alpha=2.0) + 0.5 * vat(alpha=2.0)
    assert parse("rdrop + fgm", {"epsilon": 2.0}) == rdrop() + fgm(epsilon=2.0)
    assert parse("rat(epsilon=0.1)", {"alpha": 3, "scope": "table"}) == rat(epsilon=0.1, alpha=3, scope="table")


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("rdrop", {"epsilon": 2.0}, "reg_epsilon=2.0 is set, but nothing in regularizer='rdrop' has epsilon"),
        ("plain", {"alpha": 1.0}, "reg_alpha=1.0 is set, but nothing in regularizer='plain' has alpha"),
        (
            "rat(epsilon=0.1)",
            {"epsilon": 0.2},
            "epsilon is set twice: rat(epsilon=0.1) and reg_epsilon=0.2",
        ),
        ("rat(0.1)", {"epsilon": 0.2}, "epsilon is set twice: rat(epsilon=0.1) and reg_epsilon=0.2"),
        ("rat + fgm(epsilon=1)", {"epsilon": 0.2}, "epsilon is set twice: fgm(epsilon=1) and reg_epsilon=0.2"),
        ("rat", {"epsilon": -1}, "rat(epsilon=-1): epsilon must be a finite number of at least 0"),
    ],
)
def test_an_override_that_is_unused_or_set_twice_or_wrong(text, overrides, message):
    assert refusal(text, overrides) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rat(0.1, epsilon=0.2)", "epsilon is set twice: rat(epsilon=0.1, epsilon=0.2)"),
        ("rat(alpha=0.1, alpha=0.2)", "alpha is set twice: rat(alpha=0.1, alpha=0.2)"),
    ],
)
def test_an_argument_given_twice_is_not_guessed_at(text, message):
    assert refusal(text) == message


# -- what is refused -------------------------------------------------------------------------------------------------


def refusal(text, overrides=None):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the caller checks the message)
        parse(text, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "near"),
    [("rdop", "rdrop"), ("freelbb", "freelb"), ("rats", "rat"), ("adversarial_dropuot", "adversarial_dropout")],
)
def test_an_unknown_name_is_answered_with_the_nearest_and_the_list(text, near):
    message = refusal(text)
    assert f"unknown regularizer {text!r}" in message
    assert near in message.split("known:")[0].split("did you mean")[1]
    for name in RECIPES:
        assert name in message.split("known:")[1]


def test_a_name_like_no_other_is_answered_with_the_list_alone():
    message = refusal("zzzzzz")
    assert "did you mean" not in message
    assert all(name in message for name in RECIPES)


def test_an_unknown_argument_is_answered_with_those_there_are():
    message = refusal("rat(epsilom=1)")
    assert message.startswith("rat has no argument 'epsilom'; did you mean epsilon?")
    assert all(name in message for name in inspect.signature(rat).parameters)
    assert refusal("plain(epsilon=1)") == "plain has no argument 'epsilon' (it has: none)"
    with pytest.raises(ValueError, match="rat has no argument 'epsilom'; did you mean epsilon"):
        rat(epsilom=1)
    assert refusal("plain(1)") == "plain takes at most 0 arguments, and 1 were given"


MALICIOUS = [
    "__import__('os')",
    "__import__('os').system('touch owned')",
    "().__class__.__bases__",
    "rat.__globals__",
    "rat().body",
    "lambda: rat",
    "(lambda: rat)()",
    "[rat for _ in range(3)]",
    "{rat for rat in ()}",
    "(x for x in ())",
    "rat(epsilon=__import__('os'))",
    "rat(epsilon=open('x'))",
    "rat(epsilon=(lambda: 1)())",
    "rat(epsilon=[1 for _ in range(3)])",
    "rat(**{'epsilon': 1})",
    "rat(*[1])",
    "rat(epsilon=f'{1}')",
    "rat if 1 else rdrop",
    "rat or rdrop",
    "rat and rdrop",
    "not rat",
    "-rat",
    "rat - rdrop",
    "rat / 2",
    "rat ** 2",
    "rat @ rdrop",
    "rat * rdrop",
    "2 * 3",
    "2",
    "'rat'",
    "rat == rat",
    "rat()()",
    "rat[0]",
    "rat; rdrop",
    "rat\nrdrop",
    "x := rat",
    "(x := rat)",
    "rat = 1",
    "import os",
    "await rat",
    "eval('rat')",
    "exec('rat')",
    "rat(epsilon=1+1j)",
    "1j * rat",
    "True * rat",
    "'ab' * rat",
    "",
    "   ",
    "rat(",
    "rat)",
    "rat(epsilon=)",
    "\0",
    "(" * 500 + "rat" + ")" * 500,
    "+".join(["rat"] * 20000),
    "None",
]


@pytest.mark.parametrize("text", MALICIOUS, ids=lambda text: text[:30].replace("\0", "NUL"))
def test_text_that_is_no_regularizer_is_refused_unrun(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusal(text)
    assert not list(tmp_path.iterdir())


def test_no_way_of_running_text_is_in_the_parser():
    source = inspect.getsource(inspect.getmodule(parse_there))
    assert "eval(" not in source.replace("literal_eval(", "")
    assert "exec(" not in source


# -- values ----------------------------------------------------------------------------------------------------------

NUMBERS = ("epsilon", "step", "start", "alpha", "mu", "eta", "inputs")
BAD = {
    "after": (-0.1, 1, "0.5", None, float("nan")),
    **dict.fromkeys(NUMBERS, (-0.1, float("nan"), float("inf"), "1", None, True, (1.0,))),
    **dict.fromkeys(("rate", "beta"), (-0.1, 1.0, 1.5, float("nan"), "0.1", None)),
    "steps": [0, -1, 1.5, "3", None, True],
    "passes": [1, 0, -2, 2.0, "2", None, True],
    **dict.fromkeys(("begin", "warmup"), (-1, -0.5, 0.0, 1.0, 1.5, float("nan"), "1", None, True)),
    "end": [0, -1, 0.0, 1.0, 1.5, float("inf"), "1", True],
    "every": [0, -2, 0.5, 2.0, "2", None, True],
    "below": [0, -0.5, 1.5, "0.3", float("nan"), True],
    "examples": [0, 0.0, -0.5, 1.1, 2, float("nan"), "0.5", None, True],
    "which": ["easiest", "", None, 0.5],
    "target": [0, -0.3, float("nan"), float("inf"), "0.3", True],
    "scope": ["batch", "", None, 1, ["table"]],
    "unit": ["relativ", None, 2],
    "divergence": ["kll", "", None, 3, ["kl"]],
    "start_mask": ["two_drop", None],
    "site": ["logits input", "", None, 0, ["recurrent"]],
    "base": ["zeros", None, 1],
    "fixed": [1, 0, "True", None],
    "epsilons": [(0.1, -0.2), (0.1, float("nan")), 0.5, (), "ab"],
    "dropouts": [(0.1, 1.0), (0.1, -0.1), 0.5, ()],
    "top": [0, 1, 0.0, 1.0, 1.5, -0.3, float("nan"), "", "a layer", True, ("bert",)],
    "over": ["batch", "", None, 1],
    "norm": ["table", None, 2],
    "momentum": ["adam", None, 0.9],
}
BAD_CALLS = [
    (name, argument, value)
    for name, build in RECIPES.items()
    for argument in inspect.signature(build).parameters
    for value in BAD[argument]
]


def test_every_argument_of_every_recipe_has_a_check_and_bad_values_to_try():
    arguments = {name for build in RECIPES.values() for name in inspect.signature(build).parameters}
    assert arguments == set(CHECKS) == set(BAD)


@pytest.mark.parametrize(("name", "argument", "value"), BAD_CALLS, ids=lambda part: repr(part)[:20])
def test_a_bad_value_is_one_line_with_recipe_argument_and_value(name, argument, value):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (checked below)
        RECIPES[name](**{argument: value})
    message = str(error.value)
    shown = tuple(value) if isinstance(value, list) else value
    assert message.startswith(f"{name}({argument}={shown!r}): {argument} must be ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rat(epsilon=-0.1)", "rat(epsilon=-0.1): epsilon must be a finite number of at least 0"),
        ("rat(epsilon=1e999)", "rat(epsilon=inf): epsilon must be a finite number of at least 0"),
        ("rat(passes=1)", "rat(passes=1): passes must be a whole number of at least 2"),
        ("freelb(steps=0)", "freelb(steps=0): steps must be a whole number of at least 1"),
        (
            "adversarial_dropout(rate=1)",
            "adversarial_dropout(rate=1): rate must be a finite number of at least 0 and below 1",
        ),
        ("rat(scope='batch')", "rat(scope='batch'): scope must be one of example, table"),
        ("rat(epsilons=(1, 2, 3))", "rat(epsilons=(1, 2, 3)): epsilons must have one value per pass, and passes=2"),
        (
            "rat(dropouts=(0.1,))",
            "rat(dropouts=(0.1,)): dropouts must have one value per pass, and passes=2",
        ),
        ("-1 * rat", "a regularizer is scaled by -1.0; a factor must be finite and at least 0"),
        ("1e999 * rat", "a regularizer is scaled by inf; a factor must be finite and at least 0"),
        ("rat(epsilon=nan)", "regularizer='rat(epsilon=nan)': 'nan' is not a number, a string, a tuple or None"),
    ],
)
def test_the_sentences(text, message):
    assert refusal(text) == message


@pytest.mark.parametrize("text", ["vat(start=0)", "smart(start=0)"])
def test_a_search_for_a_divergence_cannot_start_where_it_is_flat(text):
    message = refusal(text)
    assert message.startswith(f"{text.split('(')[0]}(start=0): start must be positive")


def test_only_regularizers_add_and_only_numbers_scale():
    for wrong in (lambda: rat() + 1, lambda: rat() * rdrop(), lambda: "a" * rat(), lambda: rat() - rdrop()):
        with pytest.raises(TypeError):
            wrong()


def test_recipes_are_the_equation_they_show():
    assert plain().body == TaskLoss()
    assert smart(epsilon=0.3).arguments[0] == ("epsilon", 0.3)
