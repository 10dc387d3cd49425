"""What tokens after a prompt say: first spaces, characters of several tokens, stops that spell special tokens."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from unmask.models.continuations import MASK_GLYPH, Continuation
from unmask.models.tokenizers import byte_tokenizer, load_tokenizer

BYTES = byte_tokenizer()


def ids(text: str, tokenizer: PreTrainedTokenizerBase = BYTES) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]


def after(text: str, tokenizer: PreTrainedTokenizerBase = BYTES) -> Continuation:
    return Continuation(tokenizer, ids(text, tokenizer))


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(shared_data / "checkpoints" / "stories260k")


@pytest.fixture(scope="module")
def qwen(shared_data: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(shared_data / "tokenizers" / "qwen2.5")


def test_the_first_space_is_there_after_a_prompt_only(stories: PreTrainedTokenizerBase) -> None:
    tokens = ids("time", stories)
    assert after("Once upon a", stories).text(tokens) == " time"
    assert Continuation(stories, []).text(tokens) == "time"
    assert Continuation(stories, [stories.bos_token_id]).text(tokens) == "time"  # type: ignore[list-item]
    assert after("Once " * 400, stories).text(tokens) == " time"
    long_start = [stories.convert_tokens_to_ids("\u2581Once"), *[stories.bos_token_id] * 300]
    assert Continuation(stories, long_start).text(tokens) == " time"  # type: ignore[arg-type]


def test_a_prompt_may_end_inside_a_character() -> None:
    euro = ids("\u20ac")
    reader = Continuation(BYTES, [*ids("a"), euro[0]])
    assert reader.text(euro[1:]) == "\u20ac"
    assert reader.settled(euro[1:2]) == ""
    assert reader.text(ids("b")) == "b"


def test_a_run_of_bytes_settles_with_the_next_whole_token(stories: PreTrainedTokenizerBase) -> None:
    euro = [stories.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "\u20ac".encode()]
    broken = [*euro, stories.convert_tokens_to_ids("<0xFF>")]
    reader = after("a", stories)
    assert reader.text(euro) == "\u20ac" and reader.settled(euro) == ""
    assert reader.text(broken) == "\ufffd" * 4 and reader.settled(broken) == ""
    assert reader.settled([*broken, *ids("b", stories)]) == "\ufffd" * 4 + " b"
    assert reader.until(euro, ("\u20ac",)) == ("", True)


@pytest.mark.parametrize(
    ("text", "stops", "settled"),
    [
        ("abc", (), "abc"),
        ("abc", ("x",), "abc"),
        ("abc<", ("<end>",), "abc"),
        ("abc<en", ("x", "<end>"), "abc"),
        ("abc<eh", ("<end>",), "abc<eh"),
        ("aab", ("abab",), "a"),
        ("abab", ("ababc", "bx"), ""),
        ("a\n", ("\n\n",), "a"),
        ("a\n\nb", ("\n\n",), "a"),
        ("one two", ("two", "one"), ""),
        ("caf\u00e9", ("\u00e9",), "caf"),
    ],
)
def test_what_may_become_a_stop_is_not_settled(text: str, stops: tuple[str, ...], settled: str) -> None:
    assert after("x").settled(ids(text), stops) == settled


def test_the_first_of_several_stops_cuts() -> None:
    reader = after("x")
    assert reader.until(ids("abcdef"), ("ef", "cd")) == ("ab", True)
    assert reader.until(ids("abcdef"), ("cd", "ef")) == ("ab", True)
    assert reader.until(ids("abcdef"), ("bcd", "cd")) == ("a", True)
    assert reader.until(ids("abcdef"), ("x",)) == ("abcdef", False)


def test_stops_may_spell_special_tokens(qwen: PreTrainedTokenizerBase) -> None:
    start = qwen.convert_tokens_to_ids("<|im_start|>")
    tokens = [*ids("Hi", qwen), start, *ids("user", qwen), *ids(" x", qwen)]
    reader = after("A:", qwen)
    assert reader.text(tokens) == "Hiuser x"
    assert reader.until(tokens, ("<|im_start|>",)) == ("Hi", True)
    assert reader.until(tokens, ("<|im_start|>user",)) == ("Hi", True)
    assert reader.until(tokens, ("i<|im_start|>u",)) == ("H", True)
    assert reader.until(tokens, ("Hiuser",)) == ("", True)
    assert reader.until(tokens, ("<|im_end|>",)) == ("Hiuser x", False)
    assert reader.until(tokens, ("user", "<|im_start|>")) == ("Hi", True)
    assert reader.until(tokens, ("<|im_start|>", "iu")) == ("H", True)
    for count, settled in ((1, "Hi"), (2, "Hi"), (3, "Hi")):
        assert reader.settled(tokens[:count], ("<|im_start|>user!",)) == settled
    assert reader.settled(tokens, ("<|im_start|>user!",)) == "Hiuser x"
    assert reader.num_settled(tokens[:3], ("<|im_start|>user!",), start=0, is_final=False) == 1
    assert reader.num_settled(tokens[:3], ("<|im_start|>user!",), start=0, is_final=True) == 3
    assert reader.num_settled(tokens, ("<|im_start|>",), start=0, is_final=True) == 1


def test_a_special_token_inside_a_character_hides_nothing(qwen: PreTrainedTokenizerBase) -> None:
    first, *others = ids("\U00012345", qwen)
    assert others
    tokens = [first, qwen.convert_tokens_to_ids("<|im_end|>"), *others]
    reader = after("a", qwen)
    assert reader.text(tokens) == "\U00012345"
    assert reader.until(tokens, ("\U00012345",)) == ("", True)
    assert reader.until(tokens, ("<|im_end|>",)) == ("", True)


def test_half_of_a_token_is_spelled_with_others(
    qwen: PreTrainedTokenizerBase, stories: PreTrainedTokenizerBase
) -> None:
    for tokenizer, before, rest in ((qwen, "Hello", " wor"), (stories, "Once", " upo"), (BYTES, "a", "\u20ac")):
        tokens = ids(before, tokenizer)
        reader = after("x", tokenizer)
        found = reader.spelled(tokens, rest)
        assert reader.text([*tokens, *found]) == reader.text(tokens) + rest


def test_what_cannot_be_spelled_is_left_out(shared_data: Path) -> None:
    bert = load_tokenizer(shared_data / "tokenizers" / "bert-base-uncased")
    reader = after("x", bert)
    assert reader.spelled(ids("play", bert), "in") == []


def test_a_canvas_is_drawn_with_its_masks_and_spaces(stories: PreTrainedTokenizerBase) -> None:
    reader = after("Once upon a", stories)
    time, there = ids("time", stories), ids("there", stories)
    assert reader.drawn([*time, None, *there]) == f" time{MASK_GLYPH} there"
    assert reader.drawn([None, *there, None]) == f"{MASK_GLYPH} there{MASK_GLYPH}"
    assert reader.drawn([*time, None, *there, None], (" th",)) == f" time{MASK_GLYPH}"
    assert reader.drawn([*time, None], ("time!",)) == f" {MASK_GLYPH}"
    assert reader.drawn(time, ("time!",)) == " "
    assert reader.drawn(time, ("time!",), is_final=True) == " time"
    assert reader.pieces([*time, None, *there], (" th",)) == [" time", None]
    assert "".join(piece or "" for piece in reader.pieces([*time, *there], ("re",))) == " time the"


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from([0x41, 0x20, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xFF, 0xC3]), max_size=14),
    st.data(),
)
def test_settled_text_only_grows(stories: PreTrainedTokenizerBase, values: list[int], data: st.DataObject) -> None:
    stop = data.draw(st.sampled_from(["A", " A", "\u20ac", "\ufffd", "A\u20ac", "\U0001f600 "]))
    tokens = [
        stories.convert_tokens_to_ids(f"<0x{byte:02X}>") if byte > 0x41 else ids("A", stories)[-1] for byte in values
    ]
    reader = after("x", stories)
    before = ""
    for count in range(len(tokens) + 1):
        settled = reader.settled(tokens[:count], (stop,))  # type: ignore[arg-type]
        text, has_stop = reader.until(tokens[:count], (stop,))  # type: ignore[arg-type]
        assert settled.startswith(before) and text.startswith(settled)
        if has_stop:
            break
        before = settled
