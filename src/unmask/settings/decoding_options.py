"""Which sampling parameters each decoding uses, and what they are where nobody sets them."""

from typing import Any

COMMON = ("decoding", "max_new_tokens", "n", "temperature", "seed", "stop", "stop_token_ids", "ignore_eos", "trace")
_UNMASKING = (
    "top_k",
    "top_p",
    "block_length",
    "denoising_steps",
    "reveal_schedule",
    "unmasking",
    "confidence",
    "confidence_threshold",
    "dynamic_fallback",
    "factor",
    "factor_rule",
    "entropy_bound",
    "entropy_rule",
    "cache",
)
_CANVAS = (
    *_UNMASKING,
    "filter_order",
    "canvas_mode",
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
_TIDAR = ("top_k", "top_p", "repetition_penalty", "draft_length", "mode", "verification", "trust")
USED_BY: dict[str, tuple[str, ...]] = {
    "autoregressive": ("top_k", "top_p", "repetition_penalty", "verification"),
    "canvas": _CANVAS,
    "blocks": _BLOCKS,
    "tidar": _TIDAR,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "autoregressive": {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0},
    "blocks": {
        "top_k": 0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "unmasking": "low_confidence_dynamic",
        "reveal_schedule": "linear",
        "confidence": "unfiltered",
        "cache": "exact",
        "fused_commit": True,
    },
    "canvas": {
        "top_k": 0,
        "top_p": 1.0,
        "filter_order": "top_k_first",
        "confidence": "untempered",
        "reveal_schedule": "linear",
        "reveal_temperature": 0.0,
        "cfg_scale": 0.0,
        "cache": "none",
        "suppress_eos": False,
        "defer_eos": False,
    },
    "tidar": {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "mode": "parallel", "trust": 1.0},
}
DYNAMIC = ("threshold", "factor", "entropy_bound")
"""Policies that the model's confidence alone paces, not a number of steps."""
# Options of single policies, with their defaults there; None must be given.
POLICY_OPTIONS: dict[str, dict[str, Any]] = {
    "confidence_threshold": {"threshold": None, "low_confidence_dynamic": 0.85},
    "factor": {"factor": None},
    "factor_rule": {"factor": "paper"},
    "dynamic_fallback": {"low_confidence_dynamic": "topk"},
    "entropy_bound": {"entropy_bound": 0.35},
    "entropy_rule": {"entropy_bound": "paper"},
}
POLICY_EXAMPLES = {"confidence_threshold": 0.9, "factor": 1.0}
