"""How text is generated: `SamplingParams`, validated when it is made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from unmask.errors import SettingsError
from unmask.settings.checks import at_least, in_range, is_true

Decoding = Literal["autoregressive", "canvas", "blocks"]
CanvasMode = Literal["fixed_length", "semi_autoregressive_padding", "semi_autoregressive_origin"]
Unmasking = Literal[
    "low_confidence",
    "low_confidence_static",
    "low_confidence_dynamic",
    "margin",
    "entropy",
    "random",
    "sequential",
    "threshold",
    "factor",
    "entropy_bound",
    "ancestral",
]
Confidence = Literal["untempered", "unfiltered", "filtered", "min"]
DynamicFallback = Literal["topk", "leftmost"]
EntropyRule = Literal["paper", "jetengine"]
RevealSchedule = Literal["linear", "cosine", "cosine_squared", "dream"]
Remask = Literal["cap", "rescale", "conf", "loop"]
CacheKind = Literal["none", "exact", "prefix", "dual"]

_COMMON = ("decoding", "max_new_tokens", "n", "temperature", "seed", "stop", "stop_token_ids", "ignore_eos", "trace")
_UNMASKING = (
    "top_k",
    "top_p",
    "block_length",
    "denoising_steps",
    "unmasking",
    "confidence",
    "confidence_threshold",
    "dynamic_fallback",
    "factor",
    "entropy_bound",
    "entropy_rule",
    "cache",
)
_CANVAS = (
    *_UNMASKING,
    "canvas_mode",
    "reveal_schedule",
    "reveal_temperature",
    "remask",
    "remask_eta",
    "remask_loop",
    "cfg_scale",
    "suppress_eos",
    "defer_eos",
    "infill_length",
)
_BLOCKS = (*_UNMASKING, "repetition_penalty", "edit_threshold", "edit_steps", "fused_commit")
_USED_BY: dict[str, tuple[str, ...]] = {
    "autoregressive": ("top_k", "top_p", "repetition_penalty"),
    "canvas": _CANVAS,
    "blocks": _BLOCKS,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "autoregressive": {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0},
    "blocks": {
        "top_k": 0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "unmasking": "low_confidence_dynamic",
        "confidence": "unfiltered",
        "cache": "exact",
        "fused_commit": True,
    },
    "canvas": {
        "top_k": 0,
        "top_p": 1.0,
        "confidence": "untempered",
        "reveal_schedule": "linear",
        "reveal_temperature": 0.0,
        "cfg_scale": 0.0,
        "cache": "none",
        "suppress_eos": False,
        "defer_eos": False,
    },
}
_BLOCK_LENGTH = 32
_EDIT_STEPS = 16
_REMASK_ETA = {"cap": 0.008, "rescale": 0.015, "loop": 0.02, "conf": 1.0}
_REMASK_LOOP = (0.55, 0.05, 0.9)
DYNAMIC = ("threshold", "factor", "entropy_bound")
"""Policies that the model's confidence alone paces, not a number of steps."""
# Options of single policies, with their defaults there; None must be given.
_POLICY_OPTIONS: dict[str, dict[str, Any]] = {
    "confidence_threshold": {"threshold": None, "low_confidence_dynamic": 0.85},
    "factor": {"factor": None},
    "dynamic_fallback": {"low_confidence_dynamic": "topk"},
    "entropy_bound": {"entropy_bound": 0.35},
    "entropy_rule": {"entropy_bound": "paper"},
}
_EXAMPLES = {"confidence_threshold": 0.9, "factor": 1.0}


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Settings of one generation; None means the checkpoint's default, else the decoding's.

    An option that the chosen decoding does not use is an error, so that no setting is ignored silently.
    """

    decoding: Decoding | None = None
    """autoregressive (left to right), canvas (all places at once, LLaDA) or blocks (block by block behind an exact
    cache, SDAR); default: the checkpoint's."""
    max_new_tokens: int = 128
    """Tokens to generate at most; a canvas has exactly this many places."""
    n: int = 1
    """Samples per prompt."""
    temperature: float = 0.0
    """0 takes the most likely token; 1 samples from the model's distribution."""
    seed: int = 0
    """Every draw is a function of the seed, the sample's number, the place and the step."""
    stop: tuple[str, ...] = ()
    """Texts that end the output and are cut from it."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end the output, besides the tokenizer's end of text."""
    ignore_eos: bool = False
    """Go on after the end-of-text token."""
    trace: bool = False
    """Record when each token was revealed and with what confidence."""
    top_k: int | None = None
    """Sample among the k most likely tokens only; 0 is off."""
    top_p: float | None = None
    """Sample among the most likely tokens that hold this share of probability; 1 is off."""
    repetition_penalty: float | None = None
    """Above 1, makes tokens of the text so far less likely; 1 is off. (autoregressive, blocks)"""
    canvas_mode: CanvasMode | None = None
    """fixed_length: one block; semi_autoregressive_padding: the whole canvas visible, revealed block by block;
    semi_autoregressive_origin: the canvas ends at the current block. Default: by block_length. (canvas)"""
    block_length: int | None = None
    """Places of a block, which are revealed before the next block's; default: the checkpoint's (blocks); all, or 32 in
    the semi-autoregressive modes. (canvas, blocks)"""
    denoising_steps: int | None = None
    """Forwards over which a block is revealed, at most; default: one for each of its places. (canvas, blocks)"""
    unmasking: Unmasking | None = None
    """Which places to reveal: the most certain by probability (low_confidence_static), margin or entropy; random;
    sequential; the certain enough (low_confidence_dynamic, threshold, factor, entropy_bound); or each by a coin
    (ancestral, canvas only). (canvas, blocks)"""
    confidence: Confidence | None = None
    """Distribution that certainty is read from: untempered (LLaDA), unfiltered (after temperature; JetEngine), filtered
    (after temperature, top-k and top-p; Dream, SDAR), or the lower of two readings (min; SGLang). (canvas, blocks)"""
    confidence_threshold: float | None = None
    """low_confidence_dynamic reveals what is more confident than this, if that is a step's share at least (default
    0.85); `threshold` all that is at least as confident, and always the most confident. (canvas, blocks)"""
    dynamic_fallback: DynamicFallback | None = None
    """What low_confidence_dynamic reveals where too few are confident: a step's share of the most confident (topk) or
    of the leftmost (JetEngine). (canvas, blocks)"""
    factor: float | None = None
    """With `factor`: reveal the n most confident places while the n-th is at least 1 - factor/(n+1) sure.
    (canvas, blocks)"""
    entropy_bound: float | None = None
    """With `entropy_bound`: reveal the places of least entropy whose entropies sum to at most this many nats, the
    largest not counted; default: 0.35. (canvas, blocks)"""
    entropy_rule: EntropyRule | None = None
    """paper counts all entropies but the largest (Ben-Hamu et al.), jetengine counts that one too. (canvas, blocks)"""
    edit_threshold: float | None = None
    """Replace revealed tokens of the block where another is more confident than this (LLaDA2.1). (blocks)"""
    edit_steps: int | None = None
    """Steps for edits after a block's last place is revealed, at most; default: 16. (blocks)"""
    fused_commit: bool | None = None
    """Write a block's keys in the first forward of the next one, not in a forward of their own; the text is the same.
    (blocks)"""
    reveal_schedule: RevealSchedule | None = None
    """How many places each step reveals: linear, cosine (MaskGIT), cosine_squared (Zhang) or dream (linear, rounded
    down, on Dream's grid of times). (canvas)"""
    reveal_temperature: float | None = None
    """Above 0, draw the places to reveal by softmax(certainty / this) instead of taking the best. (canvas)"""
    remask: Remask | None = None
    """ReMDM: reopen revealed places by cap, rescale, conf or in a loop; goes with ancestral unmasking. (canvas)"""
    remask_eta: float | None = None
    """Strength of `remask`; default: 0.008 for cap, 0.015 for rescale, 0.02 for loop, 1 for conf. (canvas)"""
    remask_loop: tuple[float, ...] | None = None
    """With `loop`: its first time, its last time, its share of visible tokens; default: 0.55, 0.05, 0.9. (canvas)"""
    cfg_scale: float | None = None
    """Classifier-free guidance away from the text without its prompt; 0 is off, else two forwards per step. (canvas)"""
    cache: CacheKind | None = None
    """exact keeps the keys of finished blocks (blocks); none recomputes everything; prefix and dual (Fast-dLLM) reuse
    keys from the block's first step, an approximation (canvas). (canvas, blocks)"""
    suppress_eos: bool | None = None
    """Never generate the end-of-text token. (canvas)"""
    defer_eos: bool | None = None
    """Reveal end-of-text tokens last. (canvas)"""
    infill_length: tuple[int, ...] = ()
    """Tokens for the gaps of `infill`: one number for all of them, or one each. (canvas)"""

    def __post_init__(self) -> None:
        for name in ("stop", "stop_token_ids", "infill_length", "remask_loop"):
            value = getattr(self, name)
            if isinstance(value, str | int):
                object.__setattr__(self, name, (value,))
            elif isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        if self.unmasking == "low_confidence":
            object.__setattr__(self, "unmasking", "low_confidence_static")
        at_least(1, max_new_tokens=self.max_new_tokens, n=self.n, block_length=self.block_length)
        at_least(1, denoising_steps=self.denoising_steps, infill_length=min(self.infill_length, default=None))
        at_least(0, temperature=self.temperature, top_k=self.top_k, reveal_temperature=self.reveal_temperature)
        at_least(0, cfg_scale=self.cfg_scale, factor=self.factor, entropy_bound=self.entropy_bound)
        at_least(0, edit_steps=self.edit_steps)
        in_range(0, 1, confidence_threshold=self.confidence_threshold, remask_eta=self.remask_eta)
        in_range(0, 1, edit_threshold=self.edit_threshold)
        is_true(
            self.repetition_penalty is None or self.repetition_penalty > 0,
            f"repetition_penalty must be above 0, got {self.repetition_penalty}. 1 turns it off.",
        )
        is_true(
            self.top_p is None or 0 < self.top_p <= 1,
            f"top_p must be above 0 and at most 1, got {self.top_p}. 1 turns it off.",
        )
        is_true("" not in self.stop, "stop must not hold an empty text: it would end every output at once.")

    def resolved(self, checkpoint: dict[str, Any], default_decoding: Decoding) -> SamplingParams:
        """Fill what is unset from the checkpoint's defaults, then the decoding's, and check the combination.

        Raises:
            SettingsError: an option is set that the chosen decoding does not use, or one is missing.
        """
        decoding = self.decoding or checkpoint.get("decoding") or default_decoding
        used = _USED_BY[decoding]
        for field in dataclasses.fields(self):
            if field.name not in _COMMON and field.name not in used and getattr(self, field.name) not in (None, ()):
                homes = [home for home, names in _USED_BY.items() if field.name in names]
                raise SettingsError(
                    f"{field.name} is not used by {decoding} decoding (got {getattr(self, field.name)}). "
                    f"It belongs to {', '.join(homes)}; {decoding} takes: {', '.join(used)}."
                )
        defaults = _DEFAULTS[decoding] | {name: value for name, value in checkpoint.items() if name in used}
        unset = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        params = dataclasses.replace(self, decoding=decoding, **unset)
        if decoding == "blocks":
            return _as_blocks(params)
        return params._as_canvas() if decoding == "canvas" else params

    def _as_canvas(self) -> SamplingParams:
        """Modes, policies and reopening made definite, and their combination checked."""
        params = dataclasses.replace(
            self, unmasking=self.unmasking or ("ancestral" if self.remask else "low_confidence_static")
        )
        params = _with_policy(params)
        for check in (_check_pace, _check_remask):
            check(params)
        params = _with_blocks(params)
        if params.remask is not None:
            eta = _REMASK_ETA[params.remask] if params.remask_eta is None else params.remask_eta
            loop = (params.remask_loop or _REMASK_LOOP) if params.remask == "loop" else None
            params = dataclasses.replace(params, remask_eta=eta, remask_loop=loop)
        return params


