"""What `pip install hf-rat` will give: the wheel that is built from this tree, installed into an empty folder."""

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import hf_rat
from hf_rat.regularizers.recipe import RECIPES

ROOT = Path(__file__).parents[1]
pytest.importorskip("hatchling", reason="builds the wheel; `pip install -e .[dev]` brings it")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel):
    """The folder that it is installed into."""
    folder = wheel.parent / "site"
    _pip("install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    return folder


def _pip(*words):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _run(site, *command):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=site.parent, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_marker_and_its_addresses(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = Parser().parsestr(archive.read(next(n for n in names if n.endswith("METADATA"))).decode())
    parts = [*(ROOT / "hf_rat").rglob("*.py"), *(ROOT / "hf_rat" / "report" / "templates").iterdir()]
    ours = {f"hf_rat/{path.relative_to(ROOT / 'hf_rat')}" for path in parts}
    assert {name for name in names if ".dist-info/" not in name} == ours | {"hf_rat/py.typed"}
    assert metadata["Version"] == hf_rat.__version__
    addresses = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert set(addresses) == {"Homepage", "Documentation", "Source", "Changelog"}
    assert all(address.startswith("https://github.com/hf-rat/hf-rat") for address in addresses.values())


@pytest.mark.slow
def test_the_installed_command_answers(site):
    assert _run(site, site / "bin" / "hf-rat", "--version") == f"hf-rat {hf_rat.__version__}\n"
    methods = _run(site, site / "bin" / "hf-rat", "methods")
    assert [line.split()[0] for line in methods.splitlines()[: len(RECIPES)]] == list(RECIPES)
    where = _run(site, sys.executable, "-c", "import hf_rat; print(hf_rat.__file__, hf_rat.rat())")
    assert where.startswith(str(site))
    assert "rat(epsilon=" in where
