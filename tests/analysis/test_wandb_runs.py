"""Runs of wandb: found by name, read from a real offline run whole and damaged, asked for at a played server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.test_gradient_history import FILES, records, write_run
from unmask.analysis.wandb_runs import WandbRun, find, read_file, read_server
from unmask.cli.main import main
from unmask.errors import MissingExtraError, ReportError

NAME = "run-20250811_123519-fh5nsj6z"


def a_folder(place: Path, name: str, *files: str) -> Path:
    (place / name).mkdir(parents=True)
    for file in files:
        (place / name / file).write_bytes(b"")
    return place / name


# --- where a run lies -------------------------------------------------------------------------------------------------


def test_a_run_is_found_by_name_or_path(tmp_path: Path) -> None:
    found = WandbRun("fh5nsj6z", a_folder(tmp_path / "wandb", NAME, "run-fh5nsj6z.wandb") / "run-fh5nsj6z.wandb")
    assert find(NAME, tmp_path / "wandb") == found
    assert find(NAME, tmp_path) == found
    assert find(str(tmp_path / "wandb" / NAME), Path("elsewhere")) == found
    assert find(str(found.file), Path("elsewhere")) == found
    offline = a_folder(tmp_path / "boat", f"offline-{NAME}", "run-fh5nsj6z.wandb")
    assert find(NAME, tmp_path / "boat") == find(f"offline-{NAME}", tmp_path / "boat")
    assert find(NAME, tmp_path / "boat") == WandbRun("fh5nsj6z", offline / "run-fh5nsj6z.wandb")


def test_a_run_that_is_not_here_is_one_of_the_server(tmp_path: Path) -> None:
    assert find(NAME, tmp_path) == WandbRun("fh5nsj6z", None)
    a_folder(tmp_path, NAME, "config.yaml")
    assert find(NAME, tmp_path) == WandbRun("fh5nsj6z", None)
    assert find("my-run", tmp_path) is None
    a_folder(tmp_path, "two", "run-a.wandb", "run-b.wandb")
    with pytest.raises(ReportError, match=r"holds several runs: run-a\.wandb, run-b\.wandb"):
        find("two", tmp_path)


def test_without_wandb_the_command_that_installs_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for read in (
        lambda: read_file(tmp_path / "run-a.wandb"),
        lambda: read_server("a", entity=None, project="p"),
    ):
        with pytest.raises(MissingExtraError, match=r'pip install "unmask\[track\]"'):
            read()


# --- a real run -------------------------------------------------------------------------------------------------------

_LOG = """
import json, sys
import wandb

run = wandb.init(mode="offline", project="p", dir=sys.argv[1])
for line in open(sys.argv[2]):
    row = json.loads(line)
    step = row.pop("step")
    row = {name: float("nan") if value is None else value for name, value in row.items()}
    run.log(row | {"filler": "x" * 300}, step=step)
run.finish()
"""


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 120 steps, and beside it the `metrics.jsonl` that it was logged from."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    folder = tmp_path_factory.mktemp("offline")
    write_run(folder, records(120))
    (folder / "log.py").write_text(_LOG)
    words = [sys.executable, str(folder / "log.py"), str(folder), str(folder / "metrics.jsonl")]
    quiet = {"WANDB_SILENT": "true", "WANDB_MODE": "offline", "WANDB__DISABLE_STATS": "true"}
    done = subprocess.run(words, env=os.environ | quiet, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        pytest.skip(f"wandb cannot log offline here: {done.stderr[-300:]}")
    (found,) = (folder / "wandb").glob("offline-run-*")
    return found


def test_an_offline_run_gives_the_matrices_of_its_metrics_file(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = find(offline.name, offline.parent)
    assert run is not None and run.file is not None and run.file.stat().st_size > 2 * 2**15
    assert main(["analyze", "gradients", str(offline.parents[1]), "--output-dir", "own"]) == 0
    capsys.readouterr()
    words = [offline.name.removeprefix("offline-"), "--wandb-path", str(offline.parent), "--entity", "me"]
    assert main(["analyze", "gradients", *words]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{run.id}: 120 measurements, steps 100 to 12000")
    assert "--entity and --project are not needed" in captured.err and "skipped" not in captured.err
    for name in FILES:
        assert (Path("gradients") / run.id / f"{name}.csv").read_text() == (Path("own") / f"{name}.csv").read_text()
        assert (Path("gradients") / run.id / f"{name}.png").is_file()


def rows_of(content: bytes, folder: Path) -> tuple[list[int], list[str]]:
    """The steps of a file, and what was damaged in it."""
    (folder / "run-a.wandb").write_bytes(content)
    found = read_file(folder / "run-a.wandb")
    return [row["_step"] for row in found.rows], found.damage


def test_what_a_crash_or_a_disk_damaged_is_skipped(offline: Path, tmp_path: Path) -> None:
    (file,) = offline.glob("*.wandb")
    content = file.read_bytes()
    steps, damage = rows_of(content, tmp_path)
    assert steps == [*range(100, 12001, 100)] and damage == []
    cut, damage = rows_of(content[: len(content) // 2], tmp_path)
    assert cut == steps[: len(cut)] and 20 < len(cut) < 100 and len(damage) == 1
    # One byte of the second block: its other records are lost, those of the third are not.
    place = 2**15 + 9000
    holed, damage = rows_of(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :], tmp_path)
    assert len(damage) == 1 and "a damaged record at byte" in damage[0]
    lost = [step for step in steps if step not in holed]
    assert 10 < len(lost) < 80 and lost == [*range(lost[0], lost[-1] + 1, 100)] and steps[-1] not in lost
    # Zeros, as some file systems leave them behind a crash.
    assert rows_of(content + bytes(5000), tmp_path)[0] == steps
    with pytest.raises(ReportError, match="is no history of wandb"):
        rows_of(b"{}" + content, tmp_path)


# --- a server ---------------------------------------------------------------------------------------------------------


class Server:
    """`wandb.Api` for one run."""

    asked: str

    def run(self, path: str) -> Server:
        type(self).asked = path
        if not path.endswith("/fh5nsj6z"):
            raise ValueError(f"Could not find run <Run {path} (not found)>")
        return self

    def scan_history(self) -> list[dict[str, Any]]:
        rows = [{"_step": 4, "train/step": 40, "train/loss": 1.0}]
        names = ("low", "medium", "high")
        rows.append(
            {"_step": 5, "train/step": 50, "research/gradient_norm_total": 3.0}
            | {f"research/gradient_norm_{name}_corruption": 1.0 + at for at, name in enumerate(names)}
        )
        return rows


def test_a_run_of_a_server_is_asked_for_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_ENTITY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wandb, "Api", Server)
    assert main(["analyze", "gradients", NAME, "--entity", "team", "--project", "tdlm"]) == 0
    captured = capsys.readouterr()
    assert Server.asked == "team/tdlm/fh5nsj6z"
    assert captured.out.startswith("fh5nsj6z: 1 measurement, steps 50 to 50")
    assert "note: These are TDLM's own columns" in captured.err
    assert (tmp_path / "gradients" / "fh5nsj6z" / "corruption_level_vs_time.csv").read_text() == (
        "level,50\nlow,1\nmedium,2\nhigh,3\n"
    )
    monkeypatch.setenv("WANDB_PROJECT", "other")
    assert read_server("fh5nsj6z", entity=None, project=None).rows[1]["train/step"] == 50
    assert Server.asked == "other/fh5nsj6z"
    with pytest.raises(ReportError, match=r"gave no run other/x: Could not find run .*`wandb login`"):
        read_server("x", entity=None, project=None)
