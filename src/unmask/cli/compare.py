"""`unmask compare A B ...`: models on the same held-out text, with intervals; a winner only where one is shown."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.cli.options import Parser, add_settings, parser, quiet_libraries, settings
from unmask.errors import PromptError, SettingsError, require
from unmask.runs import environment, locate
from unmask.settings.comparison import ComparisonSettings
from unmask.settings.evaluation import AnswerSettings, TaskSettings
from unmask.writing import write_text

if TYPE_CHECKING:
    from unmask.cli.compare_models import Measured, Plan
    from unmask.cli.compare_text import SharedText
    from unmask.evaluation.downstream import Prepared
    from unmask.evaluation.pieces import Piece

_EXAMPLES = """\
  unmask compare runs/python-docs runs/python-docs-ar           # on the text that both runs hold out
  unmask compare runs/a runs/b runs/c --save --output-dir comparisons --output-name kinds
  unmask compare runs/a Qwen/Qwen3-0.6B --data my.jsonl         # any tokenizers, on the same bytes
  unmask compare runs/a runs/b --judge Qwen/Qwen3-0.6B --texts 64 --new-tokens 128
  unmask compare runs/a runs/b --tasks hellaswag,piqa --limit 200
"""
_TASK_FIELDS = {"limit", "num_fewshot", "mc_num"}
_HOMES = (Path("experiments"), Path("runs"))
_SHOWN_TEXTS = 3


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    parsed = _options().parse_intermixed_args(list(arguments))
    chosen = settings(ComparisonSettings, parsed)
    names = _named(_models(parsed))
    if parsed.save:
        require("matplotlib", extra="plots", purpose="The page of a comparison (--save)")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    tasks = _prepared_tasks(parsed)
    quiet_libraries()
    with _threads(chosen.threads):
        record = _record(names, parsed, chosen, tasks)
    from unmask.reports.comparison import as_csv, as_markdown

    print(as_markdown(record))
    if parsed.save:
        from unmask.reports.comparison_page import page

        stem = parsed.output_dir / (parsed.output_name or "-vs-".join(map(_file_name, names)))
        files = {".json": json.dumps(record, indent=2) + "\n", ".csv": as_csv(record), ".html": page(record)}
        for ending, text in files.items():
            write_text(stem.with_name(stem.name + ending), text)
            print(f"wrote {stem}{ending}", file=sys.stderr)
    return 0


def _options() -> Parser:
    options = parser(
        "compare",
        "Compare runs and models on the same held-out text: bits per byte (exact, or an upper bound with its standard "
        "error), paired bootstrap intervals over the documents, generated texts, speed, downstream tasks.",
        _EXAMPLES,
    )
    options.add_argument(
        "models", nargs="*", metavar="RUN_OR_MODEL", help="two or more run folders, model folders, ids"
    )
    options.add_argument("--data", action="append", default=argparse.SUPPRESS, metavar="SOURCE", help=_DATA_HELP)
    for name, text in _TEXT_HELP.items():
        spellings = dict.fromkeys([f"--{name}", f"--{name.replace('-', '_')}"])
        choices = ("error", "skip") if name == "malformed" else None
        metavar = None if choices else "VALUE"
        options.add_argument(*spellings, default=argparse.SUPPRESS, metavar=metavar, choices=choices, help=text)
    options.add_argument("--judge", metavar="MODEL", help="independent autoregressive model that reads what is written")
    options.add_argument("--device", metavar="DEVICE", help="cpu, cuda, ... [default: the accelerator, if any]")
    options.add_argument("--dtype", metavar="DTYPE", default="auto", help="type of the weights [default: as saved]")
    saving = options.add_argument_group("files")
    saving.add_argument("--save", "--save-results", "--save_results", action="store_true", help="JSON, CSV and a page")
    saving.add_argument(
        "--output-dir", "--output_dir", type=Path, default=Path("comparisons"), metavar="DIR", help="[comparisons]"
    )
    saving.add_argument("--output-name", "--output_name", metavar="NAME", help="[default: A-vs-B]")
    add_settings(options, ComparisonSettings, "what is measured")
    tasks = options.add_argument_group("downstream tasks of lm-evaluation-harness")
    tasks.add_argument("--tasks", default=argparse.SUPPRESS, metavar="NAMES", help="with commas between them")
    tasks.add_argument(
        "--include-path", "--include_path", action="append", default=[], metavar="DIR", help="definitions of your own"
    )
    for kind in (TaskSettings, AnswerSettings):
        others = {one.name for one in dataclasses.fields(kind)} - _TASK_FIELDS
        add_settings(options, kind, "of the tasks", skip=others)
    original = options.add_argument_group("as TDLM names it")
    original.add_argument("--dd", "--diffusion", metavar="RUN", help="the diffusion run, in --experiments-dir")
    original.add_argument("--ar", "--autoregressive", metavar="RUN", help="the autoregressive one, likewise")
    original.add_argument(
        "--experiments-dir", "--experiments_dir", type=Path, metavar="DIR", help="[default: here, experiments or runs]"
    )
    return options


_DATA_HELP = "text to compare on [default: what all runs hold out, if that is the same]"
_TEXT_HELP = {
    "text-field": "field of JSON rows [default: text]",
    "separator": "text between the documents of a plain-text file",
    "split": "split of a Hugging Face dataset [default: train]",
    "malformed": "rows that cannot be read [default: error]",
}


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
        print(f"measuring {name}", file=sys.stderr)
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
        unused = sorted(name for name in _TASK_FIELDS if name in parsed)
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
    tree = {name: value for name, value in vars(parsed).items() if name in _TASK_FIELDS} | {
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
