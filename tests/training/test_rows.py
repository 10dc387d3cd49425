"""Rows as a recipe orders them: how far they are filled up, by whose block length, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training import recipes
from tests.training.recipes import write_chats
from unmask.cli.main import main
from unmask.data.batch import Batch
from unmask.data.neat import NeatRows
from unmask.errors import SettingsError
from unmask.models import loading
from unmask.models.tokenizers import byte_tokenizer
from unmask.settings.model import ModelSettings
from unmask.settings.objective import ObjectiveSettings
from unmask.settings.recipe import Recipe
from unmask.training.preparation import fill_length, prepare_text, prepare_tokenizer
from unmask.training.run import dry_run, train

BLOCKS = {"method": "block_diffusion"}


def changed(made: Recipe, *, data: Any = None, objective: Any = None, model: Any = None) -> Recipe:
    return dataclasses.replace(
        made,
        data=dataclasses.replace(made.data, **(data or {})),
        objective=dataclasses.replace(made.objective, **(objective or {})),
        model=dataclasses.replace(made.model, **(model or {})),
    )


@pytest.fixture
def text(tmp_path: Path) -> Recipe:
    recipes.write_text(tmp_path)
    return recipes.recipe(tmp_path)


@pytest.fixture
def chats(tmp_path: Path) -> Recipe:
    made = recipes.tree(tmp_path)
    source = str(write_chats(tmp_path))
    made["data"] |= {"format": "chat", "train": [source], "chat_template": "plain", "context_length": 64}
    return recipes.config.from_tree(Recipe, made)


def rows_of(made: Recipe, folder: Path) -> tuple[Batch, Any]:
    """The first rows of a recipe's training text, and the rows."""
    rows = prepare_text(made, prepare_tokenizer(made, folder), folder).train
    return rows.batch(np.arange(min(len(rows), 12)), 0, min(len(rows), 12), step=0), rows


def sizes(batch: Batch) -> list[int]:
    """Places of every packed document."""
    counted = [np.bincount(row[row >= 0]).tolist() for row in batch.document_BL.numpy()]
    return [size for row in counted for size in row]


@pytest.mark.parametrize(
    ("objective", "checkpoint", "length"),
    [
        ({"method": "masked_diffusion"}, 8, 1),
        ({"method": "autoregressive"}, 8, 1),
        (BLOCKS, None, 4),
        (BLOCKS, 8, 8),
        (BLOCKS | {"block_length": 2}, 8, 2),
        (BLOCKS | {"block_curriculum": ((0.0, 4), (0.4, 8), (0.8, 16))}, 2, 16),
        (BLOCKS | {"block_curriculum": ((0.0, 1), (0.2, 64), (0.8, 32))}, None, 32),
    ],
)
def test_documents_are_filled_up_for_the_block_length_at_the_end_of_the_run(
    objective: dict[str, Any], checkpoint: int | None, length: int
) -> None:
    assert fill_length(ObjectiveSettings(**objective), checkpoint) == length


