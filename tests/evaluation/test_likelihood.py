"""The likelihood evaluator against enumeration: exact where it is exact, unbiased where it samples."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.references import likelihood as reference
from unmask.data.batch import Batch
from unmask.diffusion.corruption import Corruption, count_weights, counts
from unmask.diffusion.schedules import Schedule
from unmask.evaluation.likelihood import row_nats
from unmask.models.backbone import Backbone
from unmask.objectives import masked_diffusion
from unmask.objectives.example import Example
from unmask.objectives.loss import row_losses
from unmask.settings.evaluation import EvaluationSettings

VOCABULARY, LENGTH = 3, 4
TOKENS = [2, 0, 1, 1]


def cross_entropies(model: Backbone, tokens: list[int], masked: tuple[bool, ...]) -> list[float]:
    """Nats of every place by full logits over the allowed ids, with the given places masked."""
    ids = [model.diffusion.mask_token_id if hidden else token for token, hidden in zip(tokens, masked, strict=True)]
    with torch.no_grad():
        hidden_states = model(torch.tensor([ids]), torch.arange(len(ids))[None], None)
        logits = model.network.get_output_embeddings()(hidden_states)[0, :, :VOCABULARY]
    return (-logits.log_softmax(-1)[range(len(tokens)), tokens]).tolist()


def estimator(model: Backbone, tokens: list[int], masked: tuple[bool, ...], losses: object = None) -> float:
    """What the training objective's own machinery makes of one masked set, in nats per sequence."""
    batch = Batch.of_rows([tokens])
    masked_BL = torch.tensor([masked])
    count = masked_BL.sum(1, keepdim=True)
    weight = count_weights(count, torch.full_like(count, len(tokens)), Schedule("linear")).expand(1, len(tokens))
    made = masked_diffusion.corrupted_example(
        batch, Corruption(masked_BL, weight, weight), mask_token_id=VOCABULARY, logit_shift=False
    )
    with torch.no_grad():
        if callable(losses):
            nats = losses(made)
        else:
            nats = row_losses(model(made.ids_BL, made.layout.position_ids, None), made, model.logits)
    return float((nats * made.weight_R).sum())


def exact_expectation(model: Backbone, tokens: list[int], losses: object = None) -> float:
    """The estimator's expectation: counts uniform on 1..n, places uniform given their count."""
    length = len(tokens)
    patterns = [one for one in itertools.product([False, True], repeat=length) if any(one)]
    return math.fsum(estimator(model, tokens, one, losses) / length / math.comb(length, sum(one)) for one in patterns)


def test_the_bound_of_an_enumerable_model_equals_its_exact_value() -> None:
    model = tiny.backbone("masked_diffusion", vocabulary=VOCABULARY)
    expected = reference.exact_elbo(TOKENS, lambda masked: cross_entropies(model, TOKENS, masked))
    assert exact_expectation(model, TOKENS) == pytest.approx(expected, abs=1e-6)
    settings = EvaluationSettings(masks_per_sequence=4000, batch_size=500)
    found = row_nats(model, Batch.of_rows([TOKENS]), settings)
    assert 0 < float(found.stderr_B) < 0.05
    assert abs(float(found.nats_B) - expected) < 4 * float(found.stderr_B)


