"""Malformed arguments of `SamplingParams`, and unusual ones that are right."""

import decimal
import enum
import fractions
import math
import pathlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.malformed.case import Case, check, parametrized
from unmask.errors import SettingsError
from unmask.settings.aliases import from_original
from unmask.settings.decoding import SamplingParams


class Policy(enum.StrEnum):
    SEQUENTIAL = "sequential"


class Count(enum.IntEnum):
    THREE = 3


def refused(name: str, message: str, **given: Any) -> Case:
    return Case(name, lambda _: SamplingParams(**given), message, SettingsError)


def right(name: str, value: Any, **given: Any) -> Case:
    (field,) = given
    return Case(name, lambda _: getattr(SamplingParams(**given), field), value=value)


def combined(name: str, message: str, decoding: str, **given: Any) -> Case:
    def use(_: Path) -> object:
        return SamplingParams(decoding=decoding, **given).resolved({"block_length": 4, "draft_length": 4}, "canvas")  # type: ignore[arg-type]

    return Case(name, use, message, SettingsError)


def original(name: str, message: str, system: Any, **given: Any) -> Case:
    return Case(name, lambda _: from_original(system, **given), message, SettingsError)


NAMES = [
    refused("an unknown unmasking", "unmasking must be one of low_confidence, ", unmasking="nonsense"),
    refused("a misspelt unmasking", "Did you mean `low_confidence_dynamic`", unmasking="low_confidence_dinamic"),
    refused("an unknown cache", "cache must be one of none, exact, prefix, dual", cache="foo"),
    refused("a shortened canvas mode", "canvas_mode must be one of fixed_length", canvas_mode="semi"),
    refused("an unknown confidence", "confidence must be one of untempered", confidence="foo"),
    refused("a misspelt confidence", "Did you mean `filtered`", confidence="filterd"),
    refused("an unknown decoding", "decoding must be one of autoregressive, canvas", decoding="x"),
    refused("a misspelt decoding", "Did you mean `blocks`", decoding="block"),
    refused("an unknown remask", "remask must be one of cap, rescale", remask="x"),
    refused("an unknown fallback", "dynamic_fallback must be one of topk, leftmost", dynamic_fallback="right"),
    refused("an unknown entropy rule", "entropy_rule must be one of paper", entropy_rule="mine"),
    refused("an unknown factor rule", "factor_rule must be one of paper, fast_dllm", factor_rule="mine"),
    refused("an unknown filter order", "filter_order must be one of top_k_first", filter_order="both"),
    refused("an unknown mode", "mode must be one of parallel, linear", mode="serial"),
    refused("an unknown verification", "verification must be one of greedy", verification="trust me"),
    refused("an unknown reveal schedule", "reveal_schedule must be a name or a .json", reveal_schedule="lin"),
    refused("a schedule of another suffix", "reveal_schedule must be a name or a .json", reveal_schedule="x.yaml"),
    refused("a number for a name", "unmasking must be one of", unmasking=3),
    refused("a list for a name", "decoding must be one of", decoding=["canvas"]),
    refused("bytes for a name", "cache must be one of", cache=b"none"),
    refused("a bool for a name", "remask must be one of", remask=True),
    refused("an empty name", "unmasking must be one of", unmasking=""),
    refused("a name in capitals", "unmasking must be one of", unmasking="Random"),
    refused("a name with a space", "Did you mean `random`", unmasking="random "),
    refused("a mapping for a name", "mode must be one of", mode={"parallel": 1}),
    refused("a number for a schedule", "reveal_schedule must be one of linear", reveal_schedule=3),
    refused("a name of a megabyte", "unmasking must be one of", unmasking="x" * 1_000_000),
]
INTEGERS = [
    refused("text for a count", "n must be an integer, got '2'", n="2"),
    refused("a bool for a count", "n must be an integer, got True", n=True),
    refused("a float for a count", "max_new_tokens must be an integer, got 4.0", max_new_tokens=4.0),
    refused("None where a number must stand", "max_new_tokens must be an integer, got None", max_new_tokens=None),
    refused("NaN for a count", "n must be an integer, got nan", n=math.nan),
    refused("a list for a count", "n must be an integer, got [1]", n=[1]),
    refused("a complex count", "n must be an integer", n=1j),
    refused("a class for a count", "n must be an integer", n=int),
    refused("a NumPy bool for a count", "n must be an integer, got True", n=np.bool_(True)),
    refused("a NumPy float for a count", "n must be an integer, got 2.0", n=np.float64(2)),
    refused("a tensor of a float for a count", "n must be an integer, got 2.0", n=torch.tensor(2.0)),
    refused("a tensor of two for a count", "n must be an integer, got [1, 2]", n=torch.tensor([1, 2])),
    refused("a tensor of one, in brackets", "n must be an integer, got [1]", n=torch.tensor([1])),
    refused("a tensor without values", "n must be an integer, got tensor(", n=torch.tensor(1, device="meta")),
    refused("0 samples", "n must be at least 1, got 0", n=0),
    refused("fewer than 0 samples", "n must be at least 1, got -1", n=-1),
    refused("no tokens", "max_new_tokens must be at least 1, got 0", max_new_tokens=0),
    refused("no steps", "denoising_steps must be at least 1, got 0", denoising_steps=0),
    refused("no block", "block_length must be at least 1, got 0", block_length=0),
    refused("no draft", "draft_length must be at least 1, got 0", draft_length=0),
    refused("a negative top-k", "top_k must be at least 0, got -1", top_k=-1),
    refused("a gap of no tokens", "infill_length must be at least 1, got 0", infill_length=0),
    refused("a gap of negative length among others", "infill_length must be at least 1", infill_length=[3, -2]),
    refused("a seed beyond 64 bits", "seed must be an integer of 64 bits", seed=2**63),
    refused("a seed far beyond 64 bits", "seed must be an integer of 64 bits, below 2^63, got 2^", seed=10**5000),
    refused("a seed below 64 bits", "seed must be an integer of 64 bits", seed=-(2**63) - 1),
    refused("a token id beyond 64 bits", "stop_token_ids[1] must be an integer of 64", stop_token_ids=[1, 2**70]),
    refused("text for a seed", "seed must be an integer, got 'x'", seed="x"),
    right("a negative seed", -3, seed=-3),
    right("the largest seed", 2**63 - 1, seed=2**63 - 1),
    right("an integer of NumPy", 3, n=np.int32(3)),
    right("a tensor's count", 3, n=torch.tensor(3)),
    right("a count of an enumeration", 3, n=Count.THREE),
    right("top-k beyond any vocabulary", 10**12, top_k=10**12),
]
NUMBERS = [
    refused("an infinite temperature", "temperature must be a finite number, got inf", temperature=math.inf),
    refused("a NaN temperature", "temperature must be a finite number, got nan", temperature=math.nan),
    refused("a NumPy NaN", "temperature must be a finite number, got nan", temperature=np.float32("nan")),
    refused("a tensor's infinity", "temperature must be a finite number", temperature=torch.tensor(math.inf)),
    refused("an integer beyond floats", "temperature must be a finite number, got 2^", temperature=10**400),
    refused("a negative temperature", "temperature must be at least 0, got -1", temperature=-1),
    refused("a bool for a temperature", "temperature must be a number, got True", temperature=True),
    refused("text for a temperature", "temperature must be a number, got '0.5'", temperature="0.5"),
    refused("a list for a temperature", "temperature must be a number, got [0.5]", temperature=[0.5]),
    refused("None for a temperature", "temperature must be a number, got None", temperature=None),
    refused("a complex temperature", "temperature must be a number", temperature=1 + 1j),
    refused("a temperature that overflows", "temperature must be 0 or at least 1e-06", temperature=1e-300),
    refused("a reveal temperature that overflows", "reveal_temperature must be 0 or", reveal_temperature=1e-320),
    refused("a negative reveal temperature", "reveal_temperature must be at least 0", reveal_temperature=-0.1),
    refused("an infinite guidance", "cfg_scale must be a finite number", cfg_scale=math.inf),
    refused("a guidance that overflows", "cfg_scale must be at most 1,000", cfg_scale=1e300),
    refused("a negative guidance", "cfg_scale must be at least 0", cfg_scale=-1),
    refused("top-p of 0", "top_p must be above 0", top_p=0),
    refused("top-p above 1", "top_p must be above 0 and at most 1, got 1.1", top_p=1.1),
    refused("NaN top-p", "top_p must be a finite number", top_p=math.nan),
    refused("text top-p", "top_p must be a number or None, got '0.9'", top_p="0.9"),
    refused("a penalty of 0", "repetition_penalty must be above 0", repetition_penalty=0),
    refused("a penalty that overflows", "repetition_penalty must be at least 0.001", repetition_penalty=1e-300),
    refused("a penalty beyond reason", "repetition_penalty must be at most 1,000", repetition_penalty=1e300),
    refused("an infinite penalty", "repetition_penalty must be a finite number", repetition_penalty=math.inf),
    refused("a threshold above 1", "confidence_threshold must lie between 0 and 1", confidence_threshold=1.5),
    refused("a NaN threshold", "confidence_threshold must be a finite number", confidence_threshold=math.nan),
    refused("a negative factor", "factor must be at least 0", factor=-1.0),
    refused("an infinite entropy bound", "entropy_bound must be a finite number", entropy_bound=math.inf),
    refused("an edit threshold above 1", "edit_threshold must lie between", edit_threshold=2),
    refused("an eta above 1", "remask_eta must lie between", remask_eta=1.01),
    refused("trust below 0", "trust must lie between 0 and 1", trust=-0.5),
    right("a NumPy temperature", 0.5, temperature=np.float32(0.5)),
    right("a tensor's temperature", 0.5, temperature=torch.tensor(0.5)),
    right("a bf16 tensor's temperature", 0.5, temperature=torch.tensor(0.5, dtype=torch.bfloat16)),
    right("a decimal temperature", 0.5, temperature=decimal.Decimal("0.5")),
    right("a fraction", 0.5, temperature=fractions.Fraction(1, 2)),
    right("an integer temperature", 1.0, temperature=1),
]
LISTS = [
    refused("a number among stops", "stop[1] must be text, got 3", stop=["a", 3]),
    refused("None among stops", "stop[0] must be text, got None", stop=[None]),
    refused("bytes as a stop", "stop must be a list of text, got b'x'", stop=b"x"),
    refused("a number as a stop", "stop must be a list of text, got 3", stop=3),
    refused("a set of stops", "stop must be a list of text", stop={"a"}),
    refused("a generator of stops", "stop must be a list of text", stop=(text for text in "ab")),
    refused("a mapping of stops", "stop must be a list of text", stop={"a": 1}),
    refused("an empty stop", "stop must not hold an empty text", stop=["a", ""]),
    refused("nested stops", "stop[0] must be text, got ['a']", stop=[["a"]]),
    refused("a million stops", "stop must have at most 100,000 entries, got 1,000,000", stop=["a"] * 1_000_000),
    refused("thousands of stops", "stop must have at most 1,000 texts, got 5,000", stop=["a"] * 5000),
    refused("None for stops", "stop must be a list of text, got None", stop=None),
    refused("text for token ids", "stop_token_ids must be a list of integers, got 'a'", stop_token_ids="a"),
    refused("a float among token ids", "stop_token_ids[0] must be an integer, got 1.5", stop_token_ids=[1.5]),
    refused("a bool among token ids", "stop_token_ids[0] must be an integer, got True", stop_token_ids=[True]),
    refused("a tensor of floats", "stop_token_ids[0] must be an integer, got 1.0", stop_token_ids=torch.ones(2)),
    refused("a matrix of ids", "stop_token_ids[0] must be an integer", stop_token_ids=np.ones((2, 2), dtype=int)),
    refused("a set of ids", "stop_token_ids must be a list of integers", stop_token_ids={1}),
    refused("text in a loop", "remask_loop[2] must be a number, got 'x'", remask_loop=[0.5, 0.1, "x"]),
    refused("text for a truth", "trace must be True or False, got 'yes'", trace="yes"),
    refused("1 for a truth", "ignore_eos must be True or False, got 1", ignore_eos=1),
    refused("None for a truth", "trace must be True or False, got None", trace=None),
    refused("text for an optional truth", "fused_commit must be True or False or None", fused_commit="no"),
    right("one stop", ("x",), stop="x"),
    right("a list of stops", ("x", "y"), stop=["x", "y"]),
    right("a NumPy text", ("x",), stop=np.array(["x"])),
    right("one token id", (3,), stop_token_ids=3),
    right("a tensor of ids", (1, 2), stop_token_ids=torch.tensor([1, 2])),
    right("an array of ids", (1, 2), stop_token_ids=np.array([1, 2])),
    right("a range of ids", (1, 2), stop_token_ids=range(1, 3)),
    right("NumPy ids in a list", (1,), stop_token_ids=[np.int64(1)]),
    right("a list for a loop", (0.5, 0.1, 0.9), remask_loop=[0.5, 0.1, 0.9]),
    right("a name of an enumeration", "sequential", unmasking=Policy.SEQUENTIAL),
    right("a file of counts as a path", "counts.json", reveal_schedule=pathlib.Path("counts.json")),
    right("a NumPy truth", True, trace=np.bool_(True)),
]
COMBINATIONS = [
    combined(
        "two numbers for a loop", "remask_loop must be two times", "canvas", remask="loop", remask_loop=[0.5, 0.1]
    ),
    combined("ancestral blocks", "`ancestral` belongs to canvas", "blocks", unmasking="ancestral"),
    combined("blocks of a prefix cache", "caches exact and none", "blocks", cache="prefix"),
    combined("a canvas of an exact cache", "cache `exact` belongs to blocks", "canvas", cache="exact"),
    combined("more steps than positions", "denoising_steps must be at most", "canvas", denoising_steps=999),
    combined("more steps than a block has", "denoising_steps must be at most", "blocks", denoising_steps=5),
    combined("steps beyond the limit", "at most 65,536, got 1,000,000,000,000", "canvas", denoising_steps=10**12),
    combined("a block for autoregression", "not used by autoregressive", "autoregressive", block_length=4),
    combined("a factor without its policy", "factor is used by unmasking `factor` only", "canvas", factor=1.0),
    combined("a rule without its policy", "factor_rule is used by", "canvas", factor_rule="fast_dllm"),
    combined(
        "an order of filters for blocks", "filter_order is not used by blocks", "blocks", filter_order="top_p_first"
    ),
    combined(
        "a schedule for a threshold",
        "not used by unmasking `threshold`",
        "blocks",
        unmasking="threshold",
        confidence_threshold=0.9,
        reveal_schedule="floor",
    ),
    combined("a file of counts with a NUL", "cannot be read: embedded null", "canvas", reveal_schedule="\0.json"),
    combined("a file of counts of nobody", "cannot be read: Could not", "canvas", reveal_schedule="~nouser/a.json"),
    combined("a missing file of counts", "There is no reveal schedule", "canvas", reveal_schedule="none.json"),
    combined("edits without a threshold", "edit_steps needs edit_threshold", "blocks", edit_steps=3),
    combined(
        "greedy verification with a temperature", "takes the most likely", "tidar", verification="greedy", temperature=1
    ),
    Case(
        "a checkpoint of an unknown decoding",
        lambda _: SamplingParams().resolved({"decoding": "block"}, "canvas"),
        "default decoding `block` does not exist. Did you mean `blocks`",
        SettingsError,
    ),
    Case(
        "a checkpoint of a wrong default",
        lambda _: SamplingParams().resolved({"cfg_scale": "x"}, "canvas"),
        "cfg_scale must be a number",
        SettingsError,
    ),
]
ORIGINALS = [
    original("an unknown original", "no original `lada`", "lada"),
    original("a number for an original", "system must be text, got 3", 3),
    original("None for an original", "system must be text, got None", None),
    original("text for steps", "steps must be an integer, got 'x'", "llada", steps="x"),
    original("half steps", "steps must be an integer, got 2.5", "llada", steps=2.5),
    original("no steps there", "steps must be at least 1, got 0", "llada", steps=0),
    original("negative blocks", "block_length must be at least 1", "llada", block_length=-4),
    original("text for a length", "max_new_tokens must be an integer", "llada", gen_length="many"),
    original("a bool for a length", "gen_length must be an integer", "fast_dllm", gen_length=True, threshold=0.9),
    original("text for eps", "eps must be a number, got 'small'", "dream", eps="small"),
    original("a list for an algorithm", "There is no alg", "dream", alg=["entropy"]),
    original("an unknown algorithm", "Did you mean `entropy`", "dream", alg="entropie"),
    original(
        "text for a cache",
        "A cache option must be true or false".replace("true or false", "True or False"),
        "fast_dllm",
        use_cache="yes",
    ),
    original("both policies", "threshold and factor each decide", "fast_dllm", threshold=0.5, factor=1.0),
    original("an infinite temperature there", "temperature must be a finite number", "llada", temperature=math.inf),
    original("text for sampling or not", "do_sample must be True or False", "lmdeploy", do_sample="yes"),
    original("an unknown strategy", "unmasking must be one of", "lmdeploy", dllm_unmasking_strategy="x"),
    original("text for steps of LLaDA2", "denoising_steps must be an integer", "llada2", steps="x"),
    original("an option of another engine", "jetengine has no option `top_k`", "jetengine", top_k=3),
    original("stop words as text", "stop_token_ids must be a list of integers", "jetengine", stop_words="<|im_end|>"),
]


@parametrized([*NAMES, *INTEGERS, *NUMBERS, *LISTS, *COMBINATIONS, *ORIGINALS])
def test_sampling_parameters(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def test_values_are_plain_python() -> None:
    params = SamplingParams(n=np.int64(2), temperature=torch.tensor(1.0), stop_token_ids=np.array([1]))  # type: ignore[arg-type]
    assert (type(params.n), type(params.temperature), type(params.stop_token_ids[0])) == (int, float, int)
    assert type(SamplingParams(unmasking=Policy.SEQUENTIAL).unmasking) is str  # type: ignore[arg-type]
    assert hash(params) == hash(SamplingParams(n=2, temperature=1.0, stop_token_ids=(1,)))


@pytest.mark.parametrize("value", ["x" * 10_000, list(range(10_000)), "a\nb\x1b[31m", object()])
def test_a_message_is_one_short_line(value: object) -> None:
    with pytest.raises(SettingsError) as caught:
        SamplingParams(temperature=value)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
