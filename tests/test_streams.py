"""Streams, streamers, chats and outputs say one text, up to the first stop, whatever the decoding and the tokenizer."""

import functools
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase, TextIteratorStreamer

from tests import tiny
from unmask import DiffusionLM, Output, SamplingParams
from unmask.decoding.step import Step
from unmask.dialogue import Dialogue
from unmask.models.continuations import MASK_GLYPH, Continuation
from unmask.models.loading import Checkpoint, adapted, create
from unmask.models.tokenizers import byte_tokenizer, load_tokenizer, train_bpe
from unmask.settings.objective import ObjectiveSettings

WAYS: list[tuple[str, dict[str, Any]]] = [
    ("autoregressive", {}),
    ("masked_diffusion", {}),
    ("masked_diffusion", {"block_length": 4, "denoising_steps": 2}),
    ("masked_diffusion", {"unmasking": "ancestral", "remask": "cap", "remask_eta": 0.5}),
    ("block_diffusion", {}),
    ("block_diffusion", {"fused_commit": False, "unmasking": "random"}),
    ("block_diffusion", {"edit_threshold": 0.05}),
    ("tidar", {}),
    ("tidar", {"mode": "linear"}),
]
TOKENIZERS = ("bytes", "bpe", "stories260k", "tinystories-656k")
# A vocabulary without bytes, and a large one: every decoding reads it alike.
CASES = [*((*way, name) for way in WAYS for name in TOKENIZERS), ("autoregressive", {}, "bert-base-uncased")]
PROMPT = "Once upon"


