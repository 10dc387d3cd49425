"""Models compared on the same documents: numbers in, a plain record out.

In: the negative log-likelihood (or its bound) of every document under every model, and the documents' bytes. Out: bits
per byte of each model, and for each pair their difference with a bootstrap interval over the documents (Efron and
Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13: percentiles). Documents are drawn with replacement,
the same ones for all models, and bits and bytes are summed before they are divided.

The draws of the masks are independent between documents, so the spread over the documents holds the masks' noise
already: it is reported beside the interval, not added to it a second time. With several pairs the intervals hold
together (Bonferroni): each one misses with the share 1 - confidence divided by their number.

A bound lies above the true value, so what a difference shows depends on who is bounded:
    both exact               the lower one is better;
    the lower one bounded    its true value is lower still: better all the more;
    the upper one bounded    nothing: its true value may lie anywhere below the bound;
    both bounded             the lower bound is lower, and nothing follows for the true values.
Shapes: M models, N documents, R resamplings.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unmask import noise
from unmask.errors import DataError, NonFiniteError
from unmask.evaluation.figures import finite
from unmask.noise import Purpose

RESAMPLINGS = 10_000
# With fewer documents the percentiles of a bootstrap are too narrow to call a winner by.
FEWEST_DOCUMENTS = 10
# Resamplings times documents that are drawn at once.
_CHUNK = 2**22


@dataclass(frozen=True, eq=False)
class Scored:
    """A model's figures for each document, in the same order for every model.

    Attributes:
        name: of the model, unique among those compared.
        method: the model's.
        is_bound: whether the figures are upper bounds.
        nats_N: negative log-likelihood, float64.
        stderr_N: standard error from the draws of the masks, float64; 0 where exact.
    """

    name: str
    method: str
    is_bound: bool
    nats_N: Tensor
    stderr_N: Tensor


def compared(
    models: Sequence[Scored], bytes_N: Tensor, *, seed: int, confidence: float = 0.95, resamplings: int = RESAMPLINGS
) -> dict[str, Any]:
    """The record of a comparison; only numbers, texts, lists and None (where there is no interval).

    Args:
        models: two or more.
        bytes_N: UTF-8 bytes of each document, int64.
        seed: of the resampling.
        confidence: with which all intervals of the pairs hold together, and each model's own by itself.
        resamplings: of the documents.

    Raises:
        DataError: fewer than two models, one name twice, or other numbers of documents.
        NonFiniteError: a figure is NaN or infinite.
    """
    _check(models, bytes_N)
    pairs = list(itertools.combinations(range(len(models)), 2))
    nats_MN = torch.stack([model.nats_N.double() for model in models])
    bits_M = nats_MN.sum(dim=1) / bytes_N.sum() / math.log(2)
    drawn_RM = resampled(nats_MN, bytes_N, seed=seed, resamplings=resamplings) if len(bytes_N) > 1 else None
    own, joint = 1 - confidence, (1 - confidence) / len(pairs)
    masks_M = [_bits(float(model.stderr_N.double().square().sum().sqrt()), bytes_N) for model in models]
    figures = [
        {
            "name": model.name,
            "method": model.method,
            "kind": "upper bound (ELBO)" if model.is_bound else "exact",
            "bits_per_byte": float(bits_M[at]),
            **interval(None if drawn_RM is None else drawn_RM[:, at], own),
            "masks_stderr": masks_M[at],
        }
        for at, model in enumerate(models)
    ]
    found = []
    for one, other in pairs:
        limits = interval(None if drawn_RM is None else drawn_RM[:, one] - drawn_RM[:, other], joint)
        found.append(
            {
                "a": models[one].name,
                "b": models[other].name,
                "difference": float(bits_M[one] - bits_M[other]),
                **limits,
                # As if the masks of the two were independent; they share their draws where the tokens are the same.
                "masks_stderr": math.hypot(masks_M[one], masks_M[other]),
                **verdict(models[one], models[other], limits["low"], limits["high"], documents=len(bytes_N)),
            }
        )
    return {
        "documents": len(bytes_N),
        "bytes": int(bytes_N.sum()),
        "confidence": confidence,
        "resamplings": resamplings,
        "seed": seed,
        "models": figures,
        "pairs": found,
    }


def resampled(nats_MN: Tensor, bytes_N: Tensor, *, seed: int, resamplings: int) -> Tensor:
    """Bits per byte of every model in each resampling of the documents, float64 [R, M]."""
    sums_RK = _sums_resampled(torch.cat([nats_MN, bytes_N.double()[None]]).T, seed=seed, resamplings=resamplings)
    return sums_RK[:, :-1] / sums_RK[:, -1:] / math.log(2)


def mean_resampled(value_N: Tensor, *, seed: int, resamplings: int) -> Tensor:
    """The mean of the values in each resampling of them, float64 [R]."""
    return _sums_resampled(value_N[:, None], seed=seed, resamplings=resamplings)[:, 0] / len(value_N)


def _sums_resampled(values_NK: Tensor, *, seed: int, resamplings: int) -> Tensor:
    """The sums of N rows of values, drawn with replacement, in each resampling, float64 [R, K]."""
    documents, values_NK = len(values_NK), values_NK.contiguous()
    parts = []
    size = max(1, _CHUNK // documents)
    for start in range(0, resamplings, size):
        number_R1 = torch.arange(start, min(start + size, resamplings))[:, None]
        drawn_RN = (noise.uniform(Purpose.RESAMPLE, seed, number_R1, torch.arange(documents)) * documents).long()
        times_RN = torch.zeros(drawn_RN.shape, dtype=torch.float64)
        times_RN.scatter_add_(1, drawn_RN, torch.ones_like(times_RN))
        parts.append(times_RN @ values_NK)
    return torch.cat(parts)


def verdict(a: Scored, b: Scored, low: float | None, high: float | None, *, documents: int) -> dict[str, Any]:
    """What an interval for a's figure minus b's shows.

    `lower` names the model whose figure is lower beyond doubt, `winner` the one that is better for it, if that follows;
    `basis` says what was compared, `follows` puts it into words.
    """
    bounded = [one.name for one in (a, b) if one.is_bound]
    basis = ("exact", "exact against a bound", "bounds")[len(bounded)]
    nothing = {"lower": None, "winner": None, "basis": basis}
    if low is None or high is None or documents < FEWEST_DOCUMENTS:
        return nothing | {
            "follows": f"nothing: {documents} document{'s' * (documents != 1)} cannot show how much documents differ; "
            f"{FEWEST_DOCUMENTS} or more can"
        }
    if low <= 0 <= high:
        behind = f"; the true value of {' and of '.join(bounded)} lies somewhere below its bound" if bounded else ""
        return nothing | {"follows": f"no difference is shown: the interval includes 0{behind}"}
    lower, upper = (a, b) if high < 0 else (b, a)
    if not upper.is_bound:
        how = "its bound already lies below the exact value of" if lower.is_bound else "exact, below"
        return {
            "lower": lower.name,
            "winner": lower.name,
            "basis": basis,
            "follows": f"{lower.name} is better: {how} {upper.name}",
        }
    if lower.is_bound:
        text = f"the bound of {lower.name} is lower; the true values, below both bounds, may be in either order"
    else:
        text = (
            f"undecided: {lower.name} is exact and lies below the bound of {upper.name}, whose true value may lie on "
            "either side of it"
        )
    return {"lower": lower.name, "winner": None, "basis": basis, "follows": text}


def interval(values_R: Tensor | None, miss: float) -> dict[str, float | None]:
    """The percentiles that leave `miss` outside, half of it on each side."""
    if values_R is None:
        return {"low": None, "high": None}
    # `torch.quantile` refuses long inputs, so the order statistics are interpolated here as it does.
    ordered_R = values_R.sort().values
    ends = []
    for share in (miss / 2, 1 - miss / 2):
        place = share * (len(ordered_R) - 1)
        left = min(math.floor(place), len(ordered_R) - 1)
        right = min(left + 1, len(ordered_R) - 1)
        ends.append(float(ordered_R[left] + (place - left) * (ordered_R[right] - ordered_R[left])))
    return {"low": ends[0], "high": ends[1]}


def _bits(nats: float, bytes_N: Tensor) -> float:
    return nats / math.log(2) / int(bytes_N.sum())


def _check(models: Sequence[Scored], bytes_N: Tensor) -> None:
    names = [model.name for model in models]
    if len(models) < 2 or len(set(names)) < len(names):
        raise DataError(f"A comparison needs two or more models with names of their own, got {', '.join(names)}.")
    if len(bytes_N) == 0 or int(bytes_N.min()) < 1:
        raise DataError("Documents to compare on must have at least one byte each, and there must be one.")
    for model in models:
        if not len(model.nats_N) == len(model.stderr_N) == len(bytes_N):
            raise DataError(
                f"All models must score the same {len(bytes_N)} documents, and {model.name} has "
                f"{len(model.nats_N)} figures and {len(model.stderr_N)} standard errors."
            )
        finite(model.nats_N, lambda at, name=model.name: f"document {at} under {name}")
        if not bool(model.stderr_N.isfinite().all()):
            raise NonFiniteError(
                f"The standard errors of {model.name} are not finite: with one mask for each text they are unknown. "
                "Use --masks-per-sequence 2 or more."
            )
