"""Frames from decoding steps: pieces add up to the text, whatever the tokens' boundaries."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.decoding.step import Step
from unmask.models.tokenizers import byte_tokenizer, decode
from unmask.reports.traces import frame, pieces

TOKENIZER = byte_tokenizer()


@settings(max_examples=60)
@given(st.text(min_size=1, max_size=12), st.data())
def test_pieces_add_up_to_the_text_and_masks_stay(text: str, data: st.DataObject) -> None:
    ids = TOKENIZER(text.encode(errors="ignore").decode(), add_special_tokens=False)["input_ids"]
    assert "".join(piece or "" for piece in pieces(ids, TOKENIZER)) == decode(TOKENIZER, ids)
    masked = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    canvas = [None if hidden else token for token, hidden in zip(ids, masked, strict=True)]
    assert [piece is None for piece in pieces(canvas, TOKENIZER)] == masked


def test_a_character_of_several_bytes_appears_with_its_last_one() -> None:
    ids = TOKENIZER("a\u00e9", add_special_tokens=False)["input_ids"]
    assert pieces(ids, TOKENIZER) == ["a", "", "\u00e9"]


def test_special_tokens_are_named_and_ids_stand_for_themselves_without_a_tokenizer() -> None:
    assert pieces([TOKENIZER.eos_token_id, None], TOKENIZER) == ["<|eos|>", None]
    made = frame(Step((7, None), (0,), (0.5, math.nan), 1), None)
    assert made.pieces == (" 7", None)
    assert made.forwards == 1
