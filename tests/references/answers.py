"""Likelihood of an answer behind its context, by loops over single inputs.

Nats, float64. `Logits` maps one unpadded input to logits [length, allowed ids]. Nothing here shares code with the
library.
"""

import itertools
import math
from collections.abc import Callable, Iterator

from torch import Tensor

Logits = Callable[[list[int]], Tensor]


def log_probabilities(
    logits: Logits,
    context: list[int],
    answer: list[int],
    masked: tuple[bool, ...],
    *,
    mask: int,
    shift: int,
    cfg: float,
) -> Tensor:
    """[answer length, V]: the prediction for each place of the answer, with the given places masked."""
    shown = [mask if hidden else token for token, hidden in zip(answer, masked, strict=True)]
    found = logits(context + shown)
    if cfg:
        without = logits([mask] * len(context) + shown)
        found = without + (cfg + 1) * (found - without)
    start = len(context) - shift
    return found[start : start + len(answer)].double().log_softmax(dim=-1)


def bound(
    logits: Logits, context: list[int], answer: list[int], *, mask: int, shift: int = 0, cfg: float = 0.0
) -> float:
    """The negative ELBO of the answer: counts uniform on 1..n, masks uniform given their count, weight n / count."""
    length = len(answer)
    total: list[float] = []
    for masked in itertools.product([False, True], repeat=length):
        count = sum(masked)
        if count:
            table = log_probabilities(logits, context, answer, masked, mask=mask, shift=shift, cfg=cfg)
            nats = -math.fsum(float(table[i, answer[i]]) for i in range(length) if masked[i])
            total.append(nats * (length / count) / (length * math.comb(length, count)))
    return math.fsum(total)


def left_to_right(
    logits: Logits, context: list[int], answer: list[int], *, mask: int, shift: int = 0, cfg: float = 0.0
) -> float:
    """Each token behind the true ones before it, everything from it on masked."""
    nats: list[float] = []
    for place, token in enumerate(answer):
        masked = tuple(index >= place for index in range(len(answer)))
        table = log_probabilities(logits, context, answer, masked, mask=mask, shift=shift, cfg=cfg)
        nats.append(-float(table[place, token]))
    return math.fsum(nats)


def greedy_answer(
    logits: Logits, context: list[int], length: int, *, mask: int, shift: int = 0, cfg: float = 0.0
) -> list[int]:
    """What LLaDA's `suffix_greedy_prediction` compares with: one most confident place per forward, from masks only."""
    answer, masked = [mask] * length, [True] * length
    for _ in range(length):
        table = log_probabilities(logits, context, answer, (False,) * length, mask=mask, shift=shift, cfg=cfg)
        best = [(-float(table[i].max()), i, int(table[i].argmax())) for i in range(length) if masked[i]]
        _, place, token = min(best)
        answer[place], masked[place] = token, False
    return answer


def rolling_windows(length: int, limit: int, *, prefix: int) -> Iterator[tuple[range, range]]:
    """(context, scored) as places of prefix + text: full windows behind one token, the last one filled up."""
    start = prefix
    while start < prefix + length:
        stop = min(start + limit - min(start, 1), prefix + length)
        yield range(max(0, stop - limit), start), range(start, stop)
        start = stop
