"""Sampled TiDAR text against the enumerated law of autoregression, by chi-square."""

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.decoding.tidar_cases import finished, params_of, random_model
from tests.references.tidar import Law, Stock, chi_square, sequence_law
from unmask.decoding.step import Row, StopRule
from unmask.decoding.tidar import TidarRun
from unmask.decoding.verification import Draft, Places, Verdict, drafted, verified
from unmask.models.backbone import Backbone

PROMPT = [1, 3, 0]
LENGTH = 4
SEQUENCES = 20_000
BATCH = 2_000
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"verification": "reject", "draft_length": 2}, {}),
    ({"verification": "reject", "draft_length": 3}, {}),
    ({"verification": "reject", "draft_length": 5}, {}),
    ({"verification": "reject", "draft_length": 4, "mode": "linear"}, {}),
    ({"verification": "reject", "draft_length": 2, "mode": "linear"}, {"temperature": 1.4}),
    ({"verification": "reject", "draft_length": 3}, {"temperature": 0.7, "top_k": 3, "top_p": 0.9}),
    ({"verification": "reject", "draft_length": 3, "mode": "linear"}, {"temperature": 1.5, "top_k": 4}),
    ({"verification": "reject", "draft_length": 3}, {"trust": 0.4}),
    ({"verification": "reject", "draft_length": 2}, {"trust": 0.0, "top_p": 0.8}),
    ({"verification": "reject", "draft_length": 4}, {"repetition_penalty": 1.5}),
    ({"verification": "match", "draft_length": 4}, {"temperature": 0.7, "top_k": 3, "top_p": 0.9}),
    ({"verification": "match", "draft_length": 4, "mode": "linear"}, {"temperature": 1.3}),
    ({"verification": "gumbel", "draft_length": 3}, {"top_p": 0.9}),
]


def model() -> Backbone:
    """Small, with laws that differ much from place to place; drafts are right now and then."""
    shape = dataclasses.replace(
        tiny.SHAPE, hidden_size=16, intermediate_size=16, num_hidden_layers=1, initializer_range=0.6
    )
    return random_model(seed=2, vocabulary=5, shape=shape)


def law_of(draft_length: int, **options: Any) -> dict[tuple[int, ...], float]:
    law = Law(**{"temperature": 1.0, "draft_length": draft_length, **options})
    return sequence_law(Stock(model()), PROMPT, law, length=LENGTH)


def counted(kind: type[TidarRun] = TidarRun, **options: Any) -> tuple[Counter[tuple[int, ...]], list[int]]:
    """How often each text came, and the sum of the histograms of acceptance."""
    params = params_of(**{"temperature": 1.0, **options}, max_new_tokens=LENGTH, seed=11)
    rows = [Row(tuple(PROMPT), sample, params.seed) for sample in range(SEQUENCES)]
    batches = (rows[start : start + BATCH] for start in range(0, SEQUENCES, BATCH))
    results = [one for batch in batches for one in finished(kind(model(), batch, params, StopRule()))]
    histogram = [sum(counts) for counts in zip(*(one.acceptance for one in results), strict=True)]
    return Counter(one.token_ids for one in results), histogram


@pytest.mark.parametrize(("way", "law"), CASES, ids=str)
def test_the_law_of_the_text_is_that_of_autoregression(way: dict[str, Any], law: dict[str, Any]) -> None:
    counts, histogram = counted(**way, **law)
    assert counts.total() == SEQUENCES
    assert chi_square(counts, law_of(way["draft_length"], **law)) > 1e-3
    assert sum(histogram[1:]) > 0.1 * sum(histogram)


class Unverified(TidarRun):
    """The fault of the first public port: a draft's first token is the diffusion's, and nothing verifies it."""

    def _build(self) -> None:
        super()._build()
        self._first_read = 0
        self._columns_C = torch.arange(len(self._layout))

    def _decide_and_draft(self, hidden_BTD: Tensor, blocks_BJKD: Tensor) -> None:
        self._first_masks = blocks_BJKD[:, :, 0]
        super()._decide_and_draft(hidden_BTD, blocks_BJKD)

    def _read(self, logits_BTV: Tensor, verdict: Verdict) -> Any:
        row_B, width = torch.arange(len(verdict.accepted_B)), verdict.token_BT.shape[1]
        picked = Places(*(field_BT.gather(1, verdict.accepted_B[:, None]) for field_BT in self._places(width)))
        first_B1V = self.backbone.logits(self._first_masks[row_B, verdict.accepted_B])[:, None]
        verdict.token_BT[row_B, verdict.accepted_B] = drafted(first_B1V, self.params, picked).token_BS[:, 0]
        return super()._read(logits_BTV, verdict)


