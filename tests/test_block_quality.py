"""The measures of `benchmarks/block_quality.py` against slower ones, and what it writes."""

import csv
import gzip
import importlib
import itertools
import json
import math
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from unmask import DiffusionLM, SamplingParams
from unmask.data.sources import held_out
from unmask.evaluation.written import COUNTED_WORDS
from unmask.models.loading import adapted
from unmask.outputs import Score
from unmask.settings.objective import ObjectiveSettings

FOLDER = Path(__file__).parents[1] / "benchmarks"
STORIES = ["Once upon a time, there was a cat.", "Tim had a red ball. He lost it and was sad.", "The end."]


@pytest.fixture(scope="module")
def quality() -> Any:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("block_quality")
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def original(shared_data: Path) -> DiffusionLM:
    return DiffusionLM.from_pretrained(shared_data / "checkpoints" / "stories260k", device="cpu")


def test_stories_are_the_beginnings_of_held_out_ones(quality: Any, shared_data: Path) -> None:
    file = shared_data / "text" / "tinystories_sample.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"].strip() for line in lines]
    unseen = [text for text in texts if held_out(text, 0.05)]
    found = quality.stories([file], 50)
    assert len(found) == 50
    for story, text in zip(found, unseen, strict=False):
        assert text.startswith(story)
        assert len(story.split()) == min(250, len(text.split()))


class Judge:
    """Each of a text's words costs 3 nats, its first letter given."""

    def score(self, texts: list[str]) -> list[Score]:
        return [Score(-3.0 * len(text.split()), 0.0, 1, 1, is_bound=False) for text in texts]


def test_nats_are_those_of_the_continuations_alone(quality: Any) -> None:
    continuations = [" b cccc d", " eeeee fg", " h i j kl"]
    assert {len(one) for one in continuations} == {9}
    found = quality.judged(Judge(), ["a", "a", "a a"], continuations)
    nats = [3.0 * len(one.split()) for one in continuations]
    assert found["judge_nats_per_byte"] == pytest.approx(sum(nats) / 27)
    assert found["judge_stderr"] == pytest.approx(statistics.stdev(nats) / 9 / math.sqrt(3))
    longer = quality.judged(Judge(), ["a"], [" é é"])
    assert longer["judge_nats_per_byte"] == pytest.approx(6 / 6)


def test_nothing_written_costs_nothing(quality: Any) -> None:
    nothing = {"judge_nats_per_byte": 0, "judge_stderr": 0, "judge_perplexity": 1}
    assert quality.judged(Judge(), ["a"], [""]) == nothing
    assert quality.variety([""]) == {"unigram_entropy": 0, "distinct_bigrams": 0, "repeated_4grams": 0}


def test_variety_counts_words_pairs_and_repeated_runs(quality: Any) -> None:
    texts = ["A b c d. A b c d a", "e f g h", "a"]
    words = [list("abcdabcda"), list("efgh"), ["a"]]
    found = quality.variety(texts)
    shares = [count / 14 for count in Counter(itertools.chain(*words)).values()]
    assert found["unigram_entropy"] == pytest.approx(sum(share * math.log2(1 / share) for share in shares))
    assert found["distinct_bigrams"] == pytest.approx((4 + 3) / (8 + 3))
    assert found["repeated_4grams"] == pytest.approx(2 / 7)  # abcda b..: abcd and bcda stood there before
    assert quality.variety([" ".join("x" * 200)])["unigram_entropy"] == 0


def test_only_the_first_words_of_a_text_count(quality: Any) -> None:
    head = [f"{one}{other}" for one, other in itertools.product("abcdefgh", repeat=2)][:COUNTED_WORDS]
    assert quality.variety([" ".join([*head, *head])])["repeated_4grams"] == 0


