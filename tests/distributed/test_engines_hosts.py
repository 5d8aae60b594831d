"""Two processes of one machine, and `accelerate launch` on two hosts: what they get is what one process gets.

The hosts are two network namespaces of this machine, joined by one cable. Each has its own loopback and its own
`accelerate launch`, so that nothing can go by way of localhost. That needs root and the command `ip` (iproute2).
"""

import json
import os
import shutil
import subprocess
from functools import cache

import keyed
import launches
import pytest
import runs
from launched_processes import CASES, noise

pytestmark = pytest.mark.slow

SCRIPT = launches.HERE / "launched_processes.py"
ADDRESSES = ("10.71.0.1", "10.71.0.2")
# Two processes of one machine have every recipe in test_invariance.py; here is what comes on top of DDP.
WHERE = {
    "two hosts": ["as it is", "labels by position"],
    "one machine": ["activation checkpointing", "bf16", "compiled"],
}
EVERY = [(where, case, one) for where, cases in WHERE.items() for case in cases for one in CASES[case][0]]


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts():
    """Names of two network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and the command ip, to make network namespaces")
    names = [f"hf_rat_{os.getpid()}_{rank}" for rank in (0, 1)]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"needs network namespaces: {error.stderr.strip()}")
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def launch_on(hosts, *words):
    where = ["--config_file", "configs/accelerate/two_hosts.yaml", "--main_process_ip", ADDRESSES[0]]
    launched = [
        launches.start(
            ["ip", "netns", "exec", name, *launches.ACCELERATE, *where, "--machine_rank", str(rank), str(SCRIPT)]
            + [str(word) for word in words],
            GLOO_SOCKET_IFNAME="cable",
        )
        for rank, name in enumerate(hosts)
    ]
    try:
        printed = [launches.finish(process, 500) for process in launched]
    finally:
        for process in launched:
            process.terminate()  # one that waits for a host that failed; nothing where it has ended
    for process, said in zip(launched, printed, strict=True):
        assert process.returncode == 0, said[-4000:]


@pytest.fixture(scope="module")
def seen(request, tmp_path_factory):
    """where -> what was seen; each is launched once."""

    @cache
    def on(where):
        result = tmp_path_factory.mktemp("launched") / "result.json"
        if where == "one machine":
            launches.fork(SCRIPT, result, *WHERE[where], processes=2)
        else:
            launch_on(request.getfixturevalue("hosts"), result, *WHERE[where])
        return json.loads(result.read_text(encoding="utf-8"))

    return on


def test_two_hosts_share_no_network(seen):
    here = os.readlink("/proc/self/ns/net")
    assert len({*seen("two hosts")["networks"], here}) == 3


@pytest.mark.parametrize(("where", "case", "expression"), EVERY)
def test_two_processes_change_nothing(seen, where, case, expression):
    """The reference is one process on all examples; but for bf16, in plain fp32: nothing recomputed or compiled."""
    _, model, settings = CASES[case]
    kept = settings if case == "bf16" else {}
    with noise(case):
        whole = runs.run(expression, keyed.KeyedTrainer, per_device_train_batch_size=16, **model(), **kept)
    assert all("grad_norm" in log for log in whole.logs)
    ours = seen(where)["cases"][case][expression]
    # bf16 keeps 8 bits, and batches of other sizes round elsewhere.
    runs.assert_same_logs(ours["logs"], whole.logs, 3e-2 if case == "bf16" else 1e-5)
    assert ours["equal"]


def test_the_compiled_were_compiled(seen):
    assert seen("one machine")["compiled"] > 0
