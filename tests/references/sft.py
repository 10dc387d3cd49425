"""The loss of supervised fine-tuning as LLaDA's guidelines put it, row by row, in plain Python float64.

Rows are never put into one tensor: what a token sees is its own row, whatever stands beside it in the batch. Nothing
here shares code with the library.
"""

import math
from collections.abc import Callable, Sequence

Predict = Callable[[list[int]], list[list[float]]]
"""Log-probabilities of every id at every place of a row."""


def filled(rows: Sequence[tuple[list[int], list[int]]], eos: int, most: float) -> list[tuple[list[int], list[int]]]:
    """Prompts and answers, the answers with EOS up to the longest row, but at most `most` of them."""
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    return [(prompt, answer + [eos] * int(min(most, longest - len(prompt) - len(answer)))) for prompt, answer in rows]


def bernoulli(
    prompt: list[int], answer: list[int], chances: Sequence[float], time: float, epsilon: float, mask: int
) -> tuple[list[int], float]:
    """The row with each token masked with probability (1 - eps) t + eps, its prompt restored, and the weight 1/p."""
    probability = (1 - epsilon) * time + epsilon
    noisy = [mask if chance < probability else token for token, chance in zip(prompt + answer, chances, strict=False)]
    noisy[: len(prompt)] = prompt
    return noisy, 1 / probability


def counted(
    prompt: list[int], answer: list[int], chances: Sequence[float], time: float, epsilon: float, mask: int
) -> tuple[list[int], float]:
    """The row with m = ceil(n t) of its n answer tokens masked, those of the smallest chances, and the weight n/m."""
    count = max(1, math.ceil(len(answer) * time))
    places = range(len(prompt), len(prompt) + len(answer))
    chosen = sorted(places, key=lambda place: chances[place])[:count]
    noisy = [mask if place in chosen else token for place, token in enumerate(prompt + answer)]
    return noisy, len(answer) / count


def diffusion_loss(
    rows: Sequence[tuple[list[int], list[int]]],
    noisy: Sequence[tuple[list[int], float]],
    predict: Predict,
    mask: int,
    normalize: str,
) -> float:
    """1/B sum_b [ sum over its masked tokens of weight * CE / answer length ], or one division by all answer tokens."""
    totals = []
    for (prompt, answer), (ids, weight) in zip(rows, noisy, strict=True):
        # Which tokens are masked is read off the input, after the prompt is restored.
        masked = [place for place, token in enumerate(ids) if token == mask]
        found = predict(ids)
        totals.append(math.fsum(-weight * found[place][(prompt + answer)[place]] for place in masked))
    return normalized(totals, [len(answer) for _, answer in rows], normalize)


def autoregressive_loss(rows: Sequence[tuple[list[int], list[int]]], predict: Predict, normalize: str) -> float:
    """The same without masks: each answer token from the tokens before it; `predict` sees only those."""
    totals = []
    for prompt, answer in rows:
        ids = prompt + answer
        totals.append(math.fsum(-predict(ids[:place])[place - 1][ids[place]] for place in range(len(prompt), len(ids))))
    return normalized(totals, [len(answer) for _, answer in rows], normalize)


def normalized(totals: Sequence[float], lengths: Sequence[int], normalize: str) -> float:
    if normalize == "tokens":
        return math.fsum(totals) / sum(lengths)
    return math.fsum(total / length for total, length in zip(totals, lengths, strict=True)) / len(totals)