def test_the_block_length_is_the_checkpoints_unless_the_recipe_names_one(text: Recipe, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    made = loading.create(ModelSettings(hidden_size=16, num_hidden_layers=1), tokenizer, seed=0)
    made = loading.adapted(made, ObjectiveSettings(method="block_diffusion", block_length=8))
    loading.save(made, tmp_path / "checkpoint")
    data = {"neat_packing": True, "context_length": 128, "tokenizer": None}
    model = {"from_pretrained": str(tmp_path / "checkpoint")}
    recipe = changed(text, data=data, objective=BLOCKS, model=model)
    found = sizes(rows_of(recipe, tmp_path / "cache")[0])
    assert {size % 8 for size in found} == {0}
    named = changed(recipe, objective={"block_length": 2})
    assert {size % 8 for size in sizes(rows_of(named, tmp_path / "cache")[0])} == {0, 2, 4, 6}
    # A model that is at hand says it itself; what it was made of may be gone by then.
    (tmp_path / "checkpoint" / "config.json").unlink()
    rows = prepare_text(recipe, tokenizer, tmp_path / "cache", block_length=2).train
    assert sizes(rows.batch(np.arange(8), 0, 8, step=0)) != found[: len(found)]


def test_text_is_filled_up_with_its_end_only_for_block_diffusion(text: Recipe, tmp_path: Path) -> None:
    made = changed(text, data={"neat_packing": True, "context_length": 128})
    tokenizer = prepare_tokenizer(made, tmp_path)
    plain, _ = rows_of(made, tmp_path / "cache")
    filled, rows = rows_of(changed(made, objective=BLOCKS), tmp_path / "cache")
    assert plain.fill_BL is not None
    assert filled.fill_BL is not None
    assert not plain.fill_BL.any()
    assert filled.fill_BL.any()
    assert filled.ids_BL[filled.fill_BL].unique().tolist() == [tokenizer.eos_token_id]
    assert isinstance(rows, NeatRows)
    documents = [json.loads(line)["text"] for line in (tmp_path / "text.jsonl").read_text().splitlines()]
    first = filled.ids_BL[0][(filled.document_BL[0] == 0) & ~filled.fill_BL[0]].tolist()
    assert tokenizer.decode(first, skip_special_tokens=True) in documents
    assert [first[0], first[-1]] == [tokenizer.bos_token_id, tokenizer.eos_token_id]


def test_conversations_are_packed_whole_and_each_has_its_last_block_filled(chats: Recipe, tmp_path: Path) -> None:
    made = changed(chats, data={"neat_packing": True}, objective=BLOCKS)
    batch, rows = rows_of(made, tmp_path / "cache")
    found = sizes(batch)
    assert len(found) > len(batch.ids_BL)
    assert {size % 4 for size in found} == {0}
    assert " conversations of " in rows.description
    alone, one_each = rows_of(changed(made, data={"neat_packing": False}), tmp_path / "cache")
    assert len(one_each) > len(rows)
    assert {int((row >= 0).sum()) % 4 for row in alone.document_BL} == {0}
    ignored, _ = rows_of(changed(made, data={"pad_mode": "ignore"}), tmp_path / "cache")
    assert not np.asarray(ignored.fill_BL).any()


def test_rows_that_cannot_be_filled_up_are_refused(chats: Recipe, text: Recipe, tmp_path: Path) -> None:
    def refused(made: Recipe, what: str) -> None:
        tokenizer = prepare_tokenizer(made, tmp_path)
        if "has none" in what:
            tokenizer.eos_token = None
        with pytest.raises(SettingsError, match=what):
            prepare_text(made, tokenizer, tmp_path)

    neat = changed(chats, data={"neat_packing": True})
    refused(
        neat, r"pad_mode `eos_supervised`, the default of masked_diffusion, has no place\. Set data\.pad_mode=ignore"
    )
    refused(
        changed(neat, data={"pad_mode": "block"}), r"objective\.method is `masked_diffusion`. Set data\.pad_mode=ig"
    )
    alone = changed(chats, data={"pad_mode": "block"}, objective={"method": "autoregressive"})
    refused(alone, r"objective\.method is `autoregressive`\. Set data\.pad_mode=ignore")
    for mode in ({"pad_mode": "eos_supervised"}, {"pad_mode": "eos_capped", "eos_cap": 9}):
        refused(changed(chats, data=mode, objective=BLOCKS), r"behind a conversation's last block.*Set data\.pad_mode=")
    long = changed(neat, data={"context_length": 63}, objective=BLOCKS)
    refused(long, r"a multiple of the block length 4.*got 63\. Set data\.context_length=64")
    refused(changed(text, objective=BLOCKS), r"this tokenizer has none\. Choose another with data\.tokenizer")


def test_a_run_of_blocks_is_scored_without_the_checkpoint_that_it_began_with(
    text: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every byte of the text and one end per document count, whatever fills the rows up."""
    base = train(dataclasses.replace(text, name="base")).run.root
    blocks = changed(text, data={"neat_packing": True, "context_length": 64, "over_long": "cut"}, objective=BLOCKS)
    made = changed(blocks, model={"from_pretrained": str(base)}, data={"tokenizer": None})
    run = train(dataclasses.replace(made, name="blocks")).run
    shutil.rmtree(base)
    assert main(["evaluate", str(run.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "block_diffusion"
    assert main(["evaluate", str(run.root), "--data", str(tmp_path / "text.jsonl"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    documents = [json.loads(line)["text"] for line in (tmp_path / "text.jsonl").read_text().splitlines()]
    assert record["bytes"] == sum(map(len, documents))
    assert record["tokens"] == record["bytes"] + len(documents)


def test_a_curriculum_is_shown_by_a_dry_run(text: Recipe) -> None:
    curriculum = BLOCKS | {"block_curriculum": ((0.0, 1), (0.5, 8))}
    lines = list(dry_run(changed(text, objective=curriculum)))
    assert lines[0].startswith("block_diffusion")
    assert any(line.startswith("as trained: ") and "<|mask|>" in line for line in lines)
