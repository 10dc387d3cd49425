"""The three canvas modes of bidirectional masked diffusion, and infilling; batch 1, plain Python float64.

Source: LLaDA `generate.py` (fixed length, and blocks on a canvas that is visible as a whole), Fast-dLLM v1 (threshold
and factor policies), DESIGN section 5 (the canvas that ends at the current block). Steps count forwards from 0 over
all blocks; a guided forward counts once. Nothing here shares code with the library.
"""

from collections.abc import Sequence

from tests.references.candidates import NO_QUOTA, Rules, guided, proposals, revealed_by
from tests.references.llada import LogitsFn, Result, quotas, rows_of

MODES = ("fixed_length", "semi_autoregressive_padding", "semi_autoregressive_origin")


def blocks_of(start: int, gen_length: int, block_length: int) -> list[list[int]]:
    """Positions of each block from `start`; the last one is shorter when block_length does not divide gen_length."""
    end = start + gen_length
    return [list(range(first, min(first + block_length, end))) for first in range(start, end, block_length)]


def denoise(
    logits_fn: LogitsFn,
    canvas: list[int],
    blocks: list[list[int]],
    steps: Sequence[int],
    rules: Rules,
    *,
    origin: bool = False,
    idle_forwards: bool = False,
) -> Result:
    """Fill the positions of each block in turn; `steps[b]` forwards share out the masks of block b.

    A block's quotas are masks // steps, and one more at the first masks % steps of them; policies without a quota
    ignore `steps`. A block ends when it has no masks left; `idle_forwards` keeps on evaluating, as LLaDA does when a
    block has fewer masks than steps. With `origin` the network sees nothing behind the current block. Only positions
    in blocks are ever written, whatever their ids.
    """
    canvas = list(canvas)
    trace: list[list[int]] = []
    for block, budget in zip(blocks, steps, strict=True):
        end = max(block) + 1 if origin else len(canvas)
        remaining = list(block)
        plan = quotas(len(block), budget)
        done = 0
        while remaining or (idle_forwards and done < budget):
            rows = rows_of(logits_fn(canvas[:end]), rules.excluded)
            chosen, sure = proposals(dict(enumerate(rows)), remaining, len(trace), rules)
            quota = 0 if rules.policy in NO_QUOTA else plan[done]
            revealed = revealed_by(sure, quota, rules) if remaining else []
            for position in revealed:
                canvas[position] = chosen[position]
                remaining.remove(position)
            trace.append(revealed)
            done += 1
    return Result(canvas, trace, len(trace))


def decode(
    logits_fn: LogitsFn,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    steps: int | Sequence[int],
    mask_id: int,
    rules: Rules,
    *,
    mode: str = "fixed_length",
    cfg_scale: float = 0.0,
    idle_forwards: bool = False,
) -> Result:
    """[prompt | masks], decoded in one of the `MODES`.

    fixed_length: one block; block_length is ignored. semi_autoregressive_padding: the whole canvas is visible, blocks
    are revealed left to right. semi_autoregressive_origin: the same, but the canvas ends at the current block.
    `steps` is a total, split over the blocks like masks over steps (the first blocks get the remainder), or one number
    for each block.
    """
    if mode not in MODES:
        raise ValueError(mode)
    blocks = blocks_of(len(prompt), gen_length, gen_length if mode == "fixed_length" else block_length)
    plan = quotas(steps, len(blocks)) if isinstance(steps, int) else list(steps)
    if len(plan) != len(blocks) or min(plan) < 1:
        raise ValueError(f"{len(blocks)} blocks need a step each, got {steps}")
    network = guided(logits_fn, range(len(prompt)), mask_id, cfg_scale)
    canvas = list(prompt) + [mask_id] * gen_length
    origin = mode == "semi_autoregressive_origin"
    return denoise(network, canvas, blocks, plan, rules, origin=origin, idle_forwards=idle_forwards)


def infill(
    logits_fn: LogitsFn,
    pieces: list[list[int]],
    lengths: list[int],
    steps: int,
    mask_id: int,
    rules: Rules,
    *,
    cfg_scale: float = 0.0,
) -> Result:
    """Gaps of the given lengths between consecutive pieces, decoded together as one block.

    Guidance masks all the pieces.
    """
    canvas: list[int] = list(pieces[0])
    gaps: list[int] = []
    for length, piece in zip(lengths, pieces[1:], strict=True):
        gaps += range(len(canvas), len(canvas) + length)
        canvas += [mask_id] * length + list(piece)
    given = [position for position in range(len(canvas)) if position not in gaps]
    return denoise(guided(logits_fn, given, mask_id, cfg_scale), canvas, [gaps], [steps], rules)
