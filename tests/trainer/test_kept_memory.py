"""What `--fast` does with freed memory on a CPU: no new pages for the same blocks, and all is given back."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import runs
from transformers import TrainerCallback

from hf_rat.trainer import fast, training_args
from hf_rat.trainer.kept_memory import can_keep_memory, keep_freed_memory

on_glibc = pytest.mark.skipif(not can_keep_memory(), reason="the allocator is not that of glibc")

# In a process of its own, since an allocator's behaviour depends on all that it has been asked for before.
PROGRAM = """
import json, resource
from contextlib import suppress
from hf_rat.trainer.kept_memory import can_keep_memory, keep_freed_memory

SIZE = 2**26

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (SIZE, SIZE // 2, SIZE // 8):
        block = b"1" * size
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // SIZE

found = {"before": [step(), step()][1]}
with suppress(ValueError), keep_freed_memory():
    found["inside"] = [step(), step()][1]
    found["resident"] = resident()
    if ERROR:
        raise ValueError
found |= {"resident after": resident(), "can": can_keep_memory()}
found["after"] = [step(), step()][1]
print(json.dumps(found))
"""


def measured(error=False, **environment):
    """What a fresh process finds: pages that a step needs before, inside and after; blocks in memory, whole ones."""
    program = PROGRAM.replace("ERROR", str(error))
    told = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    out = subprocess.run([sys.executable, "-c", program], env=told, check=True, capture_output=True, text=True)
    return json.loads(out.stdout)


@on_glibc
@pytest.mark.parametrize("error", [False, True])
def test_the_same_blocks_need_no_new_pages_and_all_is_given_back(error):
    found = measured(error)
    assert found["inside"] < 10 < min(found["before"], found["after"])
    assert found["resident"] >= 1
    assert found["resident after"] == 0


@on_glibc
@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_TRIM_THRESHOLD_", "1000000"), ("MALLOC_MMAP_MAX_", "3"), ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")],
)
def test_what_the_user_has_said_of_memory_stays(name, value):
    found = measured(**{name: value})
    assert not found["can"]
    assert found["inside"] > 10


@pytest.mark.parametrize("fast_run", [True, False])
@pytest.mark.parametrize("can", [True, False])
def test_a_fast_run_keeps_it_and_says_so(fast_run, can, fast_undone, monkeypatch, caplog):
    seen = []

    @contextmanager
    def keep():
        seen.append("begins")
        with keep_freed_memory():
            yield
        seen.append("ends")

    class Watch(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            seen.append("step")

    monkeypatch.setattr(fast, "keep_freed_memory", keep)
    monkeypatch.setattr(training_args, "can_keep_memory", lambda: can)
    one = runs.trainer("plain", max_steps=1, fast=fast_run, use_cpu=True)
    one.add_callback(Watch())
    with caplog.at_level("INFO", "hf_rat"):
        one.train()
    assert seen == (["begins", "step", "ends"] if fast_run else ["step"])
    assert ("freed memory kept" in caplog.text) == (fast_run and can)


def test_numbers_stay_the_same():
    with keep_freed_memory():
        kept = runs.run("rat", max_steps=3)
    runs.assert_same_weights(kept.weights, runs.run("rat", max_steps=3).weights)
