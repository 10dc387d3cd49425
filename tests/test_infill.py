"""Filling gaps: the pieces stay byte for byte, the gaps are read in place, options mean what they say."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.errors import PromptError, SettingsError
from unmask.lm import DiffusionLM
from unmask.models.loading import Checkpoint, adapted, create, load
from unmask.models.tokenizers import byte_tokenizer
from unmask.settings.decoding import SamplingParams
from unmask.settings.model import ModelSettings
from unmask.settings.objective import ObjectiveSettings

SHAPE = ModelSettings(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.3,
)


def tiny_lm(*, logit_shift: bool = False) -> DiffusionLM:
    tokenizer = byte_tokenizer()
    checkpoint = adapted(
        create(SHAPE, tokenizer, seed=1), ObjectiveSettings(method="masked_diffusion", logit_shift=logit_shift)
    )
    return DiffusionLM(Checkpoint(checkpoint.backbone.double().eval(), tokenizer))


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    return tiny_lm()


@settings(max_examples=25)
@given(st.lists(st.text(max_size=12), min_size=2, max_size=4), st.integers(1, 5))
def test_pieces_are_kept_byte_for_byte(lm: DiffusionLM, pieces: list[str], length: int) -> None:
    (output,) = lm.infill([pieces], SamplingParams(infill_length=length, temperature=1.0, seed=length))
    assert len(output.infills) == len(pieces) - 1
    expected = pieces[0]
    for infill, piece in zip(output.infills, pieces[1:], strict=True):
        expected += infill + piece
    assert output.text == expected
    assert len(output.token_ids) == length * (len(pieces) - 1)


def test_a_gap_sees_what_follows_it(lm: DiffusionLM) -> None:
    params = SamplingParams(infill_length=6)
    one, other = lm.infill([["def f(", "): pass"], ["def f(", ") -> 77"]], params)
    assert one.token_ids != other.token_ids


@pytest.mark.parametrize("logit_shift", [False, True])
def test_texts_of_different_shapes_in_one_batch_equal_single_ones(logit_shift: bool) -> None:
    lm = tiny_lm(logit_shift=logit_shift)
    texts = [["a", "bcd"], ["longer than that", "x", " and the end"], ["", "only behind"]]
    params = SamplingParams(infill_length=3, n=2, temperature=0.8, denoising_steps=2, seed=4)
    together = lm.infill(texts, params)
    alone = [output for text in texts for output in lm.infill([text], params)]
    assert [one.text for one in together] == [one.text for one in alone]
    assert [(one.prompt, one.sample) for one in together] == [
        (number, sample) for number in range(3) for sample in (0, 1)
    ]


def test_each_gap_may_have_its_length_and_ends_at_a_stop(lm: DiffusionLM) -> None:
    free = lm.infill([["a", "b", "c"]], SamplingParams(infill_length=(2, 5), ignore_eos=True))[0]
    assert len(free.token_ids) == 7
    stop = free.infills[1][1]
    cut = lm.infill([["a", "b", "c"]], SamplingParams(infill_length=(2, 5), stop=stop, ignore_eos=True))[0]
    assert cut.token_ids == free.token_ids
    assert cut.infills[1] == free.infills[1].partition(stop)[0]
    assert cut.text == f"a{cut.infills[0]}b{cut.infills[1]}c"


def test_an_end_token_ends_its_gap_only(lm: DiffusionLM) -> None:
    params = SamplingParams(infill_length=(4, 4), ignore_eos=True)
    free = lm.infill([["a", "b", "c"]], params)[0]
    first = free.token_ids[2]
    cut = lm.infill([["a", "b", "c"]], SamplingParams(infill_length=(4, 4), ignore_eos=True, stop_token_ids=first))[0]
    assert cut.token_ids == free.token_ids
    assert free.infills[0].startswith(cut.infills[0])
    assert len(cut.infills[0]) < len(free.infills[0])


def test_mistakes_are_named(lm: DiffusionLM) -> None:
    with pytest.raises(PromptError, match="at least two pieces"):
        lm.infill([["only one"]], SamplingParams(infill_length=(1,)))
    with pytest.raises(PromptError, match="at least two pieces"):
        lm.infill(["a text"], SamplingParams(infill_length=1))
    with pytest.raises(SettingsError, match=r"one number for all or one each \(2\)"):
        lm.infill([["a", "b", "c"]], SamplingParams(infill_length=(1, 2, 3)))
    with pytest.raises(SettingsError, match="infill_length must give"):
        lm.infill([["a", "b"]])
    with pytest.raises(SettingsError, match="infill_length belongs to infill"):
        lm.generate("a", SamplingParams(infill_length=3))
    with pytest.raises(SettingsError, match="whole text in view"):
        lm.infill([["a", "b"]], SamplingParams(infill_length=3, cache="prefix"))
    with pytest.raises(SettingsError, match="infill_length is not used by autoregressive"):
        lm.infill([["a", "b"]], SamplingParams(infill_length=3, decoding="autoregressive"))
    with pytest.raises(PromptError, match="exceed the model's context of 256"):
        lm.infill([["a" * 200, "b" * 60]], SamplingParams(infill_length=3))


def test_a_tokenizer_that_puts_a_space_before_texts_does_not_put_one_into_gaps(shared_data: Path) -> None:
    checkpoint = adapted(
        load(shared_data / "checkpoints" / "stories260k"), ObjectiveSettings(method="masked_diffusion")
    )
    lm = DiffusionLM(checkpoint)
    first, second = lm.codec.encode_pieces(["Once upon", " a time"])
    whole = lm.codec.encode("Once upon a time")
    assert [*first, *second] == whole
    (output,) = lm.infill([["Once upon a time, there was a", " girl named Lily."]], SamplingParams(infill_length=4))
    assert output.text == "Once upon a time, there was a" + output.infills[0] + " girl named Lily."