def test_the_bound_of_the_bayes_predictor_is_the_log_likelihood() -> None:
    law = torch.rand([VOCABULARY] * LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    law /= law.sum()
    predict = reference.bayes_predictor(law)

    def losses(made: Example) -> Tensor:
        found = []
        for row, target in zip(made.row_R.tolist(), made.target_R.tolist(), strict=True):
            line, place = divmod(row, LENGTH)
            masked = tuple((made.ids_BL[line] == VOCABULARY).tolist())
            found.append(-predict(TOKENS, masked)[place, target])
        return torch.stack(found)

    model = tiny.backbone("masked_diffusion", vocabulary=VOCABULARY)
    expected = -math.log(float(law[tuple(TOKENS)]))
    assert exact_expectation(model, TOKENS, losses) == pytest.approx(expected, abs=1e-6)
    settings = EvaluationSettings(masks_per_sequence=64)
    found = row_nats(model, Batch.of_rows([TOKENS]), settings, losses=losses)
    assert abs(float(found.nats_B) - expected) < 4 * float(found.stderr_B)


def test_each_place_is_masked_equally_often() -> None:
    """The evaluator's own masks: 16 counts of 4 tokens hold each count four times, and no place is preferred."""
    seen = torch.zeros(LENGTH)
    sizes: list[int] = []

    def losses(made: Example) -> Tensor:
        masked = made.ids_BL == VOCABULARY
        seen.add_(masked.sum(0))
        sizes.extend(masked.sum(1).tolist())
        return torch.zeros(len(made.row_R))

    model = tiny.backbone("masked_diffusion", vocabulary=VOCABULARY)
    batch = Batch.of_rows([TOKENS] * 500)
    row_nats(model, batch, EvaluationSettings(masks_per_sequence=16, batch_size=4000), losses=losses)
    assert [sizes.count(count) for count in range(1, 5)] == [2000] * 4
    # 8,000 masks at rate 5/8: standard error 43 a place.
    assert bool(((seen - 5000).abs() < 5 * 43).all())


def test_counts_are_not_biased_by_rounding_as_the_original_harness_is() -> None:
    """LLaDA's rounded counts are wrong by half for 4 tokens in batches of 8; ours are exactly uniform."""
    offsets = (torch.arange(1000, dtype=torch.float64) + 0.5)[:, None] / 1000
    times = (offsets + torch.arange(8) / 8) % 1
    drawn = counts(times, torch.full_like(times, 4, dtype=torch.int64), Schedule("linear"))
    assert torch.bincount(drawn.flatten()).tolist()[1:] == [2000] * 4


def test_autoregressive_likelihood_is_the_chain_rule() -> None:
    model = tiny.backbone("autoregressive", vocabulary=5)
    tokens = [0, 3, 1, 4, 2, 2]
    expected = 0.0
    model.network.set_attn_implementation("sdpa")  # the stock causal attention, not ours
    for length in range(1, len(tokens)):
        with torch.no_grad():
            logits = model.network(torch.tensor([tokens[:length]])).logits[0, -1]
        expected -= float(logits.log_softmax(-1)[tokens[length]])
    model.network.set_attn_implementation("unmask")
    found = row_nats(model, Batch.of_rows([tokens]), EvaluationSettings())
    assert float(found.nats_B) == pytest.approx(expected, abs=1e-10)
    assert (float(found.stderr_B), int(found.tokens_B)) == (0.0, 5)


@pytest.mark.parametrize("method", ["autoregressive", "masked_diffusion"])
def test_results_do_not_depend_on_the_batch_or_on_padding(method: str) -> None:
    model = tiny.backbone(method)
    rows = [tiny.random_ids(length, seed=length).tolist() for length in (9, 3, 6)]
    together = row_nats(model, Batch.of_rows(rows), EvaluationSettings(batch_size=5))
    for number, row in enumerate(rows):
        alone = Batch.of_rows([row])
        alone.uid_B[0] = number
        single = row_nats(model, alone, EvaluationSettings(batch_size=100))
        # Cross-entropies are float32; the masks are the same.
        assert float(single.nats_B) == pytest.approx(float(together.nats_B[number]), rel=1e-5)
        assert int(single.tokens_B) == int(together.tokens_B[number])


def test_the_standard_error_is_honest() -> None:
    """Over many seeds the estimates scatter as the reported standard error says, to within sampling error."""
    model = tiny.backbone("masked_diffusion", vocabulary=11)
    batch = Batch.of_rows([tiny.random_ids(12, vocabulary=11).tolist()])
    found = [row_nats(model, batch, EvaluationSettings(masks_per_sequence=16, seed=seed)) for seed in range(150)]
    scatter = float(torch.cat([one.nats_B for one in found]).std())
    reported = float(torch.cat([one.stderr_B for one in found]).square().mean().sqrt())
    assert 0.7 < reported / scatter < 1.5


def test_a_model_in_training_mode_is_refused() -> None:
    model = tiny.backbone("autoregressive").train()
    with pytest.raises(ValueError, match="training mode"):
        row_nats(model, Batch.of_rows([[1, 2, 3]]), EvaluationSettings())
