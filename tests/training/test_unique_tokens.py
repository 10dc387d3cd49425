"""`data.max_tokens`: the first tokens of the training text and no others, the held-out text untouched."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training import recipes
from unmask.data.rows import Rows
from unmask.data.tokenized import TokenizedText
from unmask.errors import SettingsError
from unmask.models.tokenizers import byte_tokenizer, train_bpe
from unmask.settings.data import DataSettings
from unmask.settings.recipe import Recipe
from unmask.training.preparation import TrainingText, prepare_text, prepare_tokenizer, trained_texts

BOS = 0


@pytest.fixture
def made(tmp_path: Path) -> Recipe:
    recipes.write_text(tmp_path)
    return recipes.recipe(tmp_path)


def limited(made: Recipe, **data: Any) -> Recipe:
    return dataclasses.replace(made, data=dataclasses.replace(made.data, **data))


def prepared(made: Recipe, folder: Path) -> TrainingText:
    return prepare_text(made, prepare_tokenizer(made, folder), folder)


def tokens_of(rows: Rows) -> list[int]:
    """All supervised tokens in the order of the rows."""
    batch = rows.batch(np.arange(len(rows)), 0, len(rows), step=0)
    return batch.ids_BL[batch.supervised_BL].tolist()


@pytest.mark.parametrize("neat", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_the_first_tokens_are_learned_and_no_others(made: Recipe, tmp_path: Path, tokens: int, neat: bool) -> None:
    options = {"neat_packing": neat, "context_length": 128}
    whole = prepared(limited(made, **options), tmp_path / "cache")
    part = prepared(limited(made, max_tokens=tokens, **options), tmp_path / "cache")
    end = byte_tokenizer().eos_token_id
    text = [byte for one in trained_texts(made.data) for byte in [*byte_tokenizer().encode(one)[1:], end]]
    found, expected = tokens_of(part.train), text[:tokens]
    assert sorted(found) == sorted(expected) if neat else found == expected
    assert part.held_out is not None
    assert whole.held_out is not None
    assert tokens_of(part.held_out) == tokens_of(whole.held_out)


def test_more_than_there_is_is_all(made: Recipe, tmp_path: Path) -> None:
    whole, part = (prepared(limited(made, max_tokens=limit), tmp_path) for limit in (None, 10**6))
    assert tokens_of(part.train) == tokens_of(whole.train)


def test_arrays_are_cut_together() -> None:
    flags = np.arange(9) % 2 == 0
    text = TokenizedText(np.arange(9, dtype=np.uint32), np.ones(9, dtype=np.uint16), np.array([0, 4, 4, 9]), flags)
    for tokens, starts in ((9, [0, 4, 4, 9]), (12, [0, 4, 4, 9]), (6, [0, 4, 4, 6]), (4, [0, 4]), (3, [0, 3])):
        part = text.first(tokens)
        assert part.starts.tolist() == starts
        assert part.supervised is not None
        assert part.tokens.tolist() == list(range(min(tokens, 9)))
        assert len(part.bytes) == len(part.supervised) == len(part.tokens)


def test_a_trained_vocabulary_knows_as_much_of_the_text_as_is_learned(tmp_path: Path) -> None:
    first, later, kept = "walking talking walking talking ", "zebra quagga zebra quagga ", "xylophone xylophone "
    for name, text in (("train", [first * 4] * 30 + [later * 4] * 30), ("held", [kept * 4] * 9)):
        lines = [json.dumps({"text": f"{one}{number}"}) + "\n" for number, one in enumerate(text)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    data = DataSettings(
        train=(str(tmp_path / "train.jsonl"),),
        validation=(str(tmp_path / "held.jsonl"),),
        vocabulary_size=300,
        context_length=32,
        max_tokens=200,
    )
    vocabulary = prepare_tokenizer(Recipe(data=data), tmp_path / "cache").get_vocab()
    assert "\u0120talking" in vocabulary
    assert not [word for word in vocabulary if "zeb" in word or "xyl" in word]
    everything = prepare_tokenizer(Recipe(data=dataclasses.replace(data, max_tokens=None)), tmp_path / "cache")
    assert [word for word in everything.get_vocab() if "zeb" in word]
    # The documents that 200 tokens of a vocabulary of everything reach, the last one cut.
    learned, left = [], 200
    for text in trained_texts(data):
        ids = everything(text, add_special_tokens=False)["input_ids"]
        learned.append(text if len(ids) <= left else everything.decode(ids[:left]))
        left -= len(ids) + 1
        if left <= 0:
            break
    assert vocabulary == train_bpe(learned, 300).get_vocab()


def test_rows_of_their_own_are_not_cut(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"data.max_tokens is not used by data.format `chat`, got 5"):
        DataSettings(format="chat", max_tokens=5)
    with pytest.raises(SettingsError, match="max_tokens must be at least 1, got 0"):
        DataSettings(max_tokens=0)
