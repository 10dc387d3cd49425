"""TiDAR decoding gives, token for token, the text of a slow loop that knows no drafts, whatever the drafts were."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.tidar_cases import (
    PROMPTS,
    autoregressive,
    finished,
    params_of,
    random_model,
    rows_of,
    run,
    trained_model,
)
from tests.references.tidar import Law, Stock, decoded
from unmask.decoding.step import Generated, StopRule
from unmask.decoding.tidar import TidarRun
from unmask.models.backbone import Backbone

LENGTH = 17
EOS = 7
MODES = ("parallel", "linear")
MODELS = {"random": random_model, "trained": trained_model}
LAWS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "top_k": 6, "top_p": 0.85},
    {"temperature": 1.5, "repetition_penalty": 1.8},
]


def most_accepted(results: list[Generated]) -> int:
    """The most tokens that one step gave."""
    return max(size for one in results for size, count in enumerate(one.acceptance, start=1) if count)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_is_that_of_autoregression_for_every_draft_length(name: str, mode: str) -> None:
    model = MODELS[name]()
    stock = Stock(model)
    for stops in (frozenset[int](), frozenset({EOS})):
        stop = StopRule(stops)
        expected = [decoded(stock, prompt, Law(), length=LENGTH, stops=stops) for prompt in PROMPTS]
        plain = autoregressive(model, PROMPTS, stop, max_new_tokens=LENGTH)
        assert [list(one.token_ids) for one in plain] == expected
        for draft_length in range(1, 17):
            found = run(model, PROMPTS, stop, max_new_tokens=LENGTH, mode=mode, draft_length=draft_length)
            assert [list(one.token_ids) for one in found] == expected
            assert [one.finish_reason for one in found] == [one.finish_reason for one in plain]
            for one, other in zip(found, plain, strict=True):
                assert one.confidence == pytest.approx(other.confidence, abs=1e-12)
                assert one.forwards <= other.forwards
            if name == "trained" and draft_length > 1:
                assert most_accepted(found) > 1


@pytest.mark.parametrize("mode", MODES)
def test_stops_and_limits_cut_an_accepted_run(mode: str) -> None:
    model = trained_model()
    options: dict[str, Any] = {"draft_length": 6, "mode": mode}
    (whole,) = run(model, PROMPTS[:1], max_new_tokens=40, **options)
    inside = [
        place
        for place, (step, following) in enumerate(itertools.pairwise(whole.revealed_at))
        if step == following and whole.token_ids[place] not in whole.token_ids[:place]
    ]
    assert inside
    for place in inside:
        tokens = whole.token_ids[: place + 1]
        (stopped,) = run(model, PROMPTS[:1], StopRule(frozenset({tokens[-1]})), max_new_tokens=40, **options)
        (limited,) = run(model, PROMPTS[:1], max_new_tokens=place + 1, **options)
        for found, reason in ((stopped, "stop"), (limited, "length")):
            assert (found.token_ids, found.finish_reason) == (tokens, reason)
            assert found.revealed_at == whole.revealed_at[: place + 1]
            assert sum(size * count for size, count in enumerate(found.acceptance, start=1)) == place


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", LAWS, ids=str)
def test_the_gumbel_rule_draws_what_autoregression_draws(options: dict[str, Any], mode: str) -> None:
    options = {"temperature": 1.0, **options}
    for model in (random_model(), trained_model()):
        stock = Stock(model)
        expected = [
            decoded(stock, prompt, Law(**options), length=LENGTH, stops={EOS}, seed=5, sample=2) for prompt in PROMPTS
        ]
        common = {"max_new_tokens": LENGTH, "verification": "gumbel", "seed": 5, "sample": 2, **options}
        stop = StopRule(frozenset({EOS}))
        plain = autoregressive(model, PROMPTS, stop, **common)
        assert [list(one.token_ids) for one in plain] == expected
        accepted = 0
        for draft_length in (1, 2, 3, 4, 7, 16):
            found = run(model, PROMPTS, stop, mode=mode, draft_length=draft_length, **common)
            assert [list(one.token_ids) for one in found] == expected
            accepted = max(accepted, most_accepted(found))
        assert accepted > 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", LAWS, ids=str)
def test_the_match_rule_draws_with_the_uniforms_of_autoregression(options: dict[str, Any], mode: str) -> None:
    options = {"max_new_tokens": LENGTH, "temperature": 1.0, "seed": 3, **options}
    for model in (random_model(), trained_model()):
        plain = autoregressive(model, PROMPTS, **options)
        for draft_length in (1, 2, 4, 9):
            found = run(model, PROMPTS, verification="match", mode=mode, draft_length=draft_length, **options)
            assert [one.token_ids for one in found] == [one.token_ids for one in plain]
    assert most_accepted(found) > 1


@pytest.mark.parametrize("trust", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("draft_length", [1, 2, 5])
def test_every_trust_decodes_the_mixed_law(draft_length: int, trust: float) -> None:
    """Greedily and by Gumbel noise, the first token included."""
    for model in (random_model(), trained_model()):
        stock = Stock(model)
        for options in ({}, {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.3}):
            law = Law(trust=trust, draft_length=draft_length, **options)
            expected = [decoded(stock, prompt, law, length=10, seed=4) for prompt in PROMPTS]
            rule = {"verification": "gumbel"} if options else {}
            found = run(
                model,
                PROMPTS,
                max_new_tokens=10,
                seed=4,
                trust=trust,
                draft_length=draft_length,
                **options,
                **rule,
            )
            assert [list(one.token_ids) for one in found] == expected
    if draft_length > 1:
        assert most_accepted(found) > 1


def test_trust_changes_the_text() -> None:
    texts = {
        trust: run(random_model(), PROMPTS, max_new_tokens=LENGTH, trust=trust)[0].token_ids for trust in (0, 0.5, 1)
    }
    assert len(set(texts.values())) == 3


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=6), min_size=2, max_size=4),
    st.integers(1, 12),
    st.frozensets(st.integers(0, 10), max_size=2),
    st.integers(1, 6),
    st.sampled_from(MODES),
    st.sampled_from([None, "match", "reject", "gumbel"]),
    st.booleans(),
)
def test_a_batch_equals_its_rows(
    prompts: list[list[int]],
    length: int,
    stops: frozenset[int],
    draft_length: int,
    mode: str,
    rule: str | None,
    is_penalised: bool,
) -> None:
    model = trained_model()
    options: dict[str, Any] = {"max_new_tokens": length, "draft_length": draft_length, "mode": mode, "trace": True}
    options |= {"verification": rule, "temperature": 1.0} if rule else {}
    options |= {"repetition_penalty": 1.4} if is_penalised else {}
    together = run(model, prompts, StopRule(stops), **options)
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = run(model, [prompt], StopRule(stops), **options)
        for name in ("token_ids", "forwards", "acceptance", "revealed_at", "finish_reason"):
            assert getattr(alone, name) == getattr(found, name), name
        for name in ("confidence", "log_probability", "entropy"):
            assert getattr(alone, name) == pytest.approx(getattr(found, name), abs=1e-10), name
        assert not stops & set(found.token_ids[:-1])
        assert (found.finish_reason == "stop") == (found.token_ids[-1] in stops)
        check_counts(found, draft_length, mode)


def check_counts(found: Generated, draft_length: int, mode: str) -> None:
    """The histogram, the forwards and the steps tell one story."""
    assert len(found.acceptance) == draft_length
    tokens, steps = len(found.token_ids), sum(found.acceptance)
    assert sum(size * count for size, count in enumerate(found.acceptance, start=1)) == tokens - 1
    assert list(found.revealed_at) == sorted(found.revealed_at)
    assert set(found.revealed_at) == set(range(1, steps + 2)) and found.revealed_at.count(1) == 1
    if mode == "parallel":
        assert found.forwards == 1 + steps
    else:
        assert 1 + steps <= found.forwards <= 1 + 2 * steps
        assert found.forwards <= tokens
    assert len(found.confidence) == len(found.log_probability) == len(found.entropy) == tokens


@pytest.mark.parametrize("rule", ["match", "reject", "gumbel"])
def test_what_is_traced_is_the_law_before_filters(rule: str) -> None:
    model, stock = trained_model(), Stock(trained_model())
    found = run(
        model, PROMPTS, max_new_tokens=9, temperature=0.8, top_k=4, verification=rule, trace=True, draft_length=3
    )
    for prompt, one in zip(PROMPTS, found, strict=True):
        logits_LV = stock.causal([[*prompt, *one.token_ids]])[0, len(prompt) - 1 : -1]
        token_L1 = torch.tensor(one.token_ids)[:, None]
        law_LV = (logits_LV / 0.8).log_softmax(dim=-1)
        entropy_L = torch.special.entr(law_LV.exp()).sum(dim=-1)
        assert one.confidence == pytest.approx(logits_LV.softmax(dim=-1).gather(1, token_L1)[:, 0].tolist(), abs=1e-10)
        assert one.log_probability == pytest.approx(law_LV.gather(1, token_L1)[:, 0].tolist(), abs=1e-10)
        assert one.entropy == pytest.approx(entropy_L.tolist(), abs=1e-10)


def test_seeds_samples_and_repetition() -> None:
    for rule in ("match", "reject", "gumbel"):
        options: dict[str, Any] = {"max_new_tokens": 14, "temperature": 1.0, "verification": rule}
        texts = [run(random_model(), PROMPTS[:1], seed=seed, sample=sample, **options) for seed, sample in SEEDS]
        assert len({one[0].token_ids for one in texts}) == len(SEEDS)
        assert texts[0] == run(random_model(), PROMPTS[:1], seed=0, sample=0, **options)


SEEDS = [(0, 0), (0, 1), (1, 0)]


@pytest.mark.parametrize("mode", MODES)
def test_observe_grows_by_what_is_decided(mode: str) -> None:
    params = params_of(max_new_tokens=11, draft_length=3, mode=mode)
    decoding = TidarRun(trained_model(), rows_of(PROMPTS), params, StopRule())
    before = [0] * len(PROMPTS)
    while not decoding.done:
        decoding.advance()
        for row, count in enumerate(before):
            step = decoding.observe(row)
            assert decoding.observe(row) == step
            assert step.settled == len(step.canvas) == len(step.confidence)
            assert step.revealed == tuple(range(count, len(step.canvas)))
            before[row] = len(step.canvas)
    for row, result in enumerate(decoding.results()):
        step = decoding.observe(row)
        assert (step.canvas, step.confidence, step.forwards) == (result.token_ids, result.confidence, result.forwards)


class Counting:
    """Counts the rows that the head is asked for, in each forward."""

    def __init__(self, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[int] = []
        head = backbone.logits

        def logits(hidden: torch.Tensor) -> torch.Tensor:
            self.asked.append(hidden[..., 0].numel())
            return head(hidden)

        monkeypatch.setattr(backbone, "logits", logits)


@pytest.mark.parametrize("trust", [1.0, 0.5])
def test_the_head_reads_one_block_only(trust: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained_model()
    counting = Counting(model, monkeypatch)
    params = params_of(max_new_tokens=9, draft_length=4, trust=trust)
    decoding = TidarRun(model, rows_of(PROMPTS[:1]), params, StopRule())
    decoding.advance()
    assert counting.asked == [1, 3]
    counting.asked.clear()
    decoding.advance()
    assert counting.asked == [4, 3]
    finished(decoding)
    assert counting.asked[-1] == 4  # a row that ends drafts nothing


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_flex_backend_decodes_the_same() -> None:
    model = trained_model()
    expected = [run(model, PROMPTS, max_new_tokens=6, draft_length=2, mode=mode) for mode in MODES]
    model.attention_backend = "flex"
    try:
        found = [run(model, PROMPTS, max_new_tokens=6, draft_length=2, mode=mode) for mode in MODES]
    finally:
        model.attention_backend = "dense"
    for one, other in zip(found, expected, strict=True):
        assert [row.token_ids for row in one] == [row.token_ids for row in other]
