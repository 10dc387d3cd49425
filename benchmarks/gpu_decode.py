"""The decoding part of the GPU script: the latency of single forwards, and whole generations against autoregression.

A forward of a block stands behind a context whose keys are random numbers: they cost what real ones do. Generations
are those of `DiffusionLM.generate`, with a fixed number of forwards per block (`low_confidence_static`), so random
weights decode as fast as trained ones. Their speed is counted twice: with the forward that reads the prompt, and behind
it, where it is compared with the least time that the same forwards take on this device.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import measure
import torch
from device import BLOCK, Bench, Marks, backbone, entry, milliseconds, random_ids, timed, wait
from roofline import Forward, Peaks, work
from shape import Shape
from torch import Tensor

from unmask import attention
from unmask.lm import DiffusionLM
from unmask.models.backbone import Backbone
from unmask.models.cache import KVCache
from unmask.models.loading import Checkpoint
from unmask.settings.decoding import SamplingParams

BATCHES, QUICK_BATCHES = (1, 8, 32, 128), (1, 2)
CONTEXT, QUICK_CONTEXT = 1024, 16
NEW_TOKENS, QUICK_NEW_TOKENS = 32, 8
FORWARDS_PER_BLOCK = (4, 2, 1)
LARGE_BATCH = 128  # from here on generations are timed once: their prompts alone take seconds


@dataclass(frozen=True)
class Policy:
    """A way to generate; `steps` forwards per block, or autoregression where there are none."""

    steps: int | None = None
    fused: bool = True

    @property
    def name(self) -> str:
        if self.steps is None:
            return "autoregressive"
        return f"F={self.steps} {'fused' if self.fused else 'separate commit'}"

    def params(self, new_tokens: int, **options: Any) -> SamplingParams:
        if self.steps is None:
            return SamplingParams(max_new_tokens=new_tokens, ignore_eos=True, **options)
        return SamplingParams(
            max_new_tokens=new_tokens,
            ignore_eos=True,
            unmasking="low_confidence_static",
            denoising_steps=self.steps,
            fused_commit=self.fused,
            **options,
        )

    def forwards(self, context: int, new_tokens: int) -> list[Forward]:
        """Every forward of a generation behind a prompt of whole blocks."""
        if self.steps is None:
            later = [Forward(1, context + number, 1) for number in range(new_tokens - 1)]
            return [Forward(context, 0, 1), *later]
        found = []
        for start in range(context, context + new_tokens, BLOCK):
            committed = start - BLOCK if start > context else 0
            if not self.fused:
                found.append(Forward(start - committed, committed, 0))
                committed = start
            found.append(Forward(start + BLOCK - committed, committed, BLOCK))
            masked = [BLOCK - step * BLOCK // self.steps for step in range(1, self.steps)]
            found += [Forward(BLOCK, start, count) for count in masked]
        return found

    def first_tokens(self) -> int:
        """Tokens of a row that the first forward reveals, the one that reads the prompt."""
        if self.steps is None:
            return 1
        return BLOCK // self.steps if self.fused else 0


POLICIES = [Policy(), *(Policy(steps, fused) for steps in FORWARDS_PER_BLOCK for fused in (True, False))]


def decoding(bench: Bench, peaks: dict[str, Peaks]) -> None:
    """All sizes and batches."""
    for name, shape in bench.sizes.items():
        made: list[Backbone] = []
        bench.case("decode", name, "model", job=lambda shape=shape, made=made: _model(bench, shape, made))
        for rows in (QUICK_BATCHES if bench.quick else BATCHES) if made else ():
            print(f"\nDecoding, {name}, batch {rows}.\n", flush=True)
            _latencies(bench, made[0], shape, (name, str(rows)), rows, peaks)
            _generations(bench, made[0], shape, (name, str(rows)), rows, peaks)


def _model(bench: Bench, shape: Shape, made: list[Backbone]) -> dict[str, Any]:
    made.append(backbone(shape, bench.device, bench.dtype))
    parameters = sum(one.numel() for one in made[0].network.parameters())
    return {"parameters": parameters, "gib": parameters * made[0].head_weight.element_size() / 2**30}


# --- single forwards ---------------------------------------------------------------------------------------------


def filled_cache(network: Backbone, shape: Shape, rows: int, context: int, **options: Any) -> KVCache:
    """A cache with random keys and values of `context` tokens."""
    weight = network.head_weight
    cache = network.new_cache(rows, capacity=options.pop("capacity", context + 2 * BLOCK), **options)
    cache.begin(attention.block_step(cache.length_B, context, BLOCK))
    for layer in cache.layers:
        key, value = (
            torch.randn(
                rows, shape.key_value_heads, context, shape.head_width, device=weight.device, dtype=weight.dtype
            )
            for _ in range(2)
        )
        layer.update(key, value)  # type: ignore[union-attr]
    cache.keep()
    return cache


class BlockForward:
    """The forward of decoding: `columns` new places behind a context, the last `read` of which get logits."""

    def __init__(self, network: Backbone, shape: Shape, rows: int, context: int, *, columns: int, read: int) -> None:
        self.network, self.columns = network, columns
        device = network.device
        self.cache = filled_cache(network, shape, rows, context)
        self.ids_BQ = random_ids(shape, rows, columns).to(device)
        place_BQ = torch.arange(rows * columns, device=device).view(rows, columns)
        self.read_R = place_BQ[:, columns - read :].flatten()

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        layout = attention.block_step(self.cache.length_B, self.columns, BLOCK if self.columns > 1 else 1)
        mask = self.network.render(layout, self.cache.begin(layout))
        hidden_BQD = self.network(
            self.ids_BQ, layout.position_ids.expand_as(self.ids_BQ), mask, cache=self.cache, read_R=self.read_R
        )
        self.cache.keep(0)
        return self.network.logits(hidden_BQD.flatten(0, 1)[self.read_R])


# Name, columns, columns that are read.
FORWARDS = (("one token", 1, 1), ("block", BLOCK, BLOCK), ("block behind an uncommitted one", 2 * BLOCK, BLOCK))


def _latencies(
    bench: Bench, network: Backbone, shape: Shape, path: tuple[str, str], rows: int, peaks: dict[str, Peaks]
) -> None:
    context = QUICK_CONTEXT if bench.quick else CONTEXT

    def latency(columns: int, read: int) -> dict[str, Any]:
        job = BlockForward(network, shape, rows, context, columns=columns, read=read)
        spent = milliseconds(job, bench.device, rounds=bench.rounds(15))
        needed = work(shape, rows, Forward(columns, context, read))
        least = {name: one.seconds(needed) for name, one in peaks.items()}
        return {"milliseconds": spent} | _shares(spent / 1000, least)

    found = {}
    for name, columns, read in FORWARDS:
        job = bench.case(
            "decode", *path, "forwards", name, job=lambda columns=columns, read=read: latency(columns, read)
        )
        if job is not None:
            found[name] = job
    if found:
        header = ["forward", "ms", *(f"share of the roofline, {name}" for name in peaks)]
        lines = [[name, one["milliseconds"], *_percent(one["share"], peaks)] for name, one in found.items()]
        print(measure.table(header, lines), flush=True)


def _shares(spent: float, least: dict[str, float]) -> dict[str, Any]:
    """The least time by each source of the device's peaks, and which share of the time spent it is."""
    return {
        "roofline_milliseconds": {name: 1000 * seconds for name, seconds in least.items()},
        "share": {name: seconds / spent for name, seconds in least.items()},
    }