def _with_policy(params: SamplingParams) -> SamplingParams:
    """The options of the policy filled in, and those of other policies refused."""
    found = {}
    for option, policies in _POLICY_OPTIONS.items():
        value = getattr(params, option)
        if params.unmasking in policies:
            found[option] = policies[params.unmasking] if value is None else value
            is_true(
                found[option] is not None,
                f"unmasking `{params.unmasking}` needs {option}, e.g. {_EXAMPLES.get(option)}.",
            )
        elif value is not None:
            names = " or ".join(f"`{name}`" for name in policies)
            raise SettingsError(
                f"{option} is used by unmasking {names} only, got unmasking `{params.unmasking}`. "
                f"Set unmasking to {names}, or leave {option} out."
            )
    return dataclasses.replace(params, **found)


def _as_blocks(params: SamplingParams) -> SamplingParams:
    """Block decoding with everything definite."""
    params = _with_policy(params)
    length = params.block_length
    if length is None:
        raise SettingsError("blocks decoding needs block_length, and this checkpoint names none. Give it, e.g. 4.")
    is_true(
        params.unmasking != "ancestral",
        "unmasking `ancestral` belongs to canvas decoding. Use low_confidence_static, low_confidence_dynamic, margin, "
        "entropy, random, sequential, threshold, factor or entropy_bound.",
    )
    is_true(
        params.cache in ("exact", "none"),
        f"blocks decoding has the caches exact and none, got {params.cache}: its exact cache needs no approximation.",
    )
    steps = params.denoising_steps or length
    is_true(
        steps <= length,
        f"denoising_steps must be at most the places of a block ({length}), got {steps}: each step reveals at least "
        "one token.",
    )
    is_true(
        params.edit_steps is None or params.edit_threshold is not None,
        f"edit_steps needs edit_threshold, got {params.edit_steps}.",
    )
    edit_steps = params.edit_steps
    if params.edit_threshold is not None and edit_steps is None:
        edit_steps = _EDIT_STEPS
    return dataclasses.replace(params, denoising_steps=steps, edit_steps=edit_steps)


