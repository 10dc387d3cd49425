"""Monte-Carlo likelihood of an answer given a prompt by mask counts, batch 1, plain Python float64.

m of the n answer tokens are masked and their cross-entropies weigh n / m (LLaDA, Eq. 6). Two ways to draw the counts
of the b rows of one batch: LLaDA's rounded ladder, which is biased where a rung falls on a half, and the unbiased
stratified one. Values are log-likelihood bounds of the whole answer, in nats, negative. Nothing here shares code with
the library.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from tests.references.candidates import guided
from tests.references.llada import LogitsFn, rows_of, softmax

Order = Callable[[int, int], Sequence[int]]


def rounded_counts(k: int, n: int, b: int) -> list[int]:
    """LLaDA `get_log_likelihood`: ((round(k + i n/b) - 1) mod n) + 1 for row i, k uniform in 1..n.

    Halves round to even, as torch.round does; the ladder is exact here (a float32 linspace in the original).
    """
    return [(round(Fraction(k) + Fraction(i * n, b)) - 1) % n + 1 for i in range(b)]


def stratified_counts(u: float, n: int, b: int) -> list[int]:
    """1 + floor(n ((u + i/b) mod 1)) for row i: each row is uniform over 1..n when u is uniform over [0, 1)."""
    return [1 + math.floor(n * ((u + i / b) % 1.0)) for i in range(b)]


def rounded_law(n: int, b: int) -> list[float]:
    """P(m) for m = 1..n (entry m-1) of a random row of the rounded ladder; 1/n each would be unbiased."""
    drawn = [count for k in range(1, n + 1) for count in rounded_counts(k, n, b)]
    return [drawn.count(m) / len(drawn) for m in range(1, n + 1)]


def estimate(
    logits_fn: LogitsFn,
    prompt: list[int],
    answer: list[int],
    masked: Sequence[int],
    mask_id: int,
    excluded: Sequence[int] = (),
    cfg_scale: float = 0.0,
) -> float:
    """(n / m) times the summed log-probability of the masked answer tokens (offsets into the answer); <= 0."""
    hidden = [mask_id if offset in masked else token for offset, token in enumerate(answer)]
    network = guided(logits_fn, range(len(prompt)), mask_id, cfg_scale)
    rows = rows_of(network(list(prompt) + hidden), excluded)
    terms = [math.log(softmax(rows[len(prompt) + offset])[answer[offset]]) for offset in masked]
    return len(answer) / len(masked) * math.fsum(terms)


def log_likelihood(
    logits_fn: LogitsFn,
    prompt: list[int],
    answer: list[int],
    counts: Sequence[Sequence[int]],
    order: Order,
    mask_id: int,
    excluded: Sequence[int] = (),
    cfg_scale: float = 0.0,
) -> float:
    """Mean over batches and rows; `counts[batch][row]` of the answer tokens are masked, those that come first in
    `order(batch, row)`, a permutation of the answer's offsets.

    The original is this with `rounded_counts`, one k for each of its mc_num / batch_size batches.
    """
    values = [
        estimate(logits_fn, prompt, answer, list(order(batch, row))[:count], mask_id, excluded, cfg_scale)
        for batch, rows in enumerate(counts)
        for row, count in enumerate(rows)
    ]
    return math.fsum(values) / len(values)
