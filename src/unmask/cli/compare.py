"""`unmask compare A B ...`: models on the same held-out text, with intervals; a winner only where one is shown."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.cli import compare_options
from unmask.cli.options import placement, quiet_libraries, settings
from unmask.cli.output import as_json, note, show
from unmask.destinations import check_file
from unmask.errors import PromptError, SettingsError, require
from unmask.runs import environment, locate
from unmask.settings.comparison import ComparisonSettings
from unmask.writing import write_text

if TYPE_CHECKING:
    from unmask.cli.compare_models import Measured, Plan
    from unmask.cli.compare_text import SharedText
    from unmask.evaluation.downstream import Prepared
    from unmask.evaluation.pieces import Piece

_HOMES = (Path("experiments"), Path("runs"))
_SHOWN_TEXTS = 3


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    parsed = compare_options.options().parse_intermixed_args(list(arguments))
    chosen = settings(ComparisonSettings, parsed)
    names = _named(_models(parsed))
    compare_options.check_together(parsed, chosen)
    stem = Path("comparisons") if parsed.output_dir is None else parsed.output_dir
    stem /= parsed.output_name or "-vs-".join(map(_file_name, names))
    if parsed.save:
        require("matplotlib", extra="plots", purpose="The page of a comparison (--save)")
        check_file(stem.with_name(stem.name + ".json"), "--output-dir with --output-name")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    tasks = _prepared_tasks(parsed)
    quiet_libraries()
    parsed.device, parsed.dtype = placement(parsed).values()
    with _threads(chosen.threads):
        record = _record(names, parsed, chosen, tasks)
    from unmask.reports.comparison import as_csv, as_markdown

    show(as_markdown(record))
    if parsed.save:
        from unmask.reports.comparison_page import page

        files = {".json": as_json(record, indent=2) + "\n", ".csv": as_csv(record), ".html": page(record)}
        for ending, text in files.items():
            write_text(stem.with_name(stem.name + ending), text)
            note(f"wrote {stem}{ending}")
    return 0


def _models(parsed: argparse.Namespace) -> list[str]:
    """What is compared, in the order given."""
    if parsed.experiments_dir is not None and not (parsed.dd or parsed.ar):
        raise SettingsError(
            "--experiments-dir is where --dd and --ar are looked for, and neither is given. Leave it out."
        )
    found = [*parsed.models, *(_experiment(one, parsed.experiments_dir) for one in (parsed.dd, parsed.ar) if one)]
    if len(found) < 2:
        raise SettingsError(
            f"A comparison needs two runs or models, got {', '.join(found) or 'none'}. Example: "
            "unmask compare runs/a runs/b"
        )
    if len({locate(one) for one in found}) < len(found):
        raise SettingsError(f"Each model is compared once, got {', '.join(found)}. Leave the second one out.")
    return found


def _experiment(name: str, folder: Path | None) -> str:
    """Where a run that is named as TDLM does lies: in the folder, else from here, or where runs are kept."""
    places = [Path(), *_HOMES] if folder is None else [folder]
    return str(next((place / name for place in places if (place / name).is_dir()), places[0] / name))


def _named(models: Sequence[str]) -> dict[str, str]:
    """A short name for each model: its folder's, or the whole path where two folders have the same name."""
    short = [Path(model).name or model for model in models]
    return {name if short.count(name) == 1 else model: model for name, model in zip(short, models, strict=True)}


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name).strip("_")


