"""One row of logits -> one candidate token and its confidence: what the sampler references share.

Plain Python float64, batch 1. Positions are absolute and unpadded (the first prompt token is 0). Ties go to the
lower token id and to the lower position. Nothing here shares code with the library.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from tests.references.llada import LogitsFn, Noise, Uniform, argmax, best_first, softmax

MaskedLogitsFn = Callable[[list[int], list[bool]], Tensor]

NO_QUOTA = ("threshold", "factor")


class Rules(NamedTuple):
    """How a row of logits becomes a token and a confidence, and which confidences are revealed.

    policy: `low_confidence` (probability of the candidate), `random` (`uniform(step, position)`), `margin`
        (p1 - p2), `entropy` (sum of p log p, in nats): the `quota` highest are revealed. `threshold` and `factor`
        use the probability of the candidate and no quota.
    temperature, top_k, top_p: of the draw. 0, 0 and 1 switch them off; at temperature 0 the candidate is the argmax.
    filters: `top_k_first` (transformers, SDAR) or `top_p_first` (Dream).
    confidence: the distribution that the confidence is read from. `untempered` softmax(z) (LLaDA, Fast-dLLM),
        `unfiltered` softmax(z / T), `filtered` the one that is drawn from (Dream, SDAR). At temperature 0, T is 1.
    excluded: ids at -inf before anything else: the mask, ids beyond the vocabulary, EOS under `logits_eos_inf`.
    late: LLaDA's `confidence_eos_eot_inf`, see `proposals`.
    noise: `noise(step, position, vocabulary)` returns one uniform (inverse CDF) or one for each id (Gumbel-max),
        strictly between 0 and 1; only called at temperature > 0.
    uniform: `uniform(step, position)` in (0, 1); only called for `random` (and by the samplers that say so).
    """

    policy: str = "low_confidence"
    tau: float = 0.9
    factor: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    filters: str = "top_k_first"
    confidence: str = "untempered"
    excluded: tuple[int, ...] = ()
    late: tuple[int, ...] = ()
    noise: Noise | None = None
    uniform: Uniform | None = None


def guided(logits_fn: LogitsFn, given: Sequence[int], mask_id: int, scale: float) -> LogitsFn:
    """Classifier-free guidance: un + (scale + 1) (cond - un); un sees masks at the `given` positions (the prompt).

    Tokens that the sampler revealed stay visible to both. Scale 0 is the conditional network alone. Combined before
    ids are excluded (else -inf - -inf). Source: LLaDA `generate.py`, SMDM.
    """
    if scale == 0:
        return logits_fn
    masked = set(given)

    def combined(ids: list[int]) -> Tensor:
        hidden = [mask_id if position in masked else token for position, token in enumerate(ids)]
        conditional, unconditional = logits_fn(ids).double(), logits_fn(hidden).double()
        return unconditional + (scale + 1.0) * (conditional - unconditional)

    return combined


def left_padded(masked_fn: MaskedLogitsFn, pads: int, pad_id: int) -> LogitsFn:
    """The same row behind `pads` left pads, which nobody sees; positions count the pads (LLaDA `attention_mask`).

    The rows of the pads are cut off, so the sampler, its noise and its trace never know about them.
    """

    def unpadded(ids: list[int]) -> Tensor:
        return masked_fn([pad_id] * pads + list(ids), [False] * pads + [True] * len(ids))[pads:]

    return unpadded


def shifted(logits_fn: LogitsFn) -> LogitsFn:
    """The prediction for position i is row i - 1; position 0 keeps row 0 (Dream)."""

    def moved(ids: list[int]) -> Tensor:
        logits = logits_fn(ids)
        return logits[[max(position - 1, 0) for position in range(len(ids))]]

    return moved


def keep_top_k(row: Sequence[float], k: int) -> list[float]:
    """The k largest logits, and whatever ties with the k-th; the rest at -inf."""
    if k <= 0 or k >= len(row):
        return list(row)
    border = sorted(row, reverse=True)[k - 1]
    return [z if z >= border else -math.inf for z in row]


def keep_top_p(row: Sequence[float], p: float) -> list[float]:
    """Tokens by falling probability while the mass before them is below p (Dream keeps one more at equality)."""
    if p >= 1.0:
        return list(row)
    probabilities = softmax(row)
    kept: list[int] = []
    mass = 0.0
    for token in sorted(range(len(row)), key=lambda token: (-row[token], token)):
        if kept and mass >= p:
            break
        kept.append(token)
        mass += probabilities[token]
    return [row[token] if token in kept else -math.inf for token in range(len(row))]


def processed(row: Sequence[float], rules: Rules) -> list[float]:
    """The logits that a token is drawn from: tempered (unless the temperature is 0), then filtered."""
    tempered = [z / rules.temperature for z in row] if rules.temperature > 0 else list(row)
    if rules.filters == "top_k_first":
        return keep_top_p(keep_top_k(tempered, rules.top_k), rules.top_p)
    if rules.filters == "top_p_first":
        return keep_top_k(keep_top_p(tempered, rules.top_p), rules.top_k)
    raise ValueError(rules.filters)


def drawn(row: Sequence[float], numbers: Sequence[float]) -> int:
    """A token of softmax(row): one number u is the inverse CDF, one for each id is Gumbel-max.

    Inverse CDF: the first id whose cumulated probability exceeds u. Gumbel-max: argmax of z - log(-log u), which
    picks the same token as LLaDA's exp(z) / (-log u)^T with z already divided by T.
    """
    if len(numbers) > 1:
        noisy = [z - math.log(-math.log(u)) for z, u in zip(row, numbers, strict=True)]
        return argmax(noisy)
    probabilities = softmax(row)
    cumulated = 0.0
    for token, probability in enumerate(probabilities):
        cumulated += probability
        if cumulated > numbers[0]:
            return token
    return max(token for token, probability in enumerate(probabilities) if probability > 0)


def candidate(row: Sequence[float], step: int, position: int, rules: Rules) -> int:
    """The token proposed for one position."""
    if rules.temperature == 0:
        return argmax(row)
    if rules.noise is None:
        raise ValueError("temperature > 0 needs noise")
    return drawn(processed(row, rules), rules.noise(step, position, len(row)))


def confidence_law(row: Sequence[float], rules: Rules) -> list[float]:
    """The probabilities that the confidence is read from; ids in `late` are removed before anything else."""
    left = [-math.inf if token in rules.late else z for token, z in enumerate(row)]
    if rules.confidence == "untempered":
        return softmax(left)
    if rules.confidence == "unfiltered":
        return softmax([z / rules.temperature for z in left] if rules.temperature > 0 else left)
    if rules.confidence == "filtered":
        return softmax(processed(left, rules))
    raise ValueError(rules.confidence)


def confidence(row: Sequence[float], token: int, step: int, position: int, rules: Rules) -> float:
    """How sure the sampler is of `token` at this position; larger is revealed first."""
    if rules.policy == "random":
        if rules.uniform is None:
            raise ValueError("policy random needs uniform")
        return rules.uniform(step, position)
    law = confidence_law(row, rules)
    if rules.policy in ("low_confidence", *NO_QUOTA):
        return law[token]
    if token in rules.late:
        return -math.inf
    if rules.policy == "margin":
        first, second = sorted(law, reverse=True)[:2]
        return first - second
    if rules.policy == "entropy":
        return math.fsum(p * math.log(p) for p in law if p > 0)
    raise ValueError(rules.policy)


def proposals(
    rows: dict[int, list[float]], eligible: list[int], step: int, rules: Rules
) -> tuple[dict[int, int], dict[int, float]]:
    """Candidate token and confidence of every eligible position, at one forward.

    `confidence_eos_eot_inf` (`late` = EOS and EoT), at every temperature: candidates are drawn first and may be EOS;
    then EOS and EoT leave the distribution of the confidence, so such a candidate has probability 0 (-inf under
    `margin` and `entropy`) and is revealed after all others, while the other candidates are renormalised without
    them. `random` ignores it. The original does this at temperature 0 only: above, it blanks EOS in the noised
    logits, which nobody reads again, and only EoT in the others (LLaDA issue 137).
    """
    chosen: dict[int, int] = {}
    sure: dict[int, float] = {}
    for position in eligible:
        chosen[position] = candidate(rows[position], step, position, rules)
        sure[position] = confidence(rows[position], chosen[position], step, position, rules)
    return chosen, sure


def revealed_by(sure: dict[int, float], quota: int, rules: Rules) -> list[int]:
    """The positions that are revealed, in order of confidence; never more than there are, equal ones left to right.

    `threshold`: the best one, and all with confidence >= tau. `factor` f: with falling confidences c_(1), c_(2), ...
    the largest n with c_(n) >= 1 - f / (n + 1), at least 1. (Fast-dLLM's code reveals everything when only the very
    last test fails; not copied.) All other policies: the `quota` best.
    """
    ranked = best_first(sure)
    if rules.policy == "threshold":
        return ranked[:1] + [i for i in ranked[1:] if sure[i] >= rules.tau]
    if rules.policy == "factor":
        passing = [n for n in range(1, len(ranked) + 1) if sure[ranked[n - 1]] >= 1.0 - rules.factor / (n + 1)]
        return ranked[: max([1, *passing])]
    return ranked[:quota]
