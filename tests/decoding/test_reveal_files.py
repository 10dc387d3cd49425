"""Reveal schedules in files: decoded with exactly their counts, and refused where they do not fit."""

import json
from pathlib import Path

import pytest

from tests import tiny
from tests.decoding.test_canvas import run
from unmask.decoding.unmasking import reveal_counts
from unmask.errors import SettingsError
from unmask.settings.decoding import SamplingParams
from unmask.settings.reveal_files import RevealFile, read

COUNTS = {3: (1, 5, 2), 8: (1,) * 8, 2: (7, 1)}


@pytest.fixture
def file(tmp_path: Path) -> str:
    target = tmp_path / "folder" / "counts.json"
    RevealFile(8, COUNTS, "test").write(target, model="mine")
    return str(target)


def canvas(**options: object) -> SamplingParams:
    return SamplingParams(decoding="canvas", **options).resolved({}, "canvas")  # type: ignore[arg-type]


def test_what_is_written_is_read(file: str) -> None:
    assert read(file).counts == COUNTS
    assert json.loads(Path(file).read_text())["model"] == "mine"
    assert reveal_counts(file, 8, 3) == [1, 5, 2]


@pytest.mark.parametrize("policy", ["low_confidence_static", "margin", "entropy", "random", "sequential"])
@pytest.mark.parametrize("steps", [2, 3, 8])
def test_each_step_reveals_the_counts_of_the_file(file: str, policy: str, steps: int) -> None:
    params = canvas(max_new_tokens=8, denoising_steps=steps, unmasking=policy, reveal_schedule=file)
    (found,) = run(tiny.backbone("masked_diffusion"), [[1, 2]], params)
    assert [found.revealed_at.count(step) for step in range(1, steps + 1)] == list(COUNTS[steps])
    assert found.forwards == steps


def test_each_block_follows_the_file(file: str) -> None:
    params = canvas(max_new_tokens=16, block_length=8, denoising_steps=3, reveal_schedule=file)
    (found,) = run(tiny.backbone("masked_diffusion"), [[1, 2]], params)
    assert [found.revealed_at.count(step) for step in range(1, 7)] == [1, 5, 2, 1, 5, 2]


def test_the_only_number_of_steps_is_the_default(tmp_path: Path, file: str) -> None:
    single = tmp_path / "single.json"
    single.write_text('{"places": 8, "counts": {"3": [1, 5, 2]}}')
    assert canvas(max_new_tokens=8, reveal_schedule=str(single)).denoising_steps == 3
    assert canvas(max_new_tokens=8, reveal_schedule=file).denoising_steps == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"denoising_steps": 4}, "no counts for 4 steps. Set denoising_steps to one of: 2, 3, 8"),
        ({"max_new_tokens": 9}, "for blocks of 8 places, got one of 9"),
        ({"max_new_tokens": 12, "block_length": 8, "denoising_steps": 3}, "whole blocks, got max_new_tokens 12"),
        ({"unmasking": "threshold", "confidence_threshold": 0.5}, "got unmasking `threshold`"),
        ({"unmasking": "ancestral"}, "got unmasking `ancestral`"),
        ({"remask": "cap"}, "got unmasking `ancestral`"),
        ({"infill_length": 8}, "blocks of one length"),
    ],
)
def test_what_a_file_does_not_fit_is_refused(file: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        canvas(**{"max_new_tokens": 8, "reveal_schedule": file, **options})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "cannot be read"),
        ("[1, 2]", "must have the form"),
        ('{"places": 8}', "must have the form"),
        ('{"places": true, "counts": {"2": [7, 1]}}', "must have the form"),
        ('{"places": 8, "counts": {"two": [7, 1]}}', "must have the form"),
        ('{"places": 8, "counts": {"2": [7.5, 0.5]}}', "must have the form"),
        ('{"places": 8, "counts": {}}', "has no counts"),
        ('{"places": 0, "counts": {"2": [7, 1]}}', "places must be at least 1"),
        ('{"places": 8, "counts": {"3": [7, 1]}}', r"must be 3 numbers .* got \[7, 1\], 2 numbers with the sum 8"),
        ('{"places": 8, "counts": {"2": [8, 0]}}', "of at least 1"),
        ('{"places": 8, "counts": {"2": [3, 4]}}', "with the sum 7"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    target = tmp_path / "counts.json"
    target.write_text(text)
    with pytest.raises(SettingsError, match=message):
        canvas(max_new_tokens=8, reveal_schedule=str(target))


def test_names_are_checked_before_a_model_is_loaded() -> None:
    with pytest.raises(SettingsError, match=r"got `cosin`\. Did you mean `cosine`"):
        SamplingParams(reveal_schedule="cosin")
    with pytest.raises(SettingsError, match=r"There is no reveal schedule none\.json\. Measure one"):
        canvas(reveal_schedule="none.json")
