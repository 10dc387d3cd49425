"""Train, score and watch three tiny language models on Python's own documentation.

    python examples/demo.py                  # about five minutes on two CPU cores
    python examples/demo.py --scale tiny     # seconds, to see that everything runs

One recipe, three objectives: autoregression (runs/demo-ar), masked diffusion (runs/demo), and TiDAR, which continues
the autoregressive model (runs/demo-tidar). All are scored on the same held-out text, two continue the same prompt, and
runs/demo keeps curves, samples and a page that replays the denoising. In the end the TiDAR model writes one text
twice: token by token, and by drafts that it verifies itself. Run it again and it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
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
from unmask.runs import RunFolder
from unmask.settings.recipe import Recipe
from unmask.training import kept_split
from unmask.training.preparation import TrainingText, prepare_text, prepare_tokenizer
from unmask.writing import write_text

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
METHODS = {"demo-ar": "autoregressive", "demo": "masked_diffusion", "demo-tidar": "tidar"}
SIDE_BY_SIDE, BEHIND = ("demo-ar", "demo"), ("demo-tidar",)
# TiDAR continues the autoregressive model for a third of its steps.
OWN_OVERRIDES = {
    "full": {"demo-tidar": ["objective.block_length=4", "training.steps=500", "training.eval_steps=250"]},
    "tiny": {"demo-tidar": ["objective.block_length=4"]},
}
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
    recipes = {
        name: config.load(Recipe, file=RECIPE, overrides=_overrides(name, arguments.scale, arguments.output_dir))
        for name in METHODS
    }
    console.rule("1. Read Python's documentation")
    text = _prepare(recipes["demo"])
    console.print(f"{len(text.train):,} rows to train on, {len(text.held_out or ()):,} held out", highlight=False)
    console.rule("2. Train two, side by side, one core each; then continue the autoregressive one")
    for names in (SIDE_BY_SIDE, BEHIND):
        _train(names, arguments.scale, arguments.output_dir, console)
    runs = {name: RunFolder(Path(arguments.output_dir) / name) for name in METHODS}
    models = {name: DiffusionLM.from_pretrained(run.root, device="cpu") for name, run in runs.items()}
    console.rule("3. Score them on held-out text")
    _score(models, recipes, runs["demo"], console)
    console.rule("4. Let two write")
    replays = [_generate(name, models[name], recipes[name], console) for name in SIDE_BY_SIDE]
    _write_samples(replays, runs["demo"])
    write_text(runs["demo"].root / "replay.html", html_page(replays[::-1], title="Unmask: two ways to write"))
    loss_curves({METHODS[name]: run.metrics for name, run in runs.items()}, runs["demo"].plots)
    console.rule("5. One text, token by token and by drafts")
    _compare(models["demo-tidar"], recipes["demo-tidar"], console)
    console.rule(f"Done in {(time.monotonic() - began) / 60:.1f} minutes")
    for path, what in (
        ("replay.html", "the denoising, step by step; open it in a browser"),
        ("plots/loss.png", "training loss and held-out bits per byte (and loss.csv)"),
        ("samples/demo.md", "what two of them wrote"),
        ("evaluation.json", "the scores above"),
        ("final", f'the model: unmask generate {runs["demo"].root} "{PROMPT}" --watch'),
    ):
        console.print(f"{runs['demo'].root / path}  {what}", highlight=False, soft_wrap=True)


def _overrides(name: str, scale: str, output_dir: str) -> list[str]:
    source = [f"model.from_pretrained={output_dir}/demo-ar"] if name in BEHIND else []
    return [
        f"name={name}",
        f"output_dir={output_dir}",
        f"data.cache_dir={output_dir}/demo-text",
        f"objective.method={METHODS[name]}",
        *SCALES[scale],
        *source,
        *OWN_OVERRIDES[scale].get(name, []),
    ]


def _prepare(recipe: Recipe) -> TrainingText:
    """Tokenise the text once, for both runs."""
    folder = Path(recipe.data.cache_dir or "")
    return prepare_text(recipe, prepare_tokenizer(recipe, folder), folder)


def _train(names: Sequence[str], scale: str, output_dir: str, console: Console) -> None:
    """`unmask train` processes, whose lines are shown as they come; tiny models gain nothing from more threads."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = {}
    for name in names:
        command = ["unmask", "train", str(RECIPE), *_overrides(name, scale, output_dir), "--resume", "auto"]
        console.print(shlex.join(command), style="dim", markup=False, highlight=False, soft_wrap=True)
        processes[name] = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    watchers = [
        threading.Thread(target=_show, args=(METHODS[name], process, console)) for name, process in processes.items()
    ]
    for watcher in watchers:
        watcher.start()
    for watcher in watchers:
        watcher.join()
    for process in processes.values():
        if process.wait() != 0:
            sys.exit(process.returncode)


def _show(method: str, process: subprocess.Popen[str], console: Console) -> None:
    for line in process.stderr or ():
        console.print(f"{method:>16} | {line.rstrip()}", markup=False, highlight=False, soft_wrap=True)


def _score(models: dict[str, DiffusionLM], recipes: dict[str, Recipe], run: RunFolder, console: Console) -> None:
    """Exact for autoregression, a bound for diffusion, on the same rows."""
    lines = ["| model | parameters | bits per byte | nats per token | kind |", "|---|---:|---:|---:|---|"]
    record = {}
    for name, lm in models.items():
        recipe = recipes[name]
        assert lm.tokenizer is not None
        own = kept_split.of_run(
            RunFolder(Path(recipe.output_dir) / name), recipe.data, lm.tokenizer, purpose="evaluate"
        )
        held_out = prepare_text(recipe, lm.tokenizer, Path(recipe.data.cache_dir or ""), kept=own).held_out
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
    prompt = lm.codec.encode(PROMPT)

    def seen() -> Iterator[Frame]:
        step: Step
        for step in lm.stream(prompt, params):
            frames.append(frame(step, lm.tokenizer, prompt=prompt))
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


def _compare(lm: DiffusionLM, recipe: Recipe, console: Console) -> None:
    """The same checkpoint decoded by autoregression and by TiDAR: the same text in fewer forwards."""
    length = min(recipe.sampling.max_new_tokens, 64)
    ways = {
        decoding: lm.generate(PROMPT, SamplingParams(decoding=decoding, max_new_tokens=length, ignore_eos=True))[0]
        for decoding in ("autoregressive", "tidar")
    }
    console.print(PROMPT + ways["tidar"].text, style="bold", markup=False, highlight=False)
    for decoding, output in ways.items():
        console.print(
            f"{decoding:>16} | {len(output.token_ids)} tokens, {output.forwards} forwards, "
            f"{output.tokens_per_forward:.2f} tokens per forward",
            highlight=False,
        )
    same = ways["autoregressive"].token_ids == ways["tidar"].token_ids
    console.print("The texts are identical." if same else "The texts differ, at a near-tie of float32.")


def _write_samples(replays: list[Replay], run: RunFolder) -> None:
    parts = [
        f"## {replay.title}\n\n```text\n{PROMPT}{''.join(piece or '' for piece in replay.frames[-1].pieces)}\n```\n"
        for replay in replays
    ]
    write_text(run.samples / "demo.md", "# What both wrote\n\n" + "\n".join(parts))


if __name__ == "__main__":
    main()
