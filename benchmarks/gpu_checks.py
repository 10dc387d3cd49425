"""The checks of the GPU script on whole networks: what must be equal is, up to the rounding of bfloat16.

How much rounding may change is measured, not guessed: the distance of plain bfloat16 logits to those of the same
weights in float32. A verdict of None means that the check says nothing here.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
from device import BLOCK, Bench, Skipped, backbone, mask_token_id, random_ids, timed
from gpu_decode import Policy, lm_of
from gpu_kernels import KERNEL_CHECKS
from roofline import Peaks
from shape import Shape
from torch import Tensor

from unmask import attention
from unmask.models.backbone import Backbone
from unmask.outputs import Output

# Two computations that round independently are apart by 1.4 times what each is from the truth.
ROUNDING_RATIO = 2.0
# In float32, where sums of another order differ in their last digits.
EXACT = 1e-3
# A choice that two computations make differently is a near-tie up to this multiple of the rounding of a logit.
NEAR_TIE = 8.0
CONTEXT, QUICK_CONTEXT = 256, 16
ROWS, QUICK_ROWS = 8, 2
NEW_TOKENS, QUICK_NEW_TOKENS = 32, 8
# Questions that one process on one GPU does not answer.
UNANSWERED = {
    "data parallelism": "DDP and FSDP2 through accelerate, with LoRA: needs several GPUs",
    "deepspeed": "ZeRO-2 and ZeRO-3 with the training module: needs several GPUs and DeepSpeed",
}


def checks(bench: Bench, peaks: dict[str, Peaks]) -> None:
    """Every check on the first of the sizes."""
    shape = next(iter(bench.sizes.values()))
    print("\nChecks.\n", flush=True)
    for name, check in (MODEL_CHECKS | KERNEL_CHECKS).items():
        found = bench.case("checks", name, job=lambda check=check: check(bench, shape))
        if found is not None:
            verdict = {True: "holds", False: "DOES NOT HOLD", None: "no verdict"}[found["verdict"]]
            print(f"{name}: {verdict}. {found['finding']}", flush=True)
    bench.put("checks", "unanswered", value=UNANSWERED)


def rms(tensor: Tensor) -> float:
    return float(tensor.float().square().mean().sqrt())


def widened(network: Backbone) -> Backbone:
    """The same weights in float32."""
    return Backbone(copy.deepcopy(network.network).float(), network.diffusion).eval()


@torch.inference_mode()
def uncached_logits(network: Backbone, shape: Shape, ids_BL: Tensor) -> Tensor:
    """Logits of the last block of each row in one forward, for the ids that may be predicted."""
    layout = attention.block_causal(torch.zeros_like(ids_BL), BLOCK)
    hidden_BLD = network(ids_BL, layout.position_ids, network.render(layout, layout))
    return network.logits(hidden_BLD[:, -BLOCK:])[..., : mask_token_id(shape)].float()


@torch.inference_mode()
def cached_logits(network: Backbone, shape: Shape, ids_BL: Tensor) -> Tensor:
    """The same behind a cache."""
    cache = network.new_cache(len(ids_BL))
    before = ids_BL.shape[1] - BLOCK
    network.extend(ids_BL[:, :before], attention.block_step(cache.length_B, before, BLOCK), cache)
    layout = attention.block_step(cache.length_B, BLOCK, BLOCK)
    hidden_BQD = network.extend(ids_BL[:, before:], layout, cache, keep=0)
    return network.logits(hidden_BQD)[..., : mask_token_id(shape)].float()


def masked_ids(bench: Bench, shape: Shape) -> Tensor:
    """Random rows whose last block is masked."""
    rows, context = (QUICK_ROWS, QUICK_CONTEXT) if bench.quick else (ROWS, CONTEXT)
    ids_BL = random_ids(shape, rows, context + BLOCK)
    ids_BL[:, -BLOCK:] = mask_token_id(shape)
    return ids_BL.to(bench.device)


def cached_equals_uncached(bench: Bench, shape: Shape) -> dict[str, Any]:
    """Logits behind the KV cache are those of one forward over everything."""
    network = backbone(shape, bench.device, bench.dtype)
    wide, ids_BL = widened(network), masked_ids(bench, shape)
    plain, cached = uncached_logits(network, shape, ids_BL), cached_logits(network, shape, ids_BL)
    exact, exact_cached = uncached_logits(wide, shape, ids_BL), cached_logits(wide, shape, ids_BL)
    apart, rounding = rms(cached - plain), rms(plain - exact)
    apart_exact = float((exact_cached - exact).abs().max())
    return {
        "verdict": apart <= ROUNDING_RATIO * rounding and apart_exact <= EXACT,
        "finding": f"bfloat16: {apart:.2g} apart (rms), rounding {rounding:.2g}; float32: {apart_exact:.2g} at most",
        "rms_apart": apart,
        "rms_rounding": rounding,
        "tolerance": ROUNDING_RATIO * rounding,
        "float32_apart": apart_exact,
        "float32_tolerance": EXACT,
        "rms_logits": rms(exact),
    }


def compiled_equals_eager(bench: Bench, shape: Shape) -> dict[str, Any]:
    """Layers under `torch.compile` give the logits of plain ones, up to rounding."""
    if not bench.compiles:
        raise Skipped("compiling is for accelerators")
    network, ids_BL = backbone(shape, bench.device, bench.dtype), masked_ids(bench, shape)
    plain = uncached_logits(network, shape, ids_BL)
    rounding = rms(plain - uncached_logits(widened(network), shape, ids_BL))
    torch.compiler.reset()
    network.compile_network()
    apart = rms(uncached_logits(network, shape, ids_BL) - plain)
    return {
        "verdict": apart <= ROUNDING_RATIO * rounding,
        "finding": f"{apart:.2g} apart (rms), rounding {rounding:.2g}",
        "rms_apart": apart,
        "rms_rounding": rounding,
        "tolerance": ROUNDING_RATIO * rounding,
    }


def compiled_decoding(bench: Bench, shape: Shape) -> dict[str, Any]:
    """What compiled layers gain in whole generations, whose shapes change from block to block."""
    if not bench.compiles:
        raise Skipped("compiling is for accelerators")
    from torch._dynamo.utils import counters

    # Behind a cache every layer is compiled by itself, for it names its number there: few layers tell as much.
    shape = dataclasses.replace(shape, layers=min(shape.layers, 4))
    network, policy = backbone(shape, bench.device, bench.dtype), Policy(BLOCK)
    context, new_tokens = (QUICK_CONTEXT, QUICK_NEW_TOKENS) if bench.quick else (CONTEXT, 2 * NEW_TOKENS)
    params = policy.params(new_tokens)
    prompts = random_ids(shape, 1, context).tolist()
    lm = lm_of(network, shape, policy)

    def seconds() -> list[float]:
        return timed(lambda: lm.generate(prompts, params), bench.device, rounds=bench.rounds(2), warm_up=2)

    eager, plain = min(seconds()), lm.generate(prompts, params)[0].token_ids
    torch.compiler.reset()
    counters.clear()
    network.compile_network()
    compiled, ids = min(seconds()), lm.generate(prompts, params)[0].token_ids
    graphs = counters["stats"]["unique_graphs"]
    return {
        "verdict": None,
        "finding": f"{eager / compiled:.2f} times as fast at batch 1, {shape.layers} layers, from {graphs} graphs",
        "tokens_per_second": {"eager": new_tokens / eager, "compiled": new_tokens / compiled},
        "graphs": graphs,
        "equal_tokens": sum(one == other for one, other in zip(plain, ids, strict=True)) / new_tokens,
    }


# --- fused and separate commit -----------------------------------------------------------------------------------

Pair = tuple[list[int], Output, Output]


def fused_equals_unfused(bench: Bench, shape: Shape) -> dict[str, Any]:
    """Both ways to commit give the same ids, up to near-ties, whose gaps are shown."""
    network = backbone(shape, bench.device, bench.dtype)
    wide = widened(network)
    found: dict[str, Any] = {}
    for steps in (1, BLOCK):
        for name, model in (("float32", wide), ("bfloat16", network)):
            pairs = generated(bench, model, shape, steps)
            parted = [tie for pair in pairs if (tie := first_difference(network, wide, shape, *pair)) is not None]
            found[f"F={steps} {name}"] = {"equal_tokens": equal_share(pairs), "first_differences": parted}
            for tie in parted:
                print(
                    f"  F={steps}, {name}, step {tie['step']}: another {tie['kind']}, {tie['gap']:.2g} nats apart; "
                    f"rounding {tie['rounding']:.2g}, gap of the two best tokens {tie['top_2_gap']:.2g}"
                )
    exact, rounded = (
        [tie for name, one in found.items() if dtype in name for tie in one["first_differences"]]
        for dtype in ("float32", "bfloat16")
    )
    apart = max((tie["gap"] for tie in exact), default=0.0)
    roundings = max((tie["gap"] / tie["rounding"] for tie in rounded), default=0.0)
    return {
        "verdict": apart <= EXACT and roundings <= NEAR_TIE,
        "finding": f"float32: {len(exact)} texts part, at choices up to {apart:.2g} nats apart; "
        f"bfloat16: {len(rounded)}, up to {roundings:.1f} roundings",
        "float32_tolerance": EXACT,
        "near_tie": NEAR_TIE,
        "cases": found,
    }


def generated(bench: Bench, network: Backbone, shape: Shape, steps: int) -> list[Pair]:
    """Prompts of different lengths, and what follows them with fused and with separate commit."""
    rows, context = (QUICK_ROWS, QUICK_CONTEXT) if bench.quick else (ROWS, CONTEXT)
    new_tokens = QUICK_NEW_TOKENS if bench.quick else NEW_TOKENS
    prompts = [ids[: context - BLOCK * row] for row, ids in enumerate(random_ids(shape, rows, context).tolist())]
    fused, separate = (
        lm_of(network, shape, policy).generate(prompts, policy.params(new_tokens, trace=True))
        for policy in (Policy(steps), Policy(steps, fused=False))
    )
    return list(zip(prompts, fused, separate, strict=True))


def equal_share(pairs: list[Pair]) -> float:
    same = [one == other for _, *two in pairs for one, other in zip(*(each.token_ids for each in two), strict=True)]
    return sum(same) / len(same)


def first_difference(
    network: Backbone, wide: Backbone, shape: Shape, prompt: list[int], one: Output, other: Output
) -> dict[str, Any] | None:
    """The first step at which two generations part, and how far apart its two choices are in float32.

    They part over a place's token, or over which place is sure enough; both saw the same text until then.
    """
    ours, theirs = (list(zip(each.token_ids, each.revealed_at or (), strict=True)) for each in (one, other))
    parted = [min(a[1], b[1]) for a, b in zip(ours, theirs, strict=True) if a != b]
    if not parted:
        return None
    step, mask = min(parted), mask_token_id(shape)
    ours_now, theirs_now = (
        {place: token for place, (token, at) in enumerate(each) if at == step} for each in (ours, theirs)
    )
    start = min(ours_now) // BLOCK * BLOCK
    text = [token if at < step else mask for token, at in ours[: start + BLOCK]]
    ids_1L = torch.tensor([[*prompt, *text]], device=network.device)
    logits_KV, plain_KV = (uncached_logits(each, shape, ids_1L)[0] for each in (wide, network))
    if ours_now.keys() == theirs_now.keys():
        kind, places = "token", [place for place in ours_now if ours_now[place] != theirs_now[place]]
        gaps = [logits_KV[place - start, [ours_now[place], theirs_now[place]]].diff().abs().max() for place in places]
    else:
        kind, places = "place", sorted(ours_now.keys() ^ theirs_now.keys())
        sure_K = logits_KV.log_softmax(dim=-1).max(dim=-1).values
        sides = (ours_now.keys() - theirs_now.keys(), theirs_now.keys() - ours_now.keys())
        gaps = [(sure_K[a - start] - sure_K[b - start]).abs() for a, b in itertools.product(*sides)]
    best_K2 = logits_KV[[place - start for place in places]].topk(2, dim=-1).values
    return {
        "kind": kind,
        "step": step,
        "gap": float(torch.stack(gaps).max()),
        "rounding": rms(plain_KV - logits_KV),
        "top_2_gap": float((best_K2[:, 0] - best_K2[:, 1]).min()),
    }


MODEL_CHECKS: dict[str, Callable[[Bench, Shape], dict[str, Any]]] = {
    "cached equals uncached": cached_equals_uncached,
    "fused equals unfused": fused_equals_unfused,
    "compiled equals eager": compiled_equals_eager,
    "compiled decoding": compiled_decoding,
}
