"""The checks of the GPU script on single operations: attention, the head with its loss, CUDA graphs, random numbers."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from device import BLOCK, Bench, Skipped, backbone, entry, forget_peak, milliseconds, peak_gib, random_ids, release
from gpu_decode import filled_cache
from gpu_train import packed
from shape import Shape
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from unmask import attention, noise
from unmask.attention import Layout
from unmask.models.backbone import Backbone, Mask, unmask_attention
from unmask.noise import Purpose
from unmask.objectives.example import Example
from unmask.objectives.loss import loss
from unmask.objectives.methods import objective
from unmask.settings.objective import ObjectiveSettings

# Errors of two kernels against float32: they round at other points, none more often than the other.
ERROR_RATIO = 2.0
# Relative, in norm: bfloat16 rounds by 0.002 to 0.004, a few times over.
ROUNDED = 0.02
LENGTHS, QUICK_LENGTHS = (1024, 2048, 4096), (64,)


class Attended:
    """Attention of one layer under a layout, with what its backward pass needs."""

    def __init__(self, bench: Bench, shape: Shape, rows: int, queries: int, keys: int) -> None:
        torch.manual_seed(0)
        heads = ((shape.heads, queries), (shape.key_value_heads, keys), (shape.key_value_heads, keys))
        self.inputs = [
            torch.randn(rows, count, length, shape.head_width, device=bench.device, dtype=bench.dtype)
            for count, length in heads
        ]
        self.gradient = torch.randn(
            rows, queries, shape.heads, shape.head_width, device=bench.device, dtype=bench.dtype
        )

    def __call__(self, mask: Mask, *, backward: bool = False, wide: bool = False) -> list[Tensor]:
        """The output, and with `backward` the gradients of queries, keys and values; `wide` is float32."""
        dtype = torch.float32 if wide else self.gradient.dtype
        inputs = [one.to(dtype).detach().requires_grad_(backward) for one in self.inputs]
        query, key, value = inputs
        out, _ = unmask_attention(torch.nn.Identity(), query, key, value, mask)
        gradients = torch.autograd.grad(out, inputs, self.gradient.to(dtype)) if backward else ()
        return [out.detach(), *gradients]


def flex_equals_sdpa(bench: Bench, shape: Shape) -> dict[str, Any]:
    """FlexAttention and SDPA under the training rule, forward and backward: errors and times."""
    torch.compiler.reset()
    found = {}
    for length in QUICK_LENGTHS if bench.quick else LENGTHS:
        found[str(2 * length)] = _flex_and_sdpa(bench, shape, length)
        release(bench.device)
    ratios = [
        flex / max(sdpa, 1e-12)
        for one in found.values()
        for flex, sdpa in zip(one["mean_errors"]["flex"], one["mean_errors"]["sdpa"], strict=True)
    ]
    times = "; ".join(
        f"{positions} positions: {one['milliseconds']['flex']:.2f} ms against {one['milliseconds']['sdpa']:.2f}, "
        f"mask {one['mask_milliseconds']['flex']:.2f} against {one['mask_milliseconds']['sdpa']:.2f}"
        for positions, one in found.items()
    )
    return {
        "verdict": max(ratios) <= ERROR_RATIO,
        "finding": f"error at most {max(ratios):.2f} times SDPA's; {times}",
        "positions": found,
    }


def _flex_and_sdpa(bench: Bench, shape: Shape, length: int) -> dict[str, Any]:
    """Mean errors of the output and of each gradient, milliseconds of attention, and of drawing the mask."""
    has_backward = bench.device.type != "cpu"
    layout = _training_layout(bench, shape, length)
    attended = Attended(bench, shape, 1, len(layout), len(layout))
    drawings: dict[str, Callable[[Layout, Layout], Mask]] = {
        "flex": attention.block_mask,
        "sdpa": attention.dense_mask,
    }
    masks = {name: draw(layout, layout) for name, draw in drawings.items()}
    exact = attended(masks["sdpa"], backward=has_backward, wide=True)
    rounds = bench.rounds(10)
    return {
        "mean_errors": {
            name: [
                float((one.float() - other).abs().mean())
                for one, other in zip(attended(mask, backward=has_backward), exact, strict=True)
            ]
            for name, mask in masks.items()
        },
        "milliseconds": {
            name: milliseconds(functools.partial(attended, mask, backward=has_backward), bench.device, rounds=rounds)
            for name, mask in masks.items()
        },
        "mask_milliseconds": {
            name: milliseconds(functools.partial(draw, layout, layout), bench.device, rounds=rounds)
            for name, draw in drawings.items()
        },
        "with_backward": has_backward,
    }


def _training_layout(bench: Bench, shape: Shape, length: int) -> Layout:
    document_BL = packed(shape, 1, length, step=0).document_BL.to(bench.device)
    return attention.block_diffusion_training(document_BL, BLOCK)


def sdpa_kernels(bench: Bench, shape: Shape) -> dict[str, Any]:
    """Which kernels SDPA chooses for grouped heads, with and without a mask; the plain one (`math`) is a trap."""
    context = QUICK_LENGTHS[0] if bench.quick else LENGTHS[0]
    found = {}
    lengths_B = torch.tensor([context, context // 2], device=bench.device)
    uneven_B11K = (attention.documents(lengths_B, context) >= 0)[:, None, None]
    layout = _training_layout(bench, shape, context)
    jobs: dict[str, tuple[int, int, int, Mask, bool]] = {
        "block behind a cache": (2, BLOCK, context, None, False),
        "block, rows of different lengths": (2, BLOCK, context, uneven_B11K.expand(-1, 1, BLOCK, -1), False),
        "training": (1, len(layout), len(layout), attention.dense_mask(layout, layout), True),
    }
    for name, (batch, queries, keys, mask, backward) in jobs.items():
        attended = Attended(bench, shape, batch, queries, keys)
        attended(mask, backward=backward)
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.device.type == "cuda" else [])]
        with profile(activities=kinds, acc_events=True) as profiler:
            attended(mask, backward=backward)
        keys_seen = {event.key for event in profiler.key_averages()}
        found[name] = {
            "operators": sorted(key for key in keys_seen if "scaled_dot_product" in key and key.startswith("aten::_")),
            "kernels": sorted(
                key for key in keys_seen if any(part in key.lower() for part in ("flash", "fmha", "cudnn", "mem_eff"))
            ),
        }
    plain = [name for name, one in found.items() if any("math" in operator for operator in one["operators"])]
    chosen = "; ".join(
        f"{name}: {', '.join(operator.removeprefix('aten::_scaled_dot_product_') for operator in one['operators'])}"
        for name, one in found.items()
    )
    return {"verdict": not plain, "finding": chosen, "cases": found}


def cuda_graphs(bench: Bench, shape: Shape) -> dict[str, Any]:
    """Whether a forward behind a static cache can be captured, gives the same, and how fast it is replayed."""
    context = QUICK_LENGTHS[0] if bench.quick else LENGTHS[0]
    network = backbone(shape, bench.device, bench.dtype)
    found = {}
    for rows in (1, 2) if bench.quick else (1, 8, 32):
        for columns in (BLOCK,) if bench.quick else (BLOCK, 8 * BLOCK):
            found[f"{rows} x {columns}"] = _replayed(bench, network, shape, rows, columns, context)
    apart = [one["relative_apart"] for one in found.values() if "relative_apart" in one]
    times = "; ".join(
        f"{name}: {one['eager_milliseconds']:.1f} ms, replayed {one['replay_milliseconds']:.1f}"
        for name, one in found.items()
        if "replay_milliseconds" in one
    )
    return {
        "verdict": max(apart) <= ROUNDED if apart else None,
        "finding": f"{max(apart):.2g} apart; {times}" if apart else "no graphs on this device",
        "tolerance": ROUNDED,
        "cases": found,
    }


def _replayed(bench: Bench, network: Backbone, shape: Shape, rows: int, columns: int, context: int) -> dict[str, Any]:
    """A forward of one block, eager and from a graph."""
    cache = filled_cache(network, shape, rows, context, static=True, capacity=context + columns)
    layout = attention.block_step(cache.length_B, columns, columns)
    mask = attention.sees(layout, cache.begin(layout))[:, None]
    ids_BQ = random_ids(shape, rows, columns).to(bench.device)

    @torch.inference_mode()
    def forward() -> Tensor:
        return network(ids_BQ, layout.position_ids, mask, cache=cache)

    eager = milliseconds(forward, bench.device, rounds=bench.rounds(10))
    if bench.device.type != "cuda":
        return {"eager_milliseconds": eager}
    plain = forward()
    graph, captured = capture(forward)
    replayed = milliseconds(graph.replay, bench.device, rounds=bench.rounds(10))
    return {
        "eager_milliseconds": eager,
        "replay_milliseconds": replayed,
        "relative_apart": float((captured - plain).float().norm() / plain.float().norm()),
    }


def capture(job: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph of the job and the tensor that its replays fill; warmed up on the stream that captures."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            job()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = job()
    torch.cuda.current_stream().wait_stream(stream)
    return graph, out


def cross_entropies(bench: Bench, shape: Shape) -> dict[str, Any]:
    """Head and loss with their gradients: ours in chunks, all logits at once, and other fused ones that are here."""
    rows = 64 if bench.quick else 4096
    torch.manual_seed(0)
    weight_VD = torch.randn(shape.vocabulary, shape.hidden, device=bench.device, dtype=bench.dtype) / shape.hidden**0.5
    hidden_RD = torch.randn(rows, shape.hidden, device=bench.device, dtype=bench.dtype)
    target_R = random_ids(shape, 1, rows)[0].to(bench.device)
    weight_VD.requires_grad_()
    hidden_RD.requires_grad_()
    found: dict[str, Any] = {}
    gradients: dict[str, Tensor] = {}
    for name, mean_loss in _losses().items():

        def job(mean_loss: Callable[[Tensor, Tensor, Tensor], Tensor] = mean_loss) -> tuple[Tensor, ...]:
            return torch.autograd.grad(mean_loss(hidden_RD, weight_VD, target_R), (hidden_RD, weight_VD))

        gradients[name] = job()[0].float()
        release(bench.device)
        forget_peak(bench.device)
        before = peak_gib(bench.device)
        spent = milliseconds(job, bench.device, rounds=bench.rounds(5), warm_up=1)
        peak = peak_gib(bench.device)
        taken = None if before is None or peak is None else peak - before
        found[name] = {"milliseconds": spent, "gib": taken}
    plain = gradients["all logits"]
    apart = {name: float((one - plain).norm() / plain.norm()) for name, one in gradients.items()}
    for name, one in found.items():
        one["gradient_apart"] = apart[name]
    return {
        "verdict": apart["chunks"] <= ROUNDED,
        "tolerance": ROUNDED,
        "finding": "; ".join(
            f"{name}: {one['milliseconds']:.1f} ms" + ("" if one["gib"] is None else f", {one['gib']:.2f} GiB")
            for name, one in found.items()
        ),
        "cases": found,
    }


def _losses() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Mean cross-entropy of hidden states [R, D] under a head [V, D], by name."""
    found: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "all logits": lambda hidden, weight, target: F.cross_entropy((hidden @ weight.T).float(), target),
        "chunks": _in_chunks,
    }
    if hasattr(F, "linear_cross_entropy"):
        found["torch's fused"] = lambda hidden, weight, target: F.linear_cross_entropy(hidden, weight, target)
    if importlib.util.find_spec("liger_kernel") is not None:
        module = importlib.import_module("liger_kernel.transformers.fused_linear_cross_entropy")
        liger = module.LigerFusedLinearCrossEntropyLoss()
        found["Liger"] = lambda hidden, weight, target: liger(weight, hidden, target)
    return found


