"""Loss curves: the CSV holds what was logged, damaged files are named, the figure shows every run."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from unmask.errors import ReportError
from unmask.reports.curves import METHOD_COLOURS, _smoothed, loss_curves, read_metrics


def write_run(path: Path, *, evaluates: bool = True) -> Path:
    lines: list[str] = []
    for step in range(0, 60, 2):
        record = {"step": step, "tokens": 1024 * step, "train/loss": 3.0 + 4.0 / (1 + step)}
        if evaluates and step % 20 == 0:
            record |= {"eval/bits_per_byte": 1.0 + 1.5 / (1 + step), "eval/stderr": 0.01}
        lines.append(json.dumps(record) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def read_csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_csv_holds_every_logged_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        '{"step": 2, "tokens": 64, "train/loss": 2.5, "note": "x"}',
        "",
        '{"step": 0, "train/loss": 0.1}',
    ]
    path.write_text("\n".join(lines))
    report = loss_curves({"tidar": path}, tmp_path / "new" / "folder")
    assert read_csv(report.csv) == [
        ["run", "step", "metric", "value"],
        ["tidar", "0", "train/loss", "0.1"],
        ["tidar", "2", "tokens", "64"],
        ["tidar", "2", "train/loss", "2.5"],
    ]


def test_the_png_shows_the_colour_of_each_method(tmp_path: Path) -> None:
    from matplotlib.image import imread

    series = {method: write_run(tmp_path / f"{method}.jsonl") for method in METHOD_COLOURS}
    pixels = imread(loss_curves(series, tmp_path).png)
    found = {tuple(pixel) for row in (255 * pixels[..., :3]).round().astype(int).tolist() for pixel in row}
    wanted = {method: tuple(bytes.fromhex(colour[1:])) for method, colour in METHOD_COLOURS.items()}
    assert {method for method, colour in wanted.items() if colour in found} == set(METHOD_COLOURS)


@pytest.mark.parametrize("loss", ["NaN", "Infinity", "3.0"])
def test_odd_runs_are_drawn_without_warnings(tmp_path: Path, loss: str) -> None:
    single = tmp_path / "single.jsonl"
    single.write_text(f'{{"step": 1, "train/loss": {loss}}}\n')
    series = {f"tidar-{seed}": single for seed in range(5)}
    series |= {"mine": write_run(tmp_path / "mine.jsonl", evaluates=False)}
    assert loss_curves(series, tmp_path).png.stat().st_size > 10_000


def test_smoothing_does_not_lag() -> None:
    falling = [5.0 - 0.125 * index for index in range(200)]
    smooth = _smoothed(falling)
    assert smooth[5:-5] == pytest.approx(falling[5:-5])  # half a window of 5 % of 200 points
    assert max(abs(a - b) for a, b in zip(smooth, falling, strict=True)) <= 0.125 * 2.5


def test_a_resumed_run_overwrites_its_abandoned_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps = [(0, 5.0), (10, 4.0), (20, 3.0), (10, 4.5), (20, 3.5)]
    path.write_text("\n".join(json.dumps({"step": step, "train/loss": loss}) for step, loss in steps))
    losses = {step: metrics["train/loss"] for step, metrics in read_metrics(path).items()}
    assert losses == {0: 5.0, 10: 4.5, 20: 3.5}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 4, "train/lo', r"metrics\.jsonl:2: not JSON .* Delete the line"),
        ("[1, 2]", r"metrics\.jsonl:2: not a JSON object"),
        ('{"train/loss": 1.0}', r"metrics\.jsonl:2: its `step` must be .* is None"),
        ('{"step": true}', r"metrics\.jsonl:2: its `step`.* is True"),
        ('{"step": 4, "train/loss": "low"}', r"metrics\.jsonl:2: `train/loss` must be a number, got 'low'"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "train/loss": 5.0}\n' + line + "\n")
    with pytest.raises(ReportError, match=message):
        loss_curves({"tidar": path}, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_missing_empty_and_binary_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="at least one run"):
        loss_curves({}, tmp_path)
    with pytest.raises(ReportError, match=r"absent\.jsonl` cannot be read: No such file"):
        read_metrics(tmp_path / "absent.jsonl")
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(ReportError, match=r"metrics\.jsonl` holds no metrics"):
        read_metrics(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ReportError, match=r"metrics\.jsonl:1: not UTF-8"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_importing_does_not_load_matplotlib() -> None:
    code = "import sys, unmask.reports.curves; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)


def test_without_matplotlib_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_run(tmp_path / "metrics.jsonl")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ReportError, match="pip install matplotlib"):
        loss_curves({"tidar": path}, tmp_path)
