"""How early a text that is being denoised has become what it will be.

In: the steps of some texts. Out: A_k, the share of a text's places whose likeliest token in forward k is the one that
stands there at the end, places that are revealed already counting by what stands in them. Block decoding predicts no
place behind the block that it is at: such places do not agree yet. TiDAR's clean half drafts nothing, so its texts have
forwards and tokens only.
Shapes: K forwards of a text, N its places, S prompt and places.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.decoding.step import Step
from unmask.lm import DiffusionLM
from unmask.settings.decoding import SamplingParams

_SETTLED = 0.95
_ROWS = 8


@dataclass(frozen=True)
class Trace:
    """A text and how it came about.

    Attributes:
        prompt: token ids in front of it.
        steps: what each forward did, in order; the last one's canvas is the text.
    """

    prompt: tuple[int, ...]
    steps: tuple[Step, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for token in self.steps[-1].canvas if token is not None)

    @property
    def remasked(self) -> int:
        """How often a revealed place was masked again."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return sum(
            before is not None and after is None
            for one, other in pairs
            for before, after in zip(one.canvas, other.canvas, strict=False)
        )


def traces(lm: DiffusionLM, prompts: Sequence[Sequence[int] | None], params: SamplingParams) -> list[Trace]:
    """One text behind each prompt (None: no prompt), each from a seed of its own."""
    found = []
    for number, prompt in enumerate(prompts):
        steps = tuple(lm.stream(prompt, dataclasses.replace(params, n=1, seed=params.seed + number)))
        found.append(Trace(tuple(lm.codec.encode_all(prompt)[0]), steps))
    return found


def convergence(lm: DiffusionLM, traces: Sequence[Trace]) -> dict[str, float]:
    """Means over texts, by name; NaN where nothing was generated.

    denoising/auc: mean of A_k over the forwards; denoising/steps_to_95: the first k whose A_k is at least 0.95.
    denoising/forwards, denoising/tokens_per_forward, denoising/remasked: of a text.
    """
    written = [one for one in traces if one.tokens]
    found = [] if lm.backbone.diffusion.method == "tidar" else [agreement(lm, one) for one in written]
    settled = [next(k for k, value in enumerate(one, start=1) if value >= _SETTLED) for one in found]
    forwards = [one.steps[-1].forwards for one in written]
    return {
        "denoising/auc": _mean([statistics.fmean(one) for one in found]),
        "denoising/steps_to_95": _mean(settled),
        "denoising/forwards": _mean(forwards),
        "denoising/tokens_per_forward": _mean(
            [len(one.tokens) / count for one, count in zip(written, forwards, strict=True)]
        ),
        "denoising/remasked": _mean([one.remasked for one in written]),
    }


def agreement(lm: DiffusionLM, trace: Trace) -> list[float]:
    """A_1 to A_K of a text, and 1 for the finished text behind them; the network is evaluated on every canvas again."""
    final = trace.tokens
    before = [(None,) * len(final), *(one.canvas for one in trace.steps[:-1])]
    canvases = [(*one[: len(final)], *(None,) * (len(final) - len(one))) for one in before]
    found: list[float] = []
    for start in range(0, len(canvases), _ROWS):
        likeliest_KN = _likeliest(lm, trace.prompt, canvases[start : start + _ROWS])
        found += (likeliest_KN == torch.tensor(final)).double().mean(dim=1).tolist()
    return [*found, 1.0]


def _likeliest(lm: DiffusionLM, prompt: tuple[int, ...], canvases: Sequence[Sequence[int | None]]) -> Tensor:
    """What stands in each place, or its likeliest token; -1 where the method predicts nothing yet; int64 [K, N]."""
    entry = lm.backbone.diffusion
    assert entry.mask_token_id is not None, "a diffusion model has a mask"
    canvas_KN = torch.tensor([[-1 if token is None else token for token in canvas] for canvas in canvases])
    prompt_KP = torch.tensor(prompt, dtype=torch.int64).expand(len(canvases), -1)
    ids_KS = torch.cat([prompt_KP, canvas_KN.masked_fill(canvas_KN < 0, entry.mask_token_id)], dim=1)
    # With a shift the row before a place predicts it; row 0 predicts nothing, and nothing asks for it.
    likeliest_KS = lm.logits(ids_KS).argmax(dim=-1).cpu().roll(int(entry.logit_shift), dims=1)
    likeliest_KN = likeliest_KS[:, len(prompt) :]
    if entry.method == "block_diffusion":
        assert entry.block_length is not None, "a block-diffusion checkpoint has a block length"
        block_N = (torch.arange(canvas_KN.shape[1]) + len(prompt)) // entry.block_length
        first_K1 = torch.where(canvas_KN < 0, block_N, math.inf).amin(dim=1, keepdim=True)
        likeliest_KN = likeliest_KN.masked_fill(block_N > first_K1, -1)
    return torch.where(canvas_KN < 0, likeliest_KN, canvas_KN)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan
