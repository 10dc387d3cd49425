"""The sampling options of the originals under their own names and defaults.

In: options as LLaDA, Fast-dLLM and Dream spell them, or (see `block_aliases`) SDAR, JetEngine, LMDeploy and LLaDA2.
Out: `SamplingParams`, or what is wrong with them. `docs/migration.md` lists them all. `steps` of LLaDA, Fast-dLLM and
Dream is the total over all blocks; `denoising_steps` is per block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from unmask.errors import SettingsError, nearest
from unmask.settings import block_aliases
from unmask.settings.block_aliases import Engine, from_engine
from unmask.settings.checks import at_least
from unmask.settings.decoding import SamplingParams
from unmask.settings.typed import fitted

Original = Literal["llada", "fast_dllm", "dream"]

DEFAULTS: dict[str, dict[str, Any]] = {
    "llada": {
        "steps": 128,
        "gen_length": 128,
        "block_length": 128,
        "temperature": 0.0,
        "cfg_scale": 0.0,
        "remasking": "low_confidence",
        "logits_eos_inf": False,
        "confidence_eos_eot_inf": False,
    },
    "fast_dllm": {
        "steps": 128,
        "gen_length": 128,
        "block_length": 128,
        "temperature": 0.0,
        "remasking": "low_confidence",
        "threshold": None,
        "factor": None,
        "use_cache": False,
        "dual_cache": False,
    },
    "dream": {
        "max_new_tokens": 128,
        "steps": 512,
        "eps": 1e-3,
        "alg": "origin",
        "alg_temp": None,
        "temperature": 0.0,
        "top_p": None,
        "top_k": None,
    },
}
RENAMED = {
    "gen_length": "max_new_tokens",
    "remasking": "unmasking",
    "alg_temp": "reveal_temperature",
    "logits_eos_inf": "suppress_eos",
    "confidence_eos_eot_inf": "defer_eos",
    "method": "canvas_mode",
    "eb_threshold": "entropy_bound",
    "stopping_criteria_idx": "stop_token_ids",
}
"""Options that only have another name here."""
TRANSLATED = ("steps", "alg", "remasking_strategy", "threshold", "factor", "use_cache", "dual_cache", "eps")
"""Options that mean several of ours, or depend on others."""
REFUSED = {
    "mask_id": "the mask token comes from the checkpoint",
    "attention_mask": "prompts are given without padding, in batches of any lengths",
    "output_history": "use trace, or stream the steps",
    "return_dict_in_generate": "outputs are always records",
    "generation_tokens_hook_func": "stream yields every step",
    "generation_logits_hook_func": "use DiffusionLM.logits, or suppress_eos",
}
"""Options that have no place here, with the reason."""
_OWN_LOOP = (
    "Fast-dLLM's loop for Dream always caches, and its first step in a block reveals the first position whatever the "
    "confidence; SamplingParams has what comes near"
)
REFUSED_OF = {"dream": dict.fromkeys(("threshold", "block_length", "dual_cache"), _OWN_LOOP)}
"""Options of one original that have no place here, though others have them."""

_ALGORITHMS = {
    "origin": "ancestral",
    "maskgit_plus": "low_confidence_static",
    "topk_margin": "margin",
    "entropy": "entropy",
}
_DREAM_EPSILON = 1e-3


def from_original(system: Original | Engine, **options: Any) -> SamplingParams:
    """Sampling parameters from the options of an original's `generate`; what is not given has its default there.

    Args:
        system: `llada` (`generate`), `fast_dllm` (`generate`, with use_cache or dual_cache for its cached forms) or
            `dream` (`diffusion_generate`); `sdar` (`block_diffusion_generate`), `jetengine` (`SamplingParams`),
            `lmdeploy` (`PytorchEngineConfig` and `GenerationConfig`) or `llada2` (`generate`).
        options: as that function names them.

    Raises:
        SettingsError: an option is unknown or has no place here.
    """
    system = fitted("system", str, system)
    if system in block_aliases.DEFAULTS:
        return from_engine(cast("Engine", system), **options)
    if system not in DEFAULTS:
        raise SettingsError(f"There is no original `{system}`. {nearest(system, [*DEFAULTS, *block_aliases.DEFAULTS])}")
    refused = REFUSED_OF.get(system, {})
    known = [*DEFAULTS[system], *REFUSED, *refused]
    for name, value in options.items():
        if name not in known:
            raise SettingsError(f"{system} has no option `{name}`. {nearest(name, known)}")
        if name in refused and value is not None:
            raise SettingsError(f"{name} is not an option here: {refused[name]}. Leave it out.")
    given = {name: value for name, value in (DEFAULTS[system] | options).items() if value is not None}
    found = translated({name: value for name, value in given.items() if name not in refused})
    if system == "dream":
        return SamplingParams(**found)
    if "factor" in given:
        found["factor_rule"] = "fast_dllm"
    return SamplingParams(**_as_in_the_loop(found))


def _as_in_the_loop(found: Mapping[str, Any]) -> dict[str, Any]:
    """LLaDA's blocks end with its canvas, and the steps in which nothing is left to reveal change nothing."""
    whole = fitted("gen_length", int, found.get("max_new_tokens", SamplingParams.max_new_tokens))
    length = min(fitted("block_length", int, found.get("block_length", whole)), whole)
    steps = found.get("denoising_steps")
    return {**found, "block_length": length} | ({} if steps is None else {"denoising_steps": min(steps, length)})


