"""How text is generated: `SamplingParams`, validated when it is made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from unmask.errors import SettingsError
from unmask.settings.checks import at_least, in_range, is_true

Decoding = Literal["autoregressive", "canvas"]
Unmasking = Literal["low_confidence", "low_confidence_static", "random", "threshold"]
RevealSchedule = Literal["linear", "cosine", "cosine_squared"]

_COMMON = ("decoding", "max_new_tokens", "n", "temperature", "seed", "stop", "stop_token_ids", "ignore_eos", "trace")
_USED_BY: dict[str, tuple[str, ...]] = {
    "autoregressive": ("top_k", "top_p"),
    "canvas": ("denoising_steps", "unmasking", "confidence_threshold", "reveal_schedule"),
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "autoregressive": {"top_k": 0, "top_p": 1.0},
    "canvas": {"unmasking": "low_confidence_static", "reveal_schedule": "linear"},
}


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Settings of one generation; None means the checkpoint's default, else the decoding's.

    An option that the chosen decoding does not use is an error, so that no setting is ignored silently.
    """

    decoding: Decoding | None = None
    """autoregressive (left to right) or canvas (all places at once, LLaDA); default: the checkpoint's."""
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
    """Sample among the k most likely tokens only; 0 is off. (autoregressive)"""
    top_p: float | None = None
    """Sample among the most likely tokens that hold this share of probability; 1 is off. (autoregressive)"""
    denoising_steps: int | None = None
    """Forwards over which the canvas is revealed; default: one for each place. (canvas)"""
    unmasking: Unmasking | None = None
    """Which places to reveal: low_confidence_static, random, or threshold for all above a confidence. (canvas)"""
    confidence_threshold: float | None = None
    """With `threshold`: reveal every place at least this confident, and always the most confident. (canvas)"""
    reveal_schedule: RevealSchedule | None = None
    """How many places each step reveals: linear, cosine (MaskGIT) or cosine_squared (Zhang). (canvas)"""

    def __post_init__(self) -> None:
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            if isinstance(value, str | int):
                object.__setattr__(self, name, (value,))
            elif isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        at_least(1, max_new_tokens=self.max_new_tokens, n=self.n, denoising_steps=self.denoising_steps)
        at_least(0, temperature=self.temperature, top_k=self.top_k)
        in_range(0, 1, confidence_threshold=self.confidence_threshold)
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
            if field.name not in _COMMON and field.name not in used and getattr(self, field.name) is not None:
                homes = [home for home, names in _USED_BY.items() if field.name in names]
                raise SettingsError(
                    f"{field.name} is not used by {decoding} decoding (got {getattr(self, field.name)}). "
                    f"It belongs to {', '.join(homes)}; {decoding} takes: {', '.join(used)}."
                )
        defaults = _DEFAULTS[decoding] | {name: value for name, value in checkpoint.items() if name in used}
        unset = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        params = dataclasses.replace(self, decoding=decoding, **unset)
        if decoding == "canvas":
            params._check_canvas()
        return params

    def _check_canvas(self) -> None:
        if self.unmasking == "threshold":
            is_true(
                self.confidence_threshold is not None, "unmasking `threshold` needs confidence_threshold, e.g. 0.9."
            )
        elif self.confidence_threshold is not None:
            raise SettingsError(
                f"confidence_threshold is used by unmasking `threshold` only, got unmasking `{self.unmasking}`. "
                "Set unmasking to `threshold`, or leave confidence_threshold out."
            )
        is_true(
            self.denoising_steps is None or self.denoising_steps <= self.max_new_tokens,
            f"denoising_steps must be at most max_new_tokens ({self.max_new_tokens}), got {self.denoising_steps}: "
            "each step reveals at least one token.",
        )
