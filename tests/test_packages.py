"""Packages: pins are within the ranges of the project, and what an extra brings may be missing."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmray.system.errors import InputError
from mmray.system.extras import EXTRAS, import_extra

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]


def by_name(lines):
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(each.name): each for each in found}


@pytest.mark.parametrize(
    ("file", "allowed"),
    [
        ("requirements.txt", [*PROJECT["dependencies"], *OPTIONAL["cpu"]]),
        ("requirements-gpu.txt", OPTIONAL["gpu"]),
        ("requirements-dev.txt", [*OPTIONAL["export"], *OPTIONAL["dev"]]),
    ],
)
def test_each_pin_is_within_the_range_of_its_package(file, allowed):
    pins = by_name((ROOT / file).read_text().splitlines())
    ranges = by_name(line for line in allowed if not line.startswith("mmray["))
    ranges.pop("sqlalchemy", None)  # MLflow brings it
    assert pins.keys() == ranges.keys()
    for name, pin in pins.items():
        (version,) = (each.version for each in pin.specifier)
        assert ranges[name].specifier.contains(version), f"{pin} is outside of {ranges[name]}"
        assert pin.extras == ranges[name].extras, name


def test_the_names_of_extras_are_those_of_the_project():
    for extra, packages in EXTRAS.items():
        assert list(by_name(OPTIONAL[extra])) == list(packages)


def test_what_only_an_extra_brings_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(EXTRAS, "export", ("no-such-package", "another"))
    with pytest.raises(InputError) as caught:
        import_extra("no_such_module", "export", "cpu")
    assert str(caught.value) == (
        "no_such_module is not installed: python -m pip install no-such-package another "
        "(extra `export`), or python -m pip install faiss-cpu (extra `cpu`)"
    )


def test_a_package_that_lacks_something_itself_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "half_a_package.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_extra("half_a_package", "export")


def install(tmp_path, *flags, uv="", present=()):
    """The commands of `make install`, in a folder whose .venv has these files."""
    for name in ("Makefile", "pyproject.toml", *(p.name for p in ROOT.glob("requirements*.txt"))):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for name in present:  # after the others: a stamp is newer than what it depends on
        (tmp_path / ".venv").mkdir(exist_ok=True)
        (tmp_path / ".venv" / name).touch()
    done = subprocess.run(
        ["make", "--dry-run", "install", f"UV={uv}", f"PYTHON={sys.executable}", *flags],
        **{"cwd": tmp_path, "capture_output": True, "text": True, "check": True},
        env={"PATH": "/usr/bin:/bin"},
    )
    return done.stdout


@pytest.mark.process
def test_torch_without_cuda_is_installed_alone_from_its_own_index_and_before_the_rest(tmp_path):
    plain, cpu = install(tmp_path), install(tmp_path, "TORCH=cpu", "TORCH_INDEX=https://i/")
    assert "index-url" not in plain
    assert "requirements-gpu.txt" in plain
    assert "requirements-gpu.txt" not in cpu
    (first, second) = re.findall(r"(?m)^.* install .*(?:https://i/|-r requirements).*$", cpu)
    assert "--no-deps --index-url https://i/ $(grep -E '^torch(vision)?=='" in first
    assert "index-url" not in second


@pytest.mark.process
@pytest.mark.parametrize(
    ("present", "flags", "made"),
    [
        ((".installed",), (), "nothing"),
        ((".installed", ".torch-cpu"), (), "nothing"),
        ((".installed", ".torch-cpu"), ("TORCH=cpu",), "nothing"),
        ((".installed",), ("TORCH=cpu",), "anew"),
        ((".torch-cpu",), (), "without CUDA"),
    ],
)
def test_an_installation_keeps_its_build_of_torch_until_told_otherwise(
    tmp_path, present, flags, made
):
    commands = install(tmp_path, *flags, present=present)
    assert ("venv" in commands) == (made != "nothing")
    assert ("--clear" in commands) == (made == "anew")
    assert ("index-url" in commands) == (made != "nothing")


@pytest.mark.process
def test_uv_installs_the_same_where_it_is_and_pip_where_that_fails(tmp_path):
    pip, uv = install(tmp_path), install(tmp_path, uv="/bin/uv")
    by_pip = re.findall(r"\S+ -m pip install [^;\n]*", pip)
    assert [each.count("-r ") for each in by_pip] == [2, 1, 0]
    tried = re.findall(r"\{ /bin/uv pip install --quiet --python (.*) \|\| (.*); \}", uv)
    assert [other for _, other in tried] == by_pip
    options = " -m pip install --disable-pip-version-check --quiet --no-compile"
    assert [first for first, _ in tried] == [each.replace(options, "") for each in by_pip]