def translated(options: Mapping[str, Any]) -> dict[str, Any]:
    """Ours for theirs; options that are ours already pass through.

    Raises:
        SettingsError: an option has no place here, or two contradict each other.
    """
    for name, reason in REFUSED.items():
        if name in options:
            raise SettingsError(f"{name} is not an option here: {reason}. Leave it out.")
    found: dict[str, Any] = {}
    for name, value in options.items():
        ours = RENAMED.get(name, name)
        if name not in TRANSLATED:
            if ours in found:
                raise SettingsError(f"{name} and {ours} are the same option. Give one of them.")
            found[ours] = value
    found |= _algorithm(options)
    if "remasking_strategy" in options:
        strategy = str(options["remasking_strategy"])
        found["unmasking"] = block_aliases.STRATEGIES.get(strategy, strategy)
    found |= _policy(options, str(found.get("unmasking", "low_confidence"))) | _cache(options)
    if _number("eps", float, options.get("eps", _DREAM_EPSILON)) != _DREAM_EPSILON:
        raise SettingsError(f"eps must be {_DREAM_EPSILON}, Dream's own value, got {options['eps']}.")
    if "steps" in options and found.get("unmasking") not in ("threshold", "factor"):
        found["denoising_steps"] = _steps_per_block(_number("steps", int, options["steps"]), found)
    return found


def _number(name: str, kind: type, value: Any) -> Any:
    """A number, which the command line gives as text."""
    if isinstance(value, str):
        try:
            return fitted(name, kind, kind(value))
        except ValueError:
            pass
    return fitted(name, kind, value)


def _algorithm(options: Mapping[str, Any]) -> dict[str, Any]:
    """Dream's `alg`, with its schedule, its filtered confidence and, of two filters, its order."""
    if "alg" not in options:
        return {}
    if not isinstance(options["alg"], str) or options["alg"] not in _ALGORITHMS:
        raise SettingsError(f"There is no alg `{options['alg']}`. {nearest(str(options['alg']), _ALGORITHMS)}")
    found = {"unmasking": _ALGORITHMS[options["alg"]], "reveal_schedule": "dream", "confidence": "filtered"}
    return found | ({"filter_order": "top_p_first"} if {"top_k", "top_p"} <= options.keys() else {})


def _policy(options: Mapping[str, Any], unmasking: str) -> dict[str, Any]:
    """A threshold or a factor also names the policy (Fast-dLLM)."""
    if {"threshold", "factor"} <= options.keys():
        raise SettingsError("threshold and factor each decide what is revealed. Give one of them.")
    for policy, theirs, ours in (("threshold", "threshold", "confidence_threshold"), ("factor", "factor", "factor")):
        if theirs in options:
            if unmasking not in ("low_confidence", "low_confidence_static", policy):
                raise SettingsError(f"{theirs} reveals by confidence and cannot go with `{unmasking}`. Leave out one.")
            return {"unmasking": policy, ours: options[theirs]}
    return {}


def _cache(options: Mapping[str, Any]) -> dict[str, Any]:
    if _is_set(options.get("dual_cache")):
        return {"cache": "dual"}
    return {"cache": "prefix"} if _is_set(options.get("use_cache")) else {}


def _is_set(value: object) -> bool:
    words = {"true": True, "false": False}
    return value is not None and bool(fitted("A cache option", bool, words.get(str(value).lower(), value)))


def _steps_per_block(steps: int, found: Mapping[str, Any]) -> int:
    """The total shared out over the blocks."""
    whole = _number("max_new_tokens", int, found.get("max_new_tokens", SamplingParams.max_new_tokens))
    length = _number("block_length", int, found.get("block_length") or whole)
    at_least(1, steps=steps, max_new_tokens=whole, block_length=length)
    blocks = -(-whole // length)
    if steps % blocks:
        raise SettingsError(
            f"steps is the total over all blocks and must be a multiple of their number ({blocks}), got {steps}. "
            "Change it, or give denoising_steps, which is per block."
        )
    return steps // blocks
