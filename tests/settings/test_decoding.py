"""Canvas options: what follows from what, and combinations that mean nothing."""

import pytest

from unmask.errors import SettingsError
from unmask.settings.decoding import SamplingParams


def resolved(**options: object) -> SamplingParams:
    return SamplingParams(**options).resolved({}, "canvas")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "mode", "block_length"),
    [
        ({}, "fixed_length", None),
        ({"block_length": 128}, "fixed_length", None),
        ({"block_length": 16}, "semi_autoregressive_padding", 16),
        ({"canvas_mode": "semi_autoregressive_padding"}, "semi_autoregressive_padding", 32),
        ({"canvas_mode": "semi_autoregressive_origin", "max_new_tokens": 20}, "semi_autoregressive_origin", 20),
        ({"canvas_mode": "fixed_length", "block_length": 128}, "fixed_length", None),
        ({"infill_length": 5}, "fixed_length", None),
        ({"infill_length": 50, "block_length": 4}, "semi_autoregressive_padding", 4),
    ],
)
def test_the_mode_follows_from_the_block_length(
    options: dict[str, object], mode: str, block_length: int | None
) -> None:
    params = resolved(**options)
    assert (params.canvas_mode, params.block_length) == (mode, block_length)


def test_reopening_brings_its_policy_and_the_authors_strengths() -> None:
    params = resolved(remask="cap")
    assert (params.unmasking, params.remask_eta, params.remask_loop) == ("ancestral", 0.008, None)
    assert resolved(remask="rescale").remask_eta == 0.015
    assert resolved(remask="conf").remask_eta == 1.0
    looped = resolved(remask="loop", remask_eta=0.1)
    assert (looped.remask_eta, looped.remask_loop) == (0.1, (0.55, 0.05, 0.9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unmasking": "factor"}, "needs factor"),
        ({"factor": 1.0}, "factor is used by unmasking `factor` only"),
        ({"unmasking": "threshold", "confidence_threshold": 0.5, "denoising_steps": 3}, "denoising_steps is not used"),
        ({"unmasking": "random", "reveal_temperature": 0.5}, "reveal_temperature goes with"),
        ({"remask": "cap", "unmasking": "margin"}, "remask goes with unmasking `ancestral`"),
        ({"remask_eta": 0.5}, "remask_eta needs remask"),
        ({"remask": "cap", "remask_loop": (0.5, 0.1, 0.9)}, "`loop` only"),
        ({"remask": "loop", "remask_loop": (0.1, 0.5, 0.9)}, "remask_loop must be two times"),
        ({"remask": "loop", "reveal_schedule": "cosine"}, "has a schedule of its own"),
        ({"canvas_mode": "fixed_length", "block_length": 8}, "fixed_length has one block"),
        ({"block_length": 8, "denoising_steps": 9}, r"at most the places of a block \(8\)"),
        ({"canvas_mode": "semi_autoregressive_origin", "cache": "dual"}, "needs the whole canvas in view"),
        ({"cfg_scale": -0.5}, "cfg_scale must be at least 0"),
        ({"infill_length": 0}, "infill_length must be at least 1"),
    ],
)
def test_combinations_without_a_meaning_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolved(**options)
