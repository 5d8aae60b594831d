"""`--reg` and the `--reg_*` flags: what they parse to, and each wrong use in one line."""

import inspect
from dataclasses import fields, replace

import pytest
import runs
from transformers import HfArgumentParser

from hf_rat import RegularizedTrainingArguments, fgm, freelb, parse, pgd, plain, rat, rdrop, vat
from hf_rat.regularizers import RECIPES


def parsed(*flags, **settings):
    parser = HfArgumentParser(RegularizedTrainingArguments)
    (arguments,) = parser.parse_args_into_dataclasses(["--output_dir", "out", "--use_cpu", *flags])
    return arguments


@pytest.mark.parametrize(
    ("flags", "regularizer"),
    [
        ([], plain()),
        (["--reg", "rat"], rat()),
        (["--reg", "rat(epsilon=0.1, alpha=0.8)"], rat(epsilon=0.1, alpha=0.8)),
        (["--reg", "rdrop + 0.5*vat"], rdrop() + 0.5 * vat()),
        (["--reg", "rat", "--reg_epsilon", "0.3", "--reg_passes", "3"], rat(epsilon=0.3, passes=3)),
        (["--reg", "rat + rdrop", "--reg_alpha", "0.3"], rat(alpha=0.3) + rdrop(alpha=0.3)),
        (["--reg", "rdrop + fgm", "--reg_epsilon", "2"], rdrop() + fgm(epsilon=2.0)),
        (["--reg", "pgd", "--reg_step", "0.1", "--reg_steps", "2"], pgd(step=0.1, steps=2)),
        (["--reg", "pgd", "--reg_start", "0.3"], pgd(start=0.3)),
        (["--reg", "rat", "--reg_scope", "table", "--reg_divergence", "js"], rat(scope="table", divergence="js")),
        (["--reg", "freelb", "--reg_begin", "10", "--reg_unit", "embedding"], freelb(begin=10, unit="embedding")),
        (["--reg", "rat", "--reg_warmup", "7"], rat(warmup=7)),
        (["--reg", "rat", "--reg_begin", "0.7", "--reg_warmup", "0.1"], rat(begin=0.7, warmup=0.1)),
        (["--reg", "rat", "--reg_begin", "1", "--reg_end", "0.9", "--reg_every", "4"], rat(begin=1, end=0.9, every=4)),
        (
            ["--reg", "fgm", "--reg_epsilon", "0.5", "--reg_unit", "relative", "--reg_target", "0.3"],
            fgm(epsilon=0.5, unit="relative", target=0.3),
        ),
        (["--reg", "rat", "--reg_top", "1/3"], rat(top=1 / 3)),
        (["--reg", "rat", "--reg_top", "0.25"], rat(top=0.25)),
        (["--reg", "rdrop + fgm", "--reg_top", "a.b"], rdrop(top="a.b") + fgm(top="a.b")),
        (["--reg", "rat", "--reg_site", "decoder_embeddings"], rat(site="decoder_embeddings")),
        (
            ["--reg", "rdrop + fgm + 0.5 * vat", "--reg_site", "vit.embeddings"],
            rdrop() + fgm(site="vit.embeddings") + 0.5 * vat(site="vit.embeddings"),
        ),
        (
            ["--reg", "adversarial_dropout", "--reg_rate", "0.1", "--reg_start_mask", "random"],
            parse("adversarial_dropout(rate=0.1, start_mask='random')"),
        ),
        (
            ["--reg", "adversarial_dropout", "--reg_site", "recurrent", "--reg_base", "random", "--reg_steps", "2"],
            parse("adversarial_dropout(site='recurrent', base='random', steps=2)"),
        ),
    ],
    ids=str,
)
def test_flags_make_the_regularizer(flags, regularizer):
    assert parsed(*flags).regularizer() == regularizer