def test_a_first_token_that_nothing_verifies_breaks_the_law() -> None:
    counts, _ = counted(Unverified, verification="reject", draft_length=3)
    assert chi_square(counts, law_of(3)) < 1e-12


def test_another_law_is_told_apart() -> None:
    counts, _ = counted(verification="reject", draft_length=3, trust=0.4)
    assert chi_square(counts, law_of(3)) < 1e-12


def test_the_chi_square_itself() -> None:
    law = {(0,): 0.5, (1,): 0.4999, (2,): 0.0001}
    assert chi_square({(0,): 500, (1,): 500}, law) > 0.9
    assert chi_square({(0,): 600, (1,): 400}, law) < 1e-6
    assert chi_square({(0,): 500, (1,): 499, (3,): 1}, law) == 0


def test_a_rejected_draft_is_replaced_from_what_the_law_has_more() -> None:
    """One place, all outcomes: the share of accepted drafts is 1 - TV(p, q), and the law is p."""
    params = params_of(temperature=1.0, verification="reject")
    p_V = torch.tensor([0.5, 0.3, 0.2, 0.0])
    q_V = torch.tensor([0.1, 0.3, 0.2, 0.4])
    rows = 40_000
    field_B1 = torch.arange(rows)[:, None]
    places = Places(torch.full_like(field_B1, 3), field_B1, field_B1 * 0 + 9, field_B1 * 0)
    draft = drafted(q_V.log().expand(rows, 1, 4), params, places)
    verdict = verified(p_V.log().expand(rows, 2, 4), draft, params, Places(*(f.expand(rows, 2) for f in places)))
    assert verdict.accepted_B.double().mean() == pytest.approx(0.6, abs=0.01)
    shares_V = torch.bincount(verdict.token_BT[:, 0], minlength=4) / rows
    assert shares_V.tolist() == pytest.approx(p_V.tolist(), abs=0.01)
    assert set(verdict.token_BT[verdict.accepted_B == 0, 0].tolist()) == {0}


def test_each_row_is_judged_by_its_own_two_laws() -> None:
    """Laws that do not depend on the text before them: every token that is decided follows its row's."""
    params = params_of(temperature=1.0, verification="reject")
    generator = torch.Generator().manual_seed(2)
    p_TV, q_TV = (2 * torch.randn(2, 4, 4, dtype=torch.float64, generator=generator)).softmax(dim=-1)
    rows = 40_000
    field_BT = torch.arange(4 * rows).view(rows, 4)
    places = Places(field_BT, field_BT, field_BT, field_BT)
    for num_drafts in (3, 4):
        firsts = Places(*(field[:, :num_drafts] for field in places))
        draft = drafted(q_TV[:num_drafts].log().expand(rows, -1, -1), params, firsts)
        verdict = verified(p_TV.log().expand(rows, -1, -1), draft, params, places)
        overlap_T = torch.minimum(p_TV, q_TV).sum(dim=-1)
        for place in range(4):
            token_R = verdict.token_BT[verdict.count_B > place, place]
            counts = {(token,): count for token, count in Counter(token_R.tolist()).items()}
            assert chi_square(counts, {(token,): share for token, share in enumerate(p_TV[place].tolist())}) > 1e-3
            if place < num_drafts:
                reached_R = verdict.accepted_B[verdict.accepted_B >= place]
                assert (reached_R > place).double().mean() == pytest.approx(float(overlap_T[place]), abs=0.03)
        assert len(verdict.count_B.unique()) == 4


def test_equal_laws_accept_everything_and_an_empty_residual_falls_back_to_the_law() -> None:
    params = params_of(temperature=1.0, verification="reject")
    logits_BTV = torch.randn(500, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    field_BT = torch.arange(1500).view(500, 3)
    places = Places(field_BT, field_BT, field_BT, field_BT)
    draft = drafted(logits_BTV[:, :2], params, Places(*(field[:, :2] for field in places)))
    assert verified(logits_BTV, draft, params, places).accepted_B.tolist() == [2] * 500
    # A law above the target's everywhere is none, but it makes each test fail and leaves no residual.
    assert draft.log_BSV is not None
    above = Draft(draft.token_BS, draft.log_BSV + 50)
    verdict = verified(logits_BTV, above, params, places)
    assert verdict.accepted_B.tolist() == [0] * 500
    first_B = verdict.token_BT[:, 0]
    assert (first_B >= 0).all() and len(set(first_B.tolist())) == 6
