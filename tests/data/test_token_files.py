"""Token rows of `.ckpt` files: every shape that is read, every fault that is named, and a run on a folder of them."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training import recipes
from unmask import config
from unmask.data import token_files
from unmask.data.neat import NeatRows
from unmask.data.sources import held_out
from unmask.data.token_files import TokenFiles, words_of
from unmask.errors import DataError, SettingsError
from unmask.models.tokenizers import byte_tokenizer, encode, load_tokenizer, token_sizes
from unmask.settings.data import DataSettings
from unmask.settings.pipeline import PipelineRecipe
from unmask.settings.recipe import Recipe
from unmask.training.pipeline import plan
from unmask.training.preparation import TrainingText, prepare_text, prepare_tokenizer
from unmask.training.run import dry_run, train

BYTES = byte_tokenizer()
IDS, MASK = [5, 9, 7, 8], [0, 0, 1, 1]


def write(path: Path, ids: Any = None, mask: Any = None, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = torch.tensor(IDS) if ids is None else ids
    torch.save({"input_ids": ids, "loss_mask": torch.tensor(MASK) if mask is None else mask, **more}, path)
    return path


def files(*sources: Path, **settings: Any) -> TokenFiles:
    return TokenFiles([str(one) for one in sources], DataSettings(format="ckpt", **settings), BYTES)


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        (torch.tensor(IDS), torch.tensor(MASK)),
        (torch.tensor([IDS]), torch.tensor([MASK])),
        (IDS, MASK),
        ([IDS], torch.tensor(MASK, dtype=torch.bool)),
        (torch.tensor(IDS, dtype=torch.int32), torch.tensor(MASK, dtype=torch.float16)),
    ],
    ids=["1-D", "[1, L]", "lists", "mixed", "other types"],
)
def test_rows_are_read_in_every_shape(tmp_path: Path, ids: Any, mask: Any) -> None:
    (row,) = files(write(tmp_path / "data_0.ckpt", ids, mask))
    assert row.supervised is not None
    assert (row.ids.dtype, row.ids.tolist()) == (np.uint32, IDS)
    assert row.supervised.tolist() == [False, False, True, True]
    assert row.bytes.tolist() == [0, 0, 1, 1]
    assert row.where == str(tmp_path / "data_0.ckpt")


def test_folders_are_searched_with_all_their_subfolders(tmp_path: Path) -> None:
    write(tmp_path / "a" / "sharegpt_0_9_mufp16" / "0" / "data_0.ckpt", [4, 5], [1, 1])
    write(tmp_path / "a" / "sharegpt_0_9_mufp16" / "1" / "data_1.ckpt", [6, 7], [1, 1])
    write(tmp_path / "b" / "other.ckpt", [8, 9], [0, 1])
    (tmp_path / "b" / "notes.txt").write_text("no tokens")
    assert [one.ids.tolist() for one in files(tmp_path / "a", tmp_path / "b")] == [[4, 5], [6, 7], [8, 9]]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"the folder .*empty holds no \.ckpt"):
        files(tmp_path / "empty")
    with pytest.raises(DataError, match=r"notes\.txt has none of the endings that can be read: \.ckpt"):
        files(tmp_path / "b" / "notes.txt")


def test_the_hidden_state_is_mapped_and_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "data_0.ckpt", hidden_state=torch.zeros(4, 4 * 2**20, dtype=torch.float16))
    assert path.stat().st_size > 2**25
    resident: list[int] = []
    read = token_files._values

    def measured(saved: dict[str, Any], name: str) -> torch.Tensor:
        assert saved["hidden_state"].shape == (4, 4 * 2**20)
        resident.append(resident_bytes())
        return read(saved, name)

    monkeypatch.setattr(token_files, "_values", measured)
    before = resident_bytes()
    (row,) = files(path)
    assert row.ids.tolist() == IDS
    assert len(resident) == 2 and max(resident) - before < 2**23


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_files_of_old_torch_versions_are_read_too(tmp_path: Path) -> None:
    torch.save(
        {"input_ids": torch.tensor(IDS), "loss_mask": torch.tensor(MASK)},
        tmp_path / "old.ckpt",
        _use_new_zipfile_serialization=False,
    )
    (row,) = files(tmp_path)
    assert row.ids.tolist() == IDS


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"ids": [1]}, "there is no `input_ids`; the file has ids"),
        ({"input_ids": IDS}, "there is no `loss_mask`; the file has input_ids"),
        ({"input_ids": IDS, "loss_mask": [1, 1]}, "input_ids has 4 tokens and loss_mask 2; they must be as many"),
        ({"input_ids": [1, 258], "loss_mask": [1, 1]}, "has the id 258, and the tokenizer's ids end at 257"),
        ({"input_ids": [1, -1], "loss_mask": [1, 1]}, "has the id -1, and"),
        ({"input_ids": [1.0, 2.0], "loss_mask": [1, 1]}, "`input_ids` must hold whole numbers, got torch.float32"),
        ({"input_ids": IDS, "loss_mask": [0, 1, 2, 1]}, "`loss_mask` must hold 0 and 1, got 2"),
        ({"input_ids": [IDS, IDS], "loss_mask": MASK}, r"must have the shape \[L\] or \[1, L\], got \[2, 4\]"),
        ({"input_ids": [], "loss_mask": []}, r"got \[0\]"),
        ({"input_ids": "text", "loss_mask": MASK}, '`input_ids` must be a row of numbers, got "text"'),
        ([IDS, MASK], "it holds a list, and must hold a dictionary with input_ids and loss_mask"),
        ({"input_ids": np.arange(4), "loss_mask": MASK}, "it holds pickled objects, which are not opened"),
        ({"input_ids": torch.nn.Linear(1, 1), "loss_mask": MASK}, "it holds pickled objects"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, saved: Any, message: str) -> None:
    torch.save(saved, tmp_path / "data_3.ckpt")
    write(tmp_path / "data_4.ckpt")
    with pytest.raises(DataError, match=rf"data_3\.ckpt: .*{message}.*data\.malformed=skip"):
        list(files(tmp_path))
    skipping = files(tmp_path, malformed="skip")
    assert [one.ids.tolist() for one in skipping] == [IDS]
    assert skipping.skipped == 1


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and nothing more"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data_0.ckpt").write_bytes(content)
    with pytest.raises(DataError, match=r"data_0\.ckpt: "):
        list(files(tmp_path))
    whole = write(tmp_path / "data_0.ckpt").read_bytes()
    (tmp_path / "data_0.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"data_0\.ckpt: torch.load cannot read it .* Is it complete\?"):
        list(files(tmp_path))


def test_nothing_is_run_when_a_file_is_opened(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(marker),)

    torch.save({"input_ids": IDS, "loss_mask": MASK, "hidden_state": Trap()}, tmp_path / "data_0.ckpt")
    with pytest.raises(DataError, match="pickled objects"):
        list(files(tmp_path))
    assert not marker.exists()


def test_the_mask_token_is_no_text(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    write(tmp_path / "data_0.ckpt", [5, 258], [1, 1])
    with pytest.raises(DataError, match="the id of the mask token, 258"):
        list(TokenFiles([str(tmp_path)], DataSettings(format="ckpt"), tokenizer))


@pytest.mark.parametrize("name", ["gpt2", "qwen2.5", "qwen3", "bert-base-uncased", "stories260k"])
def test_token_sizes_sum_to_the_bytes_of_the_text(shared_data: Path, name: str) -> None:
    folder = shared_data / ("checkpoints" if name == "stories260k" else "tokenizers") / name
    tokenizer = load_tokenizer(folder)
    sizes = token_sizes(tokenizer)
    # The BERT tokenizer throws accents and runs of spaces away; it and the story model's put a space before every text.
    text = "plain words and more" if name == "bert-base-uncased" else "Two  lines,\nan é, a 漢, an 🙂 and 12345."
    ids = encode(tokenizer, text, special=False)
    assert int(sizes[ids].sum()) == len(text.encode()) + (name in ("stories260k", "bert-base-uncased"))
    if tokenizer.eos_token_id is not None:
        assert sizes[tokenizer.eos_token_id] == 0


# --- rows and runs ----------------------------------------------------------------------------------------------------


def corpus(folder: Path, rows: int = 40) -> None:
    """Rows that count up from a number, the first tokens of which are the prompt; every fourth row is there twice."""
    for number in range(rows):
        kind = number - (number % 4 == 3)
        ids = [2 + (3 + 5 * kind + place) % 200 for place in range(6 + kind % 3)]
        write(folder / "train_data" / str(number % 2) / f"data_{number}.ckpt", ids, [0, 0] + [1] * (len(ids) - 2))


def recipe(folder: Path, **data: Any) -> Recipe:
    tree = recipes.tree(folder)
    tree["data"] |= {"format": "ckpt", "train": [str(folder / "train_data")]} | data
    tree["objective"] = {"method": "autoregressive"}
    return config.from_tree(Recipe, tree)


def text_of(made: Recipe, folder: Path) -> TrainingText:
    return prepare_text(made, prepare_tokenizer(made, folder), folder)


def words(text: TrainingText, *, of: str) -> set[str]:
    rows = getattr(text, of).text
    return {" ".join(map(str, rows.tokens[start:stop])) for start, stop in itertools.pairwise(rows.starts)}


def test_equal_rows_stay_on_one_side_of_the_split(tmp_path: Path) -> None:
    corpus(tmp_path)
    text = text_of(recipe(tmp_path, validation_fraction=0.3), tmp_path)
    train_words, held_words = words(text, of="train"), words(text, of="held_out")
    assert train_words and held_words and not train_words & held_words
    everything = [words_of(one) for one in files(tmp_path / "train_data")]
    assert len(everything) > len(set(everything))
    assert held_words == {one for one in everything if held_out(one, 0.3)}


def test_the_loss_mask_says_what_is_supervised(tmp_path: Path) -> None:
    corpus(tmp_path, rows=12)
    text = text_of(recipe(tmp_path, validation_fraction=0), tmp_path)
    batch = text.train.batch(np.arange(12), 0, 12, step=0)
    for line in range(12):
        length = int((batch.document_BL[line] == 0).sum())
        assert batch.supervised_BL[line].tolist()[:length] == [False, False] + [True] * (length - 2)
        assert not batch.supervised_BL[line, length:].any()
    assert text.train.prompt(0) == text.train.text.tokens[:2].tolist()  # type: ignore[attr-defined]


def test_rows_are_packed_neatly(tmp_path: Path) -> None:
    corpus(tmp_path, rows=12)
    text = text_of(recipe(tmp_path, validation_fraction=0, neat_packing=True), tmp_path)
    assert isinstance(text.train, NeatRows)
    batch = text.train.batch(np.arange(len(text.train)), 0, len(text.train), step=0)
    assert int((batch.document_BL >= 0).sum()) == len(text.train.text.tokens)
    assert int(batch.supervised_BL.sum()) == len(text.train.text.tokens) - 2 * 12
    for ids_L, document_L, supervised_L in zip(batch.ids_BL, batch.document_BL, batch.supervised_BL, strict=True):
        for number in range(int(document_L.max()) + 1):
            inside = document_L == number
            assert supervised_L[inside].tolist() == [False, False] + [True] * (int(inside.sum()) - 2)
            assert all((ids_L[inside].diff() - 1) % 200 == 0)


def test_over_long_rows_stop_the_run_or_are_cut_or_dropped(tmp_path: Path) -> None:
    corpus(tmp_path, rows=4)
    write(tmp_path / "train_data" / "long.ckpt", [7] * 30, [0] * 24 + [1] * 6)
    write(tmp_path / "train_data" / "longer.ckpt", [9] * 40, [0] * 4 + [1] * 36)
    write(tmp_path / "train_data" / "silent.ckpt", [11] * 5, [0] * 5)
    with pytest.raises(DataError, match=r"2 of 7 conversations are longer .*longer\.ckpt, has 40"):
        text_of(recipe(tmp_path, validation_fraction=0), tmp_path)
    cut = text_of(recipe(tmp_path, validation_fraction=0, over_long="cut"), tmp_path).train
    assert "1 over-long ones dropped, 1 over-long ones cut, 1 without a supervised token left out" in cut.description
    dropped = text_of(recipe(tmp_path, validation_fraction=0, over_long="drop"), tmp_path).train
    assert "2 over-long ones dropped, 1 without a supervised token" in dropped.description
    assert (len(cut), len(dropped)) == (5, 4)


def test_a_run_learns_from_a_folder(tmp_path: Path) -> None:
    corpus(tmp_path)
    made = recipe(tmp_path)
    lines = list(dry_run(made))
    assert any("first row, what is supervised in [[...]]" in line for line in lines)
    run = train(made).run
    losses = [loss for _, loss in recipes.records(run, "train/loss")]
    assert losses[-1] < losses[0]
    assert recipes.records(run, "eval/bits_per_byte")
    assert (run.samples / "final.md").read_text(encoding="utf-8").count("## Prompt") > 0


def test_a_pipeline_finds_the_files(tmp_path: Path) -> None:
    corpus(tmp_path, rows=4)
    recipes.write_text(tmp_path)
    stages = {
        "pretraining": {"data": {"train": [str(tmp_path / "text.jsonl")]}},
        "sft": {"data": {"format": "ckpt", "train": [str(tmp_path / "train_data")]}},
    }
    pipeline = config.from_tree(PipelineRecipe, {"output_dir": str(tmp_path), **stages})
    assert [stage.name for stage in plan(pipeline, ["pretraining", "sft"])] == ["pretraining", "sft"]
    stages["sft"]["data"]["train"] = [str(tmp_path / "gone")]
    with pytest.raises(DataError, match="sft: No data: there is no"):
        plan(config.from_tree(PipelineRecipe, {"output_dir": str(tmp_path), **stages}), ["pretraining", "sft"])


def test_the_tokenizer_must_be_known(tmp_path: Path) -> None:
    corpus(tmp_path, rows=4)
    with pytest.raises(SettingsError, match=r"Name the one that made them with data\.tokenizer"):
        text_of(recipe(tmp_path, tokenizer=None), tmp_path)


def test_settings_of_other_formats_are_refused() -> None:
    for name, value in {"text_field": "body", "separator": "x", "supervise": "last", "chat_template": "plain"}.items():
        with pytest.raises(SettingsError, match=rf"data\.{name} is not used by data\.format `ckpt`"):
            DataSettings(format="ckpt", **{name: value})
    settings = DataSettings(format="ckpt", neat_packing=True, over_long="cut", pad_mode="ignore")
    assert dataclasses.replace(settings, neat_packing=False, pad_mode="eos_capped", eos_cap=3).eos_cap == 3
