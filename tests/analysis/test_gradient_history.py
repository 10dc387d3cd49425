"""Gradients over a run: the matrices by plain loops, damaged and missing records, pictures and the command."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unmask.analysis import gradient_history as gh
from unmask.analysis.gradient_history import HEALTH, LEVELS, RATIOS, History, Matrix, history, matrices, read_metrics
from unmask.analysis.metrics import BUCKETS
from unmask.cli import analyze_gradients
from unmask.cli.main import main
from unmask.errors import ReportError

FILES = {
    "corruption_level_vs_time",
    "gradient_ratios_over_time",
    "gradient_health_matrix",
    "gradient_summary_dashboard",
}


def records(number: int = 30, seed: int = 0) -> list[dict[str, Any]]:
    """Falling norms, one bucket in five empty, other records between them."""
    draw = random.Random(seed)
    found: list[dict[str, Any]] = []
    for step in range(100, 100 * number + 1, 100):
        norms = {level: (2 - at / 2) * math.exp(-step / 2000 + draw.gauss(0, 0.2)) for at, level in enumerate(LEVELS)}
        norms = {level: None if draw.random() < 0.2 else norm for level, norm in norms.items()}
        found.append({"step": step, "train/loss": 1.0})
        found.append(
            {"step": step, "probe/gradient/norm": 3.0 / step}
            | {f"probe/gradient/{level}_norm": norm for level, norm in norms.items()}
        )
    return found


def write_run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def norms_of(rows: list[dict[str, Any]], level: str) -> list[float | None]:
    return [row[f"probe/gradient/{level}_norm"] for row in rows if "probe/gradient/norm" in row]


def listed(values: Any) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def same(found: Any, wanted: list[float | None]) -> None:
    assert [one is None for one in listed(found)] == [one is None for one in wanted]
    assert [one for one in listed(found) if one is not None] == pytest.approx(
        [one for one in wanted if one is not None]
    )


def test_the_levels_are_those_that_are_measured() -> None:
    assert tuple(LEVELS) == BUCKETS


# --- matrices ---------------------------------------------------------------------------------------------------------


def test_norms_and_ratios_over_time() -> None:
    rows = records()
    norms, ratios, _, _ = matrices(history(rows, "run"))
    assert norms.columns == ratios.columns == tuple(str(step) for step in range(100, 3001, 100))
    own = {level: norms_of(rows, level) for level in LEVELS}
    for level, values in zip(norms.rows, norms.value_RC, strict=True):
        same(values, own[level])
    for name, values in zip(ratios.rows, ratios.value_RC, strict=True):
        over, under = name.split("_to_")
        wanted = [None if a is None or b is None else a / b for a, b in zip(own[over], own[under], strict=True)]
        assert None in wanted
        same(values, wanted)


def test_the_health_of_every_level_and_ratio_has_a_row_of_its_own() -> None:
    """In the original, each level overwrote the one before it."""
    rows = records()
    health = matrices(history(rows, "run"))[2]
    assert health.rows == ("low", "medium", "high", "high_to_low", "medium_to_low", "high_to_medium")
    own: dict[str, list[float]] = {}
    for name in health.rows:
        over, _, under = name.partition("_to_")
        pairs = zip(norms_of(rows, over), norms_of(rows, under or over), strict=True)
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        own[name] = [a / b if under else a for a, b in known]
    assert len({tuple(values) for values in own.values()}) == 6
    for name, row in zip(health.rows, health.value_RC, strict=True):
        values, found = own[name], dict(zip(HEALTH, row.tolist(), strict=True))
        mean, std = statistics.mean(values), statistics.stdev(values)
        assert found["mean"] == pytest.approx(mean)
        assert found["std"] == pytest.approx(std)
        assert found["variation"] == pytest.approx(std / mean)
        assert found["range"] == pytest.approx(max(values) - min(values))
        assert found["stability"] == pytest.approx(1 / (1 + std))
        assert found["measurements"] == len(values) < 30
        if name in LEVELS:
            assert math.isnan(found["balance"])
        else:
            assert found["balance"] == pytest.approx(1 / (1 + abs(mean - 1)))


def test_the_dashboard_looks_back_on_ten_measurements() -> None:
    rows = records()
    summary = matrices(history(rows, "run"))[3]
    series = dict(zip(summary.rows, summary.value_RC, strict=True))
    assert set(series) == {*LEVELS, "whole", "high_to_low", "stability_low", "stability_medium", "stability_high"}
    same(series["whole"], [3.0 / step for step in range(100, 3001, 100)])
    for level in LEVELS:
        norms = norms_of(rows, level)
        wanted: list[float | None] = []
        for at in range(len(norms)):
            window = [norm for norm in norms[max(0, at - 9) : at + 1] if norm is not None]
            wanted.append(1 / (1 + statistics.stdev(window)) if len(window) > 1 else None)
        assert wanted[0] is None and wanted[-1] is not None
        same(series[f"stability_{level}"], wanted)


@pytest.mark.parametrize("number", [1, 2, 49, 50, 51, 120, 333])
def test_at_most_fifty_points_in_time_and_health_of_all(number: int) -> None:
    rows = records(number)
    whole = matrices(history(rows, "run"), most=number)
    norms, _, health, summary = matrices(history(rows, "run"))
    steps = [int(step) for step in norms.columns]
    assert len(steps) == min(number, 50) and steps == sorted(set(steps))
    assert steps[0] == 100 and steps[-1] == 100 * number
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    assert not gaps or max(gaps) - min(gaps) <= 100
    assert health.value_RC == pytest.approx(whole[2].value_RC, nan_ok=True)
    at = [whole[3].columns.index(step) for step in summary.columns]
    assert summary.value_RC == pytest.approx(whole[3].value_RC[:, at], nan_ok=True)


def test_one_measurement_has_no_spread_and_a_zero_no_ratio() -> None:
    zero = {"step": 5, "probe/gradient/low_norm": 0.0, "probe/gradient/high_norm": 2.0}
    found = history([zero], "run")
    norms, ratios, health, _ = matrices(found)
    same(norms.value_RC[:, 0], [0.0, None, 2.0])
    same(ratios.value_RC[:, 0], [None, None, None])
    low = dict(zip(HEALTH, health.value_RC[0].tolist(), strict=True))
    assert (low["mean"], low["range"], low["measurements"]) == (0, 0, 1)
    assert all(math.isnan(low[name]) for name in ("std", "variation", "stability"))
    assert health.value_RC[1, :-1].tolist() == pytest.approx([math.nan] * 6, nan_ok=True)


def test_of_a_step_that_was_measured_twice_the_last_counts() -> None:
    rows = [{"step": step, "probe/gradient/low_norm": value} for step, value in ((20, 1.0), (30, 2.0), (20, 5.0))]
    found = history(rows, "run")
    assert found.step_S.tolist() == [20, 30]
    assert found.norm_LS[0].tolist() == [5, 2]


def test_tdlms_columns_are_read_and_named_for_what_they_are() -> None:
    """Nine, twelve and no sequences of a gradient of norm 2: TDLM's `norms` are shares of that."""
    row = {"train/step": 7, "_step": 900, "research/gradient_norm_total": 2.0}
    row |= {
        f"research/gradient_norm_{level}_corruption": 2 * n / 21 for level, n in zip(LEVELS, (9, 12, 0), strict=True)
    }
    found = history([row], "fh5nsj6z")
    assert not found.is_measured and "ratio of counts" in gh.COUNTED_NOTE
    assert found.step_S.tolist() == [7] and found.whole_S.tolist() == [2]
    same(found.norm_LS[:, 0], [18 / 21, 24 / 21, None])
    same(matrices(found)[1].value_RC[:, 0], [None, 12 / 9, None])
    # Where both are there, the measured ones count.
    assert history([row, {"step": 1, "probe/gradient/low_norm": 4.0}], "both").is_measured


