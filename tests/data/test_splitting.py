"""The split: no document on both sides, neither side empty, and nothing hangs on order or process."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data.sources import held_out, word_hash
from unmask.data.splitting import Split, cut_of, split_of
from unmask.errors import DataError


def sides(texts: list[str], fraction: float, *, can_cut: bool = True) -> tuple[list[str], list[str]]:
    split = split_of(texts, fraction, can_cut=can_cut)
    both = [[split.part(text, is_held_out=side) for text in texts] for side in (False, True)]
    return tuple([one for one in side if one is not None] for side in both)  # type: ignore[return-value]


WORD = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=("Z", "C")), min_size=1)
TEXT = st.lists(WORD, min_size=2, max_size=40).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=12), st.floats(0.01, 0.9))
def test_neither_side_is_empty_and_every_word_is_on_one(texts: list[str], fraction: float) -> None:
    trained, held = sides(texts, fraction)
    assert any(text.strip() for text in trained)
    assert any(text.strip() for text in held)
    assert sorted("".join("".join(one.split()) for one in (*trained, *held))) == sorted(
        "".join("".join(text.split()) for text in texts)
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=12), st.floats(0.01, 0.9), st.randoms())
def test_the_order_of_documents_does_not_matter(texts: list[str], fraction: float, shuffler: random.Random) -> None:
    again = list(texts)
    shuffler.shuffle(again)
    assert list(map(sorted, sides(texts, fraction))) == list(map(sorted, sides(again, fraction)))


@settings(max_examples=100, deadline=None)
@given(TEXT, st.floats(0.01, 0.9), st.sampled_from([" ", "\n", "\t ", "\r\n", "\u2003"]))
def test_the_end_of_one_document_is_the_same_words_however_they_are_spaced(
    text: str, fraction: float, space: str
) -> None:
    spaced = space.join(text.split())
    parts, others = ((one[: cut_of(one, fraction)], one[cut_of(one, fraction) :]) for one in (text, spaced))
    assert ["".join(part.split()) for part in parts] == ["".join(part.split()) for part in others]


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.2, 0.5])
def test_of_one_document_its_end_is_held_out(shared_data: Path, fraction: float) -> None:
    text = gzip.decompress((shared_data / "text" / "tinyshakespeare.txt.gz").read_bytes()).decode()
    (trained,), (held,) = sides([text], fraction)
    assert trained + held == text
    assert trained[-1].isspace() and not held[0].isspace()
    assert len(held) / len(text) == pytest.approx(fraction, rel=0.05)


@pytest.mark.parametrize("number", [2, 3, 12, 40, 99])
def test_of_few_documents_about_the_share_of_bytes_is_held_out(number: int) -> None:
    texts = [f"{document} " * (20 + 7 * (document % 5)) for document in range(number)]
    _, held = sides(texts, 0.1)
    share = sum(map(len, held)) / sum(map(len, texts))
    assert 0.05 <= share <= 0.15
    if number >= 40:
        assert set(held) < set(texts)  # none is cut


def test_a_large_document_is_not_held_out_whole() -> None:
    trained, held = sides(["small one", "w " * 5000], 0.1)
    assert "small one" in trained or "small one" in held
    assert sum(map(len, held)) < 2000


def test_of_few_conversations_whole_ones_are_held_out() -> None:
    texts = ["user: a\nassistant: b", "user: cc\nassistant: dd", "user: eee\nassistant: fff"]
    trained, held = sides(texts, 0.05, can_cut=False)
    assert sorted([*trained, *held]) == sorted(texts)
    assert held == ["user: a\nassistant: b"]
    with pytest.raises(DataError, match=r"There is one conversation only, so none can be held out\. Give data\.val"):
        split_of(texts[:1], 0.05, can_cut=False, noun="conversation")


def test_one_character_cannot_be_split() -> None:
    with pytest.raises(DataError, match="The text is a single character"):
        sides(["a"], 0.05)
    assert sides(["ab"], 0.05) == (["a"], ["b"])
    assert sides(["\u6f22" * 100], 0.05) == (["\u6f22" * 95], ["\u6f22" * 5])


def test_many_documents_are_split_by_their_hashes_alone_and_read_no_further_than_needed() -> None:
    read = []

    def texts() -> list[str]:
        return [f"document number {number}" for number in range(5000)]

    def counted() -> object:
        for text in texts():
            read.append(text)
            yield text

    split = split_of(counted(), 0.05, can_cut=True)  # type: ignore[arg-type]
    assert split == Split(0.05)
    assert len(read) < 200
    assert [split.part(text, is_held_out=True) for text in texts()] == [
        text if held_out(text, 0.05) else None for text in texts()
    ]


@pytest.mark.parametrize(
    "sibling",
    ["the cat sat\n", "\nthe cat sat", "the  cat\tsat", "the\r\ncat sat", " the cat\u00a0sat ", "the cat\u2028sat"],
)
def test_copies_that_are_spaced_otherwise_stay_on_one_side(sibling: str) -> None:
    assert word_hash(sibling) == word_hash("the cat sat")
    others = [f"another text, number {number}" for number in range(10)]
    trained, held = sides(["the cat sat", sibling, *others], 0.3)
    assert ("the cat sat" in trained) == (sibling in trained)
    assert ("the cat sat" in held) == (sibling in held)


@pytest.mark.parametrize("sibling", ["the cat sat.", "The cat sat", "thecat sat", "the cat sat\u200b", "sat the cat"])
def test_texts_of_other_words_are_other_documents(sibling: str) -> None:
    assert word_hash(sibling) != word_hash("the cat sat")


def test_half_of_a_surrogate_pair_has_a_side() -> None:
    assert held_out("a\ud800b", 0.5) in (True, False)
    assert word_hash("\ud800") != word_hash("\udc00")


def test_every_process_splits_alike() -> None:
    code = (
        "from unmask.data.splitting import split_of\n"
        "print(sorted(split_of([f'text {n}' for n in range(30)], 0.1, can_cut=True).chosen))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
