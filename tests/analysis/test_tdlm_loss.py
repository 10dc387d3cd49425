"""TDLM's number against its own procedure, ratio by ratio and mask by mask; and what tells it from a bound."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests import tiny
from unmask.analysis.metrics import MaskedTokens, sums, weight_effects
from unmask.analysis.tdlm_loss import tdlm_rows, tdlm_weights
from unmask.data.batch import Batch
from unmask.errors import SettingsError
from unmask.evaluation.likelihood import row_nats
from unmask.models.backbone import Backbone
from unmask.settings.evaluation import EvaluationSettings

VOCABULARY = 3


def by_ratio(size: int, points: int = 60_000) -> list[tuple[int, float]]:
    """Mask count and weight at evenly spaced ratios, as TDLM computes them."""
    ratios = [(point + 0.5) / points for point in range(points)]
    return [(math.floor(ratio * size), min((1 - ratio) / ratio, 5.0)) for ratio in ratios]


def printed_at_constant_nats(size: int) -> float:
    """What TDLM prints, on average, for a model whose every cross-entropy is 1."""
    drawn = by_ratio(size)
    return math.fsum(count * weight for count, weight in drawn) / sum(count for count, _ in drawn)


def constant(vocabulary: int = VOCABULARY) -> Backbone:
    """A model that gives every token the same probability."""
    model = tiny.backbone("masked_diffusion", vocabulary=vocabulary)
    torch.nn.init.zeros_(model.network.get_output_embeddings().weight)  # type: ignore[union-attr,arg-type]
    return model


def every_count(size: int, rows: int = 1, vocabulary: int = VOCABULARY) -> tuple[Batch, EvaluationSettings]:
    """Rows of `size` tokens, and settings under which each count from 1 to `size` is drawn once for each row."""
    batch = Batch.of_rows(tiny.random_ids(rows, size, vocabulary=vocabulary).tolist())
    return batch, EvaluationSettings(masks_per_sequence=size)


@pytest.mark.parametrize("size", [2, 5, 6, 12, 60])
def test_the_weight_of_a_count_is_its_mean_over_the_ratios_that_give_it(size: int) -> None:
    drawn = by_ratio(size)
    weights = tdlm_weights(size).tolist()
    assert weights[0] == weights[size] == 0
    for count in range(1, size):
        own = [weight for drawn_count, weight in drawn if drawn_count == count]
        assert weights[count] == pytest.approx(sum(own) / len(own), rel=1e-4)


@pytest.mark.parametrize("size", [2, 7, 64])
def test_a_constant_predictor_is_printed_at_its_exact_expectation(size: int) -> None:
    batch, settings = every_count(size, rows=3)
    found = tdlm_rows(constant(), batch, settings)
    assert found.printed == pytest.approx(printed_at_constant_nats(size) * math.log(VOCABULARY), rel=1e-4)
    assert found.bound.nats_B.tolist() == pytest.approx([size * math.log(VOCABULARY)] * 3, rel=1e-6)


def test_it_tends_to_five_sixths_of_the_truth() -> None:
    shares = [printed_at_constant_nats(size) for size in (8, 64, 512)]
    distances = [abs(share - 5 / 6) for share in shares]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.004
    batch, settings = every_count(100)
    share = tdlm_rows(constant(), batch, settings).printed / math.log(VOCABULARY)
    assert share == pytest.approx(5 / 6, abs=0.01)


def cross_entropy(model: Backbone, tokens: list[int], hidden: tuple[int, ...]) -> float:
    """Nats of the hidden places together, by full logits."""
    ids = [VOCABULARY if place in hidden else token for place, token in enumerate(tokens)]
    with torch.no_grad():
        hidden_LD = model(torch.tensor([ids]), torch.arange(len(ids))[None], None)[0]
        law_LV = model.network.get_output_embeddings()(hidden_LD)[:, :VOCABULARY].log_softmax(-1)
    return -sum(float(law_LV[place, tokens[place]]) for place in hidden)


def test_the_number_of_a_real_model_is_what_its_procedure_gives_on_average() -> None:
    model, tokens = tiny.backbone("masked_diffusion", vocabulary=VOCABULARY), [2, 0, 1, 1, 2]
    mean_nats = {0: 0.0}
    for count in range(1, 6):
        chosen = [cross_entropy(model, tokens, one) for one in itertools.combinations(range(5), count)]
        mean_nats[count] = math.fsum(chosen) / len(chosen)
    drawn = by_ratio(5)
    expected = math.fsum(weight * mean_nats[count] for count, weight in drawn) / sum(count for count, _ in drawn)
    found = tdlm_rows(model, Batch.of_rows([tokens]), EvaluationSettings(masks_per_sequence=3000, batch_size=500))
    assert found.printed == pytest.approx(expected, rel=0.02)
    truth = math.fsum(mean_nats[count] * 5 / count / 5 for count in range(1, 6)) / 5
    assert float(found.bound.nats_B) / 5 == pytest.approx(truth, rel=0.02)
    assert abs(expected / truth - 1) > 0.06


def test_the_bound_beside_it_is_the_evaluators() -> None:
    model = tiny.backbone("masked_diffusion")
    batch = Batch.of_rows(tiny.random_ids(4, 9).tolist())
    settings = EvaluationSettings(masks_per_sequence=6, batch_size=7)
    found, expected = tdlm_rows(model, batch, settings).bound, row_nats(model, batch, settings)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_a_harder_task_is_under_reported_more() -> None:
    """Cross-entropies that rise with the share of masked tokens, as those of trained models do."""
    size = 64
    weights = tdlm_weights(size).tolist()
    levels = {count: 2 + 8 * (count / size) ** 3 for count in range(1, size + 1)}
    truth = sum(levels.values()) / size
    printed = sum(weights[count] * count * levels[count] for count in levels) / (size * (size - 1) / 2)
    assert truth == pytest.approx(4.0, abs=0.1)
    assert 0.5 < printed / truth < 0.7


def masked_tokens(size: int, weight_of: Tensor) -> MaskedTokens:
    """A sequence for each count from 1 to `size`, with the weights of each count."""
    count_B = torch.arange(1, size + 1)
    group_R = torch.arange(size).repeat_interleave(count_B)
    count_R = count_B[group_R]
    ones_R = torch.ones(len(group_R))
    return MaskedTokens(
        cross_entropy_R=ones_R,
        correct_R=ones_R.bool(),
        confidence_R=ones_R,
        target_R=torch.zeros_like(group_R),
        weight_R=weight_of[count_R],
        ratio_R=count_R / size,
        group_R=group_R,
        tokens_B=torch.full((size,), size),
    )


def test_the_metric_of_the_weights_catches_it() -> None:
    size = 200
    count_N = torch.arange(size + 1).double()
    right = weight_effects(sums(masked_tokens(size, size / count_N.clamp(min=1)), most_frequent=0))
    wrong = weight_effects(sums(masked_tokens(size, tdlm_weights(size)), most_frequent=0))
    assert right["loss_weight/mean"] == pytest.approx(1)
    assert wrong["loss_weight/mean"] == pytest.approx(5 / 12, abs=0.005)
    assert 1 - wrong["loss_weight/mean"] > 20 * wrong["loss_weight/mean_stderr"]


def test_models_of_another_method_are_refused() -> None:
    batch, settings = every_count(4)
    for method in ("autoregressive", "block_diffusion", "tidar"):
        with pytest.raises(SettingsError, match=f"this model is of method {method}"):
            tdlm_rows(tiny.backbone(method), batch, settings)
