"""Confidence and calibration against loops over single predictions."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.analysis.calibration import calibration_sums, confidences
from unmask.objectives.loss import RowPredictions, predictions

BINS = 15
NAMES = ("low", "medium", "high")


def bucket(ratio: float) -> str:
    return "low" if ratio <= 0.3 else "medium" if ratio <= 0.7 else "high"


def expected_error(confidence: list[float], correct: list[bool]) -> float:
    """Guo et al., equation 3: bins ((b - 1)/15, b/15]."""
    total = 0.0
    for number in range(1, BINS + 1):
        members = [
            place for place, value in enumerate(confidence) if (number - 1) / BINS < value and value <= number / BINS
        ]
        if members:
            accuracy = sum(correct[place] for place in members) / len(members)
            sureness = sum(confidence[place] for place in members) / len(members)
            total += len(members) / len(confidence) * abs(accuracy - sureness)
    return total


def made_up(confidence: list[float], correct: list[bool], entropy: list[float] | None = None) -> RowPredictions:
    sure_R = torch.tensor(confidence, dtype=torch.float64)
    entropy_R = torch.tensor(entropy or [0.0] * len(confidence), dtype=torch.float64)
    return RowPredictions(torch.zeros(len(sure_R)), torch.tensor(correct), sure_R, entropy_R, torch.zeros(0, 0))


def random_case(rows: int = 400) -> tuple[Tensor, Tensor, list[float]]:
    """Logits of all degrees of sureness, targets that follow them more or less, and ratios."""
    generator, drawn = torch.Generator().manual_seed(4), random.Random(4)
    scale_R1 = 6 * torch.rand(rows, 1, generator=generator, dtype=torch.float64)
    logits_RV = scale_R1 * torch.randn(rows, 7, generator=generator, dtype=torch.float64)
    target_R = torch.multinomial((0.7 * logits_RV).softmax(-1), 1, generator=generator)[:, 0]
    return logits_RV, target_R, [drawn.randint(1, 10) / 10 for _ in range(rows)]


def test_all_and_every_bucket_against_loops() -> None:
    logits_RV, target_R, ratios = random_case()
    ratio_R = torch.tensor(ratios)
    found = confidences(calibration_sums(predictions(logits_RV, target_R), ratio_R))
    chance_RV = F.softmax(logits_RV, dim=-1).tolist()
    for prefix in ("", *NAMES):
        rows = [row for row, ratio in enumerate(ratios) if prefix in ("", bucket(ratio))]
        sure = [max(chance_RV[row]) for row in rows]
        right = [chance_RV[row].index(max(chance_RV[row])) == int(target_R[row]) for row in rows]
        nats = [-sum(p * math.log(p) for p in chance_RV[row]) for row in rows]
        begin = f"confidence/{prefix}_" if prefix else "confidence/"
        assert len(rows) > 50
        assert found[f"{begin}mean"] == pytest.approx(sum(sure) / len(rows))
        assert found[f"{begin}entropy"] == pytest.approx(sum(nats) / len(rows))
        assert found[f"{begin}ece"] == pytest.approx(expected_error(sure, right))
    assert len(found) == 12
    assert found["confidence/ece"] > 0.02


def test_the_error_of_all_is_binned_anew_and_no_mean_over_buckets() -> None:
    # In one bin an overrated and an underrated bucket make up for each other.
    found = confidences(calibration_sums(made_up([0.5, 0.5], [True, False]), torch.tensor([0.1, 0.9])))
    assert found["confidence/low_ece"] == found["confidence/high_ece"] == 0.5
    assert found["confidence/ece"] == 0


def test_edges_of_bins() -> None:
    """Each confidence shares a bin with a neighbour, of which one is right: so the error tells the bins apart."""
    step = 1 / BINS
    for number in range(1, BINS + 1):
        for confidence in (number * step - 0.01, number * step):
            other = (number - 0.5) * step
            error = confidences(calibration_sums(made_up([confidence, other], [True, False]), torch.ones(2)))
            assert error["confidence/ece"] == pytest.approx(abs(0.5 - (confidence + other) / 2))
        apart = confidences(
            calibration_sums(made_up([number * step, number * step + 0.01], [True, False]), torch.ones(2))
        )
        if number < BINS:
            assert apart["confidence/ece"] == pytest.approx((1 - number * step + number * step + 0.01) / 2)


def test_a_sure_and_right_model_has_no_error_and_a_sure_and_wrong_one_all_of_it() -> None:
    for right, error in ((True, 0.0), (False, 1.0)):
        found = confidences(calibration_sums(made_up([1.0] * 3, [right] * 3), torch.full((3,), 0.5)))
        assert found["confidence/ece"] == found["confidence/medium_ece"] == error


def test_sums_add_up_over_batches() -> None:
    logits_RV, target_R, ratios = random_case(60)
    ratio_R = torch.tensor(ratios)
    whole = calibration_sums(predictions(logits_RV, target_R), ratio_R)
    parts = [
        calibration_sums(predictions(logits_RV[part], target_R[part]), ratio_R[part])
        for part in (slice(0, 7), slice(7, 7), slice(7, 60))
    ]
    assert torch.allclose(whole, sum(parts, torch.zeros_like(whole)))


def test_nothing_predicted_is_nan() -> None:
    found = confidences(calibration_sums(made_up([0.4], [True], [0.3]), torch.tensor([0.2])))
    assert found["confidence/mean"] == found["confidence/low_mean"] == pytest.approx(0.4)
    assert all(
        math.isnan(found[f"confidence/{name}_{what}"]) for name in NAMES[1:] for what in ("mean", "entropy", "ece")
    )
    empty = confidences(calibration_sums(made_up([], []), torch.zeros(0)))
    assert all(math.isnan(value) for value in empty.values())
