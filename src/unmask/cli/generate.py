"""`unmask generate RUN_OR_MODEL [PROMPT ...]`."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.cli.options import add_sampling, parser, quiet_libraries, sampling
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
    options.add_argument("--device", metavar="DEVICE", help="cpu, cuda, ... [default: the accelerator, if any]")
    options.add_argument("--dtype", metavar="DTYPE", default="auto", help="type of the weights [default: as saved]")
    add_sampling(options)
    parsed = options.parse_intermixed_args(list(arguments))
    params = sampling(parsed)
    prompts = _prompts(parsed.prompts, parsed.file)
    if parsed.suffix is not None and (parsed.watch or parsed.chat):
        raise SettingsError("--suffix fills gaps in plain text. It does not go with --watch or --chat.")
    quiet_libraries()
    from unmask.lm import DiffusionLM

    lm = DiffusionLM.from_pretrained(parsed.model, device=parsed.device, dtype=parsed.dtype).optimize_for_inference()
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
    print(f"{_rates(outputs)}, {seconds:.2f} s", file=sys.stderr)
    return 0


def _prompts(words: Sequence[str], file: str | None) -> list[str | None]:
    prompts: list[str | None] = [sys.stdin.read() if word == "-" else word for word in words]
    if file is not None:
        if not Path(file).is_file():
            raise PromptError(f"There is no prompt file {file} (in {Path.cwd()}).")
        prompts += [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    return prompts or [None]


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
        print(json.dumps(record, ensure_ascii=False))
    else:
        print(f"{prompt or ''}{output.text}")


def _watch(lm: DiffusionLM, prompt: object, shown: str, params: SamplingParams) -> None:
    from rich.console import Console

    from unmask.reports.replay import watch
    from unmask.reports.traces import frame

    def frames() -> Iterator[object]:
        for step in lm.stream(prompt, params):  # type: ignore[arg-type]
            yield frame(step, lm.tokenizer)

    watch(frames(), prompt=shown, console=Console())  # type: ignore[arg-type]
