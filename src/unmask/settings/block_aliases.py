"""The sampling options of SDAR, JetEngine, LMDeploy and LLaDA2 under their own names and defaults.

In: options as an engine spells them. Out: `SamplingParams` for block decoding that do what the engine means by them, as
the same names mean different things: what confidence is read from, what is revealed where too few places are confident
enough. `docs/migration.md` lists them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from unmask.errors import SettingsError, nearest
from unmask.settings.decoding import SamplingParams
from unmask.settings.typed import fitted

Engine = Literal["sdar", "jetengine", "lmdeploy", "llada2"]

DEFAULTS: dict[str, dict[str, Any]] = {
    "sdar": {
        "gen_length": 128,
        "block_length": 8,
        "denoising_steps": 8,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "remasking_strategy": "low_confidence_dynamic",
        "confidence_threshold": 0.85,
        "eb_threshold": None,
        "stopping_criteria_idx": None,
    },
    "jetengine": {
        "max_tokens": 64,
        "block_length": 4,
        "denoising_steps": 4,
        "temperature": 1.0,
        "topk": 0,
        "topp": 1.0,
        "repetition_penalty": 1.0,
        "remasking_strategy": "low_confidence_static",
        "dynamic_threshold": 0.9,
        "eb_threshold": 0.35,
        "stop_words": None,
        "ignore_eos": False,
    },
    "lmdeploy": {
        "max_new_tokens": 512,
        "dllm_block_length": None,
        "dllm_denoising_steps": None,
        "dllm_unmasking_strategy": "low_confidence_dynamic",
        "dllm_confidence_threshold": 0.85,
        "do_sample": False,
        "temperature": 0.8,
        "top_k": 50,
        "top_p": 1.0,
    },
    "llada2": {
        "gen_length": 2048,
        "block_length": 32,
        "steps": 32,
        "temperature": 0.0,
        "top_k": None,
        "top_p": None,
        "threshold": 0.95,
        "editing_threshold": None,
        "max_post_steps": None,
    },
}
RENAMED = {
    "gen_length": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "dllm_block_length": "block_length",
    "dllm_denoising_steps": "denoising_steps",
    "steps": "denoising_steps",
    "topk": "top_k",
    "topp": "top_p",
    "remasking_strategy": "unmasking",
    "dllm_unmasking_strategy": "unmasking",
    "dynamic_threshold": "confidence_threshold",
    "dllm_confidence_threshold": "confidence_threshold",
    "threshold": "confidence_threshold",
    "eb_threshold": "entropy_bound",
    "editing_threshold": "edit_threshold",
    "max_post_steps": "edit_steps",
    "stopping_criteria_idx": "stop_token_ids",
    "stop_words": "stop_token_ids",
}
"""Options that only have another name here; `steps` of LLaDA2 is per block, as ours."""
STRATEGIES = {"entropy_bounded": "entropy_bound"}
"""Policies that have another name here."""
REFUSED = {
    "mask_id": "the mask token comes from the checkpoint",
    "eos_early_stop": "a text always ends at its first stop token, and a row as soon as that is certain",
    "eos_id": "the end of text comes from the checkpoint; add stop_token_ids",
    "minimal_topk": "use denoising_steps",
    "num_to_transfer": "use denoising_steps",
}
"""Options that have no place here, with the reason."""
# What an engine means by names that mean something else elsewhere.
_MEANS: dict[str, dict[str, Any]] = {
    "sdar": {"confidence": "filtered"},
    "jetengine": {"confidence": "unfiltered"},
    # Its processors are the temperature and penalties; top-k and top-p filter a sorted copy that only the draw sees.
    "lmdeploy": {"confidence": "unfiltered"},
    "llada2": {"confidence": "filtered", "unmasking": "low_confidence_dynamic"},
}


def from_engine(engine: Engine, **options: Any) -> SamplingParams:
    """Sampling parameters from an engine's options; what is not given has its default there.

    Raises:
        SettingsError: an option is unknown or has no place here.
    """
    known = [*DEFAULTS[engine], *REFUSED]
    for name in options:
        if name in REFUSED:
            raise SettingsError(f"{name} is not an option here: {REFUSED[name]}. Leave it out.")
        if name not in known:
            raise SettingsError(f"{engine} has no option `{name}`. {nearest(name, known)}")
    if engine == "jetengine" and options.get("repetition_penalty", 1.0) not in (None, 1.0):
        raise SettingsError(
            "repetition_penalty is not an option here: JetEngine divides probabilities, and only in the second half of "
            f"a text; got {options['repetition_penalty']}. SamplingParams(repetition_penalty=...) is that of "
            "transformers, on the logits."
        )
    given = {name: value for name, value in (DEFAULTS[engine] | options).items() if value is not None}
    if not fitted("do_sample", bool, given.pop("do_sample", True)):
        given |= {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
    found = _MEANS[engine] | {RENAMED.get(name, name): value for name, value in given.items()}
    found["unmasking"] = _policy(engine, str(found["unmasking"]))
    if engine == "llada2":
        # As in its code, whose share of a step then grows.
        counts = [fitted(name, int, found[name]) for name in ("denoising_steps", "max_new_tokens") if name in found]
        found["denoising_steps"] = min(counts)
    return SamplingParams(decoding="blocks", **_used(engine, found))


def _policy(engine: Engine, name: str) -> str:
    """LMDeploy's dynamic strategy reveals the confident places and always the most confident, without a quota."""
    if engine == "lmdeploy" and name == "low_confidence_dynamic":
        return "threshold"
    return STRATEGIES.get(name, name)


def _used(engine: Engine, found: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the policy uses: the engines take thresholds for all of them and ignore what does not apply."""
    used = dict(found)
    if used["unmasking"] not in ("low_confidence_dynamic", "threshold"):
        used.pop("confidence_threshold", None)
    if used["unmasking"] != "entropy_bound":
        used.pop("entropy_bound", None)
    if engine == "lmdeploy" and used["unmasking"] == "threshold":
        used.pop("denoising_steps", None)
    elif engine == "lmdeploy":
        used["reveal_schedule"] = "floor"
    if engine == "jetengine" and used["unmasking"] == "low_confidence_dynamic":
        used["dynamic_fallback"] = "leftmost"
    if engine == "jetengine" and used["unmasking"] == "entropy_bound":
        used["entropy_rule"] = "jetengine"
    return used