def test_every_flag_is_left_out_by_default_and_belongs_to_a_recipe():
    assert parsed("--reg", "rat").reg_overrides() == {}
    arguments = {name for call in RECIPES.values() for name in inspect.signature(call).parameters}
    flags = {f.name.removeprefix("reg_") for f in fields(RegularizedTrainingArguments) if f.name.startswith("reg_")}
    assert flags - {"single_backward", "memory", "problem"} <= arguments
    # What the flags leave to expressions: values per pass, and what one recipe alone has.
    assert arguments - flags == {"epsilons", "dropouts", "mu", "beta", "fixed", "eta", "inputs", "momentum", "after"}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"reg": "rta"}, "'rta'.*rat"),
        ({"reg": "rat(epsilom=1)"}, "'epsilom'.*epsilon"),
        ({"reg": "rat("}, "rat\\("),
        ({"reg": "__import__('os')"}, "__import__"),
        ({"reg": ""}, "reg=''"),
        ({"reg": "plain", "reg_epsilon": 0.1}, "reg_epsilon=0.1"),
        ({"reg": "rdrop", "reg_scope": "table"}, "reg_scope='table'"),
        ({"reg": "rat(epsilon=0.1)", "reg_epsilon": 0.2}, "epsilon=0.1.*reg_epsilon=0.2"),
        ({"reg": "rat", "reg_epsilon": -1.0}, "epsilon=-1.0"),
        ({"reg": "rat", "reg_epsilon": float("nan")}, "epsilon=nan"),
        ({"reg": "rat", "reg_alpha": float("inf")}, "alpha=inf"),
        ({"reg": "pgd", "reg_steps": 0}, "steps=0"),
        ({"reg": "adversarial_dropout", "reg_rate": 1.0}, "rate=1.0"),
        ({"reg": "adversarial_dropout", "reg_site": "weights"}, "site='weights'.*logits, recurrent"),
        ({"reg": "adversarial_dropout", "reg_base": "zeros"}, "base='zeros'.*ones, random"),
        ({"reg": "adversarial_dropout(fixed=1)"}, "fixed=1.*True or False"),
        ({"reg": "rdrop", "reg_site": "recurrent"}, "reg_site='recurrent'"),
        ({"reg": "rat(site='lm_head')", "reg_site": "embeddings"}, "site='lm_head'.*reg_site='embeddings'"),
        ({"reg": "rat", "reg_site": "a layer"}, "site='a layer'.*decoder_embeddings.*name of a module"),
        ({"reg": "rat", "reg_passes": 1}, "passes=1"),
        ({"reg": "rat", "reg_begin": "half"}, "reg_begin='half' must be a whole number or a share"),
        ({"reg": "rat", "reg_begin": "1.0"}, "begin=1.0.*share of all steps"),
        ({"reg": "rat", "reg_end": "1.5"}, "end=1.5.*share of all steps"),
        ({"reg": "rat", "reg_begin": "5", "reg_end": "5"}, "begin=5, end=5"),
        ({"reg": "rat", "reg_every": 0}, "every=0"),
        ({"reg": "rat", "reg_target": 0.3}, "target=0.3 with unit=.absolute.*relative"),
        ({"reg": "vat", "reg_target": 0.3}, "reg_target=0.3 is set, but nothing"),
        ({"reg": "rat", "reg_scope": "batch"}, "scope='batch'.*example, table"),
        ({"reg": "rat", "reg_divergence": "KL"}, "divergence='KL'"),
        ({"reg": "-1 * rat"}, "-1"),
        ({"reg_memory": "slim"}, "reg_memory='slim'.*fast, lean"),
        ({"length_buckets": "maybe"}, "length_buckets='maybe'.*auto, off"),
    ],
    ids=str,
)
def test_wrong_flags_stop_the_trainer_in_one_line(settings, named):
    with pytest.raises(ValueError, match=named) as error:
        runs.trainer(**settings)
    assert "\n" not in str(error.value)


def test_arguments_are_ordinary_training_arguments():
    arguments = replace(parsed("--reg", "rat", "--reg_epsilon", "0.1"), learning_rate=1e-3)
    assert arguments.regularizer() == rat(epsilon=0.1)
    assert arguments.to_dict()["reg_epsilon"] == 0.1
    assert parsed("--reg_single_backward").reg_single_backward
