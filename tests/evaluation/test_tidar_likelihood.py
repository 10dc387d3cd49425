"""The likelihood of a TiDAR model: the chain rule of its causal layout, exact and in one forward."""

from __future__ import annotations

import math

import pytest
import torch

from tests.block_cases import Document, batch_of
from tests.references import tidar_loss
from tests.references.stock import IDS, MASK, stock
from tests.tidar_cases import backbone, texts
from unmask.evaluation.answers import Pair, score
from unmask.evaluation.likelihood import is_bound, row_nats, summed
from unmask.lm import DiffusionLM
from unmask.models.backbone import Backbone
from unmask.models.loading import Checkpoint
from unmask.settings.evaluation import AnswerSettings, EvaluationSettings

TEXT = [token for token in IDS if token != MASK]


def counted(model: Backbone) -> list[int]:
    """The widths of the inputs that the network is called with from now on."""
    widths: list[int] = []
    model.decoder.layers[0].register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))  # type: ignore[index,union-attr]
    return widths


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_packed_text_costs_its_chain_rule_in_one_forward(family: str) -> None:
    batch, model = batch_of([[Document(2, 5), Document(0, 4)], [Document(1, 6, 0, 2)]]), backbone(4, family)
    widths = counted(model)
    found = row_nats(model, batch, EvaluationSettings(masks_per_sequence=8))
    assert widths == [batch.ids_BL.shape[1]]
    expected = [0.0, 0.0]
    for row, _, ids, supervised, _ in texts(batch):
        nats = tidar_loss.next_token(stock(family), ids, {MASK})
        expected[row] += math.fsum(nats[place] for place in supervised & nats.keys())
    assert found.nats_B.tolist() == pytest.approx(expected, rel=1e-9)
    assert found.stderr_B.tolist() == [0.0, 0.0]
    assert found.tokens_B.tolist() == [5 + 3, 6]
    assert not is_bound(model)
    assert not summed(found, is_bound(model)).is_bound


def test_a_text_is_scored_as_such() -> None:
    lm = DiffusionLM(Checkpoint(backbone(4), None))
    (found,) = lm.score([TEXT])
    expected = math.fsum(tidar_loss.next_token(stock("qwen3"), TEXT, {MASK}).values())
    assert found.log_likelihood == pytest.approx(-expected, rel=1e-9)
    assert (found.is_bound, found.stderr, found.tokens) == (False, 0.0, len(TEXT) - 1)
    causal = stock("qwen3")(input_ids=torch.tensor([TEXT]), use_cache=False).logits[0, :, :MASK]
    torch.testing.assert_close(lm.logits([TEXT])[0, :, :MASK], causal, rtol=1e-9, atol=1e-9)
    assert bool(lm.logits([TEXT])[0, :, MASK].isinf().all())


def test_answers_are_exact_and_know_whether_they_are_greedy() -> None:
    """What the harness asks: nats of a continuation, and whether greedy decoding writes it."""
    model, network = backbone(4), stock("qwen3")
    context, answer = tuple(TEXT[:3]), tuple(TEXT[3:])
    greedy: list[int] = list(context)
    for _ in range(3):
        with torch.no_grad():
            row = network(input_ids=torch.tensor([greedy]), use_cache=False).logits[0, -1, :MASK]
        greedy.append(int(row.argmax()))
    pairs = [Pair(context, answer), Pair(context, tuple(greedy[3:]))]
    widths = counted(model)
    found = score(model, pairs, AnswerSettings(mc_num=16), greedy=[True, True])
    assert len(widths) == 1
    for one, (before, behind) in zip(found, [(context, answer), (context, tuple(greedy[3:]))], strict=True):
        nats = tidar_loss.next_token(network, [*before, *behind], {MASK})
        expected = math.fsum(nats[place] for place in range(3, 3 + len(behind)))
        assert one.nats == pytest.approx(expected, rel=1e-9)
        assert one.stderr == 0
    assert [one.is_greedy for one in found] == [False, True]
