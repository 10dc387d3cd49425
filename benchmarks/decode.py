"""Canvas decoding, without and with caches: Unmask against the published samplers on the stock class, and the products.

    python benchmarks/decode.py [--rounds N] [--json FILE] [--quick]

Greedy, one place per forward. Both decode the same prompts with the same weights; the number of forwards must be the
same, and in float64 the tokens. Without a cache the canvas is one block (LLaDA); with Fast-dLLM's prefix or dual cache
it has four, revealed left to right. Last line: one record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import baseline
import measure
import torch
from floor import Floor
from shape import QUICK, REFERENCE, Shape

from unmask.lm import DiffusionLM
from unmask.models.backbone import Backbone
from unmask.models.cpu_linear import optimize_for_inference
from unmask.models.loading import Checkpoint
from unmask.settings.decoding import SamplingParams
from unmask.settings.model import DiffusionConfig

# A canvas without a cache, with Fast-dLLM's, and block diffusion behind its exact cache.
CACHES = ("none", "prefix", "dual", "exact")
BOUNDS = {"none": {"speed": 1.2}, "prefix": {"speed": 1.15}, "dual": {"speed": 1.15}, "exact": {"speed": 1.3}}
# Weights of this spread make a random network confident enough that rounding seldom decides between two places.
SPREAD = 0.1
IDENTITY_TOKENS = 64

Tokens = list[tuple[int, ...]]


class Ours:
    """Unmask's `generate`."""

    def __init__(self, shape: Shape, batch: int, cache: str, dtype: torch.dtype = torch.float32) -> None:
        entry = DiffusionConfig(
            method="block_diffusion" if cache == "exact" else "masked_diffusion",
            vocabulary_size=shape.vocabulary,
            mask_token_id=shape.mask_token_id,
            block_length=shape.block_length if cache == "exact" else None,
        )
        network = shape.network(spread=SPREAD).to(dtype)
        optimize_for_inference(network)  # as the command line does
        self.lm = DiffusionLM(Checkpoint(Backbone(network, entry), tokenizer=None))
        self.prompts = shape.prompts(batch).tolist()
        length = None if cache == "none" else shape.block_length
        self.params = SamplingParams(
            max_new_tokens=shape.new_tokens,
            block_length=length,
            cache=cache,  # type: ignore[arg-type]
            unmasking="low_confidence_static",
            ignore_eos=True,
        )

    def decode(self) -> tuple[Tokens, int]:
        """New tokens of each row, and the forwards that they took together."""
        outputs = self.lm.generate(self.prompts, self.params)
        return [output.token_ids for output in outputs], max(output.forwards for output in outputs)


class Baseline:
    """LLaDA's sampler, Fast-dLLM's or SDAR's."""

    def __init__(self, shape: Shape, batch: int, cache: str, dtype: torch.dtype = torch.float32) -> None:
        self.network = shape.network(spread=SPREAD).to(dtype).eval()
        self.shape, self.cache = shape, cache
        self.prompt_BP = shape.prompts(batch)

    def decode(self) -> tuple[Tokens, int]:
        """New tokens of each row, and the forwards that they took together."""
        shape, sizes = self.shape, {"new_tokens": self.shape.new_tokens, "mask_token_id": self.shape.mask_token_id}
        if self.cache == "none":
            decoded = baseline.decode(self.network, self.prompt_BP, **sizes)
        elif self.cache == "exact":
            decoded = baseline.decode_blocks(self.network, self.prompt_BP, **sizes, block_length=shape.block_length)
        else:
            decoded = baseline.decode_cached(
                self.network, self.prompt_BP, **sizes, block_length=shape.block_length, cache=self.cache
            )
        return [tuple(row) for row in decoded.tokens_BN.tolist()], decoded.forwards


CONTENDERS: dict[str, Any] = {"unmask": Ours, "baseline": Baseline}