def _percent(share: dict[str, float], peaks: dict[str, Peaks]) -> list[str]:
    return [f"{share[name]:.0%}" for name in peaks]


# --- whole generations -------------------------------------------------------------------------------------------


def _generations(
    bench: Bench, network: Backbone, shape: Shape, path: tuple[str, str], rows: int, peaks: dict[str, Peaks]
) -> None:
    found: dict[str, dict[str, Any]] = {}
    for policy in POLICIES:
        result = bench.case(
            "decode",
            *path,
            "generate",
            policy.name,
            job=lambda policy=policy: generation(bench, network, shape, rows, policy, peaks),
        )
        if result is not None:
            found[policy.name] = result
    if not found:
        return
    plain = found.get("autoregressive")
    header = ["generate", "tokens/s", "behind the prompt", "x autoregressive", "forwards"]
    header += [f"share of the roofline, {name}" for name in peaks]
    lines = []
    for name, one in found.items():
        speed = one["decoding_tokens_per_second"]
        over = None if plain is None else speed / plain["decoding_tokens_per_second"]
        lines.append([name, one["tokens_per_second"], speed, over, one["forwards"], *_percent(one["share"], peaks)])
    print("\n" + measure.table(header, lines), flush=True)


def lm_of(network: Backbone, shape: Shape, policy: Policy) -> DiffusionLM:
    """The network as a model of the policy's method; the weights are shared."""
    method = "autoregressive" if policy.steps is None else "block_diffusion"
    return DiffusionLM(Checkpoint(Backbone(network.network, entry(shape, method)), tokenizer=None))


def generation(
    bench: Bench, network: Backbone, shape: Shape, rows: int, policy: Policy, peaks: dict[str, Peaks]
) -> dict[str, Any]:
    """Tokens per second of one policy, after a short generation that warms up."""
    context, new_tokens = (QUICK_CONTEXT, QUICK_NEW_TOKENS) if bench.quick else (CONTEXT, NEW_TOKENS)
    lm = lm_of(network, shape, policy)
    prompts = random_ids(shape, rows, context).tolist()
    lm.generate([prompt[: 2 * BLOCK] for prompt in prompts], policy.params(2 * BLOCK), batch_size=rows)
    plan = policy.forwards(context, new_tokens)
    whole, decoding = [], []
    for _ in range(1 if rows >= LARGE_BATCH else bench.rounds(3)):
        marks = Marks(lm.backbone, bench.device)
        whole += timed(
            lambda: lm.generate(prompts, policy.params(new_tokens), batch_size=rows), bench.device, rounds=1, warm_up=0
        )
        spent = marks.seconds()
        assert len(spent) == len(plan), f"{len(spent)} forwards, {len(plan)} expected"
        decoding.append(sum(spent[1:]))
    wait(bench.device)
    seconds, behind = statistics.median(whole), statistics.median(decoding)
    least = {name: sum(one.seconds(work(shape, rows, each)) for each in plan[1:]) for name, one in peaks.items()}
    return {
        "forwards": len(plan),
        "seconds": seconds,
        "prompt_seconds": seconds - behind,
        "tokens_per_second": rows * new_tokens / seconds,
        "decoding_tokens_per_second": rows * (new_tokens - policy.first_tokens()) / behind,
        "milliseconds_per_forward": 1000 * behind / (len(plan) - 1),
    } | _shares(behind, least)
