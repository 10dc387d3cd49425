"""The statistics of a comparison against a bootstrap of NumPy, known truths, and every case of bounds."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from unmask.errors import DataError, NonFiniteError
from unmask.evaluation import compare
from unmask.evaluation.compare import Scored, compared, resampled, verdict


def model(name: str, nats: Any, *, stderr: float = 0.0, is_bound: bool = False) -> Scored:
    nats_N = torch.as_tensor(nats, dtype=torch.float64)
    return Scored(name, "any", is_bound, nats_N, torch.full_like(nats_N, stderr))


def documents(number: int, seed: int, *, gap: float = 0.0, spread: float = 0.05) -> tuple[np.ndarray, ...]:
    """Bytes, and nats under two models: documents differ far more than models, whose rates lie `gap` nats apart."""
    random = np.random.default_rng(seed)
    sizes = random.integers(50, 2000, number)
    level = random.normal(1.2, 0.4, number).clip(0.3)
    one, two = (sizes * (level + shift + random.normal(0, spread, number)) for shift in (0.0, gap))
    return sizes, one, two


def test_figures_are_sums_over_sums() -> None:
    found = compared([model("a", [3.0, 8.0]), model("b", [6.0, 4.0])], torch.tensor([1, 4]), seed=0, resamplings=50)
    assert [one["bits_per_byte"] for one in found["models"]] == pytest.approx(
        [11 / 5 / math.log(2), 10 / 5 / math.log(2)]
    )
    assert found["pairs"][0]["difference"] == pytest.approx(1 / 5 / math.log(2))


def test_intervals_agree_with_a_bootstrap_of_numpy_and_with_the_normal_approximation() -> None:
    sizes, one, two = documents(80, 3, gap=0.02)
    found = compared([model("a", one), model("b", two)], torch.tensor(sizes), seed=5, resamplings=20_000)
    drawn = np.random.default_rng(9).integers(0, 80, (20_000, 80))
    sums = [values[drawn].sum(axis=1) for values in (one, two, sizes)]
    for figure, values in [
        (found["models"][0], sums[0] / sums[2] / math.log(2)),
        (found["models"][1], sums[1] / sums[2] / math.log(2)),
        (found["pairs"][0], (sums[0] - sums[1]) / sums[2] / math.log(2)),
    ]:
        low, high = np.quantile(values, [0.025, 0.975])
        assert figure["low"] == pytest.approx(low, abs=0.04 * (high - low))
        assert figure["high"] == pytest.approx(high, abs=0.04 * (high - low))
    ratio = (one - two).sum() / sizes.sum()
    error = math.sqrt(((one - two - ratio * sizes) ** 2).sum()) / sizes.sum() / math.log(2)
    pair = found["pairs"][0]
    assert pair["high"] - pair["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)
    single = found["models"][0]
    assert pair["high"] - pair["low"] < 0.3 * (single["high"] - single["low"])  # pairing takes the documents out


def test_every_resampling_draws_as_many_documents_as_there_are_for_all_models_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nats_MN = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]], dtype=torch.float64)
    whole_RM = resampled(nats_MN, torch.ones(3, dtype=torch.int64), seed=1, resamplings=400)
    sums = (whole_RM * 3 * math.log(2)).round().long()
    assert torch.equal(sums[:, 1], 2 * sums[:, 0])
    digits = torch.stack([sums[:, 0] // 10**place % 10 for place in range(3)])
    assert (digits.sum(dim=0) == 3).all()
    assert len(sums[:, 0].unique()) == 10  # multisets of 3 out of 3
    monkeypatch.setattr(compare, "_CHUNK", 7)
    assert torch.equal(whole_RM, resampled(nats_MN, torch.ones(3, dtype=torch.int64), seed=1, resamplings=400))


def test_a_true_difference_is_found_although_documents_differ_more() -> None:
    winners = []
    for seed in range(20):
        sizes, one, two = documents(60, seed, gap=0.05)
        found = compared([model("a", one), model("b", two)], torch.tensor(sizes), seed=seed, resamplings=1000)
        winners.append(found["pairs"][0]["winner"])
        assert found["models"][0]["high"] > found["models"][1]["low"]  # unpaired, the intervals overlap
    assert winners.count("a") >= 19
    assert "b" not in winners


def test_no_difference_is_found_where_there_is_none() -> None:
    called = 0
    for seed in range(200):
        sizes, one, two = documents(60, 1000 + seed)
        found = compared([model("a", one), model("b", two)], torch.tensor(sizes), seed=seed, resamplings=600)
        called += found["pairs"][0]["winner"] is not None
    assert 2 <= called <= 22  # 10 expected


def test_the_noise_of_the_masks_is_in_the_interval_once() -> None:
    """Over many draws of masks and documents, the interval's width is the spread of the difference itself."""
    random = np.random.default_rng(2)
    widths, differences = [], []
    for seed in range(150):
        sizes, one, two = documents(50, 5000 + seed, spread=0.02)
        noisy = two + random.normal(0, 40.0, 50)
        models = [model("a", one), model("b", noisy, stderr=40.0, is_bound=True)]
        pair = compared(models, torch.tensor(sizes), seed=seed, resamplings=400)["pairs"][0]
        assert pair["masks_stderr"] == pytest.approx(40 * math.sqrt(50) / sizes.sum() / math.log(2))
        widths.append((pair["high"] - pair["low"]) / 2 / 1.96)
        differences.append(pair["difference"])
    assert np.mean(widths) == pytest.approx(np.std(differences), rel=0.15)