def _record(
    names: dict[str, str], parsed: argparse.Namespace, chosen: ComparisonSettings, tasks: Sequence[Prepared]
) -> dict[str, Any]:
    """Measure every model, then compare."""
    from unmask.cli import compare_models, compare_text
    from unmask.evaluation.compare import FEWEST_DOCUMENTS

    models = list(names.values())
    runs = compare_text.recipes(models)
    readers = [compare_models.reader(model, name, runs.get(model), chosen) for name, model in names.items()]
    judge = _checked_judge(parsed.judge, models)
    text = compare_text.shared_text(models, runs, parsed)
    at_most = sys.maxsize if chosen.max_batches is None else chosen.max_batches * chosen.batch_size
    documents, pieces = compare_text.measured_pieces(text, readers, at_most=at_most, seed=chosen.seed)
    notes = list(text.notes)
    starts = compare_models.beginnings(documents, chosen)
    unit = "document"
    if len({piece.document for piece in pieces}) < FEWEST_DOCUMENTS <= len(pieces):
        pieces, unit = [dataclasses.replace(piece, document=at) for at, piece in enumerate(pieces)], "piece"
        notes.append(
            f"The text has fewer than {FEWEST_DOCUMENTS} documents, so pieces of them are resampled. Neighbouring "
            "pieces resemble each other: the intervals are too short rather than too long."
        )
    new_tokens, said = _new_tokens(models, [prompt for prompt, _ in starts], chosen)
    starts = starts if new_tokens else []
    plan = compare_models.Plan(
        chosen,
        pieces,
        _chained(pieces, chosen),
        [one for one, _ in starts],
        new_tokens,
        tasks,
        parsed.device,
        parsed.dtype,
    )
    found: dict[str, Measured] = {}
    for name, model in names.items():
        note(f"measuring {name}")
        found[name] = compare_models.measured(model, name, plan)
    record = _compared(found, plan, unit)
    record["text"] = _described(text, pieces, unit)
    record["generation"], unread = _judged(found, starts, judge, parsed, new_tokens)
    for entry, (_, model) in zip(record["models"], names.items(), strict=True):
        entry["training"], damaged = compare_models.training(model)
        notes += damaged
    record["task_pairs"] = _task_pairs(record, chosen)
    record["notes"] = [*notes, *said, *unread]
    record["settings"] = dataclasses.asdict(chosen)
    record["environment"] = environment()
    return record


def _compared(found: dict[str, Measured], plan: Plan, unit: str) -> dict[str, Any]:
    """Bits per byte with intervals, and each model's own figures beside them."""
    import torch

    from unmask.evaluation.compare import Scored, compared
    from unmask.evaluation.pieces import by_document

    scored = [
        Scored(
            name,
            one.record["method"],
            one.is_bound,
            by_document(plan.pieces, one.rows.nats_B),
            by_document(plan.pieces, one.rows.stderr_B.square()).sqrt(),
        )
        for name, one in found.items()
    ]
    sizes = by_document(plan.pieces, torch.tensor([piece.bytes for piece in plan.pieces]))
    record = compared(scored, sizes, seed=plan.settings.seed, confidence=plan.settings.confidence)
    record["unit"] = unit
    chained_bytes = sum(piece.bytes for piece in plan.pieces[: plan.chained])
    record["chain_rule_bytes"] = chained_bytes if any(one.is_bound for one in found.values()) else 0
    for entry, one in zip(record["models"], found.values(), strict=True):
        entry |= one.record
        entry["chain_rule"] = None
        if record["chain_rule_bytes"]:
            own = float(one.rows.nats_B[: plan.chained].sum())
            bits = [nats / math.log(2) / chained_bytes for nats in (own, math.fsum(one.chain_rule))]
            entry["chain_rule"] = {"own_bits_per_byte": bits[0], "bits_per_byte": bits[1]}
    return record


def _task_pairs(record: dict[str, Any], chosen: ComparisonSettings) -> list[dict[str, Any]]:
    """The models' tasks compared question by question, whose single values leave the record."""
    from unmask.evaluation.compare_tasks import paired

    rows = {model["name"]: [row for task in model["tasks"] for row in task["results"]] for model in record["models"]}
    found = paired(rows, seed=chosen.seed, confidence=chosen.confidence)
    for row in itertools.chain.from_iterable(rows.values()):
        del row["each"]
    return found


def _described(text: SharedText, pieces: Sequence[Piece], unit: str) -> dict[str, Any]:
    return {
        "sources": list(text.sources),
        "digest": text.digest,
        "available_documents": len(text.documents),
        "pieces": len(pieces),
        "unit": unit,
        "bytes": sum(piece.bytes for piece in pieces),
    }


def _chained(pieces: Sequence[Piece], chosen: ComparisonSettings) -> int:
    """How many pieces, from the first, have at most `chain_rule_bytes` together."""
    total = 0
    for number, piece in enumerate(pieces):
        total += piece.bytes
        if total > chosen.chain_rule_bytes:
            return number
    return len(pieces)


