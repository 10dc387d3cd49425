"""Gradients per bucket against plain forwards of the stock network with a plain cross-entropy."""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import tiny
from tests.references import masks
from unmask.analysis.gradients import Bucket, bucket_gradients, gradient_figures
from unmask.data.batch import Batch
from unmask.models import adapters
from unmask.models.backbone import Backbone
from unmask.objectives.example import Example
from unmask.objectives.methods import objective
from unmask.settings.adapter import AdapterSettings
from unmask.settings.objective import ObjectiveSettings
from unmask.training.module import TrainingModule
from unmask.training.recomputation import recompute

LENGTH, ROWS, BLOCK = 12, 9, 4
NAMES = ("low", "medium", "high")
OPTIONS: dict[str, dict[str, Any]] = {
    "masked_diffusion": {},
    "block_diffusion": {"block_length": BLOCK},
    "tidar": {"block_length": BLOCK, "masking": "random"},
}


def examples_of(method: str, model: Backbone, rows: int = ROWS) -> list[Example]:
    """Rows of one document each, an example for each of them; of TiDAR the masks alone."""
    settings = ObjectiveSettings(method=method, **OPTIONS[method])  # type: ignore[arg-type]
    model.configure(dataclasses.replace(model.diffusion, block_length=settings.block_length))
    batch = Batch.of_rows(tiny.random_ids(rows, LENGTH).tolist())
    made = [objective(settings, model.diffusion, seed=5)(batch.rows(row, row + 1)) for row in range(rows)]
    return [one.only(one.term_R == len(one.terms) - 1) for one in made]


def total_of(model: Backbone, tokens: int) -> Callable[[Example], Tensor]:
    module = TrainingModule(model, chunk_rows=5).eval()
    return lambda one: module(one, torch.full((len(one.terms),), 1 / tokens, dtype=torch.float64)).total


def trained(model: Backbone) -> list[Tensor]:
    return [one for one in model.network.parameters() if one.requires_grad]


def bucket(ratio: float) -> str:
    return "low" if ratio <= 0.3 + 1e-6 else "medium" if ratio <= 0.7 + 1e-6 else "high"


