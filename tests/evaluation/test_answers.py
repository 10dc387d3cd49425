"""Likelihood of answers against loops over single inputs: exact, unbiased, guided, and blind to the batch."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import tiny
from tests.references import answers as reference
from tests.references import llada_likelihood
from unmask.evaluation.answers import AnswerNats, Pair, score
from unmask.evaluation.masks import plan
from unmask.models.backbone import Backbone
from unmask.settings.evaluation import AnswerSettings

VOCABULARY = 11
CONTEXT, ANSWER = (3, 1, 4, 1), (5, 9, 2, 6)
CHAIN = AnswerSettings(likelihood="chain_rule")


def diffusion(*, shift: bool = False) -> Backbone:
    return tiny.backbone("masked_diffusion", vocabulary=VOCABULARY, logit_shift=shift)


def logits_of(model: Backbone) -> reference.Logits:
    """Full attention over one unpadded input, the mask and unused ids cut off."""

    def logits(ids: list[int]) -> Tensor:
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), torch.arange(len(ids))[None], None)
            return model.network.get_output_embeddings()(hidden)[0, :, :VOCABULARY]

    return logits


def one(model: Backbone, settings: AnswerSettings, answer: tuple[int, ...] = ANSWER, **options: object) -> AnswerNats:
    return score(model, [Pair(CONTEXT, answer)], settings, **options)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("cfg", [0.0, 0.5])
def test_an_answer_with_few_masks_gets_its_exact_bound(shift: bool, cfg: float) -> None:
    model = diffusion(shift=shift)
    expected = reference.bound(
        logits_of(model), list(CONTEXT), list(ANSWER), mask=VOCABULARY, shift=int(shift), cfg=cfg
    )
    found = one(model, AnswerSettings(mc_num=15, cfg_scale=cfg))
    assert found.nats == pytest.approx(expected, abs=1e-9)
    assert (found.stderr, found.tokens) == (0.0, 4)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("cfg", [0.0, 2.0])
def test_the_chain_rule_is_the_loop_from_left_to_right(shift: bool, cfg: float) -> None:
    model = diffusion(shift=shift)
    expected = reference.left_to_right(
        logits_of(model), list(CONTEXT), list(ANSWER), mask=VOCABULARY, shift=int(shift), cfg=cfg
    )
    found = one(model, AnswerSettings(likelihood="chain_rule", cfg_scale=cfg))
    assert found.nats == pytest.approx(expected, abs=1e-9)
    assert found.stderr == 0.0


def test_one_token_takes_one_forward_and_is_exact_under_every_estimator() -> None:
    model = diffusion()
    inputs = []
    model.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0].shape))
    every = [
        one(model, AnswerSettings(**options), (7,), greedy=[True])  # type: ignore[arg-type]
        for options in ({}, {"likelihood": "chain_rule"}, {"sampler": "llada_rounded"}, {"mc_num": 1})
    ]
    assert inputs == [(1, 5)] * 4
    assert len(set(every)) == 1
    assert every[0].stderr == 0.0


def test_autoregression_is_the_stock_class_under_its_own_causal_attention() -> None:
    model = tiny.backbone("autoregressive", vocabulary=VOCABULARY)
    found = one(model, AnswerSettings(), greedy=[True])
    model.network.set_attn_implementation("sdpa")
    tokens, expected = list(CONTEXT + ANSWER), 0.0
    for stop in range(len(CONTEXT), len(tokens)):
        with torch.no_grad():
            row = model.network(torch.tensor([tokens[:stop]])).logits[0, -1]
        expected -= float(row.log_softmax(-1)[tokens[stop]])
    assert found.nats == pytest.approx(expected, abs=1e-9)
    assert (found.stderr, found.is_greedy) == (0.0, False)
    written = list(CONTEXT)
    for _ in range(3):
        with torch.no_grad():
            written.append(int(model.network(torch.tensor([written])).logits[0, -1].argmax()))
    model.network.set_attn_implementation("unmask")
    assert one(model, AnswerSettings(), tuple(written[4:]), greedy=[True]).is_greedy is True


# --- the masks that are drawn -----------------------------------------------------------------------------------


def drawn(length: int, options: AnswerSettings, keys: int) -> tuple[Tensor, Tensor]:
    """The masks and weights of many draws."""
    plans = [plan(length, options, key) for key in range(keys)]
    return torch.cat([one.masked_KN for one in plans]), torch.cat([one.weight_K for one in plans])


def test_the_stratified_estimator_is_unbiased() -> None:
    """Every mask of 4 tokens comes as often as it must, with the weight that makes the mean the exact bound."""
    length, keys, size = 4, 1500, 6
    masked, weight = drawn(length, AnswerSettings(mc_num=size), keys)
    assert torch.allclose(weight * size, length / masked.sum(1).double())
    for pattern in itertools.product([False, True], repeat=length):
        count = sum(pattern)
        if count:
            share = 1 / (length * math.comb(length, count))
            seen = int((masked == torch.tensor(pattern)).all(1).sum())
            deviation = math.sqrt(keys * size * share * (1 - share))
            assert abs(seen - keys * size * share) < 5 * deviation, pattern


def test_the_estimate_is_the_weighted_sum_over_its_masks_and_its_error_is_honest() -> None:
    model, size = diffusion(), 8
    expected = reference.bound(logits_of(model), list(CONTEXT), list(ANSWER), mask=VOCABULARY)
    found = score(model, [Pair(CONTEXT, ANSWER, key) for key in range(400)], AnswerSettings(mc_num=size))
    masks = plan(4, AnswerSettings(mc_num=size), 7)
    by_hand = 0.0
    for masked, weight in zip(masks.masked_KN.tolist(), masks.weight_K.tolist(), strict=True):
        table = reference.log_probabilities(
            logits_of(model), list(CONTEXT), list(ANSWER), tuple(masked), mask=VOCABULARY, shift=0, cfg=0.0
        )
        by_hand -= weight * sum(float(table[i, ANSWER[i]]) for i in range(4) if masked[i])
    assert found[7].nats == pytest.approx(by_hand, abs=1e-9)
    nats = torch.tensor([one.nats for one in found])
    scatter = float(nats.std())
    assert abs(float(nats.mean()) - expected) < 4 * scatter / math.sqrt(len(nats))
    reported = math.sqrt(sum(one.stderr**2 for one in found) / len(found))
    assert 0.7 < reported / scatter < 1.5


def test_even_counts_vary_less_than_independent_ones() -> None:
    """An answer whose nats grow with the square of the count, so that only the counts matter."""

    def spread(options: AnswerSettings) -> float:
        plans = [plan(10, options, key) for key in range(200)]
        return float(torch.stack([(one.masked_KN.sum(1) ** 2 * one.weight_K).sum() for one in plans]).std())

    independent = AnswerSettings(mc_num=16, sampler="llada_rounded", mc_batch=1)
    assert spread(AnswerSettings(mc_num=16)) < 0.4 * spread(independent)
    assert plan(10, independent, 0).stderr(torch.arange(16)) > 0


# Worst relative error of P(count) for these answer lengths in batches of 8, from LLaDA's own formula.
BIAS = {2: 0.25, 3: 0.125, 4: 0.5, 5: 0.125, 6: 0.25, 8: 0.0, 10: 0.25, 12: 0.5, 16: 0.0, 20: 0.5, 24: 0.0}


@pytest.mark.parametrize("length", BIAS)
def test_the_rounded_sampler_has_the_bias_of_the_original(length: int) -> None:
    exact = llada_likelihood.rounded_law(length, 8)
    assert max(abs(share * length - 1) for share in exact) == pytest.approx(BIAS[length], abs=0.01)
    size = 8 * 1500
    masked, _ = drawn(length, AnswerSettings(mc_num=size, sampler="llada_rounded"), 1)
    law = torch.bincount(masked.sum(1), minlength=length + 1)[1:] / size
    assert torch.allclose(law, torch.tensor(exact), atol=5 * math.sqrt(0.25 / size))


def test_the_rounded_sampler_draws_whole_batches_of_the_original() -> None:
    masks = plan(12, AnswerSettings(mc_num=80, sampler="llada_rounded"), 3).masked_KN
    allowed = [sorted(llada_likelihood.rounded_counts(first, 12, 8)) for first in range(1, 13)]
    assert all(group in allowed for group in masks.sum(1).view(10, 8).tolist())


def test_choices_of_a_question_share_their_draws() -> None:
    """Equal keys: version k hides the same share of a long and a short answer, and ranks their places alike."""
    short, long = (plan(length, AnswerSettings(mc_num=20), 5).masked_KN for length in (6, 12))
    assert torch.equal(short.sum(1), (long.sum(1) + 1) // 2)
    assert torch.equal(plan(6, AnswerSettings(mc_num=20), 5).masked_KN, short)
    assert not torch.equal(plan(6, AnswerSettings(mc_num=20), 6).masked_KN, short)
    assert not torch.equal(plan(6, AnswerSettings(mc_num=20, seed=1), 5).masked_KN, short)


def test_common_draws_make_the_difference_of_two_choices_less_noisy() -> None:
    """Over five models: how much two choices have in common is the model's."""
    good, bad = (5, 9, 2, 6, 5, 3), (5, 9, 2, 6, 5, 8)
    spread = [0.0, 0.0]
    for seed in range(5):
        model, options = tiny.backbone("masked_diffusion", vocabulary=VOCABULARY, seed=seed), AnswerSettings(mc_num=6)
        shared = score(model, [Pair(CONTEXT, answer, key) for key in range(100) for answer in (good, bad)], options)
        keyed = [Pair(CONTEXT, answer, 2 * key + i) for key in range(100) for i, answer in enumerate((good, bad))]
        for at, found in enumerate((shared, score(model, keyed, options))):
            nats = [a.nats - b.nats for a, b in zip(found[::2], found[1::2], strict=True)]
            spread[at] += float(torch.tensor(nats).std()) / 5
    assert spread[0] < 0.75 * spread[1]