class Recorder:
    """Keeps the ids after the prompt."""

    def __init__(self) -> None:
        self.ids: list[list[int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.ids.append(value.flatten().tolist())

    def end(self) -> None:
        pass

    @property
    def told(self) -> list[int]:
        return list(itertools.chain(*self.ids[1:]))


@functools.cache
def tokenizer_of(name: str, data: Path) -> PreTrainedTokenizerBase:
    if name == "bytes":
        return byte_tokenizer()
    if name == "bpe":
        with gzip.open(data / "text" / "tinystories_sample.jsonl.gz", "rt", encoding="utf-8") as file:
            return train_bpe([json.loads(line)["text"] for line in itertools.islice(file, 40)], 400)
    return load_tokenizer(data / ("tokenizers" if "bert" in name else "checkpoints") / name)


@functools.cache
def model(method: str, name: str, data: Path) -> DiffusionLM:
    """A random model that writes any token, bytes and special tokens among them."""
    blocks = {"block_length": 4} if method in ("block_diffusion", "tidar") else {}
    made = adapted(create(tiny.SHAPE, tokenizer_of(name, data), seed=0), ObjectiveSettings(method=method, **blocks))  # type: ignore[arg-type]
    return DiffusionLM(Checkpoint(made.backbone.double().eval(), made.tokenizer))


def added(tokenizer: PreTrainedTokenizerBase, prompt: list[int], tokens: list[int]) -> str:
    """What transformers' own decoding of prompt and tokens adds to that of the prompt."""
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    both = tokenizer.decode([*prompt, *tokens], skip_special_tokens=True)
    assert both.startswith(before)
    return both[len(before) :]


def first_stop(tokenizer: PreTrainedTokenizerBase, prompt: list[int], output: Output, stops: list[str]) -> Any:
    """The slow way: token by token, in the text with and in the one without special tokens; tokens kept, and text."""
    for count in range(1, len(output.token_ids) + 1):
        tokens = list(output.token_ids[:count])
        text = added(tokenizer, prompt, tokens)
        ends = [text.find(stop) for stop in stops if stop in text]
        names = [tokenizer.decode([token]) if token in SPECIAL[id(tokenizer)] else "" for token in tokens]
        ends += [len(added(tokenizer, prompt, tokens[:at])) for at, name in enumerate(names) if name in stops]
        if ends:
            return count, text[: min(ends)]
    return len(output.token_ids), added(tokenizer, prompt, list(output.token_ids))


SPECIAL: dict[int, set[int]] = {}


@pytest.mark.parametrize(("method", "options", "name"), CASES, ids=str)
def test_every_way_says_the_text_up_to_the_first_stop(
    method: str, options: dict[str, Any], name: str, shared_data: Path
) -> None:
    lm = model(method, name, shared_data)
    tokenizer = lm.tokenizer
    assert tokenizer is not None
    SPECIAL[id(tokenizer)] = {number for number, one in tokenizer.added_tokens_decoder.items() if one.special}
    prompt = lm.codec.encode(PROMPT)

    @settings(max_examples=2)
    @given(st.data(), st.integers(0, 10**6))
    def check(data: st.DataObject, seed: int) -> None:
        free = SamplingParams(max_new_tokens=14, temperature=1.0, seed=seed, ignore_eos=True, **options)
        (whole,) = lm.generate([prompt], free)
        assert whole.text == added(tokenizer, prompt, list(whole.token_ids))
        begin = data.draw(st.integers(0, max(0, len(whole.text) - 1)))
        inside = whole.text[begin : begin + data.draw(st.integers(1, 6))]
        named = [tokenizer.decode([token]) for token in whole.token_ids if token in SPECIAL[id(tokenizer)]]
        stops = [one for one in (inside, "zzz", *named[:1]) if one]
        params = SamplingParams(**{**vars(free), "stop": tuple(stops)})
        count, text = first_stop(tokenizer, prompt, whole, stops)
        (output,) = lm.generate([prompt], params)
        assert output.text == text
        assert output.token_ids == whole.token_ids[:count]
        _check_stream(lm, prompt, params, output)

    check()


def _check_stream(lm: DiffusionLM, prompt: list[int], params: SamplingParams, output: Output) -> None:
    steps = list(lm.stream(prompt, params))
    assert steps[-1].text == steps[-1].settled_text == output.text
    settled = ["", *(step.settled_text for step in steps)]
    for before, after in itertools.pairwise(settled):
        assert after.startswith(before)
    grown = "".join(after[len(before) :] for before, after in itertools.pairwise(settled))
    assert grown == output.text
    for step in steps:
        assert not any(stop in step.text for stop in params.stop)
        assert step.text.startswith(step.settled_text) or MASK_GLYPH in step.text
        assert step.total == params.max_new_tokens >= len(step.canvas)
    recorder = Recorder()
    lm.generate([prompt], params, streamer=recorder)  # type: ignore[arg-type]
    reader = Continuation(lm.tokenizer, prompt)  # type: ignore[arg-type]
    if any(stop in reader.text(output.token_ids) for stop in params.stop):
        told = reader.text(recorder.told)
        # Half of a token may have no ids of its own where a tokenizer has no bytes.
        assert output.text.startswith(told)
        assert told == output.text or "ByteLevel" not in repr(lm.tokenizer.backend_tokenizer.decoder)  # type: ignore
    elif output.finish_reason == "length":
        assert recorder.told == list(output.token_ids)


@pytest.mark.parametrize("method", ["autoregressive", "masked_diffusion", "block_diffusion", "tidar"])
def test_a_special_token_that_is_a_stop_ends_the_text(method: str, shared_data: Path) -> None:
    lm = model(method, "bytes", shared_data)
    special = "<|bos|>"
    params = SamplingParams(max_new_tokens=30, temperature=1.5, ignore_eos=True, n=60)
    number = lm.tokenizer.convert_tokens_to_ids(special)  # type: ignore[union-attr]
    found = [one for one in lm.generate(PROMPT, params) if number in one.token_ids]
    assert found
    stopped = lm.generate(PROMPT, SamplingParams(**{**vars(params), "stop": (special,)}))
    for whole in found:
        end = whole.token_ids.index(number) + 1
        ended = stopped[whole.sample]
        assert ended.token_ids == whole.token_ids[:end]
        assert ended.finish_reason == "stop"
        assert whole.text.startswith(ended.text)
        assert special not in ended.text


def test_a_trained_model_streams_its_first_space(shared_data: Path) -> None:
    lm = DiffusionLM.from_pretrained(shared_data / "checkpoints" / "stories260k", device="cpu")
    params = SamplingParams(max_new_tokens=30, stop=("named Lily",))
    (output,) = lm.generate("Once upon a", params)
    assert output.text.startswith(" time, there was")
    steps = list(lm.stream("Once upon a", params))
    assert steps[0].text == " time" and steps[-1].text == output.text
    assert not any("named" in step.text and "L" in step.text for step in steps)
    streamer = TextIteratorStreamer(lm.tokenizer, skip_special_tokens=True)  # type: ignore[arg-type]
    lm.generate("Once upon a", params, streamer=streamer)  # type: ignore[arg-type]
    assert "".join(streamer) == "Once upon a" + output.text


@pytest.mark.parametrize("method", ["autoregressive", "masked_diffusion", "block_diffusion", "tidar"])
def test_a_chat_says_what_generate_says(method: str, shared_data: Path) -> None:
    lm = model(method, "stories260k", shared_data)
    for seed in range(3):
        free = SamplingParams(max_new_tokens=16, temperature=1.0, seed=seed)
        (whole,) = lm.generate(PROMPT, free)
        params = SamplingParams(**{**vars(free), "stop": (whole.text[5:7] or "x",)})
        (output,) = lm.generate(PROMPT, params)
        turn = Dialogue(lm, params, is_plain=True).ask(PROMPT)
        shown = ""
        for _ in turn:
            assert turn.settled.startswith(shown)
            shown = turn.settled
        assert turn.text == output.text and output.text.startswith(shown)


def test_an_edited_block_is_not_settled(shared_data: Path) -> None:
    lm = model("block_diffusion", "bytes", shared_data)
    params = SamplingParams(max_new_tokens=8, edit_threshold=0.0, temperature=1.0, seed=1)
    steps: list[Step] = list(lm.stream(PROMPT, params))
    for step in steps[:-1]:
        assert step.settled % 4 in (0, (4 - len(lm.codec.encode(PROMPT))) % 4)
    assert steps[-1].settled == len(steps[-1].canvas)
