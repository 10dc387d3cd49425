"""`unmask analyze schedule RUN_OR_MODEL`: the cost of schedules on held-out text, ranked with intervals."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.cli.options import Parser, parser, quiet_libraries, refuse_without
from unmask.cli.output import note, show
from unmask.destinations import check_file, check_folder
from unmask.errors import CheckpointError, SettingsError, require
from unmask.runs import locate
from unmask.settings.checks import at_least
from unmask.settings.data import DataSettings
from unmask.settings.reveal_files import SUFFIX, RevealFile

if TYPE_CHECKING:
    from unmask.analysis.information_profile import Profile
    from unmask.analysis.schedule_generation import Generation
    from unmask.analysis.schedules import Analysis, Conformance
    from unmask.lm import DiffusionLM

_EXAMPLES = """\
  unmask analyze schedule runs/demo
  unmask analyze schedule runs/demo --places 32 --steps 4,8 --save best.json
  unmask analyze schedule runs/demo --data held-out.jsonl --schedules linear,polynomial:0.7,mine.json,40+16+8
  unmask analyze schedule runs/demo --generate 64 --judge runs/demo-ar
  unmask generate runs/demo "Return" --max-new-tokens 32 --denoising-steps 8 --reveal-schedule best.json
"""
_SCHEDULES = "linear,cosine,cosine_squared,polynomial:2"
_PLACES = 64
# Fewer documents than this on the scoring half make a bootstrap interval too narrow to be trusted.
_FEW = 50


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    parsed = _parser().parse_args(list(arguments))
    counted = {name: getattr(parsed, name) for name in ("documents", "windows", "resamples", "batch_size")}
    at_least(1, **counted, places=parsed.places)
    at_least(2, mask_counts=parsed.mask_counts)
    if parsed.save is not None and parsed.save.suffix != SUFFIX:
        raise SettingsError(f"--save must name a {SUFFIX} file, got {parsed.save}.")
    if parsed.data is None:
        text = {
            f"--{name.replace('_', '-')}" for name in ("text_field", "separator") if getattr(parsed, name) is not None
        }
        refuse_without(text, "--data", "whose text it is about; a run's held-out text is read as in training")
    check_folder(parsed.output_dir, "--output-dir")
    if parsed.save is not None:
        check_file(parsed.save, "--save")
    temperatures = _temperatures(parsed)
    require("matplotlib", extra="plots", purpose="A picture of schedules")
    quiet_libraries()
    from unmask.analysis.schedule_generation import check_judge
    from unmask.analysis.schedule_pictures import draw, write_generations, write_tables
    from unmask.analysis.schedules import analysed, check_schedule
    from unmask.lm import DiffusionLM

    schedules = [part.strip() for part in parsed.schedules.split(",")]
    for schedule in schedules:
        check_schedule(schedule, parsed.places)
    judge = None if parsed.judge is None else DiffusionLM.from_pretrained(parsed.judge).optimize_for_inference()
    if judge is not None:
        check_judge(judge, str(parsed.judge))
    lm = DiffusionLM.from_pretrained(parsed.model).optimize_for_inference()
    places = _places(lm, parsed.places)
    for schedule in schedules:
        check_schedule(schedule, places)
    steps = _steps(parsed.steps, places)
    profile = _profile(lm, places, parsed)
    found = analysed(profile, schedules, steps, resamples=parsed.resamples, seed=parsed.seed)
    checks = list(_conformance(found, places))
    files = write_tables(profile, found, checks, parsed.output_dir)
    files.append(parsed.output_dir / "schedules.png")
    draw(profile, found, files[-1])
    if parsed.save is not None:
        _save(found, places, parsed)
        files.append(parsed.save)
    show(_report(profile, found, checks, groups=_groups(lm)))
    if judge is not None:
        made = list(_generated(lm, judge, found, temperatures, parsed))
        files.append(write_generations(made, parsed.output_dir))
        show(_generation_report(made, parsed))
    show(f"\n{' '.join(map(str, files))}")
    return 0


def _parser() -> Parser:
    options = parser(
        "analyze schedule", "What schedules of revealing cost on held-out text, and the best one.", _EXAMPLES
    )
    options.add_argument("model", metavar="RUN_OR_MODEL", help="run folder, model folder or hub id")
    options.add_argument(
        "--data", action="append", metavar="SOURCE", help="text, repeatable [default: what the run holds out]"
    )
    options.add_argument("--text-field", "--text_field", metavar="NAME", help="of JSON rows [text]")
    options.add_argument("--separator", metavar="TEXT", help="between two documents of a plain-text file")
    options.add_argument(
        "--places", type=int, metavar="N", help="that a schedule fills [default: 64; block diffusion: those of a block]"
    )
    options.add_argument("--steps", metavar="LIST", help="numbers of steps [default: 2, 4, 8, ... below the places]")
    options.add_argument(
        "--schedules",
        default=_SCHEDULES,
        metavar="LIST",
        help=f"names, polynomial:POWER, .json files, counts such as 32+16+16 [default: {_SCHEDULES}]",
    )
    options.add_argument("--documents", type=int, default=256, metavar="N", help="at most [default: 256]")
    options.add_argument("--windows", type=int, default=1, metavar="N", help="of a document, at most [default: 1]")
    options.add_argument(
        "--mask-counts", "--mask_counts", type=int, default=64, metavar="N", help="where f is measured [default: 64]"
    )
    options.add_argument("--resamples", type=int, default=2000, metavar="N", help="of the documents [default: 2000]")
    options.add_argument("--batch-size", "--batch_size", type=int, default=64, metavar="N", help="[default: 64]")
    options.add_argument("--seed", type=int, default=0, metavar="N", help="of masks, halves and resamples [default: 0]")
    options.add_argument("--generate", type=int, metavar="N", help="also judge N texts of every schedule and order")
    options.add_argument("--judge", metavar="RUN_OR_MODEL", help="autoregressive model that judges them")
    options.add_argument("--temperatures", metavar="LIST", help="to generate at [default: 0.7,1]")
    options.add_argument("--save", type=Path, metavar="FILE", help="write the optimum, for --reveal-schedule FILE")
    options.add_argument(
        "--output-dir", "--output_dir", type=Path, default=Path("analysis"), metavar="DIR", help="[default: analysis]"
    )
    return options


def _places(lm: DiffusionLM, asked: int | None) -> int:
    from unmask.analysis.information_profile import check_method, group_places

    entry = lm.backbone.diffusion
    check_method(entry)
    places = group_places(entry, asked or _PLACES)
    if asked not in (None, places):
        raise SettingsError(
            f"This block-diffusion model fills blocks of {places} places, got --places {asked}. Leave it out."
        )
    return places


def _steps(asked: str | None, places: int) -> list[int]:
    if asked is None:
        return [2**power for power in range(1, 31) if 2**power < places] or [1]
    parts = [part.strip() for part in asked.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= places for part in parts):
        raise SettingsError(f"--steps must be numbers from 1 to the {places} places with commas between, got {asked}.")
    return [int(part) for part in parts]


def _temperatures(parsed: argparse.Namespace) -> list[float]:
    if (parsed.generate is None) != (parsed.judge is None) or (parsed.temperatures and parsed.generate is None):
        raise SettingsError(
            f"--generate N and --judge MODEL belong together, and --temperatures to them; got --generate "
            f"{parsed.generate}, --judge {parsed.judge}."
        )
    at_least(2, generate=parsed.generate)
    parts = (parsed.temperatures or "0.7,1").split(",")
    try:
        found = [float(part) for part in parts]
    except ValueError:
        found = [-1.0]
    if not all(0 <= one < math.inf for one in found):
        raise SettingsError(
            f"--temperatures must be numbers of at least 0 with commas between, got {parsed.temperatures}."
        )
    return found


def _profile(lm: DiffusionLM, places: int, parsed: argparse.Namespace) -> Profile:
    from unmask.analysis.information_profile import mask_counts, measure, window_length, windows
    from unmask.evaluation.texts import text_ids
    from unmask.models.tokenizers import lead_ids

    tokenizer = lm.tokenizer
    if tokenizer is None:
        raise CheckpointError(f"{parsed.model} has no tokenizer, so it cannot read text.")
    ids = (text_ids(tokenizer, text) for text in _texts(parsed))
    lead = lead_ids(tokenizer, needed=lm.backbone.diffusion.logit_shift)
    length = window_length(lm.backbone.diffusion, places, lead=len(lead), room=lm.backbone.context_length)
    found = windows(ids, length, per_document=parsed.windows, max_documents=parsed.documents)
    if found.short:
        note(f"{found.short} documents of less than {length} tokens were left out")
    return measure(
        lm.backbone,
        found,
        mask_counts(places, parsed.mask_counts),
        lead=lead,
        batch_size=parsed.batch_size,
        seed=parsed.seed,
    )


def _texts(parsed: argparse.Namespace) -> Iterable[str]:
    """The documents of the sources, or those that the run holds out."""
    from unmask.cli import compare_text
    from unmask.data.text import Corpus

    if parsed.data is None:
        documents, parsed.data = compare_text.held_out([parsed.model], compare_text.recipes([parsed.model]))
        return documents
    return Corpus(parsed.data, DataSettings(text_field=parsed.text_field or "text", separator=parsed.separator))


def _conformance(found: Analysis, places: int) -> Iterator[Conformance]:
    from unmask.analysis.schedules import conformance

    for steps, rows in found.scored.items():
        for one in rows:
            yield conformance(one.schedule, one.counts, places, steps)


def _save(found: Analysis, places: int, parsed: argparse.Namespace) -> None:
    from unmask.analysis.schedules import OPTIMUM

    best = {steps: one for steps, rows in found.scored.items() for one in rows if one.schedule == OPTIMUM}
    RevealFile(places, found.optimum, str(parsed.save)).write(
        parsed.save,
        model=locate(parsed.model),
        data=parsed.data,
        fit_documents=len(found.fit_documents),
        score_documents=len(found.score_documents),
        seed=parsed.seed,
        excess_nats_per_token={str(steps): [one.excess, one.low, one.high] for steps, one in best.items()},
    )


def _generated(
    lm: DiffusionLM, judge: DiffusionLM, found: Analysis, temperatures: Sequence[float], parsed: argparse.Namespace
) -> Iterator[Generation]:
    from unmask.analysis.schedule_generation import generations

    for rows in found.scored.values():
        yield from generations(
            lm,
            judge,
            {one.schedule: one.counts for one in rows},
            texts=parsed.generate,
            temperatures=temperatures,
            seed=parsed.seed,
            batch_size=parsed.batch_size,
        )


def _generation_report(made: Sequence[Generation], parsed: argparse.Namespace) -> str:
    lines = [
        f"\n{parsed.generate} texts of each, judged by {parsed.judge}; likely and varied are to be read together\n",
        "| steps | order | temperature | schedule | nats/byte | +- | bits of a token's entropy |",
        "|---:|---|---:|---|---:|---:|---:|",
    ]
    for one in sorted(made, key=lambda one: (one.steps, one.order, one.temperature)):
        lines.append(
            f"| {one.steps} | {one.order} | {one.temperature:g} | {one.schedule} | {one.nats_per_byte:.4f} "
            f"| {one.stderr:.4f} | {one.entropy:.3f} |"
        )
    return "\n".join(lines)


def _groups(lm: DiffusionLM) -> str:
    return "blocks" if lm.backbone.diffusion.method == "block_diffusion" else "windows"


def _report(profile: Profile, found: Analysis, checks: Sequence[Conformance], *, groups: str) -> str:
    """The analysis as people read it."""
    mean, error = profile.mean().tolist(), profile.stderr().tolist()
    masked = profile.masked_M.tolist()
    shown = sorted({0, len(masked) // 4, len(masked) // 2, 3 * len(masked) // 4, len(masked) - 1})
    points = ", ".join(f"f({masked[one]}) = {mean[one]:.4f} +- {error[one]:.4f}" for one in shown)
    scoring = len(found.score_documents)
    lines = [
        f"information profile of {len(profile.nats_GM)} {groups} of {profile.places} tokens, {profile.documents} "
        f"documents; nats per masked token with standard error:\n  {points}\n",
        f"excess over one place at a time, random order, on {scoring} documents; the optimum was fitted on the other "
        f"{len(found.fit_documents)}\n",
        "| steps | schedule | nats/token | 95 % interval | optimum / this | rank |",
        "|---:|---|---:|---|---:|---:|",
    ]
    for steps, rows in found.scored.items():
        for one in rows:
            ratio = "-" if math.isnan(one.optimality) else f"{one.optimality:.2f}"
            rank = str(one.first) if one.first == one.last else f"{one.first}-{one.last}"
            lines.append(
                f"| {steps} | {one.schedule} | {one.excess:.4f} | {one.low:.4f} to {one.high:.4f} | {ratio} | {rank} |"
            )
    lines.append(
        "\nA rank is a range where the 95 % interval of a paired difference holds 0. Orders by confidence are another "
        "matter."
    )
    if scoring < _FEW:
        lines.append(f"{scoring} documents are few: the intervals are too narrow. Give more text.")
    lines += ["\ngrids, over all numbers of steps:", *_grids(checks)]
    return "\n".join(lines)


def _grids(checks: Sequence[Conformance]) -> Iterator[str]:
    for name in dict.fromkeys(one.schedule for one in checks):
        own = [one for one in checks if one.schedule == name]
        faults = [f"{one.steps} steps: {fault}" for one in own for fault in one.faults]
        if faults:
            yield f"  {name}: {'; '.join(faults)}"
            continue
        rounding = max(one.rounding for one in own)
        curve = "" if math.isnan(rounding) else f"at most {rounding:.2f} places off its curve; "
        angle = max(one.angle for one in own)
        yield f"  {name}: {curve}increments of the angle differ from equal ones by up to {angle:.0%}"
