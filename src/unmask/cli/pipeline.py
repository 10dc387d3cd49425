"""`unmask pipeline RECIPE.yaml [--stage all|pretraining|sft|inference] [key=value ...]`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from unmask import config
from unmask.cli.options import help_of_settings, parser, quiet_libraries
from unmask.errors import SettingsError
from unmask.settings.pipeline import PipelineRecipe, StageName, TrainedStage
from unmask.writing import write_text

_STAGES: tuple[StageName, ...] = ("pretraining", "sft", "inference")
_EXAMPLES = """\
  unmask pipeline recipes/llada-pipeline.yaml --dry-run
  unmask pipeline recipes/llada-pipeline.yaml --stage all pretraining.data.train=text.jsonl sft.data.train=chats.jsonl
  unmask pipeline recipes/llada-pipeline.yaml --stage sft sft.model.from_pretrained=GSAI-ML/LLaDA-8B-Base
  unmask pipeline recipes/llada-pipeline.yaml --stage inference --prompt "What is the capital of France?"

The same command again goes on where it was interrupted and does not repeat a finished stage.
`unmask pipeline --help-keys` lists every key of a recipe.
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser(
        "pipeline", "Pre-train, fine-tune and ask a model, each stage from the best of the one before.", _EXAMPLES
    )
    options.add_argument("recipe", nargs="?", help="YAML file with the stages")
    options.add_argument("overrides", nargs="*", metavar="key=value", help="settings on top of the file")
    options.add_argument("--stage", choices=("all", *_STAGES), default="all", help="what to run [default: all]")
    options.add_argument("--prompt", action="append", metavar="TEXT", help="ask this instead of inference.prompts")
    options.add_argument("--restart", choices=_STAGES[:2], help="remove this stage and what came from it, and train")
    options.add_argument("--dry-run", "--dry_run", action="store_true", help="say what would run, from what, and stop")
    options.add_argument("--print-config", "--print_config", action="store_true", help="print the resolved recipe")
    options.add_argument("--help-keys", action="store_true", help="list every key of a recipe and stop")
    parsed = options.parse_intermixed_args(list(arguments))
    if parsed.help_keys:
        print(help_of_settings(PipelineRecipe))
        return 0
    words = [word for word in [parsed.recipe, *parsed.overrides] if word is not None]
    file = words.pop(0) if words and "=" not in words[0] else None
    pipeline = config.load(PipelineRecipe, file=file, overrides=words)
    if parsed.print_config:
        print(config.to_yaml(pipeline), end="")
        return 0
    if parsed.prompt:
        pipeline = dataclasses.replace(
            pipeline, inference=dataclasses.replace(pipeline.inference, prompts=tuple(parsed.prompt))
        )
    return _run(pipeline, _STAGES if parsed.stage == "all" else (parsed.stage,), parsed.restart, dry=parsed.dry_run)


def _run(pipeline: PipelineRecipe, stages: Sequence[StageName], restart: TrainedStage | None, *, dry: bool) -> int:
    from unmask.training import pipeline as work

    asks = "inference" in stages
    if asks and not pipeline.inference.prompts:
        raise SettingsError("The inference stage has nothing to ask. Give --prompt TEXT or inference.prompts=[...].")
    planned = work.plan(pipeline, stages, restart=restart)
    if dry:
        print("\n".join(line for stage in planned for line in stage.lines()))
        if asks:
            model = planned[-1].run.final if planned else work.last_finished(pipeline)
            print(f"inference: asks {model}, number of prompts: {len(pipeline.inference.prompts)}")
        return 0
    quiet_libraries()
    ended_by = work.run(planned)
    if not work.is_main():
        return 0
    if ended_by is not None:
        print("Stopped and saved. The same command goes on from here.", file=sys.stderr)
        return 128 + ended_by
    if asks:
        _ask(pipeline, work.last_finished(pipeline))
    else:
        print(planned[-1].run.root)
    return 0


def _ask(pipeline: PipelineRecipe, model: Path) -> None:
    """Print the answers, and keep them in the pipeline's folder."""
    from unmask.lm import DiffusionLM

    print(f"inference: asks {model}", file=sys.stderr)
    lm = DiffusionLM.from_pretrained(model).optimize_for_inference()
    inference = pipeline.inference
    is_chat = inference.chat
    if is_chat is None:
        is_chat = lm.tokenizer is not None and bool(lm.tokenizer.chat_template)
    asked = [[{"role": "user", "content": prompt}] if is_chat else prompt for prompt in inference.prompts]
    outputs = lm.generate(asked, inference.sampling)
    prompts = [inference.prompts[output.prompt] for output in outputs]
    records = [
        {"model": str(model), "prompt_text": prompt} | dataclasses.asdict(output)
        for prompt, output in zip(prompts, outputs, strict=True)
    ]
    kept = Path(pipeline.output_dir) / pipeline.name / "inference.jsonl"
    write_text(kept, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    for prompt, output in zip(prompts, outputs, strict=True):
        print(f"> {prompt}\n{output.text}" if is_chat else f"{prompt}{output.text}")
