"""The README's commands and code, run as written, in a copy (training shortened, demo at its tiny scale)."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from unmask.cli.main import main

ROOT = Path(__file__).parents[1]
TOOLS = Path(sys.executable).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORTER = (
    "training.steps=2 training.batch_size=2 model.hidden_size=32 model.num_attention_heads=2 "
    "model.num_key_value_heads=1 model.num_hidden_layers=1 model.intermediate_size=32 data.vocabulary_size=400 "
    "data.context_length=48 evaluation.max_rows=2 sampling.max_new_tokens=8 data.cache_dir=runs/cache"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [line.partition("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line and line != "make test"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone holds that the commands need, with the demo done."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("recipes", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("Makefile", "README.md", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    # With this interpreter's environment in place of .venv.
    words = ["make", "demo", f"VENV={TOOLS.parent}", "-o", str(TOOLS / "unmask")]
    environment = os.environ | {"DEMO_SCALE": "tiny", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return folder


def test_the_demo_leaves_what_it_promises(workplace: Path) -> None:
    run_folder = workplace / "runs" / "demo"
    for name in ("replay.html", "plots/loss.png", "plots/loss.csv", "samples/demo.md", "evaluation.json"):
        assert (run_folder / name).stat().st_size > 100, name
    page = (run_folder / "replay.html").read_text(encoding="utf-8")
    assert "masked_diffusion" in page
    assert "autoregressive" in page


@pytest.mark.parametrize("command", [one for one in commands() if one != "make demo"])
def test_every_command_runs(
    workplace: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within this process: a fresh one takes longer to start than most of them to run."""
    monkeypatch.chdir(workplace)
    name, *words = shlex.split(command)
    assert name == "unmask"
    assert main([*words, *(SHORTER.split() if words[0] == "train" else [])]) == 0
    assert capsys.readouterr().out.strip()


def test_the_installed_command_is_the_same() -> None:
    done = subprocess.run([TOOLS / "unmask", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["unmask", version("unmask")]


def test_the_python_lines_run(workplace: Path) -> None:
    for number, block in enumerate(blocks("python")):
        script = workplace / f"block{number}.py"
        script.write_text(block, encoding="utf-8")
        done = subprocess.run([sys.executable, script.name], cwd=workplace, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Score(log_likelihood=" in done.stdout


def test_the_attention_page_shows_what_the_code_draws() -> None:
    import doctest

    text = (ROOT / "docs" / "attention.md").read_text(encoding="utf-8")
    test = doctest.DocTestParser().get_doctest(text, {}, "attention.md", None, 0)
    assert len(test.examples) >= 3
    assert doctest.DocTestRunner().run(test).failed == 0


def test_links_to_files_exist() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
