"""Fast-dLLM v1 (arXiv 2505.22618): canvas decoding with an approximate prefix or dual cache, batch 1, float64.

In bidirectional attention the keys and values of a token change whenever any token is revealed, so both caches are
approximate. They are refreshed by one full forward at the start of each block, which is step 0 of that block: it
reveals tokens like any other step. The network is the hand-written one, whose keys and values can be replaced.
Not copied from the original: quotas that run out of range when steps == number of blocks, and batch 1 in the dual
cache. Nothing here shares code with the library.
"""

from tests.references.candidates import NO_QUOTA, Rules, proposals, revealed_by
from tests.references.canvas import blocks_of
from tests.references.llada import Result, quotas, rows_of
from tests.references.transformer import Context, Network, picked

CACHES = ("none", "prefix", "dual")


def recomputed(cache: str, block: list[int], end: int, logit_shift: bool) -> list[int]:
    """Positions that a later step of the block evaluates; the keys and values of all others are those of step 0.

    none: everything. prefix: from the block to the end of the canvas. dual: the block. With `logit_shift` the span
    starts one position earlier, because that row predicts the block's first token. (The published Dream version
    keeps the span, and reveals only the block's first token at step 0 instead.)
    """
    if cache == "none":
        return list(range(end))
    first = max(block[0] - 1, 0) if logit_shift else block[0]
    if cache == "prefix":
        return list(range(first, end))
    if cache == "dual":
        return list(range(first, block[-1] + 1))
    raise ValueError(cache)


def decode(
    network: Network,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    steps: int,
    mask_id: int,
    rules: Rules,
    *,
    cache: str = "none",
    logit_shift: bool = False,
    origin: bool = False,
) -> Result:
    """[prompt | masks], blocks left to right; same steps, quotas, noise keys and trace as `canvas.decode`.

    With `origin` the canvas ends at the current block, so that the prefix and the dual cache are the same.
    """
    canvas = list(prompt) + [mask_id] * gen_length
    blocks = blocks_of(len(prompt), gen_length, block_length)
    trace: list[list[int]] = []
    for block, budget in zip(blocks, quotas(steps, len(blocks)), strict=True):
        end = block[-1] + 1 if origin else len(canvas)
        span = list(range(end))
        context: Context | None = None
        remaining = list(block)
        plan = quotas(len(block), budget)
        done = 0
        while remaining:
            output = network([canvas[i] for i in span], span, context)
            row_of = dict(zip(span, rows_of(output.logits, rules.excluded), strict=True))
            rows = {i: row_of[max(i - 1, 0) if logit_shift else i] for i in remaining}
            chosen, sure = proposals(rows, remaining, len(trace), rules)
            revealed = revealed_by(sure, 0 if rules.policy in NO_QUOTA else plan[done], rules)
            for position in revealed:
                canvas[position] = chosen[position]
                remaining.remove(position)
            trace.append(revealed)
            if done == 0 and cache != "none":
                span = recomputed(cache, block, end, logit_shift)
                context = picked(output.layers, [i for i in range(end) if i not in span])
            done += 1
    return Result(canvas, trace, len(trace))
