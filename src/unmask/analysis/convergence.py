"""How early a text that is being denoised has become what it will be.

In: the steps of some texts. Out: A_k, the share of a text's places whose likeliest token in step k is the one that
stands there at the end, places that are revealed already counting by what stands in them. The network is evaluated on
every canvas again, as the step saw it, but without guidance, penalties or approximate caches. Places that a step did
not see, behind the block that it was at, do not agree yet. TiDAR's clean half drafts nothing, so its texts have
forwards and tokens only.
Shapes: K steps of a text, N places of its canvas, S prompt and places.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask import attention
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
        params: of its decoding, resolved.
        steps: what each forward did, in order; the last one's canvas is the text, which may end before its places do.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
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
        own = lm.resolved(dataclasses.replace(params, n=1, seed=params.seed + number))
        found.append(Trace(tuple(lm.codec.encode_all(prompt)[0]), own, tuple(lm.stream(prompt, own))))
    return found


def convergence(lm: DiffusionLM, traces: Sequence[Trace]) -> dict[str, float]:
    """Means over texts, by name; NaN where nothing was generated.

    denoising/auc: mean of A_k over the steps; denoising/steps_to_95: the first k whose A_k is at least 0.95, one more
        than there are steps where even the last one would have written something else.
    denoising/forwards, denoising/tokens_per_forward, denoising/remasked: of a text.
    """
    written = [one for one in traces if one.tokens]
    found = [agreement(lm, one) for one in written if one.params.decoding in ("canvas", "blocks")]
    settled = [next((k for k, value in enumerate(one, 1) if value >= _SETTLED), len(one) + 1) for one in found]
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
    """A_1 to A_K of a text."""
    final, places = trace.tokens, _places(trace)
    # What each step began with, behind the end of the text as well, where places were in sight like any other.
    before = [(), *(one.canvas for one in trace.steps[:-1])]
    canvases = [(*one, *(None,) * (places - len(one))) for one in before]
    found: list[float] = []
    for start in range(0, len(canvases), _ROWS):
        likeliest_KN = _likeliest(lm, trace, canvases[start : start + _ROWS])
        found += (likeliest_KN[:, : len(final)] == torch.tensor(final)).double().mean(dim=1).tolist()
    return found


def _places(trace: Trace) -> int:
    """Places of the canvas: of whole blocks, where the text grows by them."""
    params, places = trace.params, trace.params.max_new_tokens
    if params.decoding == "blocks":
        assert params.block_length is not None, "block decoding has a block length"
        # A step does not show what stands behind the last place that is wanted: these stay masked.
        places += -(len(trace.prompt) + places) % params.block_length
    return places


def _likeliest(lm: DiffusionLM, trace: Trace, canvases: Sequence[Sequence[int | None]]) -> Tensor:
    """What stands in each place, or its likeliest token; -1 where a step saw nothing yet; int64 [K, N]."""
    entry, params, lead = lm.backbone.diffusion, trace.params, len(trace.prompt)
    assert entry.mask_token_id is not None, "a diffusion model has a mask"
    canvas_KN = torch.tensor([[-1 if token is None else token for token in canvas] for canvas in canvases])
    prompt_KP = torch.tensor(trace.prompt, dtype=torch.int64).expand(len(canvases), -1)
    ids_KS = torch.cat([prompt_KP, canvas_KN.masked_fill(canvas_KN < 0, entry.mask_token_id)], dim=1)
    document_KS, grows = torch.zeros_like(ids_KS), params.decoding == "blocks"
    if grows or params.canvas_mode == "semi_autoregressive_origin":
        assert params.block_length is not None, "block by block there is a block length"
        place_S = torch.arange(ids_KS.shape[1])
        block_S = (place_S if grows else place_S - lead) // params.block_length
        first_K1 = torch.where(canvas_KN < 0, block_S[lead:], torch.iinfo(torch.int64).max).amin(dim=1, keepdim=True)
        document_KS = document_KS.masked_fill(block_S > first_K1, -1)
    layout = attention.bidirectional(document_KS)
    if grows:
        layout = attention.block_causal(document_KS, params.block_length or 1)
    # With a shift the row before a place predicts it; row 0 predicts nothing, and nothing asks for it.
    likeliest_KS = lm.logits(ids_KS, layout=layout.to(lm.backbone.device)).argmax(dim=-1).cpu()
    likeliest_KS = likeliest_KS.roll(int(entry.logit_shift), dims=1).masked_fill(document_KS < 0, -1)
    return torch.where(canvas_KN < 0, likeliest_KS[:, lead:], canvas_KN)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan
