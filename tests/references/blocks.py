"""Block diffusion decoding (SDAR), one row, with neither cache nor batch: each step recomputes the whole text.

In: a stock causal language model of transformers, preferably float64, and a prompt. Out: the tokens, when each was
revealed and how likely it was, and how many forwards the published loop and the fused one take for the same text.

Blocks are counted from position 0 of the text, so the tail of the prompt shares the first block that is decoded. A
place sees every block up to and including its own; logits at a place predict that place. Source: SDAR `generate.py`,
JetEngine, LMDeploy, SGLang `dllm`, LLaDA2.1, with their faults mended: a quota never exceeds the masks that are left,
the prompt is never written, the mask is never a token, and no block ends with masks. Plain Python float64; but for the
uniform draws, nothing here shares code with the library.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from tests.references import candidates
from tests.references.candidates import keep_top_k, keep_top_p
from tests.references.llada import argmax, best_first, quotas, softmax
from tests.references.masks import block_decode
from unmask.noise import Purpose, uniform

Network = Callable[..., Any]

CONFIDENCES = ("unfiltered", "untempered", "filtered", "min")
UNMASKINGS = (
    "low_confidence_static",
    "low_confidence_dynamic",
    "sequential",
    "entropy_bound",
    "random",
    "margin",
    "entropy",
    "threshold",
    "factor",
)


@dataclass(frozen=True)
class Generated:
    """One text. The lists have one entry for each token.

    token_ids: without the prompt, up to and including the first stop token, `max_new_tokens` at most.
    finish_reason: `stop` or `length`.
    revealed_at: the step of the row, from 1, that wrote the token.
    log_probability, entropy: nats, of softmax(z / T) at that step (T = 1 at temperature 0), after the excluded ids and
        the penalty, before top-k and top-p.
    forwards_fused: one for each step; the prefill and the commits ride along.
    forwards_unfused: steps, commits, and a prefill if the prompt fills a block.
    commits_unfused: forwards over a finished block, one for each block that another follows; the prefill is not one.
    """

    token_ids: list[int]
    finish_reason: str
    revealed_at: list[int]
    log_probability: list[float]
    entropy: list[float]
    forwards_fused: int
    forwards_unfused: int
    commits_unfused: int


class Law(NamedTuple):
    """How a row of logits becomes a token and a confidence; the fields are those of `generate`."""

    temperature: float
    top_k: int
    top_p: float
    confidence: str
    seed: int
    sample: int


class Policy(NamedTuple):
    """Which masked places a step reveals; the fields are those of `generate`."""

    unmasking: str
    confidence_threshold: float | None
    dynamic_fallback: str
    entropy_bound: float | None
    entropy_rule: str
    factor: float | None


class Reading(NamedTuple):
    """What one step thinks of one place: the token it would write there, and how sure it is of it."""

    token: int
    confidence: float
    margin: float
    uncertainty: float  # entropy of the distribution that the confidence is read from
    draw: float  # for `random`
    log_probability: float
    entropy: float


class Written(NamedTuple):
    token: int
    step: int  # from 1
    log_probability: float
    entropy: float


def text_logits(network: Network, ids: list[int], block_length: int) -> list[list[float]]:
    """Logits of every place of the text under the dense block-causal mask."""
    places = list(range(len(ids)))
    with torch.no_grad():
        logits = network(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.tensor([[block_decode(places, places, block_length)]]),
            position_ids=torch.tensor([places]),
            use_cache=False,
        ).logits[0]
    rows: list[list[float]] = logits.double().tolist()
    return rows


def processed(row: Sequence[float], seen: set[int], excluded: Sequence[int], penalty: float) -> list[float]:
    """Excluded ids at -inf, then transformers' repetition penalty of the ids in `seen`: z / p if z > 0, else z p."""
    logits = [-math.inf if token in excluded else z for token, z in enumerate(row)]
    return [(z / penalty if z > 0 else z * penalty) if token in seen else z for token, z in enumerate(logits)]


def tempered(row: Sequence[float], law: Law) -> list[float]:
    return [z / law.temperature for z in row] if law.temperature > 0 else list(row)


def filtered(row: Sequence[float], law: Law) -> list[float]:
    """After temperature, top-k and top-p, in this order."""
    return keep_top_p(keep_top_k(tempered(row, law), law.top_k), law.top_p)


def confidence_law(row: Sequence[float], law: Law) -> list[float]:
    """The distribution that margins and entropies are read from; that of `min` is the unfiltered one."""
    if law.confidence == "untempered":
        return softmax(row)
    if law.confidence == "filtered":
        return softmax(filtered(row, law))
    return softmax(tempered(row, law))


def confidence_of(row: Sequence[float], token: int, law: Law) -> float:
    """How sure the row is of the token.

    `min` (SGLang `dllm/sampling.py`) is the smaller of two numbers: the confidence of greedy decoding, which is
    max softmax(z) whatever the temperature is, and exp((z_token - z_max) / T).
    """
    if law.confidence == "min":
        hot = tempered(row, law)
        return min(max(softmax(row)), math.exp(hot[token] - max(hot)))
    return confidence_law(row, law)[token]


def drawn(row: Sequence[float], u: float, law: Law) -> int:
    """The inverse CDF of the filtered distribution, tokens from the most likely on, equal ones by id."""
    kept = filtered(row, law)
    probabilities = softmax(kept)
    order = sorted(range(len(kept)), key=lambda token: (-kept[token], token))
    total = sum(probabilities[token] for token in order)
    cumulated = 0.0
    for token in order:
        cumulated += probabilities[token]
        if cumulated > u * total:
            return token
    raise ValueError(f"u must be below 1, got {u}")


def entropy_of(probabilities: Sequence[float]) -> float:
    return -math.fsum(p * math.log(p) for p in probabilities if p > 0)


def reading(row: Sequence[float], place: int, step: int, law: Law, *, greedy: bool = False) -> Reading:
    """The token drawn for a place (its argmax if `greedy` or at temperature 0) and all that is known of it."""
    token = argmax(row)
    if law.temperature > 0 and not greedy:
        token = drawn(row, float(uniform(Purpose.TOKEN, law.seed, law.sample, place, step)), law)
    certain = confidence_law(row, law)
    first, second = sorted(certain, reverse=True)[:2]
    probabilities = softmax(tempered(row, law))
    return Reading(
        token,
        confidence_of(row, token, law),
        first - second,
        entropy_of(certain),
        float(uniform(Purpose.REVEAL, law.seed, law.sample, place, step)),
        math.log(probabilities[token]),
        entropy_of(probabilities),
    )


def within_bound(uncertainty: dict[int, float], bound: float, rule: str) -> list[int]:
    """Places by rising entropy H_1, H_2, ..., as many as the bound allows; at least one.

    `paper` (Ben-Hamu et al., arXiv 2505.24857): those before which the entropies add up to the bound at most.
    `jetengine`: those up to and including which they add up to less than the bound.
    """
    order = sorted(uncertainty, key=lambda place: (uncertainty[place], place))
    before, count = 0.0, 0
    for place in order:
        after = before + uncertainty[place]
        if rule == "paper":
            count += before <= bound
        elif rule == "jetengine":
            count += after < bound
        else:
            raise ValueError(rule)
        before = after
    return order[: max(1, count)]


def revealed_by(readings: dict[int, Reading], quota: int, policy: Policy) -> list[int]:
    """The masked places (the keys, left to right) that a step reveals; equal ones go left to right."""
    masked = sorted(readings)
    quota = min(quota, len(masked))
    sure = {place: readings[place].confidence for place in masked}
    if policy.unmasking == "low_confidence_static":
        return best_first(sure)[:quota]
    if policy.unmasking == "sequential":
        return masked[:quota]
    if policy.unmasking == "random":
        return best_first({place: readings[place].draw for place in masked})[:quota]
    if policy.unmasking == "margin":
        return best_first({place: readings[place].margin for place in masked})[:quota]
    if policy.unmasking == "entropy":
        return best_first({place: -readings[place].uncertainty for place in masked})[:quota]
    if policy.unmasking == "low_confidence_dynamic":
        assert policy.confidence_threshold is not None
        high = [place for place in masked if sure[place] > policy.confidence_threshold]
        if len(high) >= quota:
            return high
        return {"topk": best_first(sure), "leftmost": masked}[policy.dynamic_fallback][:quota]
    if policy.unmasking == "entropy_bound":
        assert policy.entropy_bound is not None
        uncertainty = {place: readings[place].uncertainty for place in masked}
        return within_bound(uncertainty, policy.entropy_bound, policy.entropy_rule)
    if policy.unmasking == "threshold":
        assert policy.confidence_threshold is not None
        rules = candidates.Rules(policy="threshold", tau=policy.confidence_threshold)
        return candidates.revealed_by(sure, 0, rules)
    if policy.unmasking == "factor":
        assert policy.factor is not None
        return candidates.revealed_by(sure, 0, candidates.Rules(policy="factor", factor=policy.factor))
    raise ValueError(policy.unmasking)