def checked_identity(shape: Shape, batch: int, cache: str = "none") -> dict[str, float]:
    """Share of equal tokens: all of them in float64, on a shorter canvas, and as it comes in float32."""
    short = dataclasses.replace(shape, new_tokens=min(IDENTITY_TOKENS, shape.new_tokens))
    equal = {}
    for label, size, dtype in (("float64", short, torch.float64), ("float32", shape, torch.float32)):
        (our, our_forwards), (their, their_forwards) = (
            make(size, batch, cache, dtype).decode() for make in CONTENDERS.values()
        )
        # The baseline reads the prompt and writes all but the last block in forwards of their own.
        apart = -(-size.new_tokens // size.block_length) if cache == "exact" else 0
        assert our_forwards == their_forwards - apart == size.new_tokens, f"{our_forwards} against {their_forwards}"
        pairs = [pair for rows in zip(our, their, strict=True) for pair in zip(*rows, strict=True)]
        equal[label] = sum(one == other for one, other in pairs) / len(pairs)
    assert equal["float64"] == 1, f"only {equal['float64']:.1%} of the tokens are the baseline's, in float64"
    return equal


def forwards(shape: Shape, cache: str) -> list[tuple[int, int]]:
    """Columns that each forward evaluates, and the masked places among them that it reads."""
    whole = shape.prompt + shape.new_tokens
    if cache == "none":
        return [(whole, masked) for masked in range(shape.new_tokens, 0, -1)]
    found = []
    if cache == "exact":
        reads = range(shape.block_length, 0, -1)
        for start in range(shape.prompt, whole, shape.block_length):
            pending = shape.block_length if start > shape.prompt else shape.prompt
            found += [(shape.block_length + pending * (read == reads[0]), read) for read in reads]
        return found
    for start in range(shape.prompt, whole, shape.block_length):
        window = shape.block_length if cache == "dual" else whole - start
        found += [(whole, shape.block_length), *((window, masked) for masked in range(shape.block_length - 1, 0, -1))]
    return found


def timed(shape: Shape, batch: int, cache: str, rounds: int) -> dict[str, measure.Times]:
    """Interleaved times of whole generations and of the floor."""
    floor = Floor(shape, batch, shape.prompt + shape.new_tokens)
    jobs: dict[str, Callable[[int], object]] = {
        name: _job(make(shape, batch, cache)) for name, make in CONTENDERS.items()
    }
    plan = forwards(shape, cache)
    jobs["floor: linear layers"] = lambda number: [
        floor.linears(batch * read, backward=False, rows=batch * columns) for columns, read in plan
    ]
    if cache == "none":
        jobs["floor: with attention"] = lambda number: [
            floor.everything(batch * read, backward=False) for _, read in plan
        ]
    return measure.interleaved(jobs, rounds=rounds)


def _job(contender: Ours | Baseline) -> Callable[[int], object]:
    return lambda number: contender.decode()


def memory(shape: Shape, name: str) -> float:
    """Peak memory of one generation without a cache, from before the weights exist, MiB; `name` ends with the batch."""
    contender, batch = name.split(" x ")
    return measure.peak_memory(lambda: CONTENDERS[contender](shape, int(batch), "none").decode())


def measured(
    shape: Shape, batch: int, cache: str, rounds: int, *, with_memory: bool, with_breakdown: bool
) -> dict[str, Any]:
    """Everything about one batch and one cache, printed on the way."""
    equal = checked_identity(shape, batch, cache)
    against = ["baseline", "floor: linear layers"] + (["floor: with attention"] if cache == "none" else [])
    results = measure.results(timed(shape, batch, cache, rounds), tokens=batch * shape.new_tokens, against=against)
    for name in CONTENDERS if with_memory else ():
        results[name] |= measure.memory_in_children(f"{name} x {batch}")
    parts = {}
    for name, make in CONTENDERS.items() if with_breakdown else ():
        contender = make(shape, batch, cache)
        contender.decode()
        parts[name] = measure.breakdown(contender.decode)
    print(f"Decoding {shape.new_tokens} tokens in {shape.new_tokens} forwards, cache {cache}, batch {batch}.")
    print(f"Tokens equal to the baseline's: {equal['float64']:.1%} in float64, {equal['float32']:.1%} in float32.\n")
    print(measure.results_table(results, against=against))
    if parts:
        print("\nWhere the time of a generation goes:\n")
        print(measure.breakdown_table(parts))
    verdict = measure.verdict(shape, BOUNDS[cache], speed=results["unmask"]["speed_over"]["baseline"])
    print(flush=True)
    return {"equal_tokens": equal, "results": results, "verdict": verdict, "breakdown": parts}


def main() -> None:
    measure.one_thread()
    given = measure.arguments("Time canvas decoding.")
    shape = QUICK if given.quick else REFERENCE
    if given.memory_of:
        print(memory(shape, given.memory_of))
        return
    caches: dict[str, dict[str, Any]] = {cache: {} for cache in CACHES}
    for batch in shape.decoding_batches:
        for cache in CACHES:
            rounds = given.rounds or (1 if given.quick else 9 if batch == 1 else 3)
            in_full = batch == 1 or not given.quick
            with_memory = in_full and cache == "none"
            found = measured(shape, batch, cache, rounds, with_memory=with_memory, with_breakdown=in_full)
            caches[cache][str(batch)] = found
    measure.publish({"benchmark": "decode", "caches": caches}, shape=shape, file=given.json)


if __name__ == "__main__":
    main()
