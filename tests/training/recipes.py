"""A run that takes seconds: bytes of a made-up text, a one-layer model."""

import json
from pathlib import Path
from typing import Any

from unmask import config
from unmask.runs import RunFolder
from unmask.settings.recipe import Recipe

WORDS = "the cat sat on a mat and saw dogs run far from home while rain fell over green hills all day long"


def write_text(folder: Path, documents: int = 60) -> Path:
    """JSONL of short documents whose words repeat in some order."""
    path, words = folder / "text.jsonl", WORDS.split()
    rows = [
        {"text": " ".join(words[(3 * number + 5 * word) % len(words)] for word in range(10 + number % 7))}
        for number in range(documents)
    ]
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


def recipe(folder: Path, **training: Any) -> Recipe:
    return config.from_tree(Recipe, tree(folder, **training))


def records(run: RunFolder, key: str) -> list[tuple[int, float]]:
    """What a run recorded under a key, by step."""
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line[key]) for line in lines if key in line]