@pytest.mark.parametrize(("a_bound", "b_bound"), list(itertools.product([False, True], repeat=2)))
def test_what_follows_depends_on_who_is_bounded(a_bound: bool, b_bound: bool) -> None:
    a, b = model("A", [1.0], is_bound=a_bound), model("B", [1.0], is_bound=b_bound)
    below = verdict(a, b, -0.3, -0.1, documents=50)
    above = verdict(a, b, 0.1, 0.3, documents=50)
    around = verdict(a, b, -0.1, 0.3, documents=50)
    assert (below["lower"], above["lower"], around["lower"]) == ("A", "B", None)
    assert below["winner"] == (None if b_bound else "A")
    assert above["winner"] == (None if a_bound else "B")
    assert around["winner"] is None
    assert ("bound" in below["follows"]) == (a_bound or b_bound)
    assert ("bound" in around["follows"]) == (a_bound or b_bound)
    basis = ("exact", "exact against a bound", "bounds")[a_bound + b_bound]
    assert {below["basis"], above["basis"], around["basis"]} == {basis}
    mirrored = verdict(b, a, 0.1, 0.3, documents=50)
    assert mirrored == below


def test_an_exact_value_below_a_bound_is_no_win() -> None:
    sizes = torch.full((20,), 100)
    exact, bound = model("ar", torch.arange(20) + 100.0), model("dlm", torch.arange(20) + 150.0, is_bound=True)
    pair = compared([exact, bound], sizes, seed=0, resamplings=200)["pairs"][0]
    assert pair["high"] < 0 and pair["winner"] is None
    assert pair["follows"].startswith("undecided: ar")
    pair = compared([bound, model("ar", torch.arange(20) + 200.0)], sizes, seed=0, resamplings=200)["pairs"][0]
    assert pair["winner"] == "dlm"


def test_equal_models_have_no_winner() -> None:
    nats = torch.arange(1.0, 21)
    pair = compared([model("a", nats), model("b", nats)], torch.full((20,), 9), seed=0, resamplings=200)["pairs"][0]
    assert (pair["low"], pair["high"], pair["winner"]) == (0, 0, None)


def test_the_intervals_of_several_pairs_hold_together() -> None:
    sizes, one, two = documents(60, 4)
    models = [model("a", one), model("b", two), model("c", two + sizes * 0.01)]
    both = compared(models[:2], torch.tensor(sizes), seed=0)["pairs"][0]
    three = compared(models, torch.tensor(sizes), seed=0)["pairs"]
    assert len(three) == 3
    widths = [pair["high"] - pair["low"] for pair in (three[0], both)]
    assert widths[0] / widths[1] == pytest.approx(2.394 / 1.960, rel=0.06)  # normal quantiles at 1 - 0.05/6 and 0.975


def test_few_documents_name_no_winner() -> None:
    one = compared([model("a", [9.0]), model("b", [1.0])], torch.tensor([4]), seed=0)
    assert one["pairs"][0]["low"] is one["models"][0]["high"] is one["pairs"][0]["winner"] is None
    nats = torch.arange(1.0, 10)
    few = compared([model("a", nats), model("b", nats + 5)], torch.full((9,), 9), seed=0, resamplings=100)["pairs"][0]
    assert few["high"] < 0 and few["winner"] is None and "9 documents cannot" in few["follows"]


def test_what_cannot_be_compared_is_refused() -> None:
    sizes = torch.tensor([3, 4])
    cases = [
        ([model("a", [1.0, 2])], sizes, "two or more models"),
        ([model("a", [1.0, 2]), model("a", [1.0, 2])], sizes, "names of their own"),
        ([model("a", [1.0, 2]), model("b", [1.0])], sizes, "the same 2 documents, and b has 1"),
        ([model("a", [1.0, math.nan]), model("b", [1.0, 2])], sizes, "document 1 under a is nan"),
        ([model("a", [1.0, 2]), model("b", [1.0, 2])], torch.tensor([3, 0]), "at least one byte"),
    ]
    for models, given, message in cases:
        with pytest.raises(NonFiniteError if "nan" in message else DataError, match=message):
            compared(models, given, seed=0)