@pytest.mark.parametrize("block_length", [1, 4, 6])
def test_every_pace_and_threshold_is_a_valid_policy(quality: Any, block_length: int) -> None:
    found = list(quality.policies(block_length, (0.5, 0.9)))
    steps = [one["denoising_steps"] for one in found if "denoising_steps" in one]
    assert steps == {1: [1], 4: [4, 2, 1], 6: [6, 3, 2, 1]}[block_length]
    assert len(found) - len(steps) == (2 if block_length > 1 else 0)
    for one in found:
        SamplingParams(**one).resolved({"block_length": block_length}, "blocks")


def test_the_exact_likelihood_is_the_sum_over_the_stories(quality: Any, original: DiffusionLM) -> None:
    found = quality.likelihood(original, STORIES)
    assert found.nats == pytest.approx(-sum(one.log_likelihood for one in original.score(STORIES)), rel=1e-6)
    assert found.bytes == sum(map(len, STORIES))
    assert not found.is_bound


def test_a_study_measures_every_policy_at_the_present_block_length(quality: Any, shared_data: Path) -> None:
    folder = shared_data / "checkpoints" / "stories260k"
    judge, lm = (DiffusionLM.from_pretrained(folder, device="cpu") for _ in range(2))
    blocks = DiffusionLM(adapted(lm.checkpoint, ObjectiveSettings(method="block_diffusion", block_length=2)))
    study = quality.Study(judge, [" ".join(STORIES)] * 2, 4, (0.1, 0.9))
    scored, results = study.model(blocks, "blocks")
    assert scored["is_bound"] and scored["bits_per_byte_stderr"] > 0
    assert len(results) == 2 * (2 + 2)
    paces = {quality.policy_name(one): one["tokens_per_forward"] for one in results if one["temperature"] == 0}
    assert paces["static 1"] <= 1 < paces["static 2"] <= 2
    same = study.real(judge) | {"model": ""}
    continuations = [" ".join(STORIES)[len(prompt) :] for prompt in study.prompts]
    assert all(text.startswith(" ") for text in continuations)
    assert 0 < same["bytes_per_text"] < len(continuations[0])


def test_equal_stories_have_masks_of_their_own(quality: Any, shared_data: Path) -> None:
    loaded = DiffusionLM.from_pretrained(shared_data / "checkpoints" / "stories260k", device="cpu")
    lm = DiffusionLM(adapted(loaded.checkpoint, ObjectiveSettings(method="block_diffusion", block_length=4)))
    one, two = (quality.likelihood(lm, [STORIES[1]] * number) for number in (1, 2))
    assert two.nats != pytest.approx(2 * one.nats, rel=1e-6)
    assert two.nats == pytest.approx(2 * one.nats, abs=6 * (2 * one.stderr + two.stderr))


def test_the_table_and_the_picture_show_every_setting(quality: Any, tmp_path: Path) -> None:
    measures = dict.fromkeys(("judge_nats_per_byte", "unigram_entropy"), 1.0)
    results = [{"model": "real stories", "method": "real"} | measures]
    results += [
        {"model": name, "method": method, "block_length": length, "temperature": temperature, **policy, **measures}
        | {"tokens_per_forward": pace}
        for temperature in (0.0, 1.0)
        for name, method, length, policy, pace in [
            ("ar", "autoregressive", None, {}, 1.0),
            ("b", "block_diffusion", 4, {"unmasking": "low_confidence_static", "denoising_steps": 2}, 2.0),
            ("b", "block_diffusion", 4, {"unmasking": "low_confidence_dynamic", "confidence_threshold": 0.5}, 1.5),
        ]
    ]
    quality.measure.write_csv(results, tmp_path / "q.csv", first=quality.FIRST_COLUMNS)
    with (tmp_path / "q.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["tokens_per_forward"] for row in rows] == ["", *["1", "2", "1.5"] * 2]
    assert [row["confidence_threshold"] for row in rows] == ["", *["", "", "0.5"] * 2]
    quality.draw(results, tmp_path / "deep" / "q.png")
    assert (tmp_path / "deep" / "q.png").read_bytes().startswith(b"\x89PNG")
