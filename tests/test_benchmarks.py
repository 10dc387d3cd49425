"""The benchmarks run, print what they promise, and refuse to time contenders that do not do the same work."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")


def printed(*command: str) -> str:
    source = str(FOLDER.parent / "src")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, str(FOLDER), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def checked(script: str, target: Path) -> dict[str, Any]:
    """The record of a quick run, which also stands in a file, after two tables."""
    *above, last = printed(str(FOLDER / script), "--quick", "--json", str(target)).splitlines()
    record = json.loads(last)
    assert json.loads(target.read_text()) == record
    assert sum(line.startswith("| ---") for line in above) >= 2
    assert record["machine"]["threads"] == 1 and record["machine"]["torch"]
    return record


def check_results(results: dict[str, dict[str, Any]], *, with_memory: bool = True) -> None:
    for name, own in results.items():
        assert own["tokens_per_second"] > 0 and own["tokens_per_cpu_second"] > 0, name
        assert set(own["speed_over"]) >= {"baseline", "floor: linear layers"}, name
        assert name.startswith("floor") or not with_memory or own["memory_mib"] > 0, name
    assert results["baseline"]["speed_over"]["baseline"] == 1


def test_training_is_timed_against_the_baseline_and_the_floor(tmp_path: Path) -> None:
    record = checked("train.py", tmp_path / "train.json")
    check_results(record["results"])
    for ours, theirs in zip(record["losses"]["unmask"], record["losses"]["baseline"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert set(record["breakdown"]) >= {"unmask", "baseline"}


def test_decoding_is_timed_against_the_baseline_and_the_floor(tmp_path: Path) -> None:
    record = checked("decode.py", tmp_path / "decode.json")
    assert set(record["caches"]) == {"none", "prefix", "dual"}
    for cache, batches in record["caches"].items():
        for batch in ("1", "2"):
            check_results(batches[batch]["results"], with_memory=(cache, batch) == ("none", "1"))
            assert batches[batch]["equal_tokens"]["float64"] == 1
            assert set(batches[batch]["breakdown"]) == {"unmask", "baseline"}


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ("train.Ours.step = lambda self, number: 7.0", "train.checked_losses(train.QUICK)"),
        ("decode.Ours.decode = lambda self: ([(0,) * 12], 12)", "decode.checked_identity(decode.QUICK, 1)"),
        ("decode.Ours.decode = lambda self: ([(0,) * 12], 11)", "decode.checked_identity(decode.QUICK, 1)"),
    ],
)
def test_contenders_that_differ_are_refused(change: str, check: str) -> None:
    module = change.partition(".")[0]
    code = (
        f"import {module}\n{change}\ntry:\n    {check}\nexcept AssertionError as error:\n    print('refused:', error)"
    )
    assert printed("-c", code).startswith("refused: ")
