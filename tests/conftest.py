"""What every test stands on: no network, one thread, a fixed seed, tiny models and batches."""

import gc
import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import pytest
import tiny
import torch

from hf_rat.trainer import fast

torch.set_num_threads(1)
# A shell has the jobs that it starts in the background ignore Ctrl-C, and so all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Marks on Transformers' own tests: see test_general_modeling.py.
FOREIGN_MARKS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test")


def pytest_configure(config):
    for mark in FOREIGN_MARKS:
        config.addinivalue_line("markers", f"{mark}: of the general model tests of Transformers")


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no process is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="module")
def _little_garbage():
    """The Trainer collects garbage at the start of each run, and looks at all that every module before has left."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def fast_undone():
    """What --fast sets for a process is taken back afterwards."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)
    fast.undo()


@pytest.fixture
def tiny_model():
    """A factory: tiny_model(family="bert", dropout=0.0, labels=3, **config) is a classifier in training mode."""
    return tiny.tiny_model


@pytest.fixture
def tiny_batch():
    """A factory: tiny_batch(size=4, length=7, labels=3, kind="single", seed=0)."""
    return tiny.tiny_batch


@pytest.fixture
def model():
    """A tiny BERT without dropout."""
    return tiny.tiny_model()


@pytest.fixture
def batch():
    """Four padded examples of three classes."""
    return tiny.tiny_batch()
