"""A real TiDAR run in minutes on a GPU: learn English token by token, go on as TiDAR, measure text, tokens and time.

    python benchmarks/tidar_run.py --text FILE [FILE ...] [--steps N] [--json FILE] [--quick]

Runs `unmask train recipes/tidar-english.yaml` twice (about 100 million parameters; the second run continues the first
as TiDAR), then `tidar_quality.py` on the held-out beginnings of the text, one at a time on the device. --quick is a
toy on the CPU, to test the script itself. What the runs leave is in --output-dir.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
RECIPE = FOLDER.parent / "recipes" / "tidar-english.yaml"
QUICK = [
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=1",
    "data.vocabulary_size=512",
    "data.context_length=64",
    "training.batch_size=2",
    "training.warmup_steps=1",
    "training.precision=fp32",
    "training.attention_backend=dense",
    "training.compile=false",
    "evaluation.max_rows=2",
    "sampling.max_new_tokens=4",
]


def run(*words: str) -> None:
    """One command, which is shown; the script ends where it fails."""
    print(f"\n$ {shlex.join(words)}\n", flush=True)
    done = subprocess.run(words, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and measure TiDAR on a GPU, in minutes.")
    parser.add_argument("--text", nargs="+", required=True, help="JSONL with `text`, or plain text; .gz too")
    parser.add_argument("--steps", type=int, default=1500, help="optimiser steps of each of the two runs [1500]")
    parser.add_argument("--output-dir", default="runs")
    parser.add_argument("--json", metavar="FILE", help="record and CSV; a bare name lands in results/")
    parser.add_argument("--quick", action="store_true", help="a toy on the CPU, to test the script itself")
    given = parser.parse_args()
    if not given.quick and not torch.accelerator.is_available():
        sys.exit("No GPU is here. --quick tests the script itself.")
    steps = 2 if given.quick else given.steps
    common = [f"data.train={given.text[0]}" if len(given.text) == 1 else f"data.train=[{','.join(given.text)}]"]
    common += [f"output_dir={given.output_dir}", f"training.steps={steps}", *(QUICK if given.quick else [])]
    train = [sys.executable, "-m", "unmask", "train", str(RECIPE), *common]
    before, after = (str(Path(given.output_dir) / name) for name in ("english-ar", "english-tidar"))
    run(*train)
    tidar = ["name=english-tidar", "objective.method=tidar", "objective.block_length=8"]
    run(*train, *tidar, f"model.from_pretrained={before}", "training.learning_rate=3e-4")
    measured = [
        sys.executable,
        str(FOLDER / "tidar_quality.py"),
        after,
        "--before",
        before,
        "--texts-from",
        *given.text,
    ]
    measured += ["--texts", "2", "--new-tokens", "6"] if given.quick else ["--device", "cuda"]
    run(*measured, *(["--json", given.json] if given.json else []))


if __name__ == "__main__":
    main()
