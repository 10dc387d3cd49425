"""Train, score and watch two tiny language models on Python's own documentation.

    python examples/demo.py                  # about five minutes on two CPU cores
    python examples/demo.py --scale tiny     # seconds, to see that everything runs

One recipe, two objectives: autoregression (runs/demo-ar) and masked diffusion (runs/demo). Both are scored on the same
held-out text, both continue the same prompt, and runs/demo keeps curves, samples and a page that replays the denoising.
Run it again and it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from unmask import DiffusionLM, SamplingParams, config
from unmask.cli.options import quiet_libraries
from unmask.decoding.step import Step
from unmask.evaluation.likelihood import Likelihood, evaluate
from unmask.models.loading import parameter_counts
from unmask.reports.curves import loss_curves
from unmask.reports.replay import Frame, Replay, html_page, watch
from unmask.reports.traces import frame
from unmask.runs import RunFolder, write_text
from unmask.settings.recipe import Recipe
from unmask.training.preparation import prepare_text
from unmask.training.run import train

RECIPE = Path(__file__).parents[1] / "recipes" / "python-docs.yaml"
PROMPT = "Return True if the"
SCALES = {
    "full": [],
    "tiny": [
        "training.steps=4",
        "training.batch_size=4",
        "training.eval_steps=4",
        "training.warmup_steps=1",
        "model.hidden_size=32",
        "model.intermediate_size=64",
        "model.num_hidden_layers=1",
        "model.num_attention_heads=2",
        "model.num_key_value_heads=1",
        "data.context_length=48",
        "data.vocabulary_size=400",
        "evaluation.max_rows=4",
        "evaluation.masks_per_sequence=2",
        "sampling.max_new_tokens=12",
    ],
}
METHODS = {"demo-ar": "autoregressive", "demo": "masked_diffusion"}
SAMPLING = {
    "demo-ar": SamplingParams(temperature=0.8, top_p=0.95, seed=1, max_new_tokens=64),
    "demo": SamplingParams(temperature=0.8, denoising_steps=32, seed=1, max_new_tokens=64),
}


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--scale", choices=sorted(SCALES), default="full")
    parser.add_argument("--output-dir", default="runs")
    arguments = parser.parse_args()
    began = time.monotonic()
    quiet_libraries()
    console = Console()
    recipes = {name: _recipe(name, arguments.scale, arguments.output_dir) for name in METHODS}
    for number, (name, recipe) in enumerate(recipes.items(), start=1):
        console.rule(f"{number}. Train {METHODS[name]}")
        ended_by = train(recipe, resume="auto").signal
        if ended_by is not None:
            sys.exit(128 + ended_by)
    runs = {name: RunFolder(Path(arguments.output_dir) / name) for name in METHODS}
    models = {name: DiffusionLM.from_pretrained(run.root, device="cpu") for name, run in runs.items()}
    console.rule("3. Score both on held-out text")
    _score(models, recipes, runs["demo"], console)
    console.rule("4. Let both write")
    replays = [_generate(name, model, recipes[name], console) for name, model in models.items()]
    _write_samples(replays, runs["demo"])
    write_text(runs["demo"].root / "replay.html", html_page(replays[::-1], title="Unmask: two ways to write"))
    loss_curves({METHODS[name]: run.metrics for name, run in runs.items()}, runs["demo"].plots)
    console.rule(f"Done in {(time.monotonic() - began) / 60:.1f} minutes")
    for path, what in (
        ("replay.html", "the denoising, step by step; open it in a browser"),
        ("plots/loss.png", "training loss and held-out bits per byte (and loss.csv)"),
        ("samples/demo.md", "what both wrote"),
        ("evaluation.json", "the scores above"),
        ("final", f'the model: unmask generate {runs["demo"].root} "{PROMPT}" --watch'),
    ):
        console.print(f"{runs['demo'].root / path}  {what}", highlight=False, soft_wrap=True)


def _recipe(name: str, scale: str, output_dir: str) -> Recipe:
    overrides = [
        f"name={name}",
        f"output_dir={output_dir}",
        f"data.cache_dir={output_dir}/demo-text",
        f"objective.method={METHODS[name]}",
        *SCALES[scale],
    ]
    return config.load(Recipe, file=RECIPE, overrides=overrides)


def _score(models: dict[str, DiffusionLM], recipes: dict[str, Recipe], run: RunFolder, console: Console) -> None:
    """Exact for autoregression, a bound for diffusion, on the same rows."""
    lines = ["| model | parameters | bits per byte | nats per token | kind |", "|---|---:|---:|---:|---|"]
    record = {}
    for name, lm in models.items():
        recipe = recipes[name]
        assert lm.tokenizer is not None
        held_out = prepare_text(recipe, lm.tokenizer, Path(recipe.data.cache_dir or "")).held_out
        assert held_out is not None
        found = evaluate(lm.backbone, held_out, recipe.evaluation)
        total, _ = parameter_counts(lm.backbone.network)
        lines.append(f"| {METHODS[name]} | {total:,} | {_scored(found)} |")
        record[METHODS[name]] = dataclasses.asdict(found) | {"bits_per_byte": found.bits_per_byte}
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    write_text(run.root / "evaluation.json", json.dumps(record, indent=2) + "\n")


def _scored(found: Likelihood) -> str:
    kind = "upper bound (ELBO)" if found.is_bound else "exact"
    error = f" +- {found.bits_per_byte_stderr:.3f}" if found.is_bound else ""
    return f"{found.bits_per_byte:.3f}{error} | {found.nats_per_token:.3f} | {kind}"


def _generate(name: str, lm: DiffusionLM, recipe: Recipe, console: Console) -> Replay:
    """Write behind the prompt, on the terminal, and keep what happened."""
    console.print(f"\n{METHODS[name]}:", style="bold")
    params = SAMPLING[name]
    if recipe.sampling.max_new_tokens < params.max_new_tokens:
        length = recipe.sampling.max_new_tokens
        steps = None if params.denoising_steps is None else length // 2
        params = dataclasses.replace(params, max_new_tokens=length, denoising_steps=steps)
    frames: list[Frame] = []

    def seen() -> Iterator[Frame]:
        step: Step
        for step in lm.stream(PROMPT, params):
            frames.append(frame(step, lm.tokenizer))
            yield frames[-1]

    began = time.perf_counter()
    last = watch(seen(), prompt=PROMPT, console=console, delay_s=0.05 if console.is_terminal else 0.0)
    seconds = time.perf_counter() - began
    total, _ = parameter_counts(lm.backbone.network)
    facts = {
        "parameters": f"{total:,}",
        "forwards": str(last.forwards),
        "tokens per forward": f"{len(last.pieces) / last.forwards:.2f}",
        "seconds": f"{seconds:.1f}",
    }
    return Replay(METHODS[name], PROMPT, tuple(frames), facts)


def _write_samples(replays: list[Replay], run: RunFolder) -> None:
    parts = [
        f"## {replay.title}\n\n```text\n{PROMPT}{''.join(piece or '' for piece in replay.frames[-1].pieces)}\n```\n"
        for replay in replays
    ]
    write_text(run.samples / "demo.md", "# What both wrote\n\n" + "\n".join(parts))


if __name__ == "__main__":
    main()
