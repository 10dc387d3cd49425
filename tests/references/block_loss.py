"""The loss and the likelihood bound of block diffusion, block by block, without a doubled layout.

One forward for each block sees [the clean blocks before it | the block with its masks] under a block-causal mask, which
is what the formula says: -log p(x) <= sum over blocks b of NELBO(x_b | x_<b) (BD3-LM, arXiv 2503.09573, section 3).
Logits at a place predict that place. One document, blocks counted from its first token, the last one perhaps partial;
values in nats, positive. Nothing here shares code with the library.
"""

import itertools
import math
from collections.abc import Collection, Sequence

import torch

from tests.references.blocks import Network, text_logits
from tests.references.llada import softmax


def cross_entropy(row: Sequence[float], token: int, excluded_ids: Collection[int]) -> float:
    logits = [-math.inf if other in excluded_ids else z for other, z in enumerate(row)]
    return -math.log(softmax(logits)[token])


def block_places(length: int, block_length: int) -> list[range]:
    """The places of each block; those of the last one end with the document."""
    return [range(start, min(start + block_length, length)) for start in range(0, length, block_length)]


def masked_cross_entropy(
    network: Network,
    ids: list[int],
    masked: Collection[int],
    *,
    block_length: int,
    mask_token_id: int,
    excluded_ids: Collection[int] = (),
) -> dict[int, float]:
    """Place -> cross-entropy, for each masked place, each block conditional on the clean blocks before it.

    excluded_ids: have no probability (the mask, in models whose head leaves it out).
    """
    found: dict[int, float] = {}
    for places in block_places(len(ids), block_length):
        if not any(place in masked for place in places):
            continue
        noisy = [mask_token_id if place in masked else ids[place] for place in places]
        rows = text_logits(network, ids[: places.start] + noisy, block_length)
        for place in places:
            if place in masked:
                found[place] = cross_entropy(rows[place], ids[place], excluded_ids)
    return found


def exact_block_elbos(
    network: Network,
    ids: list[int],
    supervised: Collection[int],
    *,
    block_length: int,
    mask_token_id: int,
    excluded_ids: Collection[int] = (),
) -> list[float]:
    """Negative ELBO of each block: the sum over the non-empty sets S of its n supervised places of CE_S / (m C(n, m)).

    m = |S|, and 1 / (m C(n, m)) is the integral over p of p^(m-1) (1-p)^(n-m): the weight 1 / p times the probability
    of S. Places that are not supervised stay clean; a block without supervised ones gives 0.
    """
    totals: list[float] = []
    for places in block_places(len(ids), block_length):
        candidates = [place for place in places if place in supervised]
        n = len(candidates)
        terms: list[float] = []
        for m in range(1, n + 1):
            for chosen in itertools.combinations(candidates, m):
                found = masked_cross_entropy(
                    network,
                    ids,
                    chosen,
                    block_length=block_length,
                    mask_token_id=mask_token_id,
                    excluded_ids=excluded_ids,
                )
                terms.append(math.fsum(found.values()) / (m * math.comb(n, m)))
        totals.append(math.fsum(terms))
    return totals


def exact_block_elbo(
    network: Network,
    ids: list[int],
    supervised: Collection[int],
    block_length: int,
    mask_token_id: int,
    excluded_ids: Collection[int] = (),
) -> float:
    """Negative ELBO of the supervised places of the document; costs 2^(block length) forwards a block."""
    return math.fsum(
        exact_block_elbos(
            network,
            ids,
            supervised,
            block_length=block_length,
            mask_token_id=mask_token_id,
            excluded_ids=excluded_ids,
        )
    )


def chain_rule(
    network: Network,
    ids: list[int],
    supervised: Collection[int],
    mask_token_id: int,
    excluded_ids: Collection[int] = (),
) -> float:
    """-sum log p(x_i | x_<i) of the network read as an autoregressive one: a mask at i, behind the clean text.

    What block length 1 must give. The mask and the positions are the stock model's own causal ones, not ours.
    """
    terms: list[float] = []
    for place in range(len(ids)):
        if place in supervised:
            with torch.no_grad():
                logits = network(input_ids=torch.tensor([[*ids[:place], mask_token_id]]), use_cache=False).logits[0]
            terms.append(cross_entropy(logits[-1].double().tolist(), ids[place], excluded_ids))
    return math.fsum(terms)
