"""Reveal schedules in files: decoded with exactly their counts, and refused where they do not fit."""

import json
from pathlib import Path

import pytest

from tests import tiny
from tests.decoding.test_canvas import run
from unmask.decoding.blocks import BlockRun
from unmask.decoding.step import Row, StopRule
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


def blocks(**options: object) -> SamplingParams:
    return SamplingParams(decoding="blocks", **options).resolved({}, "blocks")  # type: ignore[arg-type]


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


@pytest.mark.parametrize("policy", ["low_confidence_static", "random"])
@pytest.mark.parametrize(("prompt", "counts"), [(8, [1, 5, 2, 1, 5, 2]), (5, [1, 2, 1, 5, 2])])
def test_each_block_of_a_block_model_follows_the_file(file: str, policy: str, prompt: int, counts: list[int]) -> None:
    """A prompt that ends within a block leaves it fewer places: the file's counts, as far as there are places."""
    model = tiny.backbone("block_diffusion", block_length=8)
    new = 8 + 8 - prompt % 8
    params = blocks(max_new_tokens=new, block_length=8, denoising_steps=3, unmasking=policy, reveal_schedule=file)
    run = BlockRun(model, [Row(tuple(range(prompt)), 0, 0)], params, StopRule())
    while not run.done:
        run.advance()
    (found,) = run.results()
    assert [found.revealed_at.count(step) for step in range(1, found.forwards + 1)] == counts


def test_a_block_model_takes_named_schedules_and_files_with_paced_policies_only(file: str) -> None:
    assert blocks(block_length=8, reveal_schedule="cosine").reveal_schedule == "cosine"
    assert blocks(block_length=8).reveal_schedule == "linear"
    with pytest.raises(SettingsError, match="got unmasking `low_confidence_dynamic`"):
        blocks(block_length=8, reveal_schedule=file)
    policies: list[dict[str, object]] = [
        {"unmasking": "threshold", "confidence_threshold": 0.5},
        {"unmasking": "factor", "factor": 1.0},
    ]
    for policy in policies:
        assert blocks(block_length=8, **policy).unmasking == policy["unmasking"]
        with pytest.raises(SettingsError, match="reveal_schedule is not used by unmasking"):
            blocks(block_length=8, reveal_schedule="cosine", **policy)
    with pytest.raises(SettingsError, match="for blocks of 8 places, got one of 4"):
        blocks(block_length=4, unmasking="random", reveal_schedule=file)


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
