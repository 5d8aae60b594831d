"""configs/accelerate: each file starts what it says, and what `accelerate launch` would do silently is refused."""

import argparse
import json
import os
import sys
from types import ModuleType, SimpleNamespace

import launches
import pytest
import runs
import tiny
from accelerate.commands import launch

from hf_rat import RegularizedTrainer

CONFIGS = launches.ROOT / "configs" / "accelerate"
SPREAD = {"cpu_1": (1, 1), "two_hosts": (1, 2)}
"""File -> processes on each machine, and machines; the others are (2, 1)."""
PRECISION = {"fsdp2": "bf16", "multi_gpu_bf16": "bf16", "multi_gpu_fp16": "fp16"}


class Started(Exception):
    """Instead of starting processes: what they would get."""

    def __init__(self, options: argparse.Namespace | None, environment: dict[str, str]) -> None:
        self.options, self.environment = options, environment


@pytest.fixture
def started(monkeypatch):
    """(name of a file, words) -> what `accelerate launch` would start."""

    def run(args):
        raise Started(args, dict(os.environ))

    class Popen:
        def __init__(self, command, env):
            raise Started(None, env)

    monkeypatch.setattr("torch.distributed.run.run", run)
    monkeypatch.setattr(launch, "subprocess", SimpleNamespace(Popen=Popen))
    # DeepSpeed's launcher reads one constant of the package.
    monkeypatch.setattr(launch, "is_deepspeed_available", lambda: True)
    runner = ModuleType("deepspeed.launcher.runner")
    runner.DEEPSPEED_ENVIRONMENT_NAME = ""
    for name in ("deepspeed", "deepspeed.launcher"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "deepspeed.launcher.runner", runner)
    monkeypatch.chdir(launches.ROOT)  # the DeepSpeed files name their .json from here

    def start(name, *words):
        command = ["--config_file", str(CONFIGS / f"{name}.yaml"), *words, "run_glue.py", "--reg", "rat"]
        with pytest.raises(Started) as info:
            launch.launch_command(launch.launch_command_parser().parse_args(command))
        return info.value

    return start


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_accelerate_starts_what_the_file_says(started, name):
    seen = started(name)
    processes, machines = SPREAD.get(name, (2, 1))
    if name == "cpu_1":
        assert seen.options is None
        assert seen.environment["ACCELERATE_USE_CPU"] == "True"
        assert "MASTER_ADDR" not in seen.environment
    else:
        assert seen.options.nproc_per_node == str(processes)
        assert seen.options.nnodes == (str(machines) if machines > 1 else "1:1")
    assert seen.environment["ACCELERATE_MIXED_PRECISION"] == PRECISION.get(name, "no")
    assert (seen.environment.get("ACCELERATE_USE_FSDP") == "true") == (name == "fsdp2")
    assert (seen.environment.get("ACCELERATE_USE_DEEPSPEED") == "true") == name.startswith("deepspeed")
    if name == "fsdp2":
        assert seen.environment["FSDP_VERSION"] == "2"
    if name.startswith("deepspeed"):
        config = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
        assert seen.environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == f"configs/accelerate/{name}.json"
        assert config["zero_optimization"]["stage"] == int(name[-1])


def test_the_hosts_are_told_where_the_first_is(started):
    seen = started("two_hosts", "--machine_rank", "1", "--main_process_ip", "10.0.0.1")
    assert (seen.options.node_rank, seen.options.rdzv_backend) == (1, "static")
    assert seen.options.rdzv_endpoint == "10.0.0.1:29500"


# -- what would silently be something else ---------------------------------------------------------------------------

OTHERWISE = {
    "several processes, no --use_cpu": ({"WORLD_SIZE": "2"}, {}, "add --use_cpu"),
    "MULTI_CPU without MPI": ({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "True"}, {}, "MULTI_CPU needs MPI"),
    "FSDP, launched": ({"ACCELERATE_USE_FSDP": "true"}, {}, "FSDP was asked for and the device is the CPU"),
    "fp16, launched": ({"ACCELERATE_MIXED_PRECISION": "fp16"}, {}, "fp16 was asked for and the device is the CPU"),
    "fp16, by a flag": ({}, {"fp16": True}, "fp16 was asked for and the device is the CPU"),
}


@pytest.mark.parametrize("reg", ["plain", "rat"])
@pytest.mark.parametrize(("environment", "settings", "words"), OTHERWISE.values(), ids=OTHERWISE)
def test_what_accelerate_does_not_do_on_a_cpu_is_refused(environment, settings, words, reg, monkeypatch):
    if "WORLD_SIZE" not in environment:  # with it, Accelerate would look for the other process
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
    args = runs.arguments(reg=reg, **settings)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words) as error:
        RegularizedTrainer(tiny.tiny_model(dropout=0.1), args)
    assert "\n" not in str(error.value)


# -- for real --------------------------------------------------------------------------------------------------------


MAIN = ["--use_cpu", "--reg", "rat", "--max_steps", "2", "--max_train_samples", "40", "--max_eval_samples", "20"]


@pytest.mark.slow
def test_the_main_script_runs_in_two_processes_from_a_file(tmp_path):
    command = [*launches.ACCELERATE, "--config_file", str(CONFIGS / "ddp_2_processes.yaml"), "run_glue.py", *MAIN]
    printed = launches.run([*command, "--output_dir", str(tmp_path / "out")])
    assert "on cpu x 2" in printed
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_main_script_runs_in_what_a_file_gives_to_one_process(started, tmp_path):
    """`accelerate launch` starts a plain process then, in this environment."""
    given = started("cpu_1").environment
    assert given["ACCELERATE_MIXED_PRECISION"] == "no"
    printed = launches.fork(launches.ROOT / "run_glue.py", *MAIN, "--output_dir", tmp_path / "out", **given)
    assert "on cpu x 1" in printed
    assert (tmp_path / "out" / "model.safetensors").is_file()
