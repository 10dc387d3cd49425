"""Tokenised text and packed rows: nothing is lost, bytes add up, and rows are functions of the step."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data.packing import PackedText
from unmask.data.rows import rows_of_step
from unmask.data.tokenized import TokenizedText, byte_lengths
from unmask.errors import DataError
from unmask.models.tokenizers import byte_tokenizer, train_bpe

BOS, EOS = 999, 998


def tokenized(lengths: list[int]) -> TokenizedText:
    """Documents of the given lengths whose tokens count up, so that each one is recognisable."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(starts[-1])
    return TokenizedText(np.arange(total, dtype=np.uint32), np.ones(total, dtype=np.uint16), starts)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.integers(2, 9), st.booleans())
def test_rows_hold_every_token_once_and_in_order(lengths: list[int], context_length: int, with_bos: bool) -> None:
    if sum(lengths) == 0:
        return
    packed = PackedText(tokenized(lengths), context_length=context_length, bos=BOS if with_bos else None)
    batch = packed.batch(np.arange(len(packed)), 0, len(packed), step=0)
    supervised = batch.supervised_BL
    assert batch.ids_BL[supervised].tolist() == list(range(sum(lengths)))
    assert int(batch.bytes_BL.sum()) == sum(lengths)
    ids, document = batch.ids_BL, batch.document_BL
    assert bool((document[~supervised & (ids != BOS)] == -1).all())
    # Full rows waste at most one place, and only where BOS would stand alone.
    padding = (document == -1).sum(dim=1).tolist()
    assert all(count <= int(with_bos) for count in padding[:-1])
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for row in range(len(packed)):
        for number in range(int(document[row].max()) + 1):
            tokens = ids[row][document[row] == number].tolist()
            assert (tokens[0] == BOS) == with_bos
            body = tokens[int(with_bos) :]
            assert len({int(owner[token]) for token in body}) == 1


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any),
    st.integers(2, 24),
    st.sampled_from([2, 3, 4, 8]),
    st.booleans(),
)
def test_what_ends_a_document_is_filled_up_to_whole_blocks(
    lengths: list[int], context_length: int, fill: int, with_bos: bool
) -> None:
    packed = PackedText(
        tokenized(lengths), context_length=context_length, bos=BOS if with_bos else None, fill=fill, eos=EOS
    )
    batch = packed.batch(np.arange(len(packed)), 0, len(packed), step=0)
    assert batch.fill_BL is not None
    assert batch.bytes_BL is not None
    text_BL = batch.supervised_BL & ~batch.fill_BL
    assert batch.ids_BL[text_BL].tolist() == list(range(sum(lengths)))
    assert batch.bytes_BL.tolist() == text_BL.long().tolist()
    assert bool((batch.ids_BL[batch.fill_BL] == EOS).all())
    assert bool(batch.supervised_BL[batch.fill_BL].all())
    kept = (batch.document_BL >= 0) & ~batch.fill_BL
    assert packed.mean_length == pytest.approx(float(kept.sum()) / len(packed))
    assert packed.supervised_share == pytest.approx(float(text_BL.sum() / kept.sum()))
    ends = set((np.cumsum(lengths) - 1).tolist())
    for row in range(len(packed)):
        document = batch.document_BL[row]
        # One piece follows another without a gap.
        used = int((document >= 0).sum())
        assert sorted(document[:used].tolist()) == document[:used].tolist()
        for number in range(int(document.max()) + 1):
            (place,) = (document == number).nonzero(as_tuple=True)
            size = len(place) - int(batch.fill_BL[row, place].sum())
            last = int(batch.ids_BL[row, int(place[0]) + size - 1])
            room = context_length - int(place[0])
            wanted = min(-(-size // fill) * fill, room) if last in ends else size
            assert len(place) == wanted


@settings(max_examples=100)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 5))
def test_every_epoch_visits_every_row_once_whatever_the_batch(num_rows: int, batch_size: int, seed: int) -> None:
    steps = 3 * num_rows
    drawn = np.concatenate(
        [rows_of_step(step, batch_size=batch_size, num_rows=num_rows, seed=seed) for step in range(steps)]
    )
    for epoch in range(len(drawn) // num_rows):
        assert sorted(drawn[epoch * num_rows : (epoch + 1) * num_rows].tolist()) == list(range(num_rows))
    wide = rows_of_step(0, batch_size=2 * batch_size, num_rows=num_rows, seed=seed)
    assert wide.tolist() == drawn[: 2 * batch_size].tolist()


def test_epochs_have_orders_of_their_own() -> None:
    first = rows_of_step(0, batch_size=50, num_rows=50, seed=0).tolist()
    assert first != rows_of_step(1, batch_size=50, num_rows=50, seed=0).tolist()
    assert first != rows_of_step(0, batch_size=50, num_rows=50, seed=1).tolist()


@settings(max_examples=80)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(texts: list[str]) -> None:
    texts = [text.encode("utf-8", errors="ignore").decode("utf-8") for text in texts]
    tokenizer = byte_tokenizer()
    for text in texts:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        lengths = byte_lengths(text, [stop for _, stop in encoded["offset_mapping"]])
        assert len(lengths) == len(encoded["input_ids"])
        assert int(lengths.sum()) == (len(text.encode()) if encoded["input_ids"] else 0)
        assert tokenizer.decode(encoded["input_ids"]) == text


def test_building_on_disk_and_reading_back(tmp_path: Path) -> None:
    texts = ["a cat sat", "na\u00efve caf\u00e9 \U0001f600", "", "the <|eos|> <|bos|> end"]
    tokenizer = train_bpe(texts * 20, 330)
    built = TokenizedText.build(iter(texts), tokenizer, tmp_path / "text")
    again = TokenizedText.open(tmp_path / "text")
    assert np.array_equal(built.tokens, again.tokens)
    assert int(again.bytes.sum()) == sum(len(text.encode()) for text in texts)
    for number, text in enumerate(texts):
        *body, end = again.tokens[again.starts[number] : again.starts[number + 1]].tolist()
        assert end == tokenizer.eos_token_id
        # Special tokens that stand in a text are text.
        assert tokenizer.bos_token_id not in body
        assert tokenizer.eos_token_id not in body
        assert tokenizer.decode(body) == text


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def texts():  # noqa: ANN202
        yield "fine"
        raise DataError("line 2 is broken")

    with pytest.raises(DataError, match="line 2"):
        TokenizedText.build(texts(), byte_tokenizer(), tmp_path / "text")
    assert list(tmp_path.iterdir()) == []


def test_empty_and_damaged_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="The text is empty"):
        PackedText(tokenized([0, 0]), context_length=8, bos=None)
    TokenizedText.build(["some text"], byte_tokenizer(), tmp_path / "text")
    (tmp_path / "text" / "tokens.bin").write_bytes(b"\0\0\0\0")
    with pytest.raises(DataError, match="damaged"):
        TokenizedText.open(tmp_path / "text")


def test_bpe_training_is_deterministic_and_byte_tokens_are_bytes() -> None:
    texts = [f"word{number % 17} and word{number % 5}" for number in range(300)]
    assert train_bpe(texts, 300).get_vocab() == train_bpe(texts, 300).get_vocab()
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 258
    ids = tokenizer("h\u00e9", add_special_tokens=False)["input_ids"]
    assert len(ids) == 3
    assert tokenizer("h")["input_ids"][0] == tokenizer.bos_token_id
