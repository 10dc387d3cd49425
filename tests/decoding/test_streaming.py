"""Streaming: the streamers of transformers are told the prompt, settled tokens once and drafts in between."""

import itertools
from typing import Any

import pytest
import torch
from transformers import TextIteratorStreamer, TextStreamer
from transformers.generation.streamers import TextDiffusionStreamer

from tests import tiny
from unmask.errors import SettingsError
from unmask.lm import DiffusionLM
from unmask.models.loading import Checkpoint
from unmask.models.tokenizers import byte_tokenizer
from unmask.settings.decoding import SamplingParams

PROMPT = [3, 1, 4, 1, 5]
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("autoregressive", {}, {}),
    ("masked_diffusion", {}, {}),
    ("masked_diffusion", {}, {"remask": "cap"}),
    ("block_diffusion", {"block_length": 4}, {}),
    ("block_diffusion", {"block_length": 4}, {"unmasking": "random"}),
    ("block_diffusion", {"block_length": 4}, {"fused_commit": False}),
    ("block_diffusion", {"block_length": 4}, {"edit_threshold": 0.1}),
]


class Recorder:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, list[int]]] = []

    def put(self, value: torch.Tensor) -> None:
        self.told.append(("put", value.flatten().tolist()))

    def put_draft(self, value: torch.Tensor) -> None:
        self.told.append(("draft", value.tolist()))

    def end(self) -> None:
        self.told.append(("end", []))


@pytest.mark.parametrize(("method", "objective", "options"), CASES, ids=str)
def test_settled_tokens_are_told_once_and_in_order(
    method: str, objective: dict[str, Any], options: dict[str, Any]
) -> None:
    lm = DiffusionLM(tiny.checkpoint(method, **objective))
    params = SamplingParams(max_new_tokens=10, **options)
    recorder = Recorder()
    (output,) = lm.generate(PROMPT, params, streamer=recorder)
    assert output == lm.generate(PROMPT, params)[0]
    puts = [tokens for kind, tokens in recorder.told if kind == "put"]
    assert puts[0] == PROMPT
    assert list(itertools.chain(*puts[1:])) == list(output.token_ids)
    assert recorder.told[-1] == ("end", []) and recorder.told.count(("end", [])) == 1
    drafts = [tokens for kind, tokens in recorder.told if kind == "draft"]
    assert bool(drafts) == (method != "autoregressive")
    for tokens in drafts:
        assert all(token < lm.backbone.diffusion.vocabulary_size for token in tokens)


def test_a_streamer_of_transformers_writes_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = byte_tokenizer()
    made = tiny.checkpoint("block_diffusion", vocabulary=len(tokenizer), block_length=4)
    lm = DiffusionLM(Checkpoint(made.backbone, tokenizer))
    params = SamplingParams(max_new_tokens=12, temperature=1.0, seed=3)
    (output,) = lm.generate("Once", params)
    for kind in (TextStreamer, TextDiffusionStreamer):
        lm.generate("Once", params, streamer=kind(tokenizer, skip_prompt=True, skip_special_tokens=True))
        written = capsys.readouterr().out
        assert tokenizer.decode(output.token_ids, skip_special_tokens=True) in written.replace("\x1b8\x1b[J", "")
    iterator = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    lm.generate("Once", params, streamer=iterator)
    assert "".join(iterator) == tokenizer.decode(output.token_ids, skip_special_tokens=True)


def test_several_texts_and_logits_are_refused() -> None:
    lm = DiffusionLM(tiny.checkpoint("block_diffusion"))
    for prompts, params in (([PROMPT, PROMPT], SamplingParams()), (PROMPT, SamplingParams(n=2))):
        with pytest.raises(SettingsError, match="A streamer takes one text"):
            lm.generate(prompts, params, streamer=Recorder())
    greedy = Recorder()
    greedy._takes_logits = True  # type: ignore[attr-defined]
    with pytest.raises(SettingsError, match="asks for logits"):
        lm.generate(PROMPT, SamplingParams(max_new_tokens=4), streamer=greedy)