def plain_gradient(method: str, model: Backbone, chosen: list[tuple[Example, list[int]]], tokens: int) -> Tensor:
    """The flat gradient of the named rows' weighted nats over the tokens: stock class, eager attention, no chunks."""
    network: Any = copy.deepcopy(model.network)
    network.set_attn_implementation("eager")
    document = [0] * LENGTH
    seen = {
        "masked_diffusion": masks.bidirectional,
        "block_diffusion": lambda row: masks.block_diffusion_doubled(row, BLOCK),
        "tidar": lambda row: masks.tidar_doubled(row, BLOCK, order="clean_first"),
    }[method](document)
    mask = torch.zeros(len(seen), len(seen), dtype=torch.float64).masked_fill(~torch.tensor(seen), -math.inf)
    places = torch.arange(len(seen))[None] % LENGTH
    loss = torch.zeros((), dtype=torch.float64)
    for example, rows in chosen:
        logits = network(
            input_ids=example.ids_BL, attention_mask=mask[None, None], position_ids=places, use_cache=False
        ).logits[0]
        logits[:, model.diffusion.mask_token_id] = -math.inf
        for row in rows:
            nats = F.cross_entropy(logits[example.row_R[row]], example.target_R[row])
            loss = loss + float(example.weight_R[row]) * nats / tokens
    parameters = [one for one in network.parameters() if one.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([one.flatten() for one in found])


def rows_in(example: Example, name: str | None) -> list[int]:
    return [row for row, ratio in enumerate(example.ratio_R.tolist()) if name in (None, bucket(ratio))]


def measured(method: str, model: Backbone, examples: list[Example]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The figures, and the flat vector of each bucket as it goes by on its way to the other processes."""
    passed: list[Tensor] = []

    def reduce(values: Tensor) -> Tensor:
        passed.append(values.clone())
        return values

    parameters = trained(model)
    total = total_of(model, len(examples) * LENGTH)
    found = gradient_figures(*bucket_gradients(lambda: examples, total, parameters, reduce=reduce))
    size = len(passed) // 3
    vectors = {}
    for number, name in enumerate(NAMES):
        shares = passed[number * size : (number + 1) * size][: len(parameters)]
        vectors[name] = torch.cat([one.flatten() for one in shares])
    return found, vectors


@pytest.mark.parametrize("method", OPTIONS)
def test_the_buckets_vectors_add_up_to_the_gradient_of_the_whole(method: str) -> None:
    model = tiny.backbone(method)
    examples = examples_of(method, model)
    found, vectors = measured(method, model, examples)
    tokens = len(examples) * LENGTH
    whole = plain_gradient(method, model, [(one, rows_in(one, None)) for one in examples], tokens)
    assert whole.norm() > 0.1
    assert torch.allclose(sum(vectors.values(), torch.zeros_like(whole)), whole, atol=1e-6)
    assert found["gradient/norm"] == pytest.approx(float(whole.norm()), rel=1e-6)
    for name in NAMES:
        chosen = [(one, rows) for one in examples if (rows := rows_in(one, name))]
        own = plain_gradient(method, model, chosen, tokens)
        assert chosen and own.norm() > 0.01
        assert torch.allclose(vectors[name], own, atol=1e-6)
        assert found[f"gradient/{name}_norm"] == pytest.approx(float(own.norm()), rel=1e-6)
        assert found[f"gradient/{name}_sequences"] == len(chosen)
        assert found[f"gradient/{name}_norm_per_sequence"] == pytest.approx(float(own.norm()) / len(chosen), rel=1e-6)
    for above, below in (("high", "low"), ("medium", "low"), ("high", "medium")):
        ratio = found[f"gradient/{above}_norm"] / found[f"gradient/{below}_norm"]
        assert found[f"gradient/{above}_to_{below}"] == pytest.approx(ratio)
    assert found["gradient/norm"] < sum(found[f"gradient/{name}_norm"] for name in NAMES), "norms do not add up"
    assert len(found) == 16


def test_blocks_of_one_sequence_are_in_several_buckets() -> None:
    model = tiny.backbone("block_diffusion")
    examples = examples_of("block_diffusion", model)
    found, _ = measured("block_diffusion", model, examples)
    assert sum(found[f"gradient/{name}_sequences"] for name in NAMES) > len(examples)


def test_signal_to_noise_by_loops_over_single_sequences() -> None:
    model = tiny.backbone("masked_diffusion")
    examples = examples_of("masked_diffusion", model, rows=7)
    found, _ = measured("masked_diffusion", model, examples)
    known = 0
    for name in NAMES:
        own = [
            plain_gradient("masked_diffusion", model, [(one, rows)], 7 * LENGTH).tolist()
            for one in examples
            if (rows := rows_in(one, name))
        ]
        if len(own) < 2:
            assert math.isnan(found[f"gradient/{name}_snr"])
            continue
        mean = [statistics.fmean(column) for column in zip(*own, strict=True)]
        noise = sum(math.dist(one, mean) ** 2 for one in own) / (len(own) - 1)
        signal = math.fsum(value**2 for value in mean) - noise / len(own)
        assert found[f"gradient/{name}_snr"] == pytest.approx(signal / noise, rel=1e-5)
        known += 1
    assert known >= 2


@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_the_signal_is_estimated_without_bias(strength: float) -> None:
    """|mean gradient|^2 of few noisy sequences, over and over: its mean is that of the law, not the noise's more."""
    generator = torch.Generator().manual_seed(1)
    number, width, times = 3, 8, 6000
    mean_D = torch.full((width,), strength / math.sqrt(width), dtype=torch.float64)
    spread_D = torch.linspace(0.2, 1, width, dtype=torch.float64)
    signals, naive = [], []
    for gradient_ND in mean_D + spread_D * torch.randn(times, number, width, generator=generator, dtype=torch.float64):
        total_D = gradient_ND.sum(dim=0)
        one = Bucket(number, float(total_D.norm()), float(gradient_ND.square().sum()))
        noise = float((gradient_ND - gradient_ND.mean(dim=0)).square().sum()) / (number - 1)
        signals.append(one.noise_ratio * noise)
        naive.append(float((total_D / number).square().sum()))
    error = statistics.stdev(signals) / math.sqrt(times)
    assert error < 0.02
    assert statistics.fmean(signals) == pytest.approx(strength**2, abs=4 * error)
    assert statistics.fmean(naive) - strength**2 > 20 * error


def test_the_share_of_sequences_is_no_gradient() -> None:
    """TDLM multiplies the whole norm by each bucket's share of sequences, so its ratios count sequences."""
    model = tiny.backbone("masked_diffusion")
    found, _ = measured("masked_diffusion", model, examples_of("masked_diffusion", model))
    counted = {name: found["gradient/norm"] * found[f"gradient/{name}_sequences"] / ROWS for name in NAMES}
    assert counted["high"] / counted["low"] == pytest.approx(
        found["gradient/high_sequences"] / found["gradient/low_sequences"]
    )
    assert abs(math.log(counted["high"] / counted["low"] / found["gradient/high_to_low"])) > 0.2


def test_an_empty_bucket_is_nan() -> None:
    model = tiny.backbone("masked_diffusion")
    high = [one for one in examples_of("masked_diffusion", model) if bucket(float(one.ratio_R[0])) == "high"]
    found, _ = measured("masked_diffusion", model, high)
    known = {name for name, value in found.items() if not math.isnan(value)}
    sequences = {f"gradient/{name}_sequences" for name in NAMES}
    of_high = {f"gradient/high_{name}" for name in ("norm", "norm_per_sequence", "snr")}
    assert known == sequences | of_high | {"gradient/norm"}
    assert found["gradient/low_sequences"] == 0 and found["gradient/high_norm"] == found["gradient/norm"]
    (alone,) = measured("masked_diffusion", model, high[:1])[:1]
    assert math.isnan(alone["gradient/high_snr"]) and alone["gradient/high_sequences"] == 1


def test_examples_without_a_mask_count_nowhere() -> None:
    model = tiny.backbone("masked_diffusion")
    examples = examples_of("masked_diffusion", model)
    nothing = examples[0].only(torch.zeros(len(examples[0].target_R), dtype=torch.bool))
    total = total_of(model, 10)
    several = bucket_gradients(lambda: [nothing, *examples], total, trained(model))
    assert several == bucket_gradients(lambda: examples, total, trained(model))


def test_only_an_adapter_is_measured_where_only_it_is_trained() -> None:
    model = tiny.backbone("masked_diffusion")
    adapters.attach(model, AdapterSettings(rank=2), base="none", seed=0)
    generator = torch.Generator().manual_seed(0)
    for one in trained(model):  # as after some steps: at first one factor of each update is zero
        one.data = 0.1 * torch.randn(one.shape, generator=generator, dtype=one.dtype)
    model.eval()
    examples = examples_of("masked_diffusion", model)
    found, vectors = measured("masked_diffusion", model, examples)
    tokens = len(examples) * LENGTH
    whole = plain_gradient("masked_diffusion", model, [(one, rows_in(one, None)) for one in examples], tokens)
    assert len(whole) == sum(one.numel() for one in trained(model))
    assert len(whole) < sum(one.numel() for one in model.network.parameters())
    assert torch.allclose(sum(vectors.values(), torch.zeros_like(whole)), whole, atol=1e-6)
    assert found["gradient/norm"] == pytest.approx(float(whole.norm()), rel=1e-6)


def test_recomputation_changes_nothing() -> None:
    model = tiny.backbone("masked_diffusion")
    examples = examples_of("masked_diffusion", model)
    plain, _ = measured("masked_diffusion", model, examples)
    recompute(model.network, keep_products=False)
    assert measured("masked_diffusion", model, examples)[0] == plain
    model.train()
    parameters, total = trained(model), total_of(model, len(examples) * LENGTH)
    assert gradient_figures(*bucket_gradients(lambda: examples, total, parameters)) == plain


def test_autocast_rounds_only() -> None:
    model = tiny.backbone("masked_diffusion").float()
    examples = examples_of("masked_diffusion", model)
    plain, _ = measured("masked_diffusion", model, examples)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = measured("masked_diffusion", model, examples)
    for name in NAMES:
        assert found[f"gradient/{name}_norm"] == pytest.approx(plain[f"gradient/{name}_norm"], rel=0.1)
        assert found[f"gradient/{name}_norm"] != plain[f"gradient/{name}_norm"]


def test_many_gradients_add_up_whatever_the_weights_precision() -> None:
    """A sum of ones in bfloat16 ends at 256."""
    (example,) = examples_of("masked_diffusion", tiny.backbone("masked_diffusion"), rows=1)
    parameter = torch.zeros(4, dtype=torch.bfloat16, requires_grad=True)
    buckets, whole = bucket_gradients(lambda: [example] * 600, lambda _: parameter.sum(), [parameter])
    assert whole == pytest.approx(1200)
    assert sum(one.norm for one in buckets) == pytest.approx(1200)
