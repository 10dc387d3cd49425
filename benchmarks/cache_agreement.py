"""How far the approximate caches stray from decoding without one, on a trained model.

    python benchmarks/cache_agreement.py MODEL [--prompts FILE] [--json FILE]

Greedy decoding of the beginnings of texts. Agreement: the share of equal tokens, and the tokens before the first
difference. Quality: the bound on the likelihood of prompt and continuation under the model itself. Columns: network
columns evaluated, relative to none. Last line: one record.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path
from typing import Any

import measure
from shape import REFERENCE

from unmask.lm import DiffusionLM
from unmask.settings.decoding import SamplingParams
from unmask.settings.evaluation import EvaluationSettings

PROMPTS, WORDS, NEW_TOKENS, BLOCK_LENGTH = 64, 8, 64, 16
POLICIES: dict[str, dict[str, Any]] = {
    "one place per step": {},
    "confidence threshold 0.2": {"unmasking": "threshold", "confidence_threshold": 0.2},
}


def beginnings(file: Path) -> list[str]:
    """The first words of each text."""
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    return [" ".join(text.split()[:WORDS]) for text in texts[-PROMPTS:]]


def decoded(lm: DiffusionLM, prompts: list[str], policy: dict[str, Any], cache: str) -> dict[str, Any]:
    """Tokens, forwards, CPU seconds and the bound on the likelihood of one cache."""
    params = SamplingParams(
        max_new_tokens=NEW_TOKENS,
        block_length=BLOCK_LENGTH,
        cache=cache,  # type: ignore[arg-type]
        ignore_eos=True,
        **policy,
    )
    began = time.process_time()
    outputs = lm.generate(prompts, params)
    seconds = time.process_time() - began
    scores = lm.score(
        [prompt + output.text for prompt, output in zip(prompts, outputs, strict=True)],
        EvaluationSettings(masks_per_sequence=16),
    )
    return {
        "tokens": [output.token_ids for output in outputs],
        "forwards": sum(output.forwards for output in outputs) / len(outputs),
        "cpu_seconds": seconds,
        "nats_per_token": -sum(one.log_likelihood for one in scores) / sum(one.tokens for one in scores),
    }


def compared(found: dict[str, Any], exact: dict[str, Any]) -> dict[str, float]:
    """One cache against none."""
    pairs = list(zip(found.pop("tokens"), exact["tokens"], strict=True))
    same = [[one == other for one, other in zip(*pair, strict=True)] for pair in pairs]
    before = [flags.index(False) if False in flags else len(flags) for flags in same]
    return found | {
        "equal_tokens": sum(map(sum, same)) / sum(map(len, same)),
        "equal_texts": sum(map(all, same)) / len(same),
        "tokens_before_first_difference": sum(before) / len(before),
        "speed_over_none": exact["cpu_seconds"] / found["cpu_seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Agreement of the approximate caches with decoding without one.")
    parser.add_argument("model", help="run or model folder of a masked-diffusion model")
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL with `text`; its last rows give the prompts")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the record; a bare name lands in results/"
    )
    given = parser.parse_args()
    measure.one_thread()
    lm = DiffusionLM.from_pretrained(given.model, device="cpu").optimize_for_inference()
    prompts = beginnings(given.prompts)
    record: dict[str, Any] = {}
    rows = []
    for policy, options in POLICIES.items():
        exact = decoded(lm, prompts, options, "none")
        kept = {"none": compared(dict(exact), exact)}
        kept |= {cache: compared(decoded(lm, prompts, options, cache), exact) for cache in ("prefix", "dual")}
        record[policy] = kept
        for cache, own in kept.items():
            rows.append(
                [
                    policy,
                    cache,
                    f"{own['equal_tokens']:.1%}",
                    own["tokens_before_first_difference"],
                    own["nats_per_token"],
                    own["forwards"],
                    own["speed_over_none"],
                ]
            )
    header = [
        "policy",
        "cache",
        "equal tokens",
        "tokens before the first difference",
        "nats/token",
        "forwards",
        "speed",
    ]
    print(measure.table(header, rows))
    measure.publish(
        {"benchmark": "cache_agreement", "prompts": len(prompts), "policies": record}, shape=REFERENCE, file=given.json
    )


if __name__ == "__main__":
    main()