def test_a_pair_without_key_is_named_by_its_context() -> None:
    model, options = diffusion(), AnswerSettings(mc_num=3)
    first, again, other = score(
        model, [Pair(CONTEXT, ANSWER), Pair(CONTEXT, ANSWER), Pair((*CONTEXT, 0), ANSWER)], options
    )
    assert first == again
    assert first.nats != other.nats


# --- batches ----------------------------------------------------------------------------------------------------

TOKENS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6).map(tuple)
PAIRS = st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=5)
KINDS = [("masked_diffusion", "elbo", 0.0), ("masked_diffusion", "elbo", 0.7), ("masked_diffusion", "chain_rule", 0.0)]


@pytest.mark.parametrize(("method", "likelihood", "cfg"), [*KINDS, ("autoregressive", "elbo", 0.0)])
@settings(max_examples=8)
@given(pairs=PAIRS, batch_size=st.integers(1, 9), mc_num=st.integers(1, 20))
def test_results_do_not_depend_on_the_batch_or_its_neighbours(
    method: str,
    likelihood: str,
    cfg: float,
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]],
    batch_size: int,
    mc_num: int,
) -> None:
    model = tiny.backbone(method, vocabulary=VOCABULARY)
    options = {"likelihood": likelihood, "cfg_scale": cfg, "mc_num": mc_num}
    asked = [Pair(*pair) for pair in pairs]
    together = score(model, asked, AnswerSettings(**options, batch_size=batch_size), greedy=[True] * len(asked))  # type: ignore[arg-type]
    for pair, found in zip(asked, together, strict=True):
        (alone,) = score(model, [pair], AnswerSettings(**options, batch_size=50), greedy=[True])  # type: ignore[arg-type]
        # Between float64 runs lie 1e-15, or 1e-7 where the stock RMSNorm rounds across a float32 border.
        assert found.nats == pytest.approx(alone.nats, abs=1e-6)
        assert found.stderr == pytest.approx(alone.stderr, abs=1e-6, nan_ok=True)
        assert (found.tokens, found.is_greedy) == (alone.tokens, alone.is_greedy)


