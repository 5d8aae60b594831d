"""Two hosts: two network namespaces of this machine, joined by one cable, that know each other by address only.

Each has its own loopback and its own `accelerate launch`, so that nothing can go by way of localhost. Needs root and
the command `ip` (iproute2).
"""

import json
import os
import shutil
import subprocess

import hosts_processes
import keyed
import launches
import pytest
import runs

pytestmark = pytest.mark.slow

ADDRESSES = ("10.71.0.1", "10.71.0.2")


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


@pytest.fixture(scope="module")
def seen(hosts, tmp_path_factory):
    """One launch on both for all tests below."""
    result = tmp_path_factory.mktemp("hosts") / "result.json"
    config = ["--config_file", "configs/accelerate/two_hosts.yaml", "--main_process_ip", ADDRESSES[0]]
    script = [str(launches.HERE / "hosts_processes.py"), str(result)]
    launched = [
        launches.start(
            ["ip", "netns", "exec", name, *launches.ACCELERATE, *config, "--machine_rank", str(rank), *script],
            GLOO_SOCKET_IFNAME="cable",
        )
        for rank, name in enumerate(hosts)
    ]
    try:
        printed = [launches.finish(process) for process in launched]
    finally:
        for process in launched:
            process.terminate()  # one that waits for a host that failed; nothing where it has ended
    for process, words in zip(launched, printed, strict=True):
        assert process.returncode == 0, words[-4000:]
    return json.loads(result.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True, scope="module")
def _keyed():
    with keyed.noise():
        yield


def test_the_hosts_share_no_network(seen):
    here = os.readlink("/proc/self/ns/net")
    assert len({*seen["networks"], here}) == 3


@pytest.mark.parametrize("expression", hosts_processes.EVERY)
def test_two_hosts_change_nothing(seen, expression):
    whole = runs.run(expression, keyed.KeyedTrainer, per_device_train_batch_size=16)
    runs.assert_same_logs(seen["examples"][expression]["logs"], whole.logs)
    assert all("grad_norm" in log for log in whole.logs)
    assert seen["examples"][expression]["equal"]


@pytest.mark.parametrize("expression", runs.BY_POSITION)
def test_every_label_counts_alike_on_two_hosts(seen, expression):
    model = hosts_processes.language_model()
    whole = runs.run(expression, keyed.KeyedTrainer, per_device_train_batch_size=16, **model)
    runs.assert_same_logs(seen["positions"][expression]["logs"], whole.logs)
    assert seen["positions"][expression]["equal"]