# --- records that are missing or damaged ------------------------------------------------------------------------------


def test_damaged_lines_are_named_and_skipped(tmp_path: Path) -> None:
    good = json.dumps({"step": 10, "probe/gradient/low_norm": 1.5}).encode()
    lines = [
        good,
        b'{"step": 11, "probe/gradient/low_n',
        b"",
        b"[1, 2]",
        b'{"probe/gradient/low_norm": 1.0}',
        b'{"step": true, "probe/gradient/low_norm": 1.0}',
        b'{"step": 12, "probe/gradient/low_norm": "high"}',
        b'{"step": 13, "probe/gradient/low_norm": \xff}',
        b'{"step": 14, "probe/gradient/low_norm": NaN}',
        good.replace(b"10", b"20"),
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    found = read_metrics(tmp_path / "metrics.jsonl")
    assert [line.rpartition("metrics.jsonl:")[2].split(":")[0] for line in found.damage] == [
        "2",
        "4",
        "5",
        "6",
        "7",
        "8",
    ]
    assert "its `step` must be a whole number of at least 0 and is None" in found.damage[2]
    assert "`probe/gradient/low_norm` must be a number or null and is 'high'" in found.damage[4]
    assert [row["step"] for row in found.rows] == [10, 14, 20]
    same(history(found.rows, "run").norm_LS[0], [1.5, None, 1.5])


def test_a_run_without_gradients_is_told_which_setting_writes_them() -> None:
    with pytest.raises(ReportError, match="training\\.detailed_metrics_steps=500"):
        history([{"step": 1, "train/loss": 2.0}], "run")
    with pytest.raises(ReportError, match="no bucket ever held a sequence"):
        history([{"step": 1, "probe/gradient/low_norm": None}], "run")


# --- the command ------------------------------------------------------------------------------------------------------


def table(file: Path) -> tuple[list[str], dict[str, list[str]]]:
    with file.open(newline="") as lines:
        first, *rest = csv.reader(lines)
    return first, {row[0]: row[1:] for row in rest}


def test_the_command_writes_every_matrix_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = records(60)
    run = write_run(tmp_path / "run", rows)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6100, "probe/gr')
    assert main(["analyze", "gradients", str(run)]) == 0
    captured = capsys.readouterr()
    assert "run: 60 measurements, steps 100 to 6000" in captured.out
    assert "metrics.jsonl:121: not JSON (Unterminated string" in captured.err
    assert "skipped 1 damaged record in all" in captured.err
    folder = run / "plots" / "gradients"
    assert {one.name for one in folder.iterdir()} == {f"{name}.{kind}" for name in FILES for kind in ("csv", "png")}
    assert all((folder / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in FILES)
    for matrix in matrices(history(rows, "run")):
        first, found = table(folder / f"{matrix.name}.csv")
        assert first == [matrix.corner, *matrix.columns] and list(found) == list(matrix.rows)
        for name, values in zip(matrix.rows, matrix.value_RC, strict=True):
            assert [float(cell) if cell else None for cell in found[name]] == pytest.approx(listed(values))


def test_a_metrics_file_and_another_folder_for_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without matplotlib the numbers are written all the same."""
    run = write_run(tmp_path / "run", records(3))
    monkeypatch.setattr(analyze_gradients.importlib.util, "find_spec", lambda name: None)
    words = [str(run / "metrics.jsonl"), "--output-dir", str(tmp_path / "out")]
    assert main(["analyze", "gradients", *words]) == 0
    assert {one.name for one in (tmp_path / "out").iterdir()} == {f"{name}.csv" for name in FILES}
    assert 'pip install "unmask[plots]"' in capsys.readouterr().err
    assert not (run / "plots").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "neither nothing/metrics.jsonl nor a folder with a .wandb file"),
        (["plain"], "training.detailed_metrics_steps"),
        (["run-20250811_123519-fh5nsj6z"], "--project NAME"),
        (["plain", "--projekt", "x"], "Did you mean `--project`"),
    ],
)
def test_wrong_commands(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    write_run(tmp_path / "plain", [{"step": 1, "train/loss": 1.0}])
    assert main(["analyze", "gradients", *words]) == 2
    assert message in capsys.readouterr().err


# --- pictures ---------------------------------------------------------------------------------------------------------


def drawn(number: int = 70) -> tuple[History, tuple[Matrix, Matrix, Matrix, Matrix]]:
    found = history(records(number), "run")
    return found, matrices(found)


def test_the_colours_of_ratios_are_symmetrical_about_one() -> None:
    pytest.importorskip("matplotlib")
    from unmask.analysis.gradient_pictures import _ratio_colours

    for values in ([0.3, 0.9], [7.0, 0.5], [1.0, 1.01], [math.nan, math.nan]):
        norm = _ratio_colours(np.array([values]))["norm"]
        assert float(norm(1)) == pytest.approx(0.5)
        assert float(norm(0.7)) + float(norm(1 / 0.7)) == pytest.approx(1)
        assert all(0 <= float(norm(value)) <= 1 for value in values if not math.isnan(value))


def test_a_norm_of_zero_is_no_gap() -> None:
    pytest.importorskip("matplotlib")
    from unmask.analysis.gradient_pictures import _norm_colours, _ratio_colours

    for values in ([0.0, 1.0, 100.0], [0.0, 1.0, 2.0]):
        for colours in (_norm_colours(np.array([values])), _ratio_colours(np.array([values]))):
            shown = colours["norm"](np.ma.masked_invalid([*values, math.nan]))
            assert shown.mask.tolist() == [False] * 3 + [True]
            assert shown[0] == 0 or colours["cmap"] != "viridis"


def test_tdlms_columns_are_named_in_every_picture() -> None:
    pytest.importorskip("matplotlib")
    from unmask.analysis.gradient_pictures import _titled

    found, _ = drawn(3)
    assert _titled("Norms", found) == "Norms: run"
    counted = _titled("Norms", dataclasses.replace(found, is_measured=False))
    assert counted.splitlines()[1] == "TDLM's columns: norm of the whole gradient x share of the sequences"


def test_a_heatmap_shows_its_matrix_and_hides_gaps() -> None:
    pytest.importorskip("matplotlib")
    from unmask.analysis.gradient_pictures import _over_time

    found, (norms, *_) = drawn()
    figure = _over_time(norms, [*LEVELS.values()], "title", len(found.step_S), is_ratio=False)
    axes = figure.axes[0]
    shown = axes.images[0].get_array()
    assert np.array_equal(shown.mask, np.isnan(norms.value_RC)) and shown.mask.any()
    assert np.array_equal(shown.compressed(), norms.value_RC[~shown.mask])
    for place, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True):
        assert label.get_text() == f"{int(norms.columns[int(place)]):,}"
    assert axes.get_xlabel() == "training step (50 of 70 measurements, a column each)"
    assert "no sequence" in figure.legends[0].get_texts()[0].get_text()


def test_the_health_picture_prints_every_number_where_it_belongs() -> None:
    pytest.importorskip("matplotlib")
    from unmask.analysis.gradient_pictures import _health

    found, (_, _, health, _) = drawn()
    panels = [axes for axes in _health(health, found).axes if axes.texts]
    assert len(panels) == 4
    for panel, (rows, names) in zip(
        panels,
        [
            ((*LEVELS,), ("mean", "std", "range")),
            ((*LEVELS,), ("variation", "stability")),
            ((*RATIOS,), ("mean", "std", "range")),
            ((*RATIOS,), ("variation", "stability", "balance")),
        ],
        strict=True,
    ):
        assert [label.get_text() for label in panel.get_xticklabels()] == list(names)
        for text in panel.texts:
            column, row = (round(value) for value in text.get_position())
            wanted = health.value_RC[health.rows.index(rows[row]), HEALTH.index(names[column])]
            assert text.get_text() == f"{wanted:.3g}"
        assert len(panel.texts) == len(rows) * len(names)


def test_the_dashboard_draws_what_its_matrix_holds() -> None:
    pytest.importorskip("matplotlib")
    from unmask.analysis.gradient_pictures import _dashboard

    found, (_, _, health, summary) = drawn()
    means, norms, ratio, stability = _dashboard(summary, health, found).axes
    assert [bar.get_height() for bar in means.patches] == pytest.approx(health.value_RC[:3, 0].tolist())
    steps = [int(step) for step in summary.columns]
    series = dict(zip(summary.rows, summary.value_RC, strict=True))
    for axes, names in (
        (norms, ("low", "medium", "high", "whole")),
        (stability, ("stability_low", "stability_medium", "stability_high")),
    ):
        for line, name in zip(axes.lines, names, strict=True):
            assert list(line.get_xdata()) == steps
            assert np.array_equal(line.get_ydata(), series[name], equal_nan=True)
    level, high_to_low = ratio.lines
    assert set(level.get_ydata()) == {1} and np.array_equal(
        high_to_low.get_ydata(), series["high_to_low"], equal_nan=True
    )
    assert found.is_measured and all("TDLM" not in axes.get_title() for axes in (means, norms, ratio, stability))
