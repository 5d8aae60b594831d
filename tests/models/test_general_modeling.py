"""The general model tests that Transformers ships in its source distribution, on the companion models.

`python tests/support/fetch_general_tests.py DIR` fetches them; HF_RAT_GENERAL_TESTS=DIR says where they are.
docs/models.md lists which apply.
"""

import copy
import importlib
import os
import sys
import unittest
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch

from hf_rat.models import (
    HANConfig,
    HANForSequenceClassification,
    RNNConfig,
    RNNForCausalLM,
    RNNForSequenceClassification,
    RNNForTokenClassification,
    RNNModel,
    TextCNNConfig,
    TextCNNForSequenceClassification,
)

FOLDER = os.environ.get("HF_RAT_GENERAL_TESTS")
if not FOLDER:
    pytest.skip(
        "HF_RAT_GENERAL_TESTS names no folder: tests/support/fetch_general_tests.py fetches Transformers' tests",
        allow_module_level=True,
    )

ABSENT = {
    "exporters.test_export": "ExportTesterMixin",
    "generation.test_utils": "GenerationTesterMixin",
}
"""Modules that the distribution leaves out, and the class that is wanted from each: an empty one stands in for it."""


def load(folder):
    """The module test_modeling_common of the distribution of the installed version."""
    tests = Path(folder) / f"transformers-{version('transformers')}" / "tests"
    if not tests.is_dir():
        raise FileNotFoundError(
            f"HF_RAT_GENERAL_TESTS={folder!r} has no {tests}: run tests/support/fetch_general_tests.py anew"
        )
    package = ModuleType("transformers_tests")
    package.__path__ = [str(tests)]
    sys.modules[package.__name__] = package
    for name, wanted in ABSENT.items():
        for module in (name.split(".")[0], name):
            sys.modules[f"{package.__name__}.{module}"] = ModuleType(module)
        setattr(sys.modules[f"{package.__name__}.{name}"], wanted, type(wanted, (), {}))
    return importlib.import_module(f"{package.__name__}.test_modeling_common")


modeling = load(FOLDER)


class SmallBatches:
    """What the general tests ask for a configuration and a batch."""

    batch_size, seq_length, is_training = 5, 7, True

    def __init__(self, config):
        self.config = config
        self.hidden_size, self.num_hidden_layers = SIZES["embedding_size"], getattr(config, "num_hidden_layers", 1)

    def prepare_config_and_inputs_for_common(self):
        ids = torch.randint(3, self.config.vocab_size, (self.batch_size, self.seq_length))
        return copy.deepcopy(self.config), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class General(modeling.ModelTesterMixin):
    """To be mixed into a unittest.TestCase, with `config` and `all_model_classes`.

    Attributes:
        heads: the kind of each model, which says what its labels look like; as in MODEL_FOR_<kind>_MAPPING_NAMES.
        not_meant: test -> why it cannot apply.
    """

    has_attentions = False  # of several heads in several layers, each (batch, heads, time, time)
    test_can_init_all_missing_weights_before_2023 = True  # run it although the files name no year
    heads = ("SEQUENCE_CLASSIFICATION",)
    all_generative_model_classes = ()  # the distribution leaves out the tests of generation
    not_meant: ClassVar[dict[str, str]] = {}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for model, head in zip(cls.all_model_classes, cls.heads, strict=True):
            name = f"MODEL_FOR_{head}_MAPPING_NAMES" if head else "MODEL_MAPPING_NAMES"
            known = getattr(modeling, name)
            setattr(modeling, name, {**known, model.config_class.model_type: model.__name__})

    def setUp(self):
        self.model_tester = SmallBatches(self.config)
        test = self.id().split(".")[-1]
        if test in self.not_meant:
            self.skipTest(self.not_meant[test])


CLASSIFIER = {
    "test_hidden_states_output": "there is no stack of layers of one width whose states could be given out",
    "test_retain_grad_hidden_states_attentions": "there is no stack of layers of one width whose states could be kept",
    "test_load_with_mismatched_shapes": "it loads a model without a head through AutoModel, and there is none",
}
SIZES = {"vocab_size": 30, "embedding_size": 16}


class TestTextCNN(General, unittest.TestCase):
    config = TextCNNConfig(**SIZES, num_filters=4)
    all_model_classes = (TextCNNForSequenceClassification,)
    not_meant = CLASSIFIER


class TestTextCNNNormalized(General, unittest.TestCase):
    config = TextCNNConfig(**SIZES, num_filters=4, normalize_embeddings=True)
    all_model_classes = (TextCNNForSequenceClassification,)
    not_meant = CLASSIFIER


class TestHAN(General, unittest.TestCase):
    config = HANConfig(**SIZES, hidden_size=8, recurrent_dropouts={"variational": 0.2})
    all_model_classes = (HANForSequenceClassification,)
    not_meant = CLASSIFIER


class TestHANSentences(General, unittest.TestCase):
    config = HANConfig(**SIZES, hidden_size=8, sentence_level=True, sentence_separator_token_id=3)
    all_model_classes = (HANForSequenceClassification,)
    not_meant = CLASSIFIER | {"test_inputs_embeds": "vectors alone do not say where sentences end"}


class TestRNN(General, unittest.TestCase):
    config = RNNConfig(**SIZES, hidden_size=16, num_hidden_layers=2)
    all_model_classes = (RNNModel, RNNForSequenceClassification, RNNForTokenClassification, RNNForCausalLM)
    heads = ("", "SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "CAUSAL_LM")
