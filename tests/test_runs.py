"""The records of a run: whatever bytes a disk or a kill leaves, each line is a record or is named."""

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.errors import ReportError
from unmask.runs import RunFolder, append_record, metrics_lines
from unmask.settings.recipe import Recipe
from unmask.training.model_card import model_card

_VALUES = st.floats(allow_infinity=False) | st.integers(-10, 2**40) | st.text(max_size=3)
_RECORDS = st.dictionaries(st.sampled_from(["train/loss", "eval/stderr", "name"]), _VALUES)


def _same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Equal, with NaN equal to itself; JSON writes it the same way."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


@given(st.lists(_RECORDS, min_size=1, max_size=4), st.data())
def test_a_file_cut_anywhere_gives_its_whole_lines_and_names_the_rest(
    records: list[dict[str, Any]], data: st.DataObject
) -> None:
    records = [{"step": step} | record for step, record in enumerate(records)]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "metrics.jsonl"
        for record in records:
            append_record(file, record)
        assert all(_same(line.values, one) for line, one in zip(metrics_lines(file), records, strict=True))
        content = file.read_bytes()
        end = data.draw(st.integers(0, len(content)))
        file.write_bytes(content[:end])
        found = list(metrics_lines(file))
    whole = content[:end].count(b"\n") + (content[end : end + 1] == b"\n" and end > 0)
    assert [line.damage for line in found[:whole]] == [None] * whole
    assert all(_same(line.values, one) for line, one in zip(found, records[:whole], strict=False))
    for line in found[whole:]:
        assert line.is_cut_off and line.damage and not line.values
        assert line.where.endswith(f"metrics.jsonl:{whole + 1}")


@given(st.lists(st.binary(max_size=12)))
def test_any_bytes_are_read(lines: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "metrics.jsonl"
        file.write_bytes(b"\n".join([*lines, b'{"step": 7}', b""]))
        *_, last = found = list(metrics_lines(file))
    assert last.values == {"step": 7} and not any(line.is_cut_off for line in found)
    assert all(bool(line.values) != (line.damage is not None) for line in found)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"metrics\.jsonl` cannot be read: No such file"):
        list(metrics_lines(tmp_path / "metrics.jsonl"))


def test_a_damaged_record_does_not_cost_the_model_its_card(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.root.mkdir()
    score = {"eval/bits_per_byte": 2.5, "eval/stderr": 0.25, "eval/nats_per_token": 3.0}
    append_record(run.metrics, {"step": 1} | score)
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "eval/bits\n')
    append_record(run.metrics, {"step": 3} | score | {"eval/bits_per_byte": math.nan})
    card = model_card(Recipe(name="run", output_dir=str(tmp_path)), run)
    assert "| 1 | 2.5000 | 0.2500 | 3.0000 |" in card
    assert f"Damaged records were passed over: {run.metrics}:2." in card
