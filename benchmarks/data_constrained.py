"""When does diffusion beat autoregression on text that is read again and again? The data-constrained study.

    python benchmarks/data_constrained.py --size cpu --output FOLDER --jobs 2
    python benchmarks/data_constrained.py --size gpu --output FOLDER --text FILE [FILE ...] [--minutes 9]

Trains every arm at every budget of epochs with every seed, each budget with a schedule of its own, all on the same
unique text; then scores the last and the best checkpoint of each on text that nothing was chosen on. Finished runs and
scores are kept, so the same command goes on where it was interrupted. Written into the folder: `data-constrained.json`,
`.csv` and the pictures. What it found: docs/data-constrained.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import measure
from data_constrained_runs import ARMS, RECIPES, Study, planned, train_all
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
        overlay: recipes over the arms' own.
    """

    arms: tuple[str, ...]
    budgets: tuple[int, ...]
    seeds: int
    single: tuple[str, ...]
    unique: int
    select: int
    report: int
    document: int
    overlay: tuple[Path, ...] = ()


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
        overlay=(RECIPES / "gpu.yaml",),
    ),
}


def main() -> None:
    given = _arguments()
    size = SIZES[given.size]
    if given.size == "gpu" and not given.text:
        raise SystemExit("The GPU size needs a text: --text FILE, for example articles of Wikipedia as .txt or .jsonl.")
    measure.one_thread()
    documents = file_documents(given.text, least=size.document) if given.text else python_paragraphs()
    folder = given.output.resolve()
    facts = written(documents, folder / "text", select=given.select, report=given.report)
    print(facts)
    study = Study(folder, size.overlay, tuple(given.set), given.unique)
    cases = planned(given.arms, given.budgets, given.seeds, size.single if given.seeds == size.seeds else ())
    deadline = None if given.minutes is None else time.time() + 60 * given.minutes
    complete = train_all(study, cases, jobs=given.jobs, deadline=deadline)
    print(complete)


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
    given = parser.parse_args()
    for name in ("arms", "budgets", "seeds", "unique", "select", "report"):
        if getattr(given, name) is None:
            setattr(given, name, getattr(SIZES[given.size], name))
    return given


if __name__ == "__main__":
    main()
