"""`unmask generate RUN_OR_MODEL [PROMPT ...]`."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from unmask.cli.options import add_placement, add_sampling, parser, placement, quiet_libraries, sampling
from unmask.cli.output import note, show, show_json
from unmask.cli.prompts import read_prompts
from unmask.errors import PromptError, SettingsError
from unmask.settings.decoding import SamplingParams

if TYPE_CHECKING:
    from unmask.lm import DiffusionLM, Output

_EXAMPLES = """\
  unmask generate runs/python-docs "The function returns"
  unmask generate runs/python-docs --watch --max-new-tokens 64 --denoising-steps 32
  unmask generate runs/python-docs "A list" "A dict" --temperature 0.8 --n 2 --json
  unmask generate Qwen/Qwen3-0.6B --chat "Why is the sky blue?"
  unmask generate runs/python-docs "Return True if" --suffix " is callable." --infill-length 6
  unmask generate GSAI-ML/LLaDA-8B-Instruct --chat "Why is the sky blue?" --gen-length 128 --block-length 32 --steps 64
  cat prompt.txt | unmask generate runs/python-docs -
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser("generate", "Generate text from a run, a model folder or a hub id.", _EXAMPLES)
    options.add_argument("model", metavar="RUN_OR_MODEL", help="run folder, model folder or hub id")
    options.add_argument("prompts", nargs="*", metavar="PROMPT", help="texts to continue; - reads one from stdin")
    options.add_argument("--file", metavar="FILE", help="one prompt per line")
    options.add_argument(
        "--chat", "--is-instruct", "--is_instruct", action="store_true", help="each prompt is a user's message"
    )
    options.add_argument("--suffix", metavar="TEXT", help="fill the gap between each prompt and this text")
    options.add_argument("--watch", action="store_true", help="redraw the text after every forward")
    options.add_argument("--json", action="store_true", help="one JSON object per text, on stdout")
    add_placement(options)
    add_sampling(options)
    parsed = options.parse_intermixed_args(list(arguments))
    params = sampling(parsed)
    _check_together(parsed, params)
    prompts = read_prompts(parsed.prompts, parsed.file)
    if parsed.chat and None in prompts:
        raise PromptError("--chat needs a message to answer: unmask generate RUN_OR_MODEL --chat MESSAGE")
    quiet_libraries()
    place = placement(parsed)
    from unmask.lm import DiffusionLM

    lm = DiffusionLM.from_pretrained(parsed.model, **place).optimize_for_inference()
    asked = [[{"role": "user", "content": prompt or ""}] if parsed.chat else prompt for prompt in prompts]
    began = time.perf_counter()
    if parsed.watch:
        for prompt, shown in zip(asked, prompts, strict=True):
            _watch(lm, prompt, shown or "", params)
        return 0
    if parsed.suffix is not None:
        outputs = lm.infill([[prompt or "", parsed.suffix] for prompt in prompts], params)
    else:
        outputs = lm.generate([prompt or "" for prompt in asked], params)
    seconds = time.perf_counter() - began
    for output in outputs:
        _print(output, prompts[output.prompt] if parsed.suffix is None else "", as_json=parsed.json)
    note(f"{_rates(outputs)}, {seconds:.2f} s")
    return 0


def _check_together(parsed: argparse.Namespace, params: SamplingParams) -> None:
    """Refuse options of which one would be ignored."""
    if parsed.suffix is not None and (parsed.watch or parsed.chat):
        raise SettingsError("--suffix fills gaps in plain text. It does not go with --watch or --chat.")
    if parsed.watch and (parsed.json or params.n > 1):
        raise SettingsError("--watch draws one text as it is made. It does not go with --json, or with --n above 1.")
    if params.trace and not parsed.json:
        raise SettingsError("--trace records what --json prints. Add --json, or leave --trace out.")
    if params.infill_length and parsed.suffix is None:
        raise SettingsError("--infill-length is the length of a gap, which --suffix makes. Add --suffix TEXT.")


def _rates(outputs: Sequence[Output]) -> str:
    tokens, forwards = sum(len(one.token_ids) for one in outputs), sum(one.forwards for one in outputs)
    line = f"{tokens} tokens, {forwards} forwards, {tokens / forwards:.2f} tokens per forward"
    if all(one.acceptance for one in outputs) and forwards > len(outputs):
        line += f", {(tokens - len(outputs)) / (forwards - len(outputs)):.2f} without the prefill"
    return line


def _print(output: Output, prompt: str | None, *, as_json: bool) -> None:
    if as_json:
        rates = ("tokens_per_forward", "tokens_per_forward_after_prefill")
        record = dataclasses.asdict(output) | {name: getattr(output, name) for name in rates} | {"prompt_text": prompt}
        show_json(record)
    else:
        show(f"{prompt or ''}{output.text}")


def _watch(lm: DiffusionLM, prompt: object, shown: str, params: SamplingParams) -> None:
    from rich.console import Console

    from unmask.reports.replay import watch
    from unmask.reports.traces import frame

    (ids,) = lm.codec.encode_all(prompt)  # type: ignore[arg-type]

    def frames() -> Iterator[object]:
        for step in lm.stream(ids, params):
            yield frame(step, lm.tokenizer, prompt=ids, stops=params.stop)

    watch(frames(), prompt=shown, console=Console())  # type: ignore[arg-type]