def test_an_input_that_several_questions_share_is_evaluated_once() -> None:
    """The letters of a multiple choice: the same context, one masked place each."""
    for method, width in (("masked_diffusion", 5), ("autoregressive", 4)):
        model = tiny.backbone(method, vocabulary=VOCABULARY)
        inputs = []
        model.register_forward_pre_hook(lambda module, arguments, seen=inputs: seen.append(tuple(arguments[0].shape)))
        found = score(model, [Pair(CONTEXT, (letter,)) for letter in range(4)], AnswerSettings())
        assert inputs == [(1, width)]
        assert len({one.nats for one in found}) == 4


# --- greedy answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "cfg"), [(False, 0.0), (True, 0.0), (False, 1.5)])
def test_the_greedy_answer_is_the_one_of_the_published_check(shift: bool, cfg: float) -> None:
    model = diffusion(shift=shift)
    written = reference.greedy_answer(logits_of(model), list(CONTEXT), 5, mask=VOCABULARY, shift=int(shift), cfg=cfg)
    changed = [*written[:3], (written[3] + 1) % VOCABULARY, written[4]]
    pairs = [Pair(CONTEXT, tuple(written)), Pair(CONTEXT, tuple(changed)), Pair(CONTEXT, tuple(written))]
    found = score(model, pairs, AnswerSettings(mc_num=2, cfg_scale=cfg), greedy=[True, True, False])
    assert [one.is_greedy for one in found] == [True, False, None]