def ending(written: dict[int, Written], start: int, end: int, stop_token_ids: Sequence[int]) -> tuple[int, str] | None:
    """(tokens, reason) once every place from `start` to the first stop token, or to `end`, is written; else None."""
    for place in range(start, end):
        if place not in written:
            return None
        if written[place].token in stop_token_ids:
            return place + 1 - start, "stop"
    return end - start, "length"


def generate(
    network: Network,
    prompt: list[int],
    *,
    max_new_tokens: int,
    block_length: int,
    unmasking: str,
    mask_token_id: int,
    denoising_steps: int | None = None,
    excluded_ids: Sequence[int] = (),
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    confidence: str = "unfiltered",
    confidence_threshold: float | None = None,
    dynamic_fallback: str = "topk",
    entropy_bound: float | None = None,
    entropy_rule: str = "paper",
    factor: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    sample: int = 0,
    stop_token_ids: Sequence[int] = (),
    edit_threshold: float | None = None,
    edit_steps: int = 16,
) -> Generated:
    """Decode one row block by block.

    denoising_steps: S, over which a block of B places is revealed, B // S a step and one more in the first B % S;
        default B. The step S reveals whatever is left (`entropy_bound`, `threshold` and `factor` know no quota).
    confidence: see `confidence_law` and `confidence_of`. At temperature 0 the token is the argmax and T is 1.
    repetition_penalty: for the ids that stand in the row before the step, prompt included.
    edit_threshold: if set, each step also replaces generated tokens of the block that were written before it by the
        argmax where that differs and has a confidence above this. The block then ends after the first step that began
        without masks and edited nothing, or after `edit_steps` steps that began without masks; the row ends only with
        a block, because any of its tokens, a stop token too, may still change.
    A block is decoded whole, also where it reaches beyond `max_new_tokens`; those tokens are cut.
    """
    if max_new_tokens < 1 or confidence not in CONFIDENCES or unmasking not in UNMASKINGS:
        raise ValueError(f"max_new_tokens {max_new_tokens}, confidence {confidence}, unmasking {unmasking}")
    law = Law(temperature, top_k, top_p, confidence, seed, sample)
    policy = Policy(unmasking, confidence_threshold, dynamic_fallback, entropy_bound, entropy_rule, factor)
    excluded = [mask_token_id, *excluded_ids]
    plan = quotas(block_length, denoising_steps or block_length)
    first, end = len(prompt), len(prompt) + max_new_tokens
    written: dict[int, Written] = {}
    block = first // block_length
    step = 0
    while True:
        after = (block + 1) * block_length
        own = list(range(max(first, block * block_length), after))
        done, extra = 0, 0
        settled = edit_threshold is None
        while any(place not in written for place in own) or not (settled or extra == edit_steps):
            masked = [place for place in own if place not in written]
            text = prompt + [written[i].token if i in written else mask_token_id for i in range(first, after)]
            seen = {*prompt, *(each.token for each in written.values())}
            rows = text_logits(network, text, block_length)
            rows = [processed(row, seen, excluded, repetition_penalty) for row in rows]

            news = {place: reading(rows[place], place, step, law) for place in masked}
            chosen = masked if done >= len(plan) - 1 else revealed_by(news, plan[done], policy)
            changes = {place: news[place] for place in chosen}
            edits: dict[int, Reading] = {}
            if edit_threshold is not None:
                for place in own:
                    if place in written:
                        best = reading(rows[place], place, step, law, greedy=True)
                        if best.token != written[place].token and best.confidence > edit_threshold:
                            edits[place] = best

            step += 1
            done += 1
            for place, each in (changes | edits).items():
                written[place] = Written(each.token, step, each.log_probability, each.entropy)
            if not masked:
                extra += 1
                settled = settled or not edits
            if edit_threshold is None and ending(written, first, end, stop_token_ids) is not None:
                break
        found = ending(written, first, end, stop_token_ids)
        if found is not None:
            break
        block += 1
    count, reason = found
    kept = [written[place] for place in range(first, first + count)]
    commits = block - first // block_length
    return Generated(
        token_ids=[each.token for each in kept],
        finish_reason=reason,
        revealed_at=[each.step for each in kept],
        log_probability=[each.log_probability for each in kept],
        entropy=[each.entropy for each in kept],
        forwards_fused=step,
        forwards_unfused=step + commits + (1 if first >= block_length else 0),
        commits_unfused=commits,
    )
