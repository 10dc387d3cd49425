"""TiDAR's losses (arXiv 2511.08923, section 3.2) without its layouts: a causal forward, and one for each block.

In: a stock causal language model, preferably float64, and one document. A block of masks is computed by itself behind
the clean tokens that it sees, under a mask written out cell by cell: a clean token sees those up to itself, a token of
the block everything. Out: nats by place. Nothing here shares code with the library.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch

from tests.references.block_loss import cross_entropy

Network = Any


def next_token(network: Network, ids: Sequence[int], excluded_ids: Collection[int] = ()) -> dict[int, float]:
    """Place -> cross-entropy of its token, read from the token before it in the model's own causal forward."""
    with torch.no_grad():
        rows = network(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].double().tolist()
    return {place: cross_entropy(rows[place - 1], ids[place], excluded_ids) for place in range(1, len(ids))}


def block_logits(network: Network, prefix: Sequence[int], block: Sequence[int], start: int) -> list[list[float]]:
    """Logits of the places of a block that stands at `start`, behind the clean tokens 0, 1, ... of the prefix."""
    clean, size = len(prefix), len(prefix) + len(block)
    sees = [[True if query >= clean else key <= query for key in range(size)] for query in range(size)]
    with torch.no_grad():
        logits = network(
            input_ids=torch.tensor([[*prefix, *block]]),
            attention_mask=torch.tensor([[sees]]),
            position_ids=torch.tensor([[*range(clean), *range(start, start + len(block))]]),
            use_cache=False,
        ).logits[0]
    rows: list[list[float]] = logits[clean:].double().tolist()
    return rows


def drafts(
    network: Network,
    ids: Sequence[int],
    masked: Collection[int],
    *,
    block_length: int,
    mask_token_id: int,
    head: int | None = None,
    room: int = 0,
    excluded_ids: Collection[int] = (),
) -> dict[int, float]:
    """Place -> cross-entropy of each masked place, read in its own place.

    head: None: blocks are counted from the first token, and each sees the clean tokens before it (`doubled`); else they
        are counted from place `head` on, and each sees the first `head` tokens (`split`).
    room: places behind the document that its last block may take, as masks that are not read.
    """
    found: dict[int, float] = {}
    for start in range(head or 0, len(ids), block_length):
        stop = min(start + block_length, len(ids) + room)
        block = [mask_token_id if place >= len(ids) or place in masked else ids[place] for place in range(start, stop)]
        rows = block_logits(network, ids[: start if head is None else head], block, start)
        for place in range(start, min(stop, len(ids))):
            if place in masked:
                found[place] = cross_entropy(rows[place - start], ids[place], excluded_ids)
    return found
