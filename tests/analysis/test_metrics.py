"""The first tier of metrics against slow computations of their definitions, token by token."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from tests import tiny
from unmask.analysis.metrics import BUCKETS, MaskedTokens, Sums, accuracies, bucket_of, sums, weight_effects
from unmask.data.batch import Batch
from unmask.diffusion.corruption import corrupt
from unmask.objectives import masked_diffusion
from unmask.objectives.loss import predictions
from unmask.settings.objective import ObjectiveSettings

USUAL = 2


def metrics(found: Sums) -> dict[str, float]:
    return accuracies(found) | weight_effects(found)


def random_tokens(sizes: list[int], seed: int = 0, *, least: int = 1) -> MaskedTokens:
    """Sequences with uniform mask counts (from `least`) and random predictions."""
    generator = torch.Generator().manual_seed(seed)
    counts = [least + int(torch.randint(0, size + 1 - least, (), generator=generator)) for size in sizes]
    group_R = torch.arange(len(sizes)).repeat_interleave(torch.tensor(counts))
    ratio = torch.tensor([count / size for count, size in zip(counts, sizes, strict=True)])
    logits_RV = 2 * torch.randn(len(group_R), 5, generator=generator, dtype=torch.float64)
    target_R = torch.randint(0, 5, (len(group_R),), generator=generator)
    nats_R, correct_R, confidence_R, _, _ = predictions(logits_RV, target_R)
    weight_R = 1 / ratio[group_R] + torch.rand(len(group_R), generator=generator)
    return MaskedTokens(
        nats_R, correct_R, confidence_R, target_R, weight_R, ratio[group_R], group_R, torch.tensor(sizes)
    )


def of_sequences(tokens: MaskedTokens, values_R: Tensor) -> list[list[float]]:
    """The values of each sequence's masked tokens."""
    found: list[list[float]] = [[] for _ in tokens.tokens_B]
    for group, value in zip(tokens.group_R.tolist(), values_R.tolist(), strict=True):
        found[group].append(float(value))
    return found


def test_predictions() -> None:
    logits = torch.tensor([[0.0, math.log(3), -math.inf], [math.log(4), 0.0, 0.0]])
    nats, correct, confidence, entropy, mass = predictions(logits, torch.tensor([0, 0]), torch.tensor([1, 0, 1]))
    assert nats.tolist() == pytest.approx([math.log(4), math.log(1.5)])
    assert correct.tolist() == [False, True]
    assert confidence.tolist() == pytest.approx([0.75, 2 / 3])
    assert entropy.tolist() == pytest.approx(
        [-0.75 * math.log(0.75) - 0.25 * math.log(0.25), math.log(6) - 2 / 3 * math.log(4)]
    )
    assert mass.flatten().tolist() == pytest.approx([0.75, 0.25, 1 / 6, 5 / 6])


def test_both_averages_of_accuracy_with_their_baseline() -> None:
    tokens = random_tokens([4, 9, 6, 11, 3, 7])
    found = metrics(sums(tokens, most_frequent=USUAL))
    right, usual = of_sequences(tokens, tokens.correct_R), of_sequences(tokens, tokens.target_R == USUAL)
    for name, rows in (("mask_accuracy", right), ("unigram_accuracy", usual)):
        assert found[name] == pytest.approx(statistics.fmean(value for row in rows for value in row))
        assert found[f"{name}_t"] == pytest.approx(statistics.fmean(statistics.fmean(row) for row in rows))
    assert found["mask_accuracy"] != pytest.approx(found["mask_accuracy_t"])


def test_buckets_of_corruption_and_their_shares_of_the_loss() -> None:
    tokens = random_tokens([10] * 12)
    found = metrics(sums(tokens, most_frequent=USUAL))
    tenths = [round(10 * one) for one in tokens.ratio_R.tolist()]
    names = ["low" if one <= 3 else "medium" if one <= 7 else "high" for one in tenths]
    whole = float((tokens.weight_R.double() * tokens.cross_entropy_R).sum())
    for name in BUCKETS:
        rows = [row for row, one in enumerate(names) if one == name]
        assert rows
        assert found[f"corruption/{name}_count"] == len(rows)
        assert found[f"corruption/{name}_accuracy"] == pytest.approx(float(tokens.correct_R[rows].double().mean()))
        assert found[f"corruption/{name}_ce"] == pytest.approx(float(tokens.cross_entropy_R[rows].mean()))
        own = float((tokens.weight_R[rows].double() * tokens.cross_entropy_R[rows]).sum())
        assert found[f"loss_weight/{name}_share"] == pytest.approx(own / whole)


def test_edges_belong_to_the_bucket_below_in_either_precision() -> None:
    for kind in (torch.float32, torch.float64):
        ratio = torch.tensor([0.01, 3 / 10, 0.31, 7 / 10, 0.71, 1.0], dtype=kind)
        assert bucket_of(ratio).tolist() == [0, 0, 1, 1, 2, 2]


