"""What one step of LMDeploy, and of Fast-dLLM's `factor`, reveals: plain Python over the confidences of one row.

Written from the description of their rules (positions are numbered from 0; `masked` holds those that are hidden).
Nothing here shares code with the library.
"""


def lmdeploy_share(block_length: int, steps: int | None) -> int:
    """Positions of a step: block_length // steps, one at least; without steps one."""
    return max(1, min(block_length // (steps or block_length), block_length))


def lmdeploy_static(confidence: list[float], masked: set[int], share: int) -> set[int]:
    """The best `share` positions of the whole block, revealed ones counting 0, as far as they are masked."""
    scores = [score if position in masked else 0.0 for position, score in enumerate(confidence)]
    ranked = sorted(range(len(scores)), key=lambda position: (-scores[position], position))
    return set(ranked[:share]) & masked


def lmdeploy_sequential(block_length: int, masked: set[int], share: int) -> set[int]:
    """`share` positions from the first masked one on, around the end of the block, as far as they are masked."""
    first = min(masked)
    return {(first + offset) % block_length for offset in range(share)} & masked


def lmdeploy_dynamic(confidence: list[float], masked: set[int], threshold: float) -> set[int]:
    """The best position, and all that reach the threshold."""
    best = min(masked, key=lambda position: (-confidence[position], position))
    return {best} | {position for position in masked if confidence[position] >= threshold}


def fast_dllm_factor(confidence: list[float], masked: set[int], factor: float) -> set[int]:
    """The loop of `get_transfer_index_dynamic`: bounds rise with the rank, the first one that fails ends it.

    The index of the failure is the number of positions, except that failing at the first or at the last rank counts
    one more, as does not failing at all.
    """
    ranked = sorted(masked, key=lambda position: (-confidence[position], position))
    bounds = [1 - factor / (rank + 2) for rank in range(len(ranked))]
    bounds[0] = -1.0
    index = 0
    for index, position in enumerate(ranked):
        if confidence[position] < bounds[index]:
            break
    if index in (0, len(ranked) - 1):
        index += 1
    return set(ranked[:index])


def dream_kept(probabilities: list[float], top_k: int, top_p: float) -> set[int]:
    """Dream's filters: top-p over all ids, up to and including the one that crosses it; then the k best of these."""
    ranked = sorted(range(len(probabilities)), key=lambda token: (-probabilities[token], token))
    kept, mass = [], 0.0
    for token in ranked:
        if mass > top_p:
            break
        kept.append(token)
        mass += probabilities[token]
    return set(kept[:top_k])
