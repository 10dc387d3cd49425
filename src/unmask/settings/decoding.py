"""How text is generated: `SamplingParams`, validated when it is made."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from unmask.errors import SettingsError, nearest
from unmask.settings.checks import at_least, in_range, is_true
from unmask.settings.decoding_checks import as_autoregressive, as_blocks, as_canvas, as_tidar
from unmask.settings.decoding_options import COMMON, DEFAULTS, USED_BY
from unmask.settings.limits import check_sampling
from unmask.settings.reveal_files import SUFFIX, is_file_name
from unmask.settings.typed import settings

Decoding = Literal["autoregressive", "canvas", "blocks", "tidar"]
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
FactorRule = Literal["paper", "fast_dllm"]
FilterOrder = Literal["top_k_first", "top_p_first"]
RevealSchedule = Literal["linear", "cosine", "cosine_squared", "dream", "floor"]
Remask = Literal["cap", "rescale", "conf", "loop"]
CacheKind = Literal["none", "exact", "prefix", "dual"]
DraftMode = Literal["parallel", "linear"]
Verification = Literal["greedy", "match", "reject", "gumbel"]
_DEFINITE = {"autoregressive": as_autoregressive, "canvas": as_canvas, "blocks": as_blocks, "tidar": as_tidar}


@settings
class SamplingParams:
    """Settings of one generation; None means the checkpoint's default, else the decoding's.

    An option that the chosen decoding does not use is an error, so that no setting is ignored silently.
    """

    decoding: Decoding | None = None
    """autoregressive (left to right), canvas (all places at once, LLaDA), blocks (block by block behind an exact
    cache, SDAR) or tidar (autoregression that verifies drafts of diffusion); default: the checkpoint's."""
    max_new_tokens: int = 128
    """Tokens to generate at most; a canvas has exactly this many places."""
    n: int = 1
    """Samples per prompt."""
    temperature: float = 0.0
    """0 takes the most likely token; 1 samples from the model's distribution."""
    seed: int = 0
    """Every draw is a function of the seed, the sample's number, the place and the step."""
    stop: tuple[str, ...] = ()
    """Texts that end the output and are cut from it; the texts of special tokens end it too."""
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
    filter_order: FilterOrder | None = None
    """With top_k and top_p: which filter comes first; Dream's top_p does, all others' top_k, the default. (canvas)"""
    repetition_penalty: float | None = None
    """Above 1, makes tokens of the text so far less likely; 1 is off. (autoregressive, blocks, tidar)"""
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
    factor_rule: FactorRule | None = None
    """paper is that rule; with fast_dllm, where all masked places but one are sure enough, that one is revealed as
    well. (canvas, blocks)"""
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
    reveal_schedule: RevealSchedule | str | None = None
    """How many places each step reveals: linear, cosine (MaskGIT), cosine_squared (Zhang), dream (linear, rounded
    down, on Dream's grid of times; steps that would reveal none are left out), floor (linear, rounded down, and more
    steps for what is left; LMDeploy), or a .json file of counts (unmask analyze schedule --save FILE). (canvas,
    blocks)"""
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
    draft_length: int | None = None
    """Tokens that a step drafts and verifies, the first of them for sure; default: the checkpoint's block_length, and
    any other gives the same text at another pace. (tidar)"""
    mode: DraftMode | None = None
    """parallel: one forward verifies and drafts on for every outcome, draft_length * (draft_length + 1) tokens; linear:
    one forward drafts and one verifies, draft_length tokens each at most; default: parallel. (tidar)"""
    verification: Verification | None = None
    """Which drafts stay: those equal to the likeliest token (greedy) or to a drawn one (match), as many as the law of
    the text allows (reject), or those that the same Gumbel noise picks (gumbel, which autoregression takes too, and
    then draws the same tokens); default: greedy at temperature 0, else reject. (tidar, autoregressive)"""
    trust: float | None = None
    """Share of the autoregressive logits in the law that the text follows; the rest is the diffusion's for the same
    place. Default: 1, plain autoregression. (tidar)"""

    def __post_init__(self) -> None:
        if self.unmasking == "low_confidence":
            object.__setattr__(self, "unmasking", "low_confidence_static")
        check_sampling(self)
        at_least(1, max_new_tokens=self.max_new_tokens, n=self.n, block_length=self.block_length)
        at_least(1, denoising_steps=self.denoising_steps, infill_length=min(self.infill_length, default=None))
        at_least(0, temperature=self.temperature, top_k=self.top_k, reveal_temperature=self.reveal_temperature)
        at_least(0, cfg_scale=self.cfg_scale, factor=self.factor, entropy_bound=self.entropy_bound)
        at_least(0, edit_steps=self.edit_steps)
        at_least(1, draft_length=self.draft_length)
        in_range(0, 1, confidence_threshold=self.confidence_threshold, remask_eta=self.remask_eta)
        in_range(0, 1, edit_threshold=self.edit_threshold, trust=self.trust)
        is_true(
            self.repetition_penalty is None or self.repetition_penalty > 0,
            f"repetition_penalty must be above 0, got {self.repetition_penalty}. 1 turns it off.",
        )
        is_true(
            self.top_p is None or 0 < self.top_p <= 1,
            f"top_p must be above 0 and at most 1, got {self.top_p}. 1 turns it off.",
        )
        named = self.reveal_schedule
        is_true(
            named is None or named in get_args(RevealSchedule) or is_file_name(named),
            f"reveal_schedule must be a name or a {SUFFIX} file of counts, got `{named}`. "
            f"{nearest(named or '', get_args(RevealSchedule))}",
        )
        is_true("" not in self.stop, "stop must not hold an empty text: it would end every output at once.")

    def resolved(self, checkpoint: dict[str, Any], default_decoding: Decoding) -> SamplingParams:
        """Fill what is unset from the checkpoint's defaults, then the decoding's, and check the combination.

        Raises:
            SettingsError: an option is set that the chosen decoding does not use, or one is missing.
        """
        decoding = self.decoding or checkpoint.get("decoding") or default_decoding
        if decoding not in USED_BY:
            raise SettingsError(
                f"The checkpoint's own default decoding `{decoding}` does not exist. {nearest(str(decoding), USED_BY)}"
            )
        used = USED_BY[decoding]
        for field in dataclasses.fields(self):
            if field.name not in COMMON and field.name not in used and getattr(self, field.name) not in (None, ()):
                homes = [home for home, names in USED_BY.items() if field.name in names]
                raise SettingsError(
                    f"{field.name} is not used by {decoding} decoding (got {getattr(self, field.name)}). "
                    f"It belongs to {', '.join(homes)}; {decoding} takes: {', '.join(used)}."
                )
        defaults = DEFAULTS[decoding] | {name: value for name, value in checkpoint.items() if name in used}
        unset = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        params = dataclasses.replace(self, decoding=decoding, **unset)
        return _DEFINITE[decoding](params)
