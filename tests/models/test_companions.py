"""The list of companion models: what it promises to Transformers and to the command line."""

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from hf_rat.finetuning.word_model_flags import LANGUAGE_MODELS, WordModelArguments
from hf_rat.models import COMPANIONS

SMALL = {"vocab_size": 5, "embedding_size": 4, "num_labels": 2}

every_companion = pytest.mark.parametrize("name", COMPANIONS)


@every_companion
def test_the_auto_classes_find_it_with_the_width_that_was_asked_for(name):
    row = COMPANIONS[name]
    assert AutoConfig.for_model(row.config.model_type).__class__ is row.config
    for auto, model_class in row.models.items():
        if auto is AutoModelForCausalLM and name not in LANGUAGE_MODELS:
            continue
        model = auto.from_config(row.config(**row.fields, **SMALL, **{row.width: 3}))
        assert type(model) is model_class
        assert 3 in {size for weight in model.parameters() for size in weight.shape}


@every_companion
def test_pretrain_lm_takes_what_reads_from_left_to_right(name):
    row = COMPANIONS[name]

    def make():
        return AutoModelForCausalLM.from_config(row.config(**row.fields, **SMALL))

    if name in LANGUAGE_MODELS:
        make()
        assert WordModelArguments(model=name, pretrain_lm=True).pretrain_lm
    else:
        with pytest.raises(ValueError, match=r"bidirectional|Unrecognized configuration class"):
            make()
        with pytest.raises(ValueError, match="--pretrain_lm needs --model"):
            WordModelArguments(model=name, pretrain_lm=True)
