"""How good generated texts are: likely under an independent judge, and varied.

Neither number stands alone: a text that repeats itself is likely under any judge, and random words are varied. In:
prompts and their continuations. Out: plain numbers.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

COUNTED_WORDS = 50


class _Score(Protocol):
    @property
    def log_likelihood(self) -> float: ...

    @property
    def tokens(self) -> int: ...


class Judge(Protocol):
    """A model that says how likely texts are, in nats; `unmask.lm.DiffusionLM` is one."""

    def score(self, texts: list[str]) -> Sequence[_Score]: ...


def judged(judge: Judge, prompts: Sequence[str], continuations: Sequence[str]) -> dict[str, float]:
    """What the continuations behind their prompts cost under the judge.

    judge_nats_per_byte, and judge_stderr, its standard error over the texts (that of a ratio of sums);
    judge_perplexity: exp(nats per token of the judge).
    """
    wholes = judge.score([one + other for one, other in zip(prompts, continuations, strict=True)])
    givens = judge.score(list(prompts))
    nats = [given.log_likelihood - whole.log_likelihood for whole, given in zip(wholes, givens, strict=True)]
    tokens = sum(whole.tokens - given.tokens for whole, given in zip(wholes, givens, strict=True))
    ratio, stderr = nats_per_byte(nats, [len(text.encode()) for text in continuations])
    return {
        "judge_nats_per_byte": ratio,
        "judge_stderr": stderr,
        "judge_perplexity": math.exp(min(sum(nats) / max(1, tokens), 700.0)),
    }


def nats_per_byte(nats: Sequence[float], sizes: Sequence[int]) -> tuple[float, float]:
    """What all texts together cost for each of their bytes, and the standard error of that ratio of sums over texts.

    Args:
        nats: of each text.
        sizes: bytes of each text; where all are empty, both figures are 0.
    """
    total = max(1, sum(sizes))
    ratio = sum(nats) / total
    squares = sum((own - ratio * size) ** 2 for own, size in zip(nats, sizes, strict=True))
    return ratio, math.sqrt(squares * len(nats) / max(1, len(nats) - 1)) / total


def entropy(counts: Counter[Any]) -> float:
    """Bits of a draw from what was counted; 0 where nothing was."""
    total = counts.total()
    return -sum(count / total * math.log2(count / total) for count in counts.values())


def variety(texts: Sequence[str]) -> dict[str, float]:
    """How varied the words of some texts are; of each text the first words count, so that lengths matter little.

    unigram_entropy: bits per word of the words of all texts together. distinct_bigrams: the share of pairs that are
    different, of all texts together. repeated_4grams: the share of a text's runs of four words that stood in it before.
    """
    words = [re.findall(r"[a-z']+", text.lower())[:COUNTED_WORDS] for text in texts]
    counts: Counter[Any] = Counter(itertools.chain(*words))
    pairs = [pair for own in words for pair in itertools.pairwise(own)]
    runs = [list(zip(*(own[at:] for at in range(4)), strict=False)) for own in words]
    num_runs = max(1, sum(map(len, runs)))
    return {
        "unigram_entropy": entropy(counts),
        "distinct_bigrams": len(set(pairs)) / max(1, len(pairs)),
        "repeated_4grams": 1 - sum(len(set(own)) for own in runs) / num_runs if any(runs) else 0.0,
    }
