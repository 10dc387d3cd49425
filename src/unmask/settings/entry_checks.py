"""What a `diffusion` entry may say: one line for each field of it, whatever the file holds in its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

LARGEST_ID = 2**31


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < LARGEST_ID


def _number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high


_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "vocabulary_size": (lambda value: _whole(value, 1), "a whole number of at least 1"),
    "mask_token_id": (lambda value: value is None or _whole(value, 0), "a token id or null"),
    "block_length": (lambda value: value is None or _whole(value, 1), "a whole number of at least 1, or null"),
    "clean_ratio": (lambda value: value is None or _number(value, 0, 1), "a number between 0 and 1, or null"),
    "logit_shift": (lambda value: isinstance(value, bool), "true or false"),
    "schedule_power": (lambda value: _number(value, 0, math.inf), "a positive number"),
    "decoding": (lambda value: isinstance(value, dict), "an object of sampling parameters"),
    "published": (lambda value: isinstance(value, dict), "an object"),
    "version": (lambda value: _whole(value, 1) and value == 1, "1; a newer one needs a newer Unmask"),
}


def problem(entry: Mapping[str, Any]) -> str | None:
    """What is wrong with an entry of known keys, as the end of a sentence about it; None where nothing is."""
    for name, (is_allowed, words) in _ALLOWED.items():
        if name in entry and not is_allowed(entry[name]):
            shown = repr(entry[name])
            return f"has `{name}: {shown if len(shown) <= 60 else shown[:57] + '...'}`, which must be {words}."
    method, mask = entry["method"], entry.get("mask_token_id")
    if mask is None and method in ("masked_diffusion", "block_diffusion"):
        return f"has no mask_token_id, which {method} needs."
    if mask is not None and mask >= entry["vocabulary_size"]:
        return f"has `mask_token_id: {mask}`, beyond its vocabulary_size {entry['vocabulary_size']}."
    if entry.get("block_length") is None and method == "block_diffusion":
        return f"has no block_length, which {method} needs."
    return None
