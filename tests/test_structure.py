"""The shape of the code base: rooms import only from rooms above them, files stay short, importing stays cheap."""

import ast
import subprocess
import sys
from pathlib import Path

from unmask.cli.main import VERBS

SOURCE = Path(__file__).parents[1] / "src" / "unmask"
# From the top down; a room may import from those before it.
ROOMS = [
    "errors",
    "writing",
    "destinations",
    "settings",
    "config",
    "runs",
    "noise",
    "attention",
    "models",
    "data",
    "diffusion",
    "objectives",
    "decoding",
    "evaluation",
    "outputs",
    "lm",
    "dialogue",
    "reports",
    "analysis",
    "training",
    "cli",
    "__main__",
]


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports_of(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "unmask":
                found |= {f"unmask.{name.name}" for name in node.names if name.name != "__version__"}
            else:
                found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {module for module in found if module.startswith("unmask.")}


def test_rooms_import_only_from_rooms_above_them() -> None:
    wrong = []
    for file in SOURCE.rglob("*.py"):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        own = ROOMS.index(parts[0])
        wrong += [f"{file}: {module}" for module in imports_of(file) if ROOMS.index(room_of(module)) > own]
    assert wrong == []


def test_every_module_belongs_to_a_room() -> None:
    names = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert names - {"__init__"} == set(ROOMS)


def test_files_are_short_and_subpackages_have_empty_inits() -> None:
    for file in SOURCE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, file
        if file.name == "__init__.py" and file.parent != SOURCE:
            assert text == "", file
        assert file.stem not in ("utils", "helpers", "common"), file


def test_importing_the_package_loads_no_framework() -> None:
    code = "import sys, unmask, unmask.cli.main; print({'torch', 'transformers', 'jsonargparse'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_public_names_resolve() -> None:
    import unmask

    assert [name for name in unmask.__all__ if getattr(unmask, name, None) is None] == []
    assert set(unmask.__all__) <= set(dir(unmask))


def test_help_of_the_verbs_loads_no_framework() -> None:
    code = (
        "import sys\nfrom unmask.cli.main import main\n"
        "try:\n    main([sys.argv[1], '--help'])\nexcept SystemExit:\n    pass\n"
        "print({'torch', 'transformers'} & set(sys.modules), file=sys.stderr)"
    )
    for verb in VERBS:
        done = subprocess.run([sys.executable, "-c", code, verb], capture_output=True, text=True, check=True)
        assert done.stderr.strip() == "set()", verb
        assert "examples:" in done.stdout