def _check_pace(params: SamplingParams) -> None:
    is_true(
        params.unmasking not in DYNAMIC or params.denoising_steps is None,
        f"denoising_steps is not used by unmasking `{params.unmasking}`, whose pace the model's confidence sets, got "
        f"{params.denoising_steps}. Leave it out.",
    )
    is_true(
        not params.reveal_temperature or params.unmasking in ("low_confidence_static", "margin", "entropy"),
        f"reveal_temperature goes with low_confidence_static, margin or entropy, got unmasking `{params.unmasking}`.",
    )


def _check_remask(params: SamplingParams) -> None:
    is_true(
        params.remask is None or params.unmasking == "ancestral",
        f"remask goes with unmasking `ancestral`, got `{params.unmasking}`. Leave unmasking out.",
    )
    is_true(
        params.remask is not None or params.remask_eta is None,
        f"remask_eta needs remask, got {params.remask_eta}. Set remask to cap, rescale, conf or loop.",
    )
    loop = params.remask_loop
    is_true(
        loop is None or params.remask == "loop",
        f"remask_loop is used by remask `loop` only, got {loop} and remask `{params.remask}`.",
    )
    is_true(
        loop is None or (len(loop) == 3 and 1 > loop[0] > loop[1] >= 0 and 0 < loop[2] < 1),
        f"remask_loop must be two times between 1 and 0, the larger first, and a share between 0 and 1, got {loop}.",
    )
    is_true(
        params.remask != "loop" or params.reveal_schedule in (None, "linear"),
        f"remask `loop` has a schedule of its own, got reveal_schedule `{params.reveal_schedule}`. Leave it out.",
    )


