"""Sampling parameters made definite for one decoding, and their combinations checked."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from unmask.errors import SettingsError
from unmask.settings.checks import is_true
from unmask.settings.decoding_options import DYNAMIC, POLICY_EXAMPLES, POLICY_OPTIONS
from unmask.settings.reveal_files import is_file_name, read

if TYPE_CHECKING:
    from unmask.settings.decoding import SamplingParams

_BLOCK_LENGTH = 32
_EDIT_STEPS = 16
_PACED = ("low_confidence_static", "margin", "entropy", "random", "sequential")
_REMASK_ETA = {"cap": 0.008, "rescale": 0.015, "loop": 0.02, "conf": 1.0}
_REMASK_LOOP = (0.55, 0.05, 0.9)


def as_autoregressive(params: SamplingParams) -> SamplingParams:
    """Autoregression with everything definite; it verifies nothing, but draws as the Gumbel rule does where asked."""
    is_true(
        params.verification in (None, "gumbel"),
        f"verification `{params.verification}` belongs to tidar decoding, which has drafts to verify. Autoregressive "
        "decoding takes `gumbel`, which draws the tokens that tidar decoding draws under that rule, or none.",
    )
    _check_draws(params)
    return params


def as_tidar(params: SamplingParams) -> SamplingParams:
    """TiDAR decoding with everything definite."""
    is_true(
        params.draft_length is not None,
        "tidar decoding needs draft_length, and this checkpoint names none. Give it, e.g. 8.",
    )
    is_true(
        params.trust == 1 or params.mode == "parallel",
        f"trust below 1 needs mode `parallel`, got trust {params.trust} with mode `{params.mode}`: only there every "
        "verified token has a block of masks beside it.",
    )
    is_true(
        params.verification != "greedy" or params.temperature == 0,
        f"verification `greedy` takes the most likely tokens, got temperature {params.temperature}. Set temperature to "
        "0, or verification to match, reject or gumbel.",
    )
    _check_draws(params)
    default = "greedy" if params.temperature == 0 else "reject"
    return dataclasses.replace(params, verification=params.verification or default)


def _check_draws(params: SamplingParams) -> None:
    is_true(
        params.verification in (None, "greedy") or params.temperature > 0,
        f"verification `{params.verification}` draws tokens, and at temperature 0 there is nothing to draw. Set "
        "temperature above 0, or leave verification out.",
    )


def as_canvas(params: SamplingParams) -> SamplingParams:
    """Modes, policies and reopening made definite, and their combination checked."""
    params = dataclasses.replace(
        params, unmasking=params.unmasking or ("ancestral" if params.remask else "low_confidence_static")
    )
    params = _with_policy(params)
    for check in (_check_pace, _check_remask):
        check(params)
    params = _with_reveal_file(_with_blocks(params))
    if params.remask is not None:
        eta = _REMASK_ETA[params.remask] if params.remask_eta is None else params.remask_eta
        loop = (params.remask_loop or _REMASK_LOOP) if params.remask == "loop" else None
        params = dataclasses.replace(params, remask_eta=eta, remask_loop=loop)
    return params


def _with_policy(params: SamplingParams) -> SamplingParams:
    """The options of the policy filled in, and those of other policies refused."""
    found = {}
    for option, policies in POLICY_OPTIONS.items():
        value = getattr(params, option)
        if params.unmasking in policies:
            found[option] = policies[params.unmasking] if value is None else value
            is_true(
                found[option] is not None,
                f"unmasking `{params.unmasking}` needs {option}, e.g. {POLICY_EXAMPLES.get(option)}.",
            )
        elif value is not None:
            names = " or ".join(f"`{name}`" for name in policies)
            raise SettingsError(
                f"{option} is used by unmasking {names} only, got unmasking `{params.unmasking}`. "
                f"Set unmasking to {names}, or leave {option} out."
            )
    return dataclasses.replace(params, **found)


def as_blocks(params: SamplingParams) -> SamplingParams:
    """Block decoding with everything definite."""
    params = _with_policy(params)
    length = params.block_length
    if length is None:
        raise SettingsError("blocks decoding needs block_length, and this checkpoint names none. Give it, e.g. 4.")
    schedule = params.reveal_schedule or "linear"
    is_true(
        params.unmasking not in DYNAMIC or schedule == "linear" or is_file_name(schedule),
        f"reveal_schedule is not used by unmasking `{params.unmasking}`, whose pace the model's confidence sets, got "
        f"{schedule}. Leave it out.",
    )
    params = _with_reveal_file(params)
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


def _with_reveal_file(params: SamplingParams) -> SamplingParams:
    """The number of steps that a file of counts asks for, where it holds one only; checks that it fits the blocks."""
    if params.reveal_schedule is None or not is_file_name(params.reveal_schedule):
        return params
    is_true(
        params.unmasking in _PACED,
        f"A file of counts goes with the policies that reveal a given number of places ({', '.join(_PACED)}), got "
        f"unmasking `{params.unmasking}`. Set unmasking to one of them, e.g. low_confidence_static.",
    )
    is_true(
        not params.infill_length,
        f"A file of counts is for blocks of one length, got infill_length {params.infill_length}. Name a "
        "reveal_schedule.",
    )
    found = read(params.reveal_schedule)
    places = params.block_length or params.max_new_tokens
    steps = params.denoising_steps or (next(iter(found.counts)) if len(found.counts) == 1 else places)
    found.of(places, steps)
    is_true(
        params.decoding == "blocks" or params.max_new_tokens % places == 0,
        f"A file of counts needs whole blocks, got max_new_tokens {params.max_new_tokens} and block_length {places}. "
        f"Use a multiple of {places}.",
    )
    return dataclasses.replace(params, denoising_steps=steps)


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
        or params.reveal_schedule == "dream"
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