def _in_chunks(hidden_RD: Tensor, weight_VD: Tensor, target_R: Tensor) -> Tensor:
    """Ours, as in training."""
    row_R = torch.arange(len(target_R), device=target_R.device)
    zeros_R = torch.zeros_like(row_R)
    ones_R = torch.ones(len(target_R), device=target_R.device)
    example = Example(
        ids_BL=zeros_R[None],
        layout=attention.bidirectional(zeros_R[None]),
        row_R=row_R,
        target_R=target_R,
        weight_R=ones_R,
        term_R=zeros_R,
        group_R=zeros_R,
        ratio_R=ones_R,
        source_R=zeros_R,
        terms=("mean",),
        denominator_T=torch.tensor([float(len(target_R))], device=target_R.device),
    )
    return loss(
        hidden_RD[None],
        example,
        lambda hidden: hidden @ weight_VD.T,
        parameters=(weight_VD,),
        scale_T=1 / example.denominator_T,
    ).total


def equal_noise(bench: Bench, shape: Shape) -> dict[str, Any]:
    """Draws and masked examples are the same on the device and on the CPU."""
    if bench.device.type == "cpu":
        raise Skipped("there is no second device to compare with")
    key_N = torch.arange(1_000_000)
    device = bench.device
    drawn = {
        "hashes": (noise.hashed(Purpose.MASK, 1, key_N), noise.hashed(Purpose.MASK, 1, key_N.to(device))),
        "uniforms": (noise.uniform(Purpose.MASK, 1, key_N), noise.uniform(Purpose.MASK, 1, key_N.to(device))),
        "permutation": (
            noise.permutation(Purpose.DATA_ORDER, 4096, key_N[:4]),
            noise.permutation(Purpose.DATA_ORDER, 4096, key_N[:4].to(device)),
        ),
    }
    learn = objective(ObjectiveSettings(method="block_diffusion"), entry(shape, "block_diffusion"), seed=0)
    batch = packed(shape, 2, QUICK_LENGTHS[0] if bench.quick else LENGTHS[0], step=0)
    drawn["masked example"] = (learn(batch).ids_BL, learn(batch.to(device)).ids_BL)
    equal = {name: torch.equal(one, other.cpu()) for name, (one, other) in drawn.items()}
    unequal = [name for name, same in equal.items() if not same]
    return {
        "verdict": not unequal,
        "finding": f"different: {', '.join(unequal)}" if unequal else f"equal: {', '.join(equal)}",
        "equal": equal,
    }


KERNEL_CHECKS: dict[str, Callable[[Bench, Shape], dict[str, Any]]] = {
    "flex equals sdpa": flex_equals_sdpa,
    "sdpa kernels": sdpa_kernels,
    "cuda graphs": cuda_graphs,
    "cross entropies": cross_entropies,
    "equal noise": equal_noise,
}