def _new_tokens(models: Sequence[str], prompts: Sequence[str], chosen: ComparisonSettings) -> tuple[int, list[str]]:
    """Tokens of a continuation, at most, and a note where not as many fit as were asked for."""
    from unmask.cli.compare_models import room_for

    if chosen.texts == 0:
        return 0, []
    if not prompts:
        return 0, [f"No document has more than {2 * chosen.prompt_words} words, so nothing was generated."]
    room = {model: room_for(model, prompts) for model in models}
    tightest = min(room, key=lambda model: room[model])
    if room[tightest] >= chosen.new_tokens:
        return chosen.new_tokens, []
    if room[tightest] < 1:
        return 0, [f"The prompts fill the context of {tightest}, so nothing was generated. Lower --prompt-words."]
    return room[tightest], [
        f"Continuations have at most {room[tightest]} tokens, not {chosen.new_tokens}: the context of {tightest} ends."
    ]


def _checked_judge(judge: str | None, models: Sequence[str]) -> str | None:
    """The judge, if it is independent and exact; found out before anything is measured."""
    from unmask.models.loading import outline

    if judge is None:
        return None
    if locate(judge) in {locate(model) for model in models}:
        raise SettingsError(
            f"--judge {judge} is one of the models compared, and would judge itself. Name another model."
        )
    method = outline(locate(judge)).backbone.diffusion.method
    if method != "autoregressive":
        raise SettingsError(f"--judge must be autoregressive, to be exact; {judge} is {method}. Name another model.")
    return judge


def _judged(
    found: dict[str, Measured],
    starts: Sequence[tuple[str, str]],
    judge: str | None,
    parsed: argparse.Namespace,
    new_tokens: int,
) -> tuple[dict[str, Any] | None, list[str]]:
    """The quality of the continuations, and of the documents' own (as long as the longest model's, on average); and a
    note where the judge could not read them."""
    if not starts:
        return None, []
    from unmask.evaluation.written import judged, variety
    from unmask.lm import DiffusionLM

    prompts = [prompt for prompt, _ in starts]
    texts = {name: one.continuations for name, one in found.items()}
    longest = max(sum(map(len, own)) / len(own) for own in texts.values())
    texts["the text itself"] = [rest[: max(1, round(longest))] for _, rest in starts]
    notes: list[str] = []
    quality = {name: variety(own) for name, own in texts.items()}
    if judge is not None:
        reader = DiffusionLM.from_pretrained(judge, device=parsed.device, dtype=parsed.dtype).optimize_for_inference()
        try:
            read = {name: judged(reader, prompts, own) for name, own in texts.items()}
        except PromptError as error:  # what was measured so far is not lost for it
            notes, judge = [f"The judge {judge} could not read the generated texts. {error}"], None
        else:
            quality = {name: own | read[name] for name, own in quality.items()}
    return {
        "judge": None if judge is None else locate(judge),
        "texts": len(prompts),
        "new_tokens": new_tokens,
        "quality": quality,
        "samples": [
            {"prompt": prompt, "continuations": {name: own[at] for name, own in texts.items()}}
            for at, prompt in enumerate(prompts[:_SHOWN_TEXTS])
        ],
    }, notes


def _prepared_tasks(parsed: argparse.Namespace) -> Sequence[Prepared]:
    if "tasks" not in parsed:
        unused = sorted(name for name in compare_options.TASK_FIELDS if name in parsed)
        if unused:
            raise SettingsError(
                f"--{unused[0].replace('_', '-')} belongs to --tasks, which is not given. Leave it out."
            )
        return []
    require("lm_eval", extra="eval", purpose="Evaluation on tasks")
    from unmask.evaluation import downstream
    from unmask.evaluation.recipes import task_run

    names = [name.strip() for name in parsed.tasks.split(",") if name.strip()]
    if not names:
        raise SettingsError("--tasks names no task. Example: --tasks hellaswag,arc_easy")
    tree = {name: value for name, value in vars(parsed).items() if name in compare_options.TASK_FIELDS} | {
        "batch_size": getattr(parsed, "batch_size", ComparisonSettings.batch_size),
        "seed": getattr(parsed, "seed", ComparisonSettings.seed),
    }
    return downstream.prepare(
        [task_run(name, tree, source="the command line") for name in names], include_path=parsed.include_path
    )


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """The CPU threads of a comparison, for all models alike."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
