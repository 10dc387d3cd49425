"""What measuring a model costs while it trains: CPU time of each tier of metrics against that of the steps.

    python benchmarks/metrics_cost.py [--json FILE]

Trains a masked-diffusion model of Python's documentation for some steps and measures each tier often; then says what
share of the training time each takes at TDLM's intervals (100, 500 and 2000 steps). The measurement alone is timed, so
that the share does not drown in the noise between two runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

from unmask import config
from unmask.settings.recipe import Recipe
from unmask.training.measurements import Measurements
from unmask.training.run import train

RECIPE = Path(__file__).parents[1] / "recipes" / "python-docs.yaml"
QUICK = ("model.hidden_size=16", "model.num_hidden_layers=1", "training.batch_size=2", "sampling.max_new_tokens=4")
INTERVALS = {"tier 1": 100, "tier 2": 500, "tier 3": 2000}


def measured(recipe: Recipe) -> tuple[float, dict[str, list[float]]]:
    """CPU seconds of all steps without measurements, and of each measurement by the highest tier in it."""
    spent: dict[str, list[float]] = {name: [] for name in INTERVALS}
    due = Measurements.due

    def timed(self: Measurements, step: int, *, last: bool) -> dict[str, float]:
        began = time.process_time()
        found = due(self, step, last=last)
        if found:
            tier = 3 if "probe/denoising/forwards" in found else 2 if "probe/gradient/norm" in found else 1
            spent[f"tier {tier}"].append(time.process_time() - began)
        return found

    Measurements.due = timed  # type: ignore[method-assign]
    try:
        began = time.process_time()
        train(recipe)
        total = time.process_time() - began
    finally:
        Measurements.due = due  # type: ignore[method-assign]
    return total - sum(sum(one) for one in spent.values()), spent


def bare(recipe: Recipe) -> float:
    """CPU seconds of a run of a single step: loading, saving, samples."""
    return measured(dataclasses.replace(recipe, name="bare", training=dataclasses.replace(recipe.training, steps=1)))[0]


def shares(folder: str, *, steps: int, overrides: list[str]) -> dict[str, Any]:
    """Seconds of a step and of each tier, and each tier's share of the training time at its interval."""
    tiers = [
        f"training.{name}={steps // count}"
        for name, count in (("logging_steps", 20), ("detailed_metrics_steps", 4), ("attention_analysis_steps", 2))
    ]
    quiet = ["training.eval_steps=1000000", "training.save_steps=1000000", "data.validation_fraction=0.05"]
    fixed = [f"output_dir={folder}", f"data.cache_dir={folder}/cache", f"training.steps={steps}"]
    recipe = config.load(Recipe, file=RECIPE, overrides=[*fixed, *tiers, *quiet, *overrides])
    bare(recipe)  # what is loaded and compiled once
    other = bare(dataclasses.replace(recipe, output_dir=f"{folder}/again"))
    trained, spent = measured(recipe)
    step = (trained - other) / (steps - 1)
    seconds = {name: statistics.median(values) for name, values in spent.items()}
    # A measurement of a higher tier has the lower ones in it, which are counted at their own intervals.
    alone = {"tier 1": seconds["tier 1"]} | {
        name: max(seconds[name] - seconds[f"tier {number - 1}"], 0.0) for number, name in ((2, "tier 2"), (3, "tier 3"))
    }
    share = {name: alone[name] / (interval * step) for name, interval in INTERVALS.items()}
    return {"step_seconds": step, "seconds": seconds, "share": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="the record; a bare name lands in results/")
    parser.add_argument("--quick", action="store_true", help="a few steps, to test the script itself")
    given = parser.parse_args()
    measure.one_thread()
    record: dict[str, Any] = {"benchmark": "metrics_cost", "intervals": INTERVALS, "results": []}
    rows = []
    for method in ("masked_diffusion",) if given.quick else ("masked_diffusion", "block_diffusion", "tidar"):
        with tempfile.TemporaryDirectory() as folder:
            overrides = [f"objective.method={method}", *(QUICK if given.quick else ())]
            found = shares(folder, steps=20 if given.quick else 200, overrides=overrides)
        record["results"].append({"method": method, **found})
        rows.append([method, f"{found['step_seconds'] * 1000:.1f}", *(f"{one:.2%}" for one in found["share"].values())])
    header = ["method", "ms per step", *(f"{name} every {every}" for name, every in INTERVALS.items())]
    print(measure.table(header, rows))
    measure.publish(record, shape=None, file=given.json)


if __name__ == "__main__":
    main()
