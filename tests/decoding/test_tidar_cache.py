"""What TiDAR decoding keeps and reads equals a fresh pass over the text, after every forward."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from tests.decoding.tidar_cases import PROMPTS, finished, params_of, random_model, rows_of, run, trained_model
from tests.references.tidar import Law, Stock
from unmask.attention import HIDDEN
from unmask.decoding.step import StopRule
from unmask.decoding.tidar import TidarRun
from unmask.models.backbone import Backbone

LENGTH = 15
TOLERANCE = {"rtol": 0.0, "atol": 1e-10}


@pytest.fixture(autouse=True)
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock norm rounds to float32, where the last bit of a sum may become 1e-7."""

    def forward(self: Any, hidden: Tensor) -> Tensor:
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(Qwen3RMSNorm, "forward", forward)


class Recorder:
    """The logits that the head gave since the last look."""

    def __init__(self, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[Tensor] = []
        head = backbone.logits

        def logits(hidden: Tensor) -> Tensor:
            self.taken.append(head(hidden).clone())
            return self.taken[-1]

        monkeypatch.setattr(backbone, "logits", logits)

    def look(self) -> list[Tensor]:
        taken, self.taken = self.taken, []
        return taken


def check_cache(decoding: TidarRun, stock: Stock, texts: list[list[int]], written: list[int]) -> None:
    """Slots hold the keys of the first `written` tokens of each text, and nobody sees any other slot."""
    cache = decoding._cache
    assert cache.length_B.tolist() == written
    hidden = torch.arange(cache.capacity) >= cache.length_B[:, None]
    assert (cache._stored.position[hidden] == HIDDEN).all() and (cache._stored.block[hidden] == -1).all()
    for row, (text, count) in enumerate(zip(texts, written, strict=True)):
        assert cache._stored.position[row, :count].tolist() == list(range(count))
        for layer, (keys, values) in zip(cache.layers, stock.keys_values(text), strict=True):
            assert layer.keys is not None and layer.values is not None
            torch.testing.assert_close(layer.keys[row, :, :count], keys[:, :count], **TOLERANCE)
            torch.testing.assert_close(layer.values[row, :, :count], values[:, :count], **TOLERANCE)


@pytest.mark.parametrize("name", ["random", "trained"])
@pytest.mark.parametrize("trust", [1.0, 0.3])
@pytest.mark.parametrize("draft_length", [1, 2, 3, 5])
def test_a_parallel_step_equals_a_fresh_pass(
    name: str, draft_length: int, trust: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys, the logits that verify, and the drafts' logits, of the block that was chosen."""
    model = random_model() if name == "random" else trained_model()
    stock, law = Stock(model), Law(trust=trust, draft_length=draft_length)
    recorder = Recorder(model, monkeypatch)
    params = params_of(max_new_tokens=LENGTH, draft_length=draft_length, trust=trust)
    decoding = TidarRun(model, rows_of(PROMPTS), params, StopRule())
    while not decoding.done:
        numbers = [text.number for text in decoding._going]
        before = [len(decoding.observe(number).canvas) for number in numbers]
        decoding.advance()
        verifying_BTV, *rest = recorder.look()
        for row, (number, count) in enumerate(zip(numbers, before, strict=True)):
            tokens = [*PROMPTS[number], *decoding.observe(number).canvas]
            first = len(PROMPTS[number]) + count
            for place in range(first, len(tokens)):
                expected_V = stock.next_logits([tokens[:place]], law)[0]
                torch.testing.assert_close(verifying_BTV[row, place - first], expected_V, **TOLERANCE)
        going = [text.number for text in decoding._going]
        texts = [[*PROMPTS[number], *decoding.observe(number).canvas] for number in going]
        if going:
            # The newest token is fed with its drafts: its keys, and what it would tell the masks, come with these.
            check_cache(decoding, stock, texts, [len(text) - 1 for text in texts])
            (drafting_BSV,) = rest
            for row, text in enumerate(texts):
                expected_SV = stock.block([text[:-1]], draft_length)[0, 1:]
                torch.testing.assert_close(drafting_BSV[row], expected_SV, **TOLERANCE)


@pytest.mark.parametrize("name", ["random", "trained"])
@pytest.mark.parametrize("draft_length", [1, 2, 3, 5])
def test_a_linear_step_equals_a_fresh_pass(name: str, draft_length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model() if name == "random" else trained_model()
    stock = Stock(model)
    recorder = Recorder(model, monkeypatch)
    params = params_of(max_new_tokens=LENGTH, draft_length=draft_length, mode="linear")
    decoding = TidarRun(model, rows_of(PROMPTS), params, StopRule())
    second_forwards = 0
    while not decoding.done:
        numbers = [text.number for text in decoding._going]
        before = [[*PROMPTS[number], *decoding.observe(number).canvas] for number in numbers]
        drafts = decoding._steps > 0 and not decoding._is_verifying
        second_forwards += decoding._is_verifying
        decoding.advance()
        logits_BQV, *later = recorder.look()
        for row, text in enumerate(decoding._going if later else ()):
            # Of drafts behind the first one, only those are asked for that a second forward will verify.
            before_first = before[numbers.index(text.number)]
            expected_SV = stock.block([before_first], draft_length - 1)[0, 1:]
            torch.testing.assert_close(later[0][row], expected_SV, **TOLERANCE)
        assert bool(later) == (drafts and decoding._is_verifying)
        for row, (number, text) in enumerate(zip(numbers, before, strict=True)):
            tokens = [*PROMPTS[number], *decoding.observe(number).canvas]
            for place in range(len(text), len(tokens)):
                expected_V = stock.causal([tokens[:place]])[0, -1]
                torch.testing.assert_close(logits_BQV[row, place - len(text)], expected_V, **TOLERANCE)
            if drafts and draft_length > 1:
                expected_V = stock.block([text], draft_length - 1)[0, 0]
                torch.testing.assert_close(logits_BQV[row, 1], expected_V, **TOLERANCE)
        if decoding._going:
            texts = [[*PROMPTS[text.number], *text.tokens] for text in decoding._going]
            check_cache(decoding, stock, texts, [len(text) - 1 for text in texts])
    assert (second_forwards > 0) == (draft_length > 1)


@pytest.mark.parametrize("mode", ["parallel", "linear"])
def test_what_was_evicted_is_never_read_again(mode: str) -> None:
    """Garbage in every given-up slot after each forward changes nothing."""
    model = trained_model()
    options: dict[str, Any] = {"max_new_tokens": LENGTH, "draft_length": 4, "mode": mode}
    expected = run(model, PROMPTS, **options)
    decoding = TidarRun(model, rows_of(PROMPTS), params_of(**options), StopRule())
    while not decoding.done:
        decoding.advance()
        cache = decoding._cache
        given_up = torch.arange(cache.capacity) >= cache.length_B[:, None]
        for layer in cache.layers:
            for slots in (layer.keys, layer.values):
                assert slots is not None
                with torch.inference_mode():
                    slots.masked_fill_(given_up[:, None, :, None], 1e6)
    for one, other in zip(decoding.results(), expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.confidence == pytest.approx(other.confidence, abs=1e-12)


def test_nothing_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parallel step feeds k drafts and k * k masks, and the keys in the cache are never fed again."""
    model = trained_model()
    fed: list[list[int]] = []
    forward = model.forward

    def recording(ids_BL: Tensor, *args: Any, **options: Any) -> Tensor:
        fed.append(ids_BL[0].tolist())
        return forward(ids_BL, *args, **options)

    monkeypatch.setattr(model, "forward", recording)
    params = params_of(max_new_tokens=LENGTH, draft_length=3)
    (result,) = finished(TidarRun(model, rows_of(PROMPTS[:1]), params, StopRule()))
    mask_id = model.diffusion.mask_token_id
    assert fed[0] == [*PROMPTS[0], *[mask_id] * 3]
    assert len(fed) == result.forwards
    for steps, ids in enumerate(fed[1:], start=1):
        newest = max(place for place, step in enumerate(result.revealed_at) if step == steps)
        assert ids[0] == result.token_ids[newest]
        assert len(ids) == 12 and ids[3:] == [mask_id] * 9 and mask_id not in ids[:3]
