"""Answers under block diffusion: the bound of each block behind the true text before it, by enumeration."""

import copy
import functools
from typing import Any

import pytest
import torch

from tests import tiny
from tests.references.block_loss import exact_block_elbo
from unmask.errors import SettingsError
from unmask.evaluation.answers import Pair, score
from unmask.lm import DiffusionLM
from unmask.models.backbone import Backbone
from unmask.settings.decoding import SamplingParams
from unmask.settings.evaluation import AnswerSettings

PAIRS = [((1, 2, 3, 4, 5), (6, 7, 8, 9, 1, 2)), ((), (3, 4, 5)), ((1, 2, 3, 4), (5,)), ((7,), (5, 6, 7, 8, 9, 10, 11))]


@functools.cache
def model(block_length: int) -> Backbone:
    return tiny.backbone("block_diffusion", block_length=block_length)


@functools.cache
def stock(block_length: int) -> Any:
    network = copy.deepcopy(model(block_length).network)
    network.set_attn_implementation("sdpa")
    return network


def whole_blocks(context: tuple[int, ...], answer: tuple[int, ...], block_length: int, mask: int) -> list[int]:
    """The text, with masks up to the end of its last block."""
    return [*context, *answer, *[mask] * (-(len(context) + len(answer)) % block_length)]


@pytest.mark.parametrize("block_length", [1, 3, 4, 6])
def test_an_answer_gets_the_exact_bound_of_its_blocks(block_length: int) -> None:
    mask = model(block_length).diffusion.mask_token_id
    assert mask is not None
    found = score(model(block_length), [Pair(*pair) for pair in PAIRS], AnswerSettings())
    for (context, answer), one in zip(PAIRS, found, strict=True):
        ids = whole_blocks(context, answer, block_length, mask)
        places = list(range(len(context), len(context) + len(answer)))
        exact = exact_block_elbo(stock(block_length), ids, places, block_length, mask, excluded_ids=(mask,))
        assert one.nats == pytest.approx(exact, abs=1e-9)
        assert (one.stderr, one.tokens) == (0, len(answer))


def test_the_chain_rule_reads_each_place_with_the_rest_of_its_block_hidden() -> None:
    mask = model(4).diffusion.mask_token_id
    assert mask is not None
    found = score(model(4), [Pair(*pair) for pair in PAIRS], AnswerSettings(likelihood="chain_rule"))
    for (context, answer), one in zip(PAIRS, found, strict=True):
        nats, text = 0.0, [*context, *answer]
        for place in range(len(context), len(text)):
            stop = (place // 4 + 1) * 4
            ids = torch.tensor([[*text[:place], *[mask] * (stop - place)]])
            block = torch.arange(stop) // 4
            with torch.inference_mode():
                logits = stock(4)(input_ids=ids, attention_mask=(block[:, None] >= block)[None, None]).logits[0, place]
                logits[mask] = -torch.inf
                nats -= float(logits.log_softmax(-1)[text[place]])
        assert one.nats == pytest.approx(nats, abs=1e-9)


def test_longer_blocks_are_estimated_around_their_bound() -> None:
    pair = Pair((1, 2, 3), (6, 7, 8, 9, 1, 2, 3))
    exact = score(model(6), [pair], AnswerSettings(mc_num=63))[0]
    assert exact.stderr == 0
    drawn = [score(model(6), [pair], AnswerSettings(mc_num=4, seed=seed))[0] for seed in range(60)]
    nats = torch.tensor([one.nats for one in drawn], dtype=torch.float64)
    assert abs(float(nats.mean()) - exact.nats) < 4 * float(nats.std()) / 60**0.5
    assert drawn[0].stderr > 0


def test_results_do_not_depend_on_the_batch() -> None:
    pairs = [Pair(*pair) for pair in PAIRS]
    alone = [score(model(4), [pair], AnswerSettings(batch_size=1))[0].nats for pair in pairs]
    together = [one.nats for one in score(model(4), pairs, AnswerSettings(batch_size=64))]
    assert together == pytest.approx(alone, abs=1e-10)


@pytest.mark.parametrize("context", [(1, 2, 3, 4, 5), (9,)])
def test_the_greedy_answer_is_what_block_decoding_writes(context: tuple[int, ...]) -> None:
    lm = DiffusionLM(tiny.checkpoint("block_diffusion", block_length=4))
    # The answer ends with its last block: behind it decoding would reveal places as well.
    length = -len(context) % 4 + 4
    params = SamplingParams(max_new_tokens=length, unmasking="low_confidence_static", ignore_eos=True)
    right = lm.generate(list(context), params)[0].token_ids
    wrong = (*right[:-1], (right[-1] + 1) % 23)
    found = score(model(4), [Pair(context, right), Pair(context, wrong)], AnswerSettings(), greedy=[True, True])
    assert [one.is_greedy for one in found] == [True, False]


def test_long_answers_are_scored_in_windows_of_whole_blocks() -> None:
    answer = tuple(int(one) for one in tiny.random_ids(40, vocabulary=23))
    (found,) = score(model(4), [Pair((1,), answer)], AnswerSettings(max_length=18))
    assert (found.tokens, found.lost) == (40, 0)
    (first,) = score(model(4), [Pair((1,), answer[:15])], AnswerSettings(max_length=18))
    assert found.nats > first.nats
    with pytest.raises(SettingsError, match="must hold a block"):
        score(model(4), [Pair((1,), answer)], AnswerSettings(max_length=3))


def test_guidance_is_refused() -> None:
    with pytest.raises(SettingsError, match="guides masked-diffusion models"):
        score(model(4), [Pair((1,), (2,))], AnswerSettings(cfg_scale=1.0))
