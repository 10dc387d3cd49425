"""A run that takes seconds: bytes of a made-up text, a one-layer model; and what is asked of runs of every method."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from unmask import config
from unmask.runs import RunFolder, metrics_lines
from unmask.settings.recipe import Recipe
from unmask.training.run import train

WORDS = "the cat sat on a mat and saw dogs run far from home while rain fell over green hills all day long"
COLOURS = ("red", "blue", "green", "white", "black")


def write_text(folder: Path, documents: int = 60) -> Path:
    """JSONL of short documents whose words repeat in some order."""
    path, words = folder / "text.jsonl", WORDS.split()
    rows = [
        {"text": " ".join(words[(3 * number + 5 * word) % len(words)] for word in range(10 + number % 7))}
        for number in range(documents)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_chats(folder: Path, number: int = 40) -> Path:
    """Colours are asked for by their first letters; every fourth conversation has two turns."""
    rows = []
    for one in range(number):
        word, other = COLOURS[one % 5], COLOURS[(one + one // 5) % 5]
        turns = [{"role": "user", "content": f"{word[0]}{one // 5}?"}, {"role": "assistant", "content": word}]
        if one % 4 == 0:
            turns += [{"role": "user", "content": other[0]}, {"role": "assistant", "content": other}]
        rows.append({"messages": turns})
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tree(folder: Path, **training: Any) -> dict[str, Any]:
    """A recipe as plain data."""
    return {
        "name": "tiny",
        "output_dir": str(folder),
        "model": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "dtype": "float64",
        },
        "data": {
            "train": [str(folder / "text.jsonl")],
            "tokenizer": "byte",
            "context_length": 24,
            "validation_fraction": 0.2,
            "cache_dir": str(folder / "cache"),
        },
        "objective": {"method": "masked_diffusion"},
        "training": {
            "steps": 6,
            "batch_size": 8,
            "learning_rate": 0.01,
            "logging_steps": 1,
            "eval_steps": 3,
            "keep_checkpoints": None,
            **training,
        },
        "evaluation": {"masks_per_sequence": 2, "max_rows": 4},
        "sampling": {"max_new_tokens": 4},
    }


def tree_of(folder: Path, objective: dict[str, Any], *, data: Any = None, **training: Any) -> dict[str, Any]:
    """A recipe of text or, with `data`, of conversations, both of which are written."""
    made = tree(folder, **training) | {"objective": objective}
    if data is None:
        write_text(folder)
    else:
        chats = {"format": "chat", "train": [str(write_chats(folder))], "chat_template": "plain", "context_length": 64}
        made["data"] |= chats | data
    return made


def recipe(folder: Path, **training: Any) -> Recipe:
    return config.from_tree(Recipe, tree(folder, **training))


def records(run: RunFolder, key: str) -> list[tuple[int, float]]:
    """What a run recorded under a key, by step."""
    return [(line["step"], line[key]) for line in every_record(run) if key in line]


def every_record(run: RunFolder) -> list[dict[str, Any]]:
    """What a run recorded."""
    return [line.values for line in metrics_lines(run.metrics)]


def run_of(made: dict[str, Any], name: str, **options: Any) -> RunFolder:
    """Train a recipe under a name."""
    return train(config.from_tree(Recipe, made | {"name": name}), **options).run


def weights(run: RunFolder, step: int, file: str = "model.safetensors") -> dict[str, Tensor]:
    """The tensors of a file of a checkpoint."""
    return load_file(run.checkpoints / f"step-{step}" / file)


def whole_and_resumed(made: Recipe) -> tuple[RunFolder, RunFolder]:
    """A run of six steps, and one that goes on from its third as if it had been killed after saving it."""
    whole, halves = train(made).run, dataclasses.replace(made, name="halves")
    first = train(halves).run
    assert (first.checkpoints / "step-3").is_dir()
    shutil.rmtree(first.checkpoints / "step-6")
    shutil.rmtree(first.final)
    return whole, train(halves, resume="auto").run


def assert_same(one: RunFolder, other: RunFolder, *keys: str, file: str = "model.safetensors") -> None:
    """Two runs have the same records under these keys, and the same tensors after six steps, bit for bit."""
    for key in keys:
        found = records(one, key)
        assert found and found == records(other, key), key
    ours, others = weights(one, 6, file), weights(other, 6, file)
    assert ours.keys() == others.keys()
    assert [name for name in others if not ours[name].equal(others[name])] == []