def test_the_chain_rule_has_its_own_greedy_answer() -> None:
    model, written = diffusion(), list[int]()
    for place in range(4):
        table = reference.log_probabilities(
            logits_of(model),
            list(CONTEXT),
            [*written, *[0] * (4 - place)],
            (False,) * place + (True,) * (4 - place),
            mask=VOCABULARY,
            shift=0,
            cfg=0.0,
        )
        written.append(int(table[place].argmax()))
    assert one(model, CHAIN, tuple(written), greedy=[True]).is_greedy is True
    assert one(model, CHAIN, (*written[:3], (written[3] + 1) % VOCABULARY), greedy=[True]).is_greedy is False


# --- lengths and mistakes ---------------------------------------------------------------------------------------


def test_a_long_context_loses_its_left_end_and_is_counted() -> None:
    model = diffusion()
    context = tuple(int(token) for token in tiny.random_ids(30, vocabulary=VOCABULARY))
    cut, short = score(model, [Pair(context, ANSWER), Pair(context[-6:], ANSWER)], AnswerSettings(max_length=10))
    assert (cut.nats, cut.lost) == (pytest.approx(short.nats, abs=1e-9), 24)
    assert short.lost == 0
    model = tiny.backbone("autoregressive", vocabulary=VOCABULARY)  # the last token is no input, so one more fits
    cut, short = score(model, [Pair(context, ANSWER), Pair(context[-7:], ANSWER)], AnswerSettings(max_length=10))
    assert (cut.nats, cut.lost) == (pytest.approx(short.nats, abs=1e-9), 23)


@pytest.mark.parametrize("method", ["masked_diffusion", "autoregressive"])
def test_a_long_answer_is_scored_in_windows_each_token_once(method: str) -> None:
    model = tiny.backbone(method, vocabulary=VOCABULARY)
    limit = 8 + (method == "autoregressive")
    tokens = tuple(int(token) for token in tiny.random_ids(1 + 21, vocabulary=VOCABULARY))
    windows = list(reference.rolling_windows(21, limit, prefix=1))
    assert len(windows) == 3
    options = AnswerSettings(max_length=8, mc_num=255)  # every mask: exact windows
    parts = score(model, [Pair(*(tuple(tokens[i] for i in part) for part in window)) for window in windows], options)
    (whole,) = score(model, [Pair(tokens[:1], tokens[1:])], options, greedy=[True])
    assert whole.nats == pytest.approx(sum(part.nats for part in parts), abs=1e-6)
    assert (whole.tokens, whole.is_greedy) == (21, False)


def test_autoregressive_windows_are_those_of_the_harness() -> None:
    utils = pytest.importorskip("lm_eval.utils")
    for length in (1, 7, 8, 9, 21, 22):
        pairs = map(utils.make_disjoint_window, utils.get_rolling_token_windows(list(range(1, length + 1)), 0, 8, 1))
        ours = [(list(context), list(scored)) for context, scored in reference.rolling_windows(length, 9, prefix=1)]
        assert ours == list(pairs)


def test_an_empty_answer_is_certain() -> None:
    found = one(diffusion(), AnswerSettings(), (), greedy=[True])
    assert found == AnswerNats(0.0, 0.0, 0, True, 0)


def test_mistakes_are_named() -> None:
    causal = tiny.backbone("autoregressive", vocabulary=VOCABULARY)
    cases = [
        (lambda: one(causal, AnswerSettings(cfg_scale=1.0)), "this one is autoregressive"),
        (lambda: one(diffusion(), AnswerSettings(max_length=500)), "at most the model's context, 128, got 500"),
        (lambda: one(diffusion(), AnswerSettings(), (VOCABULARY,)), "holds the mask token"),
        (lambda: one(diffusion(), AnswerSettings(), (99,)), "must lie between 0 and 11"),
        (lambda: score(causal, [Pair((), ANSWER)], AnswerSettings()), "without context"),
        (lambda: score(diffusion(shift=True), [Pair((), ANSWER)], AnswerSettings()), "without context"),
        (lambda: one(diffusion().train(), AnswerSettings()), "training mode"),
        (lambda: AnswerSettings(sampler="llada_rounded", mc_num=12), "multiple of mc_batch"),
        (lambda: AnswerSettings(mc_num=0), "mc_num must be at least 1"),
        (lambda: AnswerSettings(cfg_scale=-1), "cfg_scale must be at least 0"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
