"""How good the texts of block diffusion are at which speed, against autoregression, under an independent judge.

    python benchmarks/block_quality.py MODEL [MODEL ...] --autoregressive AR [AR ...] --judge JUDGE --stories FILE
        [--block-lengths N ...] [--json FILE] [--png FILE]

The stories that training holds out, at most 250 words of each, are scored (the bound of block diffusion, the exact
value of autoregression), and their beginnings continued: by blocks at fixed paces (static) and at several confidence
thresholds (dynamic), by autoregression one token per forward; greedily and at temperature 1.
Quality: nats per byte of the continuations under the judge, another model with another tokenizer. A text that repeats
itself is likely under any judge, so the variety of the words stands beside it. CPU seconds are those of one thread.
Written: JSON, a CSV of the same name, and the picture. Last line: one record.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import measure
import torch
from block_quality_picture import draw
from texts import PROMPT_WORDS, beginning, stories

from unmask.evaluation.likelihood import Likelihood, RowNats, is_bound, row_nats, summed
from unmask.evaluation.texts import text_batch
from unmask.evaluation.written import judged, variety
from unmask.lm import DiffusionLM
from unmask.outputs import Output
from unmask.settings.decoding import SamplingParams
from unmask.settings.evaluation import EvaluationSettings

FIRST_COLUMNS = (
    "model",
    "method",
    "block_length",
    "temperature",
    "unmasking",
    "denoising_steps",
    "confidence_threshold",
)
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99)
TEMPERATURES = (0.0, 1.0)
SCORING = EvaluationSettings(masks_per_sequence=16, batch_size=32)


def policies(block_length: int, thresholds: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Every number of tokens per step that divides a block, and every threshold."""
    for tokens in range(1, block_length + 1):
        if block_length % tokens == 0:
            yield {"unmasking": "low_confidence_static", "denoising_steps": block_length // tokens}
    if block_length > 1:
        for threshold in thresholds:
            yield {"unmasking": "low_confidence_dynamic", "confidence_threshold": threshold}


# --- measures ----------------------------------------------------------------------------------------------------


def likelihood(lm: DiffusionLM, texts: Sequence[str]) -> Likelihood:
    """Of all texts together; every text has masks of its own."""
    parts: list[RowNats] = []
    for start in range(0, len(texts), SCORING.batch_size):
        batch = text_batch(lm.codec, texts[start : start + SCORING.batch_size])
        uid_B = start + torch.arange(len(batch.ids_BL))
        parts.append(row_nats(lm.backbone, dataclasses.replace(batch, uid_B=uid_B), SCORING))
    return summed(RowNats(*(torch.cat(fields) for fields in zip(*parts, strict=True))), is_bound(lm.backbone))


def written(lm: DiffusionLM, prompts: list[str], params: SamplingParams) -> tuple[list[Output], dict[str, Any]]:
    """Continuations, and what they took."""
    began = time.process_time()
    outputs = lm.generate(prompts, params)
    seconds = time.process_time() - began
    tokens, forwards = (sum(len(one.token_ids) for one in outputs), sum(one.forwards for one in outputs))
    return outputs, {
        "tokens": tokens,
        "forwards": forwards,
        "tokens_per_forward": tokens / forwards,
        "tokens_per_cpu_second": tokens / seconds,
        "ended": sum(one.finish_reason == "stop" for one in outputs) / len(outputs),
    }


# --- what is measured --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Study:
    """What all models are measured on.

    Attributes:
        judge: autoregressive, of another family than the models.
        stories: held-out texts.
        new_tokens: of a continuation, at most.
        thresholds: of confidence.
    """

    judge: DiffusionLM
    stories: list[str]
    new_tokens: int
    thresholds: Sequence[float] = THRESHOLDS

    @property
    def prompts(self) -> list[str]:
        return [beginning(story) for story in self.stories]

    def quality(self, continuations: Sequence[str]) -> dict[str, float]:
        size = sum(len(text.encode()) for text in continuations) / len(continuations)
        return judged(self.judge, self.prompts, continuations) | variety(continuations) | {"bytes_per_text": size}

    def model(self, lm: DiffusionLM, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The likelihood of the stories, and the continuations by every policy, at the model's present block length."""
        entry = lm.backbone.diffusion
        found = likelihood(lm, self.stories)
        kind = {"model": name, "method": entry.method, "block_length": entry.block_length}
        scored = kind | {
            "is_bound": found.is_bound,
            "bits_per_byte": found.bits_per_byte,
            "bits_per_byte_stderr": found.bits_per_byte_stderr,
            "bytes": found.bytes,
        }
        results = []
        options = [{}] if entry.method == "autoregressive" else [*policies(entry.block_length or 1, self.thresholds)]
        for temperature, own in itertools.product(TEMPERATURES, options):
            params = SamplingParams(max_new_tokens=self.new_tokens, temperature=temperature, **own)
            outputs, cost = written(lm, self.prompts, params)
            texts = [output.text for output in outputs]
            results.append(kind | {"temperature": temperature} | own | cost | self.quality(texts))
        return scored, results

    def real(self, lm: DiffusionLM) -> dict[str, Any]:
        """The stories themselves behind their beginnings, as many tokens of them as a model writes."""
        assert lm.tokenizer is not None, "the model has a tokenizer: it has scored text"
        rests = []
        for story in self.stories:
            rest = story[len(beginning(story)) :]
            offsets = lm.tokenizer(rest, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            rests.append(rest[: offsets[: self.new_tokens][-1][1]])
        return {"model": "real stories", "method": "real"} | self.quality(rests)


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """The record of all models."""
    judge = DiffusionLM.from_pretrained(given.judge, device="cpu").optimize_for_inference()
    if judge.backbone.diffusion.method != "autoregressive":
        raise SystemExit(f"The judge must be autoregressive, to be exact; {given.judge} is none. Give --judge another.")
    study = Study(judge, stories([given.stories], given.texts), given.new_tokens, given.thresholds)
    likelihoods, results = [], []
    for folder in [*given.autoregressive, *given.models]:
        lm = DiffusionLM.from_pretrained(folder, device="cpu").optimize_for_inference()
        lm.generate(study.prompts[:2], SamplingParams(max_new_tokens=4))  # so that no first use is timed
        entry = lm.backbone.diffusion
        others = given.block_lengths if entry.method == "block_diffusion" else ()
        if folder == given.autoregressive[0]:
            results.append(study.real(lm))
        for length in dict.fromkeys([entry.block_length, *others]):
            lm.backbone.configure(dataclasses.replace(entry, block_length=length))
            scored, found = study.model(lm, Path(folder).name)
            likelihoods.append(scored)
            results += found
    settings = {"prompt_words": PROMPT_WORDS, "new_tokens": given.new_tokens, "masks": SCORING.masks_per_sequence}
    judge_name = Path(given.judge).name
    return {
        "benchmark": "block_quality",
        "judge": judge_name,
        "texts": len(study.stories),
        **settings,
        "likelihood": likelihoods,
        "results": results,
    }


# --- reports -----------------------------------------------------------------------------------------------------


def tables(record: dict[str, Any]) -> str:
    """The likelihoods, and quality against speed, as Markdown."""
    bounds = [
        [
            one["model"],
            one["block_length"],
            f"{'at most ' if one['is_bound'] else ''}{one['bits_per_byte']:.3f} +- {one['bits_per_byte_stderr']:.3f}",
        ]
        for one in record["likelihood"]
    ]
    rows = [
        [
            one["model"],
            one.get("block_length"),
            {0.0: "greedy", 1.0: "1"}.get(one.get("temperature", -1), ""),
            policy_name(one),
            one.get("tokens_per_forward"),
            one.get("tokens_per_cpu_second"),
            f"{one['judge_nats_per_byte']:.3f} +- {one['judge_stderr']:.3f}",
            one["unigram_entropy"],
            f"{one['distinct_bigrams']:.0%}",
            f"{one['repeated_4grams']:.1%}",
        ]
        for one in record["results"]
    ]
    header = ["model", "block", "temperature", "policy", "tokens/forward", "tokens/CPU s", "judge nats/byte"]
    header += ["bits/word", "distinct pairs", "repeated 4-grams"]
    return f"{measure.table(['model', 'block', 'bits/byte'], bounds)}\n\n{measure.table(header, rows)}"


def policy_name(result: dict[str, Any]) -> str:
    if "confidence_threshold" in result:
        return f"dynamic {result['confidence_threshold']}"
    if "denoising_steps" in result:
        return f"static {result['block_length'] // result['denoising_steps']}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality against speed of block diffusion, under a judge.")
    parser.add_argument("models", nargs="+", help="run or model folders of block-diffusion models")
    parser.add_argument("--autoregressive", nargs="+", required=True, metavar="MODEL", help="what they came from")
    parser.add_argument("--judge", required=True, metavar="MODEL", help="another autoregressive model")
    parser.add_argument("--stories", type=Path, required=True, help="JSONL with `text`; the held-out ones are used")
    parser.add_argument(
        "--block-lengths", type=int, nargs="+", default=[], metavar="N", help="other than the models' own"
    )
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS, metavar="P", help="of confidence")
    parser.add_argument("--texts", type=int, default=96, help="stories at most [96]")
    parser.add_argument("--new-tokens", type=int, default=96, help="tokens of a continuation at most [96]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="record and CSV; a bare name lands in results/")
    parser.add_argument("--png", type=Path, metavar="FILE", help="the picture")
    given = parser.parse_args()
    measure.one_thread()
    record = measured(given)
    measure.report(record, tables(record), draw=draw, png=given.png, file=given.json, first=FIRST_COLUMNS)


if __name__ == "__main__":
    main()
