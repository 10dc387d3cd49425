"""Sizes beyond what a model can hold are refused before memory of that size is taken, from Python and as commands."""

import functools
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tests.malformed.case import Case, Command, check, parametrized
from tests.test_lm import with_bytes
from unmask import DiffusionLM, SamplingParams
from unmask.errors import PromptError, SettingsError, UnmaskError
from unmask.settings.evaluation import EvaluationSettings

MEGABYTES_32 = 32 * 2**20
METHODS = ("autoregressive", "masked_diffusion", "block_diffusion", "tidar")
model: Any = functools.cache(with_bytes)


def refused(method: str, message: str, error: type[UnmaskError] = SettingsError, **given: Any) -> Case:
    def use(_: Path) -> object:
        lm: DiffusionLM = model(method)
        tracemalloc.start()
        try:
            return lm.generate("a", SamplingParams(**({"max_new_tokens": 4} | given)))
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < MEGABYTES_32

    shown = ", ".join(f"{name}={value}" for name, value in given.items())
    return Case(f"{method}: {shown}"[:80], use, message, error)


CASES = [
    *(refused(each, "with 1000000000 new ones exceed", PromptError, max_new_tokens=10**9) for each in METHODS),
    *(refused(each, "n must be at most 65,536, got 10,000,000", n=10**7) for each in METHODS),
    *(refused(each, "which with 127 new ones exceed", PromptError, max_new_tokens=127) for each in METHODS[1:]),
    refused("masked_diffusion", "block_length must be at most the model's context (128)", block_length=10**9),
    refused("block_diffusion", "block_length must be at most the model's context (128)", block_length=10**9),
    refused("masked_diffusion", "denoising_steps must be at most 65,536", denoising_steps=10**12),
    refused("block_diffusion", "denoising_steps must be at most 65,536", denoising_steps=10**12),
    refused("block_diffusion", "edit_steps must be at most 65,536", edit_threshold=0.5, edit_steps=10**9),
    refused("masked_diffusion", "at most 65,536", denoising_steps=10**12, unmasking="ancestral"),
    refused("tidar", "draft_length must be at most the model's context (128), got 100,000", draft_length=100_000),
    refused("tidar", "draft_length must be at most 64 in mode `parallel`", draft_length=100),
    refused("tidar", "draft_length must be at most the model's context", draft_length=10**6, mode="linear"),
    refused("masked_diffusion", "stop_token_ids must lie between 0 and 258", stop_token_ids=[10**9]),
    refused("masked_diffusion", "stop_token_ids must lie between 0 and 258, got -1", stop_token_ids=[-1]),
    Case("a gap of 10^9", lambda _: model("masked_diffusion").infill([["a", "b"]], SamplingParams(infill_length=10**9)),
         "with 1000000000 new ones exceed", PromptError),
    Case("gaps that add up", lambda _: model("masked_diffusion").infill([["a"] * 9], SamplingParams(infill_length=20)),
         "with 160 new ones exceed", PromptError),
    Case("a later prompt that does not fit", lambda _: model("masked_diffusion").generate(["a", "x" * 500]),
         "The prompt has 2 tokens, which with 128", PromptError),
    Case("a stream of 10^9",
         lambda _: next(model("masked_diffusion").stream("a", SamplingParams(max_new_tokens=10**9))),
         "with 1000000000 new ones exceed", PromptError),
    Case("samples of many prompts", lambda _: model("masked_diffusion").generate(["a"] * 17, SamplingParams(n=65_536)),
         "One call makes at most 1,048,576 texts, got n for 1,114,112", SettingsError),
    Case("rows of 10^12", lambda _: model("masked_diffusion").generate("a", batch_size=10**12),
         "batch_size must be at most 65,536", SettingsError),
    Case("masks of 10^9", lambda _: model("masked_diffusion").score("a", EvaluationSettings(masks_per_sequence=10**9)),
         "masks_per_sequence must be at most 65,536", SettingsError),
]  # fmt: skip


@parametrized(CASES)
def test_limits(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for method in ("masked_diffusion", "block_diffusion", "tidar"):
        model(method).save_pretrained(folder / method)
    return folder


COMMANDS = [
    ("masked_diffusion", ["--max-new-tokens", "1000000000"], "with 1000000000 new ones exceed the model's context"),
    ("tidar", ["--draft-length", "100000"], "draft_length must be at most the model's context (128)"),
    ("block_diffusion", ["--block-length", "1000000000"], "block_length must be at most the model's context (128)"),
    ("masked_diffusion", ["--n", "10000000"], "n must be at most 65,536"),
    ("masked_diffusion", ["--denoising-steps", "1000000000000"], "denoising_steps must be at most 65,536"),
    ("masked_diffusion", ["--temperature", "inf"], "`temperature` must be a number"),
    ("masked_diffusion", ["--seed", "9223372036854775808"], "`seed` must be an integer of at most 64 bits"),
    ("masked_diffusion", ["--dtype", "fp8"], "dtype must be auto"),
    ("masked_diffusion", ["--device", "gpu"], "device must be cpu"),
]


@pytest.mark.parametrize(("method", "words", "message"), COMMANDS, ids=[" ".join(words) for _, words, _ in COMMANDS])
def test_limits_of_commands(method: str, words: list[str], message: str, folders: Path, tmp_path: Path) -> None:
    check(Command("a size", lambda _: ["generate", str(folders / method), "a", *words], message), tmp_path)
