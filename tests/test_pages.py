"""The commands and code of the pages on block diffusion, TiDAR and gradients, run as written, training shortened."""

import doctest
import gzip
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unmask.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = ("block-diffusion", "tidar")
SHORTER = (
    "training.steps=2 training.warmup_steps=1 training.batch_size=2 evaluation.max_rows=2 "
    "evaluation.masks_per_sequence=2 sampling.max_new_tokens=8"
)
SHORTER_WORDS = {
    "train": SHORTER.split(),
    "generate": ["--max-new-tokens", "8"],
    "evaluate": ["--max-rows", "2"],
    "analyze": [],
    "block_quality.py": ["--texts", "2", "--new-tokens", "6", "--thresholds", "0.3", "--block-lengths", "4"],
    "tidar_quality.py": ["--texts", "2", "--new-tokens", "6", "--draft-lengths", "2"],
}
# What the commands leave, the benchmarks' at the end.
LEFT = {
    "block-diffusion": ("block_quality.json", "block_quality.csv", "../../docs/block-quality.png"),
    "tidar": ("tidar_quality.json", "tidar_quality.csv", "../../docs/tidar-speed.png"),
}


def text_of(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), flags=re.DOTALL)


def commands(page: str) -> list[str]:
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [" ".join(line.partition("  #")[0].split()) for line in lines if line.strip()]


@pytest.fixture
def workplace(shared_data: Path, tmp_path: Path) -> Path:
    """The folder that a page's commands are run in: recipes, benchmarks, data, no runs yet."""
    folder = tmp_path / "page"
    for name in ("recipes", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "data").mkdir()
    for name in ("tinystories-656k", "stories260k"):
        (folder / "data" / name).symlink_to(shared_data / "checkpoints" / name)
    stories = "tinystories_sample.jsonl.gz"
    with gzip.open(shared_data / "text" / stories) as lines:
        (folder / "data" / stories).write_bytes(gzip.compress(b"".join(itertools.islice(lines, 200))))
    return folder


def run(command: str) -> None:
    words = shlex.split(command)
    name = words[1].rpartition("/")[2]
    words += SHORTER_WORDS[name]
    if words[0] == "unmask":
        assert main(words[1:]) == 0, command
        return
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words[1:]], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_run_one_after_another(page: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    found = commands(page)
    assert len(found) >= 7
    for command in found:
        run(command)
    first = min(file.stat().st_mtime for file in (workplace / "runs").glob("*/config.yaml"))
    for file in LEFT[page]:
        assert (workplace / "benchmarks" / "results" / file).stat().st_mtime > first, file

    scripts = [block for block in blocks(page, "python") if ">>>" not in block]
    assert len(scripts) >= 1
    for script in scripts:
        exec(compile(script, "page", "exec"), {})


# Bytes of stories instead of Python's documentation in tokens that are trained first, and a measurement at each step.
SMALLER = (
    "data.train=data/tinystories_sample.jsonl.gz data.tokenizer=byte data.context_length=48 model.hidden_size=32 "
    "model.num_attention_heads=2 model.num_key_value_heads=1 training.detailed_metrics_steps=1"
)


def test_the_commands_on_gradients_draw_a_run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    train, *others = commands("gradients")
    run(f"{train} {SMALLER}")
    for command in others:
        run(command)
    for folder in (workplace / "runs" / "python-docs" / "plots" / "gradients", workplace / "pictures"):
        for name in re.findall(r"^\| `(\w+)` \|", text_of("gradients"), flags=re.MULTILINE):
            assert (folder / f"{name}.png").is_file(), name
            assert (folder / f"{name}.csv").is_file(), name
        assert len(list(folder.iterdir())) == 8


@pytest.mark.parametrize("page", PAGES)
def test_the_pictures_are_what_the_code_draws(page: str) -> None:
    test = doctest.DocTestParser().get_doctest(text_of(page), {}, f"{page}.md", None, 0)
    assert len(test.examples) >= 6
    assert doctest.DocTestRunner().run(test).failed == 0
