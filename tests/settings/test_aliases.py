"""The originals' sampling options mean what they mean there."""

import pytest

from unmask.errors import SettingsError
from unmask.settings.aliases import DEFAULTS, REFUSED, from_original, translated
from unmask.settings.decoding import SamplingParams


def canvas(params: SamplingParams) -> SamplingParams:
    return params.resolved({}, "canvas")


def test_lladas_defaults_are_one_block_of_128_places_in_128_steps() -> None:
    params = canvas(from_original("llada"))
    assert (params.max_new_tokens, params.denoising_steps, params.canvas_mode) == (128, 128, "fixed_length")
    assert (params.unmasking, params.cfg_scale, params.temperature) == ("low_confidence_static", 0.0, 0.0)


def test_steps_are_shared_out_over_the_blocks() -> None:
    params = canvas(from_original("llada", steps=64, gen_length=128, block_length=32))
    assert (params.denoising_steps, params.block_length) == (16, 32)
    assert params.canvas_mode == "semi_autoregressive_padding"
    with pytest.raises(SettingsError, match=r"steps is the total over all blocks .*\(4\), got 30"):
        from_original("llada", steps=30, gen_length=128, block_length=32)


@pytest.mark.parametrize(
    ("system", "theirs", "ours"),
    [
        ("llada", {"remasking": "random"}, {"unmasking": "random"}),
        ("llada", {"logits_eos_inf": True}, {"suppress_eos": True, "defer_eos": False}),
        ("llada", {"confidence_eos_eot_inf": True}, {"suppress_eos": False, "defer_eos": True}),
        ("llada", {"cfg_scale": 1.5}, {"cfg_scale": 1.5}),
        (
            "fast_dllm",
            {"threshold": 0.9},
            {"unmasking": "threshold", "confidence_threshold": 0.9, "denoising_steps": None},
        ),
        ("fast_dllm", {"factor": 1.0}, {"unmasking": "factor", "factor": 1.0, "denoising_steps": None}),
        ("fast_dllm", {"use_cache": True, "block_length": 32}, {"cache": "prefix", "denoising_steps": 32}),
        ("fast_dllm", {"use_cache": True, "dual_cache": True}, {"cache": "dual"}),
        ("dream", {}, {"unmasking": "ancestral", "reveal_schedule": "dream", "denoising_steps": 512}),
        ("dream", {"steps": 32, "alg": "maskgit_plus"}, {"unmasking": "low_confidence_static", "denoising_steps": 32}),
        ("dream", {"alg": "topk_margin", "alg_temp": 0.1}, {"unmasking": "margin", "reveal_temperature": 0.1}),
        ("dream", {"alg": "entropy", "top_p": 0.9, "top_k": 5}, {"unmasking": "entropy", "top_p": 0.9, "top_k": 5}),
        ("dream", {"alg": "entropy", "top_p": 0.9, "top_k": 5}, {"filter_order": "top_p_first"}),
        ("dream", {"alg": "entropy", "top_p": 0.9}, {"filter_order": "top_k_first"}),
        ("dream", {"alg": "entropy"}, {"confidence": "filtered"}),
        ("fast_dllm", {"factor": 1.0}, {"factor_rule": "fast_dllm"}),
        ("llada", {"gen_length": 32}, {"max_new_tokens": 32, "denoising_steps": 32, "canvas_mode": "fixed_length"}),
    ],
)
def test_options_carry_over(system: str, theirs: dict[str, object], ours: dict[str, object]) -> None:
    params = canvas(from_original(system, **theirs))  # type: ignore[arg-type]
    assert {name: getattr(params, name) for name in ours} == ours


def test_our_own_names_pass_through_and_words_from_the_command_line_work() -> None:
    given = {"gen_length": "64", "steps": "16", "block_length": "16", "temperature": "0.5", "dual_cache": "true"}
    expected = {
        "max_new_tokens": "64",
        "block_length": "16",
        "temperature": "0.5",
        "cache": "dual",
        "denoising_steps": 4,
    }
    assert translated(given) == expected
    assert translated({"n": 2, "seed": 3}) == {"n": 2, "seed": 3}


def test_what_has_no_place_is_refused_with_its_reason() -> None:
    for name, reason in REFUSED.items():
        with pytest.raises(SettingsError, match=f"{name} is not an option here: {reason[:20]}"):
            translated({name: 1})
    with pytest.raises(SettingsError, match=r"llada has no option `gen_lenght`.*gen_length"):
        from_original("llada", gen_lenght=3)
    with pytest.raises(SettingsError, match=r"no original `lada`.*llada"):
        from_original("lada")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="are the same option"):
        translated({"gen_length": 3, "max_new_tokens": 3})
    with pytest.raises(SettingsError, match="cannot go with `random`"):
        from_original("fast_dllm", remasking="random", threshold=0.5)
    with pytest.raises(SettingsError, match="threshold and factor each decide"):
        from_original("fast_dllm", threshold=0.5, factor=1.0)
    for name, value in (("threshold", 0.9), ("block_length", 32), ("dual_cache", True)):
        with pytest.raises(SettingsError, match=f"{name} is not an option here: Fast-dLLM's loop for Dream"):
            from_original("dream", **{name: value})
    with pytest.raises(SettingsError, match="repetition_penalty is not an option here: JetEngine divides"):
        from_original("jetengine", repetition_penalty=1.1)
    with pytest.raises(SettingsError, match=r"eps must be 0.001"):
        from_original("dream", eps=0.1)
    with pytest.raises(SettingsError, match=r"no alg `entropie`.*entropy"):
        from_original("dream", alg="entropie")


def test_every_default_is_an_option_that_carries_over() -> None:
    for system, defaults in DEFAULTS.items():
        assert isinstance(canvas(from_original(system, **defaults)), SamplingParams)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("engine", "theirs", "ours"),
    [
        ("lmdeploy", {"dllm_unmasking_strategy": "low_confidence_static"}, {"reveal_schedule": "floor"}),
        ("lmdeploy", {"dllm_unmasking_strategy": "sequential"}, {"reveal_schedule": "floor"}),
        ("lmdeploy", {}, {"unmasking": "threshold", "confidence": "unfiltered", "reveal_schedule": "linear"}),
        ("lmdeploy", {"do_sample": True}, {"top_k": 50, "confidence": "unfiltered"}),
        ("llada2", {"gen_length": 16}, {"denoising_steps": 16, "block_length": 32}),
        ("llada2", {"gen_length": 64}, {"denoising_steps": 32}),
        ("jetengine", {"repetition_penalty": 1.0}, {"repetition_penalty": 1.0}),
    ],
)
def test_options_of_engines_carry_over(engine: str, theirs: dict[str, object], ours: dict[str, object]) -> None:
    params = from_original(engine, **theirs).resolved({"block_length": 4}, "blocks")  # type: ignore[arg-type]
    assert {name: getattr(params, name) for name in ours} == ours
