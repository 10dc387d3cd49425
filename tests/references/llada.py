"""LLaDA's published fixed-length sampler and Fast-dLLM's confidence threshold, batch 1, plain Python float64.

The whole canvas is always visible; `block_length` only restricts which masks may be revealed. Ties go to the
lower token id and to the lower position. Nothing here shares code with the library.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

LogitsFn = Callable[[list[int]], Tensor]
Noise = Callable[[int, int, int], Sequence[float]]
Uniform = Callable[[int, int], float]


class Result(NamedTuple):
    """What a sampler did.

    `canvas` is prompt + generated ids; `trace[step]` holds the absolute positions revealed at that forward,
    in order of confidence; `forwards` counts network evaluations.
    """

    canvas: list[int]
    trace: list[list[int]]
    forwards: int


def quotas(masked: int, steps: int) -> list[int]:
    """Tokens that LLaDA reveals at each of `steps` steps: m // S, and one more at the first m % S steps."""
    return [masked // steps + (1 if step < masked % steps else 0) for step in range(steps)]


def rows_of(logits: Tensor, excluded: Sequence[int]) -> list[list[float]]:
    """Logits as float64 lists, the excluded ids at -inf before anything else looks at them."""
    rows: list[list[float]] = logits.double().tolist()
    for row in rows:
        for token in excluded:
            row[token] = -math.inf
    return rows


def softmax(row: Sequence[float]) -> list[float]:
    """Probabilities of one row of logits, at temperature 1."""
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    total = math.fsum(powers)
    return [power / total for power in powers]


def argmax(values: Sequence[float]) -> int:
    """Index of the largest value, the first one among equals."""
    best = 0
    for index in range(len(values)):
        if values[index] > values[best]:
            best = index
    return best


def candidate(row: list[float], temperature: float, uniforms: Sequence[float] | None) -> int:
    """x0: argmax of the logits, or LLaDA's Gumbel-max in its own form: argmax of exp(logits) / (-log u)^T."""
    if temperature == 0:
        return argmax(row)
    if uniforms is None:
        raise ValueError("temperature > 0 needs noise")
    scores = [math.exp(z) / (-math.log(u)) ** temperature for z, u in zip(row, uniforms, strict=True)]
    return argmax(scores)


def candidates(
    rows: list[list[float]], positions: list[int], step: int, temperature: float, noise: Noise | None
) -> dict[int, int]:
    """The candidate token of every listed position."""
    chosen: dict[int, int] = {}
    for position in positions:
        row = rows[position]
        chosen[position] = candidate(row, temperature, noise(step, position, len(row)) if noise else None)
    return chosen


def best_first(confidence: dict[int, float]) -> list[int]:
    """Positions by falling confidence; equal confidence by rising position."""
    return sorted(confidence, key=lambda position: (-confidence[position], position))


def fixed_length(
    logits_fn: LogitsFn,
    prompt: list[int],
    gen_length: int,
    steps: int,
    block_length: int,
    mask_id: int,
    temperature: float = 0.0,
    remasking: str = "low_confidence",
    excluded: Sequence[int] = (),
    noise: Noise | None = None,
    uniform: Uniform | None = None,
) -> Result:
    """LLaDA's `generate`: [prompt | masks], blocks left to right, `steps` forwards in all, no early stop.

    `step` in `noise(step, position, vocabulary_size)` and `uniform(step, position)` counts forwards from 0
    over all blocks; `position` is absolute (the first prompt token is 0). `noise` returns uniforms strictly
    between 0 and 1. The confidence is the untempered softmax at x0. More steps than tokens leave forwards
    without a reveal.
    """
    if gen_length % block_length != 0 or steps % (gen_length // block_length) != 0:
        raise ValueError("block_length must divide gen_length, the number of blocks must divide steps")
    if remasking not in ("low_confidence", "random"):
        raise ValueError(remasking)
    steps_per_block = steps // (gen_length // block_length)
    canvas = list(prompt) + [mask_id] * gen_length
    masked = [False] * len(prompt) + [True] * gen_length
    trace: list[list[int]] = []
    for block_start in range(len(prompt), len(canvas), block_length):
        block = range(block_start, block_start + block_length)
        for quota in quotas(sum(masked[i] for i in block), steps_per_block):
            step = len(trace)
            rows = rows_of(logits_fn(list(canvas)), excluded)
            eligible = [i for i in block if masked[i]]
            chosen = candidates(rows, eligible, step, temperature, noise)
            confidence: dict[int, float] = {}
            for i in eligible:
                if remasking == "low_confidence":
                    confidence[i] = softmax(rows[i])[chosen[i]]
                elif uniform is None:
                    raise ValueError("random remasking needs uniform")
                else:
                    confidence[i] = uniform(step, i)
            revealed = best_first(confidence)[:quota]
            for i in revealed:
                canvas[i] = chosen[i]
                masked[i] = False
            trace.append(revealed)
    return Result(canvas, trace, len(trace))


def threshold(
    logits_fn: LogitsFn,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    mask_id: int,
    tau: float,
    temperature: float = 0.0,
    excluded: Sequence[int] = (),
    noise: Noise | None = None,
) -> Result:
    """Fast-dLLM without a cache: a forward reveals every masked position of the block with confidence >= tau.

    The most confident one is always revealed; a block ends when it has no masks left.
    """
    if gen_length % block_length != 0:
        raise ValueError("block_length must divide gen_length")
    canvas = list(prompt) + [mask_id] * gen_length
    masked = [False] * len(prompt) + [True] * gen_length
    trace: list[list[int]] = []
    for block_start in range(len(prompt), len(canvas), block_length):
        block = range(block_start, block_start + block_length)
        while any(masked[i] for i in block):
            rows = rows_of(logits_fn(list(canvas)), excluded)
            eligible = [i for i in block if masked[i]]
            chosen = candidates(rows, eligible, len(trace), temperature, noise)
            confidence = {i: softmax(rows[i])[chosen[i]] for i in eligible}
            ranked = best_first(confidence)
            revealed = [ranked[0]] + [i for i in ranked[1:] if confidence[i] >= tau]
            for i in revealed:
                canvas[i] = chosen[i]
                masked[i] = False
            trace.append(revealed)
    return Result(canvas, trace, len(trace))


def reveal_step_of(trace: list[list[int]]) -> dict[int, int]:
    """For every revealed position, the forward (from 0) at which it was revealed."""
    return {position: step for step, revealed in enumerate(trace) for position in revealed}


def masked_ratio(schedule: str, progress: float) -> float:
    """Share of tokens still masked after `progress` = k/K of the steps (MaskGIT, mask scheduling)."""
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return math.cos(math.pi / 2.0 * progress)
    if schedule == "cosine_squared":
        return math.cos(math.pi / 2.0 * progress) ** 2
    raise ValueError(schedule)


def reveal_counts(schedule: str, length: int, steps: int) -> list[int]:
    """Tokens revealed at each step when the number still masked follows a schedule (MaskGIT).

    Rounding rule. K = min(steps, length) steps are used. After step k < K the number still masked is
    floor(length * ratio(k/K) + 1e-9) (the hair lets exact integers survive floating point), then at most one
    less than before (this step reveals a token) and at least K - k (so do all later ones). It ends at 0.
    """
    used = min(steps, length)
    counts: list[int] = []
    masked_before = length
    for k in range(1, used + 1):
        if k == used:
            masked_after = 0
        else:
            masked_after = math.floor(length * masked_ratio(schedule, k / used) + 1e-9)
            masked_after = min(masked_after, masked_before - 1)
            masked_after = max(masked_after, used - k)
        counts.append(masked_before - masked_after)
        masked_before = masked_after
    return counts