def test_the_loss_varies_within_and_between_bins() -> None:
    tokens = random_tokens([10] * 60)
    found = metrics(sums(tokens, most_frequent=USUAL))
    losses = [sum(row) / 10 for row in of_sequences(tokens, tokens.weight_R.double() * tokens.cross_entropy_R)]
    # Ten places: every count is a bin of its own.
    bins: dict[int, list[float]] = {}
    for loss, row in zip(losses, of_sequences(tokens, tokens.ratio_R), strict=True):
        bins.setdefault(len(row), []).append(loss)
    mean = statistics.fmean(losses)
    within = sum(len(one) * statistics.pvariance(one) for one in bins.values()) / len(losses)
    assert found["loss_weight/variance_within"] == pytest.approx(within / mean**2)
    whole = statistics.pvariance(losses) / mean**2
    assert found["loss_weight/variance_within"] + found["loss_weight/variance_between"] == pytest.approx(whole)
    assert found["loss_weight/variance_between"] > 0


def test_the_correlation_is_pearsons() -> None:
    tokens = random_tokens([8] * 9)
    found = metrics(sums(tokens, most_frequent=USUAL))["loss_weight/correlation"]
    expected = statistics.correlation(tokens.weight_R.tolist(), (1 - tokens.confidence_R).tolist())
    assert found == pytest.approx(expected, abs=1e-6)


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    tokens = random_tokens([7, 5, 9, 4, 8], least=0)

    def part(rows: list[int]) -> Sums:
        chosen = torch.isin(tokens.group_R, torch.tensor(rows))
        fields = {name: getattr(tokens, name)[chosen] for name in vars(tokens) if name.endswith("_R")}
        fields["group_R"] = torch.searchsorted(torch.tensor(rows), fields["group_R"])
        return sums(MaskedTokens(**fields, tokens_B=tokens.tokens_B[rows]), most_frequent=USUAL)

    whole, merged = metrics(sums(tokens, most_frequent=USUAL)), metrics(part([0, 3]) + part([1, 2, 4]))
    assert merged == pytest.approx(whole, nan_ok=True)


def test_what_was_not_measured_is_nan_and_not_zero() -> None:
    tokens = random_tokens([3, 4])
    nothing = torch.zeros(len(tokens.group_R), dtype=torch.bool)
    empty = {name: getattr(tokens, name)[nothing] for name in vars(tokens) if name.endswith("_R")}
    found = metrics(sums(MaskedTokens(**empty, tokens_B=torch.zeros(0, dtype=torch.int64)), most_frequent=USUAL))
    counts = {name: value for name, value in found.items() if name.endswith("_count")}
    assert counts == dict.fromkeys(counts, 0.0) and len(counts) == 3
    assert all(math.isnan(value) for name, value in found.items() if name not in counts)
    high = MaskedTokens(
        torch.ones(4), torch.ones(4, dtype=torch.bool), torch.ones(4), torch.zeros(4, dtype=torch.int64),
        torch.ones(4), torch.ones(4), torch.zeros(4, dtype=torch.int64), torch.tensor([4]),
    )  # fmt: skip
    found = metrics(sums(high, most_frequent=USUAL))
    assert found["corruption/high_accuracy"] == 1 and found["corruption/high_ce"] == 1
    for name in ("low", "medium"):
        assert math.isnan(found[f"corruption/{name}_accuracy"]) and math.isnan(found[f"corruption/{name}_ce"])
        assert math.isnan(found[f"loss_weight/{name}_share"])
    assert math.isnan(found["loss_weight/correlation"]) and math.isnan(found["loss_weight/mean_stderr"])


def weighted(weight_R: Tensor, ratio_R: Tensor, group_R: Tensor, tokens_B: Tensor) -> dict[str, float]:
    """The metrics of weights alone."""
    ones = torch.ones_like(ratio_R)
    made = MaskedTokens(ones, ones > 0, 1 / (1 + weight_R), group_R, weight_R, ratio_R, group_R, tokens_B)
    return metrics(sums(made, most_frequent=USUAL))


@pytest.mark.parametrize(
    "options", [{"corruption": "count"}, {"corruption": "bernoulli"}, {"corruption": "count", "schedule": "cosine"}]
)
def test_the_weights_of_the_bound_are_unbiased(options: dict[str, str]) -> None:
    settings = ObjectiveSettings(method="masked_diffusion", **options)  # type: ignore[arg-type]
    batch = Batch.of_rows(tiny.random_ids(4000, 12).tolist())
    drawn = corrupt(batch, settings, seed=0)
    made = masked_diffusion.corrupted_example(batch, drawn, mask_token_id=23, logit_shift=False)
    found = weighted(made.weight_R, made.ratio_R, made.group_R, batch.supervised_BL.sum(dim=1))
    assert found["loss_weight/mean"] == pytest.approx(1, abs=4 * found["loss_weight/mean_stderr"] + 1e-6)
    assert found["loss_weight/mean_stderr"] < 0.05


def test_weights_that_vanish_at_full_masking_are_caught() -> None:
    """TDLM's min((1 - r) / r, 5) on r of the tokens, r uniform: 5/12 of what a bound needs."""
    rows, size = 2000, 400
    ratio_B = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    count_B = (ratio_B * size).floor().long()
    group_R = torch.arange(rows).repeat_interleave(count_B)
    weight_R = ((1 - ratio_B) / ratio_B).clamp(max=5)[group_R]
    found = weighted(weight_R, (count_B / size)[group_R], group_R, torch.full((rows,), size))
    assert found["loss_weight/mean"] == pytest.approx(5 / 12, abs=0.005)
    assert abs(found["loss_weight/mean"] - 1) > 10 * found["loss_weight/mean_stderr"]