def _with_blocks(params: SamplingParams) -> SamplingParams:
    """The canvas mode and block length that follow from what is given; a fixed length is one block."""
    length, mode = params.block_length, params.canvas_mode
    whole = params.max_new_tokens
    if mode is None:
        mode = (
            "fixed_length"
            if length is None or (length >= whole and not params.infill_length)
            else "semi_autoregressive_padding"
        )
    if mode == "fixed_length":
        is_true(
            length is None or length >= whole,
            f"canvas_mode fixed_length has one block of max_new_tokens ({whole}), got block_length {length}. Use "
            "semi_autoregressive_padding for shorter blocks.",
        )
        length = None
    else:
        length = min(length or _BLOCK_LENGTH, whole) if not params.infill_length else length or _BLOCK_LENGTH
    places = length or whole
    is_true(
        params.denoising_steps is None
        or params.unmasking == "ancestral"
        or params.denoising_steps <= places
        or bool(params.infill_length),
        f"denoising_steps must be at most the places of a block ({places}), got {params.denoising_steps}: each step "
        "reveals at least one token.",
    )
    is_true(
        params.cache != "exact",
        "cache `exact` belongs to blocks decoding: in a canvas every token sees the others, so no key stays exact. Use "
        "none, prefix or dual.",
    )
    is_true(
        params.cache == "none" or mode != "semi_autoregressive_origin",
        f"cache `{params.cache}` needs the whole canvas in view, got canvas_mode {mode}. Use "
        "semi_autoregressive_padding.",
    )
    return dataclasses.replace(params, canvas_mode=mode, block_length=length)
