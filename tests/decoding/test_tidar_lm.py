"""TiDAR through `DiffusionLM` and the command line: defaults, statistics, stops, streams, scores, refusals."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.decoding.tidar_cases import PROMPTS, trained_model
from tests.references.tidar import Stock
from unmask.cli.main import main
from unmask.errors import SettingsError
from unmask.lm import DiffusionLM
from unmask.models.loading import Checkpoint
from unmask.models.tokenizers import byte_tokenizer
from unmask.settings.decoding import SamplingParams

MODES = ("parallel", "linear")


def on_ids() -> DiffusionLM:
    """A model that decodes token ids, trained with blocks of 4."""
    return DiffusionLM(Checkpoint(trained_model(), None))


@functools.cache
def on_bytes() -> DiffusionLM:
    """Random weights over bytes."""
    tokenizer = byte_tokenizer()
    made = tiny.checkpoint("masked_diffusion", vocabulary=len(tokenizer))
    made.backbone.configure(dataclasses.replace(made.backbone.diffusion, method="tidar", block_length=4))
    return DiffusionLM(Checkpoint(made.backbone, tokenizer))


def test_a_tidar_checkpoint_decodes_by_tidar_with_its_block_and_also_as_plain_autoregression() -> None:
    lm = on_ids()
    resolved = lm.resolved(SamplingParams())
    assert (resolved.decoding, resolved.draft_length, resolved.mode) == ("tidar", 4, "parallel")
    assert (resolved.verification, resolved.trust) == ("greedy", 1.0)
    assert lm.resolved(SamplingParams(temperature=0.5)).verification == "reject"
    drafted = lm.generate(PROMPTS, SamplingParams(max_new_tokens=20))
    plain = lm.generate(PROMPTS, SamplingParams(max_new_tokens=20, decoding="autoregressive"))
    for one, other in zip(drafted, plain, strict=True):
        assert one.token_ids == other.token_ids
        assert one.forwards < other.forwards == 20
        assert len(one.acceptance) == 4 and other.acceptance == ()
        assert other.tokens_per_forward_after_prefill == other.tokens_per_forward == 1
        assert one.tokens_per_forward == 20 / one.forwards
        assert (
            one.tokens_per_forward_after_prefill
            == 19 / (one.forwards - 1)
            == pytest.approx(
                sum(size * count for size, count in enumerate(one.acceptance, start=1)) / sum(one.acceptance)
            )
        )


def test_tokens_per_forward_are_fewer_than_per_step_where_a_step_is_two_forwards() -> None:
    (output,) = on_ids().generate(PROMPTS[0], SamplingParams(max_new_tokens=20, mode="linear"))
    steps, twice = sum(output.acceptance), sum(output.acceptance[1:])
    assert twice > 0
    assert output.forwards == 1 + steps + twice
    assert output.tokens_per_forward_after_prefill == 19 / (output.forwards - 1) < 19 / steps


def test_one_token_comes_from_the_prefill_alone() -> None:
    (output,) = on_ids().generate(PROMPTS[0], SamplingParams(max_new_tokens=1))
    assert (output.forwards, output.acceptance, output.tokens_per_forward_after_prefill) == (1, (0, 0, 0, 0), 0)


def test_samples_seeds_and_batch_sizes() -> None:
    lm = on_ids()
    params = SamplingParams(max_new_tokens=9, n=3, temperature=1.0)
    outputs = lm.generate(PROMPTS, params)
    assert outputs == lm.generate(PROMPTS, params, batch_size=2)
    assert len({output.token_ids for output in outputs[:3]}) == 3
    matched = dataclasses.replace(params, verification="match")
    plain = lm.generate(PROMPTS, dataclasses.replace(params, decoding="autoregressive"))
    assert [one.token_ids for one in lm.generate(PROMPTS, matched)] == [one.token_ids for one in plain]


@pytest.mark.parametrize("mode", MODES)
def test_stop_texts_cut_the_output_where_autoregression_ends_it(mode: str) -> None:
    lm = on_bytes()
    free = SamplingParams(max_new_tokens=30, decoding="autoregressive", ignore_eos=True)
    (whole,) = lm.generate("Once", free)
    stops = [whole.text[start : start + 2] for start in range(0, len(whole.text) - 2, 3)]
    for stop in [stop for stop in stops if stop.isascii()]:
        (plain,) = lm.generate("Once", dataclasses.replace(free, stop=(stop,)))
        params = SamplingParams(max_new_tokens=30, ignore_eos=True, stop=(stop,), mode=mode, draft_length=6)  # type: ignore[arg-type]
        (found,) = lm.generate("Once", params)
        assert (found.text, found.token_ids, found.finish_reason) == (plain.text, plain.token_ids, "stop")
    assert len(stops) > 3


@pytest.mark.parametrize("mode", MODES)
def test_streams_and_streamers_are_told_what_is_decided(mode: str) -> None:
    lm = on_ids()
    params = SamplingParams(max_new_tokens=13, mode=mode)  # type: ignore[arg-type]
    (output,) = lm.generate(PROMPTS[0], params)
    steps = list(lm.stream(PROMPTS[0], params))
    assert [step.forwards for step in steps] == list(range(1, output.forwards + 1))
    assert steps[-1].canvas == output.token_ids
    for before, after in itertools.pairwise(steps):
        assert after.canvas[: len(before.canvas)] == before.canvas
        assert after.revealed == tuple(range(len(before.canvas), len(after.canvas))) != ()
    told: list[tuple[str, list[int]]] = []

    class Recorder:
        def put(self, value: torch.Tensor) -> None:
            told.append(("put", value.flatten().tolist()))

        def put_draft(self, value: torch.Tensor) -> None:
            told.append(("draft", value.tolist()))

        def end(self) -> None:
            told.append(("end", []))

    assert lm.generate(PROMPTS[0], params, streamer=Recorder()) == [output]
    assert [tokens for kind, tokens in told if kind == "put"] == [PROMPTS[0], *(_news(steps))]
    assert told[-1] == ("end", []) and all(kind != "draft" for kind, _ in told)


def _news(steps: list[Any]) -> Iterator[list[int]]:
    for step in steps:
        yield [step.canvas[place] for place in step.revealed]


def test_logits_and_scores_are_those_of_the_causal_layout() -> None:
    lm, stock = on_ids(), Stock(trained_model())
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    expected_LV = stock.causal([ids])[0]
    torch.testing.assert_close(lm.logits([ids])[0], expected_LV)
    (score,) = lm.score([ids])
    picked = expected_LV.log_softmax(dim=-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])
    assert score.log_likelihood == pytest.approx(float(picked.sum()))
    assert (score.stderr, score.is_bound) == (0, False)


def test_a_saved_checkpoint_decodes_the_same_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = on_bytes()
    lm.save_pretrained(tmp_path / "model")
    (output,) = lm.generate("Once", SamplingParams(max_new_tokens=12, draft_length=3))
    arguments = ["--max-new-tokens", "12", "--draft-length", "3", "--dtype", "float64"]
    assert main(["generate", str(tmp_path / "model"), "Once", "--json", *arguments]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert tuple(record["token_ids"]) == output.token_ids
    assert tuple(record["acceptance"]) == output.acceptance
    assert record["tokens_per_forward_after_prefill"] == output.tokens_per_forward_after_prefill
    assert f"{output.tokens_per_forward:.2f} tokens per forward" in captured.err
    assert f"{output.tokens_per_forward_after_prefill:.2f} without the prefill" in captured.err
    assert main(["generate", str(tmp_path / "model"), "Once", "--watch", "--mode", "linear", *arguments]) == 0
    assert "forwards" in capsys.readouterr().out
    assert main(["generate", str(tmp_path / "model"), "Once", "--trust", "0.5", "--mode", "linear"]) == 2
    assert "trust below 1 needs mode `parallel`" in capsys.readouterr().err


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    shown = capsys.readouterr().out
    for option in ("--draft-length", "--mode", "--verification", "--trust"):
        assert option in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trust": 0.5, "mode": "linear"}, r"trust below 1 needs mode `parallel`, got trust 0.5"),
        ({"trust": 1.5}, "trust must lie between 0 and 1, got 1.5"),
        ({"draft_length": 0}, "draft_length must be at least 1, got 0"),
        ({"verification": "greedy", "temperature": 1.0}, "greedy` takes the most likely tokens, got temperature 1.0"),
        ({"verification": "match"}, "at temperature 0 there is nothing to draw"),
        ({"verification": "reject"}, "at temperature 0 there is nothing to draw"),
        ({"verification": "gumbel"}, "at temperature 0 there is nothing to draw"),
        ({"block_length": 4}, "block_length is not used by tidar decoding"),
        ({"decoding": "autoregressive", "trust": 0.5}, "trust is not used by autoregressive decoding"),
        ({"decoding": "autoregressive", "draft_length": 4}, "draft_length is not used by autoregressive decoding"),
        ({"decoding": "autoregressive", "verification": "match", "temperature": 1.0}, "takes `gumbel`"),
        ({"decoding": "autoregressive", "verification": "gumbel"}, "at temperature 0 there is nothing to draw"),
    ],
)
def test_combinations_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        on_ids().generate(PROMPTS[0], SamplingParams(**options))


def test_models_without_blocks_or_masks_say_what_is_missing() -> None:
    blind = DiffusionLM(tiny.checkpoint("autoregressive"))
    with pytest.raises(SettingsError, match="tidar decoding needs a mask token"):
        blind.generate([1, 2], SamplingParams(decoding="tidar", draft_length=2))
    masked = DiffusionLM(tiny.checkpoint("masked_diffusion"))
    with pytest.raises(SettingsError, match="tidar decoding needs draft_length"):
        masked.generate([1, 2], SamplingParams(decoding="tidar"))


@pytest.mark.parametrize("mode", MODES)
def test_drafts_may_reach_beyond_the_context_that_the_text_fills(mode: str) -> None:
    lm = on_ids()
    prompt = [place * place % 11 for place in range(lm.backbone.context_length - 9)]
    params = SamplingParams(max_new_tokens=9, mode=mode, draft_length=16)  # type: ignore[arg-type]
    (output,) = lm.generate(prompt, params)
    (plain,) = lm.generate(prompt, SamplingParams(max_new_tokens=9, decoding="autoregressive"))
    assert output.token_ids == plain.token_ids
