"""What an installation holds: the package with its types, described as what it is."""

import ast
import contextlib
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import unmask
from unmask.cli.main import VERBS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGE = Path(unmask.__file__).parent


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").read_bytes() == b""
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = pytest.importorskip("hatchling.build", reason="pip install -c constraints.txt -e '.[dev]'")
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / backend.build_wheel(str(tmp_path))) as wheel:
        held = {name for name in wheel.namelist() if not name.startswith(f"unmask-{unmask.__version__}.dist-info/")}
    files = [file for file in PACKAGE.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert held == {f"unmask/{file.relative_to(PACKAGE).as_posix()}" for file in files}
    assert "unmask/py.typed" in held


def test_nothing_claims_a_server() -> None:
    """Until there is one."""
    assert "serve" not in VERBS and (unmask.__doc__ or "").startswith(f"Unmask: {PROJECT['description'][0].lower()}")
    for text in (PROJECT["description"], unmask.__doc__):
        assert "serve" not in text


def required(names: list[str], known: set[str]) -> set[str]:
    """The distributions that are installed with some requirements; absent ones bring nothing along."""
    for line in names:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        extras = requirement.extras | {""}
        if name not in known:
            known.add(name)
            with contextlib.suppress(PackageNotFoundError):
                needed = [Requirement(text) for text in requires(name) or []]
                markers = [(str(each), each.marker) for each in needed]
                required([text for text, mark in markers if mark is None or applies(mark, extras)], known)
    return known


def applies(marker: Marker, extras: set[str]) -> bool:
    return any(marker.evaluate({"extra": extra}) for extra in extras)


def test_every_import_comes_with_a_declared_dependency() -> None:
    modules = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.partition(".")[0])
    foreign = modules - set(sys.stdlib_module_names) - {"unmask"}
    extras = PROJECT["optional-dependencies"]
    declared = [*PROJECT["dependencies"], *(line for name in extras if name != "dev" for line in extras[name])]
    known = required(declared, set())
    homes = packages_distributions()
    assert {"torch", "datasets", "lm_eval", "peft"} <= foreign
    assert [name for name in foreign if not {canonicalize_name(home) for home in homes[name]} & known] == []


def test_the_tested_versions_are_allowed_and_complete() -> None:
    """constraints.txt pins what the tests need, each within the range that an installation may choose from."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(one.name): one for one in map(Requirement, (line for line in lines if line[0] != "#"))}
    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        wanted = Requirement(line)
        pin = str(pins[canonicalize_name(wanted.name)].specifier)
        assert pin.startswith("==") and wanted.specifier.contains(pin[2:]), line
