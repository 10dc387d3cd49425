"""When does diffusion beat autoregression on text that is read again and again? The data-constrained study.

    python benchmarks/data_constrained.py --size cpu --output FOLDER --jobs 2
    python benchmarks/data_constrained.py --size gpu --output FOLDER --text FILE [FILE ...] [--minutes 9]

Trains every arm at every budget of epochs with every seed, each budget with a schedule of its own, all on the same
unique text; then scores the last and the best checkpoint of each on text that nothing was chosen on. Finished runs and
scores are kept, so the same command goes on where it was interrupted. Written into the folder: `data-constrained.json`
and `.csv`, and the pictures `data-constrained.png` and `data-constrained-control.png`. What it found:
docs/data-constrained.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measure
from data_constrained_picture import draw, draw_control
from data_constrained_runs import ARMS, RECIPES, Study, learned, planned, train_all
from data_constrained_score import TDLM, Scorer, summary
from data_constrained_text import file_documents, python_paragraphs, written

_SINGLE = ("autoregressive-masked-input", "masked-diffusion-unweighted", "block-diffusion", "tidar")


@dataclasses.dataclass(frozen=True)
class Size:
    """A study that fits a machine.

    Attributes:
        arms: which ones.
        budgets: epochs of the runs.
        seeds: of each arm and budget.
        single: arms with one seed.
        unique: tokens to learn from.
        select: characters to select on.
        report: characters to report on.
        document: characters of a document of a file, at least.
        masks: of each piece of a document, for bounds.
        batch_size: rows per forward of the scores.
        overlay: recipes over the arms' own.
        further: budgets of single arms beside the others'.
    """

    arms: tuple[str, ...]
    budgets: tuple[int, ...]
    seeds: int
    single: tuple[str, ...]
    unique: int
    select: int
    report: int
    document: int
    masks: int
    batch_size: int
    overlay: tuple[Path, ...] = ()
    further: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)


SIZES = {
    "cpu": Size(
        arms=tuple(ARMS),
        budgets=(10, 20, 40, 100, 400),
        seeds=3,
        single=_SINGLE,
        unique=16_000,
        select=12_000,
        report=40_000,
        document=300,
        masks=16,
        batch_size=64,
        further={"masked-diffusion": (1000,)},
    ),
    "gpu": Size(
        arms=("autoregressive", "autoregressive-regularized", "masked-diffusion"),
        budgets=(8, 16, 32, 100, 500),
        seeds=1,
        single=_SINGLE,
        unique=500_000,
        select=100_000,
        report=200_000,
        document=2_000,
        masks=16,
        batch_size=512,
        overlay=(RECIPES / "gpu.yaml",),
    ),
}


# --- reports -----------------------------------------------------------------------------------------------------


def tables(record: Mapping[str, Any]) -> str:
    """The arms at their best and at the longest budget, all pairs, and the control, as Markdown."""
    parts = []
    titles = {
        "longest": f"Last checkpoints at {record['longest_shared']} epochs",
        "best": "At their best",
        "further": "At their best, further budgets of single arms included",
        "left_to_right": "The same, diffusion by the chain rule from left to right (exact for that order)",
    }
    for name, title in titles.items():
        if name in record:
            parts += [f"{title}:", _models(record[name]), _pairs(record[name])]
    if record["control"]:
        parts += [
            "AR, masked diffusion and what TDLM's loss says of it, best checkpoints:",
            _control(record["control"]),
        ]
    return "\n\n".join(parts)


def _models(found: Mapping[str, Any]) -> str:
    rows = [
        [
            model["name"],
            f"{'at most ' if 'bound' in model['kind'] else ''}{model['bits_per_byte']:.3f}",
            f"{model['low']:.3f} to {model['high']:.3f}",
            " ".join(f"{value:.3f}" for value in model["seeds"]),
        ]
        for model in found["models"]
    ]
    return measure.table(["arm", "bits/byte", "95 % interval", "seeds"], rows)


def _pairs(found: Mapping[str, Any]) -> str:
    rows = [
        [
            pair["a"],
            pair["b"],
            f"{pair['difference']:+.3f}",
            f"{pair['low']:+.3f} to {pair['high']:+.3f}",
            pair["follows"],
        ]
        for pair in found["pairs"]
    ]
    return measure.table(["a", "b", "a - b", "all intervals together 95 %", "what follows"], rows)


def _control(found: Mapping[str, Any]) -> str:
    rows = []
    for name, one in found.items():
        exact, *others = one["models"]
        row = [name, *(f"{model['bits_per_byte']:.3f}" for model in one["models"])]
        for other in others:
            pair = next(pair for pair in one["pairs"] if (pair["a"], pair["b"]) == (exact["name"], other["name"]))
            row.append(f"{-pair['difference']:+.3f} ({-pair['high']:+.3f} to {-pair['low']:+.3f})")
        rows.append(row)
    return measure.table(["", "AR", "bound", TDLM, "bound - AR", f"{TDLM} - AR"], rows)


def main() -> None:
    given = _arguments()
    size = SIZES[given.size]
    if given.size == "gpu" and not given.text:
        raise SystemExit("The GPU size needs a text: --text FILE, for example articles of Wikipedia as .txt or .jsonl.")
    measure.one_thread()
    documents = file_documents(given.text, least=size.document) if given.text else python_paragraphs()
    folder = given.output.resolve()
    facts = written(documents, folder / "text", select=given.select, report=given.report)
    study = Study(folder, size.overlay, tuple(given.set), given.unique)
    cases = planned(
        given.arms,
        given.budgets,
        given.seeds,
        single=size.single if given.seeds == size.seeds else (),
        further=size.further if tuple(given.budgets) == size.budgets else {},
    )
    # Also before the processes part, which would else make the same vocabulary at once.
    facts |= {f"learned_{name}": value for name, value in learned(study, cases[0]).items()}
    if not given.report_only:
        deadline = None if given.minutes is None else time.time() + 60 * given.minutes
        if not train_all(study, cases, jobs=given.jobs, deadline=deadline):
            raise SystemExit("Stopped and saved. The same command goes on; --report-only scores what is finished.")
    finished = [case for case in cases if study.finished(case)]
    if not finished:
        raise SystemExit(f"No run in {folder / 'runs'} is finished. Train them first: leave --report-only out.")
    scorer = Scorer(study, size.masks, size.batch_size, not given.no_chain_rule)
    settings = {name: getattr(given, name) for name in ("size", "budgets", "seeds", "unique", "set", "text")}
    record = {
        "benchmark": "data_constrained",
        **settings,
        "unfinished": len(cases) - len(finished),
        "parts": facts,
        "masks": size.masks,
        **summary(scorer, finished),
        "machine": measure.machine(),
    }
    measure.written(record, folder / "data-constrained.json")
    measure.write_csv(record["results"], folder / "data-constrained.csv")
    draw(record, folder / "data-constrained.png")
    if record["control"]:
        draw_control(record, folder / "data-constrained-control.png")
    print(tables(record))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Autoregression and diffusion on few tokens, many epochs.")
    parser.add_argument("--size", choices=SIZES, required=True, help="the machine it is made for")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="texts, runs, scores, results")
    parser.add_argument(
        "--text", nargs="+", default=[], metavar="FILE", help="default on a CPU: Python's documentation"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, metavar="ARM", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--budgets", nargs="+", type=int, metavar="EPOCHS", help="each one a run with its own schedule")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each arm and budget; given: of all arms alike")
    parser.add_argument("--unique", type=int, metavar="TOKENS", help="to learn from")
    parser.add_argument("--select", type=int, metavar="CHARACTERS", help="held out, to choose checkpoint and budget on")
    parser.add_argument("--report", type=int, metavar="CHARACTERS", help="held out, to report")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time; one thread each on a CPU [1]")
    parser.add_argument("--minutes", type=float, metavar="N", help="stop training then; the same command goes on")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="settings over every recipe")
    parser.add_argument("--no-chain-rule", action="store_true", help="leave out the scores from left to right")
    parser.add_argument("--report-only", action="store_true", help="train nothing, score what is finished")
    given = parser.parse_args()
    for name in ("arms", "budgets", "seeds", "unique", "select", "report"):
        if getattr(given, name) is None:
            setattr(given, name, getattr(SIZES[given.size], name))
    return given


if __name__ == "__main__":
    main()
