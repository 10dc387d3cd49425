"""One text for several tokenizers: the pieces, and their likelihoods against slower ones."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.tiny import SHAPE
from unmask.errors import DataError
from unmask.evaluation.pieces import Piece, Reader, by_document, chain_rule_nats, cut, nats_of
from unmask.lm import DiffusionLM
from unmask.models.loading import adapted, create
from unmask.models.tokenizers import byte_tokenizer, encode, load_tokenizer, train_bpe
from unmask.settings.evaluation import EvaluationSettings
from unmask.settings.objective import ObjectiveSettings

WORDS = "the cat sat on the mat and the dog ran far from the mat to the house of the cat"
BYTES, PAIRS = byte_tokenizer(), train_bpe([WORDS] * 20, 290)
OPTIONS = EvaluationSettings(masks_per_sequence=4, batch_size=3)


def model(method: str, **objective: object) -> DiffusionLM:
    made = create(SHAPE, byte_tokenizer(), seed=3)
    lm = DiffusionLM(adapted(made, ObjectiveSettings(method=method, **objective)))  # type: ignore[arg-type]
    lm.backbone.eval()
    return lm


def readers(*limits: int) -> list[Reader]:
    return [Reader(name, one, limit) for name, one, limit in zip("ab", (BYTES, PAIRS), limits, strict=False)]


@hypothesis_settings(max_examples=40)
@given(st.lists(st.text(alphabet="ab the\n\u00e9\u4e16\U0001f600", max_size=60), min_size=1, max_size=4))
def test_pieces_are_the_documents_and_fit_every_reader(documents: list[str]) -> None:
    both = readers(9, 6)
    found = cut(documents, both, at_most=1000)
    for number, document in enumerate(documents):
        assert "".join(piece.text for piece in found if piece.document == number) == document.strip()
    for piece in found:
        assert piece.text and piece.bytes == len(piece.text.encode())
        for reader in both:
            length = len(encode(reader.tokenizer, piece.text, special=False))
            # One character can take more tokens than a tiny limit allows; it is never cut itself.
            assert length <= reader.limit or len(piece.text) == 1


def test_pieces_end_between_words_where_they_can() -> None:
    found = [piece.text for piece in cut([WORDS], readers(12), at_most=1000)]
    assert "".join(found) == WORDS
    assert all(one.startswith(" ") for one in found[1:])
    assert all(len(one) <= 12 for one in found)
    assert [piece.text for piece in cut(["x" * 30], readers(12), at_most=2)] == ["x" * 12, "x" * 12]


def test_the_narrowest_reader_decides() -> None:
    alone, both = (cut([WORDS], one, at_most=1000) for one in (readers(500, 8)[1:], readers(10, 8)))
    assert len(both) > len(alone)
    assert max(piece.bytes for piece in both) <= 10


def test_a_tokenizer_that_changes_the_text_is_refused() -> None:
    from tokenizers import normalizers

    lossy = train_bpe([WORDS], 290)
    lossy.backend_tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[attr-defined]
    assert cut([WORDS], [Reader("low", lossy, 50)], at_most=1)
    with pytest.raises(DataError, match="The tokenizer of low changes the text: 'The cat' comes back as 'the cat'"):
        cut(["The cat"], [Reader("low", lossy, 50)], at_most=1)


def test_tokenizers_of_checkpoints_keep_real_text(shared_data: Path) -> None:
    names = ("checkpoints/stories260k", "checkpoints/tinystories-656k", "tokenizers/qwen3", "tokenizers/gpt2")
    all_readers = [Reader(name, load_tokenizer(shared_data / name), 100) for name in names]
    text = 'Once upon a time, there was a girl.\n\n"Hi!" said  Lily. It is 3 o\'clock .'
    assert "".join(piece.text for piece in cut([text] * 2, all_readers, at_most=9)) == text * 2


@pytest.mark.parametrize("method", ["autoregressive", "masked_diffusion", "block_diffusion", "tidar"])
def test_nats_are_those_of_each_piece_by_itself(method: str) -> None:
    lm = model(method, **({"block_length": 4} if method in ("block_diffusion", "tidar") else {}))
    texts = ["the cat", "a", " mat and", "the dog ran", " far"]
    found = nats_of(lm.codec, [Piece(at, text) for at, text in enumerate(texts)], OPTIONS, name="m")
    assert found.bytes_B.tolist() == list(map(len, texts))
    for at, text in enumerate(texts):
        if at == 0 or method in ("autoregressive", "tidar"):
            assert float(found.nats_B[at]) == pytest.approx(-lm.score(text, OPTIONS)[0].log_likelihood, rel=1e-5)
    other = nats_of(
        lm.codec,
        [Piece(at, text) for at, text in enumerate(texts)],
        dataclasses.replace(OPTIONS, batch_size=1),
        name="m",
    )
    assert torch.allclose(found.nats_B, other.nats_B, rtol=1e-5)
    assert (found.stderr_B > 0).any() == (method in ("masked_diffusion", "block_diffusion"))


def test_end_of_text_stands_in_front_where_there_is_no_bos() -> None:
    lm = model("autoregressive")
    assert lm.tokenizer is not None
    bos = lm.tokenizer.bos_token_id
    own = nats_of(lm.codec, [Piece(0, "the cat")], OPTIONS, name="m")
    lm.tokenizer.bos_token = None
    found = nats_of(lm.codec, [Piece(0, "the cat")], OPTIONS, name="m")
    assert bos != lm.tokenizer.eos_token_id
    assert found.bytes_B.tolist() == own.bytes_B.tolist() == [7]
    assert float(found.nats_B) != pytest.approx(float(own.nats_B))
    lm.tokenizer.eos_token = None
    with pytest.raises(DataError, match="m scored 6 of the 7 bytes of 'the cat'"):
        nats_of(lm.codec, [Piece(0, "the cat")], OPTIONS, name="m")


def test_the_chain_rule_reads_each_token_behind_the_true_ones() -> None:
    lm = model("masked_diffusion")
    assert lm.tokenizer is not None
    (found,) = chain_rule_nats(lm.codec, [Piece(0, "the cat")], OPTIONS)
    ids = encode(lm.tokenizer, "the cat", special=True)
    total = 0.0
    for at in range(1, len(ids)):
        hidden = [*ids[:at], *[lm.backbone.diffusion.mask_token_id] * (len(ids) - at)]
        total -= float(lm.logits([hidden])[0, at].double().log_softmax(-1)[ids[at]])  # type: ignore[list-item]
    assert found == pytest.approx(total, rel=1e-5)


def test_sums_over_documents_keep_their_order() -> None:
    pieces = [Piece(4, "a"), Piece(4, "b"), Piece(1, "c"), Piece(7, "d"), Piece(1, "e")]
    assert by_document(pieces, torch.tensor([1.0, 2, 4, 8, 16])).tolist() == [20, 3, 8]
    assert by_document(pieces, torch.tensor([1, 1, 1, 1, 1])).tolist() == [2, 2, 1]


def test_two_tokenizers_of_a_uniform_model_differ_in_bits_per_byte_as_their_tokens_do() -> None:
    """A model that knows nothing pays log V for each token, so bits per byte are tokens per byte times log2 V."""
    for tokenizer in (BYTES, PAIRS):
        made = create(SHAPE, tokenizer, seed=0)
        lm = DiffusionLM(adapted(made, ObjectiveSettings(method="masked_diffusion")))
        lm.backbone.eval()
        with torch.no_grad():
            for parameter in lm.backbone.network.parameters():
                parameter.zero_()
        rows = nats_of(lm.codec, [Piece(0, WORDS)], OPTIONS, name="m")
        ids = encode(tokenizer, WORDS, special=False)
        # The mask is excluded from the softmax; everything else is allowed.
        expected = len(ids) * math.log(lm.backbone.diffusion.vocabulary_size - 1)
        assert float(rows.nats_B) == pytest.approx(expected, rel=1e-5), json.dumps(ids)
