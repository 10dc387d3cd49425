"""Malformed settings from Python: every record checks every field, by its annotation."""

import dataclasses
import math
import pathlib
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.malformed.case import Case, check, parametrized
from unmask.errors import SettingsError
from unmask.settings.adapter import AdapterSettings
from unmask.settings.comparison import ComparisonSettings
from unmask.settings.data import DataSettings
from unmask.settings.decoding import SamplingParams
from unmask.settings.evaluation import AnswerSettings, EvaluationSettings, TaskSettings
from unmask.settings.model import ModelSettings
from unmask.settings.objective import ObjectiveSettings
from unmask.settings.pipeline import InferenceSettings, PipelineRecipe
from unmask.settings.recipe import Recipe, RunSettings, StageSettings
from unmask.settings.training import TrainingSettings

KINDS = [
    AdapterSettings, AnswerSettings, ComparisonSettings, DataSettings, EvaluationSettings, InferenceSettings,
    ModelSettings, ObjectiveSettings, PipelineRecipe, Recipe, RunSettings, SamplingParams, StageSettings, TaskSettings,
    TrainingSettings,
]  # fmt: skip


def refused(name: str, message: str, kind: Callable[..., Any], /, **given: Any) -> Case:
    return Case(name, lambda _: kind(**given), message, SettingsError)


def right(name: str, value: Any, kind: Callable[..., Any], /, **given: Any) -> Case:
    (field,) = given
    return Case(name, lambda _: getattr(kind(**given), field), value=value)


E, A, T, C = EvaluationSettings, AnswerSettings, TaskSettings, ComparisonSettings
M, B, D, R = ModelSettings, ObjectiveSettings, DataSettings, TrainingSettings
CASES = [
    refused("masks as text", "masks_per_sequence must be an integer, got '8'", E, masks_per_sequence="8"),
    refused("one mask", "masks_per_sequence must be at least 2", E, masks_per_sequence=1),
    refused("a million masks", "masks_per_sequence must be at most 65,536", E, masks_per_sequence=10**6),
    refused("rows of an accountant", "batch_size must be at most 65,536", E, batch_size=10**9),
    refused("masks times rows", "got 60,000 and 6,000", E, batch_size=60000, masks_per_sequence=6000),
    refused("no rows", "max_rows must be at least 1", E, max_rows=0),
    refused("half a row", "max_rows must be an integer or None, got 0.5", E, max_rows=0.5),
    refused("a bool of rows", "batch_size must be an integer, got True", E, batch_size=True),
    refused("a seed of 2^63", "seed must be an integer of 64 bits", E, seed=2**63),
    refused("a likelihood unknown", "likelihood must be one of elbo, chain_rule", A, likelihood="exact"),
    refused("a sampler unknown", "Did you mean `stratified`", A, sampler="stratifed"),
    refused("masks of 10^12", "mc_num must be at most 65,536", A, mc_num=10**12),
    refused("a guidance infinite", "cfg_scale must be a finite number", A, cfg_scale=math.inf),
    refused("masks that do not divide", "mc_num must be a multiple of mc_batch", A, sampler="llada_rounded", mc_num=9),
    refused("a context of one", "max_length must be at least 2", A, max_length=1),
    refused("shots as text", "num_fewshot must be an integer or None, got '5'", T, num_fewshot="5"),
    refused("shots below none", "num_fewshot must be at least 0", T, num_fewshot=-1),
    refused("a limit of a share", "limit must be an integer or None, got 0.1", T, limit=0.1),
    refused("seeds without end", "seeds must be at most", T, seeds=10**9),
    refused("resamplings without end", "bootstrap_iters must be at most", T, bootstrap_iters=10**12),
    refused("a template as text", "apply_chat_template must be True or False", T, apply_chat_template="yes"),
    refused("an instruction as a number", "system_instruction must be text or None, got 3", T, system_instruction=3),
    refused("a confidence of 1", "confidence must lie between 0.5 and 0.999", C, confidence=1.0),
    refused("a NaN confidence", "confidence must be a finite number", C, confidence=math.nan),
    refused("threads without end", "threads must be at most 1,024", C, threads=10**9),
    refused("texts as a list", "texts must be an integer, got [1]", C, texts=[1]),
    refused("batches as text", "max_batches must be an integer or None", C, max_batches="8"),
    refused("a family unknown", "family must be one of llama, qwen2, qwen3", M, family="gpt"),
    refused("a width as text", "hidden_size must be an integer, got '256'", M, hidden_size="256"),
    refused("a width as a float", "hidden_size must be an integer, got 256.0", M, hidden_size=256.0),
    refused("a dtype unknown", "dtype must be one of float32", M, dtype="fp8"),
    refused("a torch dtype for a name", "dtype must be one of float32", M, dtype=torch.float32),
    refused("an infinite rotary base", "rope_theta must be a finite number", M, rope_theta=math.inf),
    refused("heads of 10^30", "num_attention_heads must be an integer of 64 bits", M, num_attention_heads=10**30),
    refused("ties as a number", "tie_word_embeddings must be True or False, got 1", M, tie_word_embeddings=1),
    refused("a folder as a number", "from_pretrained must be text or None, got 3", M, from_pretrained=3),
    refused("a method unknown", "Did you mean `masked_diffusion`", B, method="masked_difusion"),
    refused("a method as a list", "method must be one of autoregressive", B, method=["tidar"]),
    refused("a curriculum without pairs", "block_curriculum[0] must be [a number, an integer]",
            B, method="block_diffusion", block_curriculum=[0, 4]),
    refused("a curriculum of triples", "block_curriculum[0] must be [a number, an integer]",
            B, method="block_diffusion", block_curriculum=[[0, 4, 5]]),
    refused("a curriculum of text", "block_curriculum[0][1] must be an integer, got '4'",
            B, method="block_diffusion", block_curriculum=[[0, "4"]]),
    refused("a range of one", "mask_ratio_range must be [a number, a number]", B, mask_ratio_range=[0.5]),
    refused("a range of NaN", "mask_ratio_range[1] must be a finite number", B, mask_ratio_range=[0.1, math.nan]),
    refused("a power of text", "schedule_power must be a number", B, schedule_power="2"),
    refused("a schedule unknown", "schedule must be one of linear", B, schedule="sigmoid"),
    refused("a format unknown", "format must be one of text, chat, ckpt", D, format="csv"),
    refused("a source as a number", "train must be a list of text, got 3", D, train=3),
    refused("a number among sources", "train[1] must be text, got 3", D, train=["a", 3]),
    refused("a set of sources", "train must be a list of text", D, train={"a"}),
    refused("a fraction of NaN", "validation_fraction must be a finite number", D, validation_fraction=math.nan),
    refused("a context of text", "context_length must be an integer, got 'long'", D, context_length="long"),
    refused("a packing of text", "neat_packing must be True or False", D, neat_packing="yes"),
    refused("a supervision unknown", "supervise must be one of all, last, each", D, supervise="first"),
    refused("a tracker unknown", "Did you mean `wandb`", R, report_to="wand"),
    refused("a tracker in a list unknown", "report_to[1] must be one of wandb", R, report_to=["wandb", "x"]),
    refused("one beta", "adam_betas must be [a number, a number], got [0.9]", R, adam_betas=[0.9]),
    refused("betas of text", "adam_betas[0] must be a number, got '0.9'", R, adam_betas=["0.9", "0.95"]),
    refused("a rate of text", "learning_rate must be a number, got '1e-3'", R, learning_rate="1e-3"),
    refused("a rate of infinity", "learning_rate must be a finite number", R, learning_rate=math.inf),
    refused("a decay of NaN", "weight_decay must be a finite number", R, weight_decay=math.nan),
    refused("steps of a float", "steps must be an integer or None, got 1000.0", R, steps=1e3),
    refused("steps of a bool", "steps must be an integer or None, got True", R, steps=True),
    refused("a precision unknown", "precision must be one of fp32, bf16, fp16", R, precision="float32"),
    refused("a compilation of text", "compile must be True or False", R, compile="true"),
    refused("a rank of text", "rank must be an integer or None, got '8'", AdapterSettings, rank="8"),
    refused("a quantisation unknown", "quantization must be one of nf4", AdapterSettings, rank=8, quantization="int8"),
    refused("targets as a number", "targets must be a list of text, got 3", AdapterSettings, rank=8, targets=3),
    refused("a mapping", "training must be TrainingSettings, got {'steps': 3}", Recipe, training={"steps": 3}),
    refused("None for a group", "model must be ModelSettings, got None", Recipe, model=None),
    refused("another group", "data must be DataSettings, got ModelSettings(", Recipe, data=ModelSettings()),
    refused("a class for a group", "sampling must be SamplingParams", Recipe, sampling=SamplingParams),
    refused("a name as a number", "name must be text, got 3", Recipe, name=3),
    refused("a seed as text", "seed must be an integer, got '0'", RunSettings, seed="0"),
    refused("prompts as numbers", "prompts[0] must be text, got 1", InferenceSettings, prompts=[1]),
    refused("a chat as text", "chat must be True or False or None", InferenceSettings, chat="yes"),
    right("one source", ("a.txt",), D, train="a.txt"),
    right("a path as a source", ("a.txt",), D, train=pathlib.Path("a.txt")),
    right("paths as sources", ("a.txt", "b.txt"), D, train=[pathlib.Path("a.txt"), "b.txt"]),
    right("a path as a folder", "runs", Recipe, output_dir=pathlib.Path("runs")),
    right("lists for betas", (0.9, 0.95), R, adam_betas=[0.9, 0.95]),
    right("NumPy betas", (0.5, 0.75), R, adam_betas=np.array([0.5, 0.75])),
    right("one tracker", ("wandb",), R, report_to="wandb"),
    right("a NumPy seed", 3, E, seed=np.uint8(3)),
    right("lists in a curriculum", ((0.0, 4), (0.5, 8)), lambda **given: B(method="block_diffusion", **given),
          block_curriculum=[[0, 4], [0.5, 8]]),
]  # fmt: skip


@parametrized(CASES)
def test_settings(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_field_of_any_record_takes_what_is_not_its_type(kind: type) -> None:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        for value in (object(), {"a": 1}, b"x", math.nan, 1j, {1}, type):
            with pytest.raises(SettingsError, match=f"^{field.name} must be ") as caught:
                kind(**{field.name: value})
            assert "got " in str(caught.value)
        optional = type(None) in typing.get_args(hints[field.name])
        if not optional:
            with pytest.raises(SettingsError, match=f"^{field.name} must be .*got None"):
                kind(**{field.name: None})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_help_shows_every_field_with_its_meaning_and_default(kind: type) -> None:
    shown = " ".join((kind.__doc__ or "").split())
    for field in dataclasses.fields(kind):
        meaning = shown.partition(f" {field.name}: ")[2]
        assert meaning[:1].strip(), field.name
        if isinstance(field.default, int | float | str):
            assert f"Default: {field.default!r}." in shown
    assert kind.__doc__ is not None and kind.__doc__.splitlines()[0].endswith((".", ";", "default", ",", "are"))


def test_help_of_the_two_public_names(capsys: pytest.CaptureFixture[str]) -> None:
    from unmask import DiffusionLM

    help(SamplingParams)
    shown = capsys.readouterr().out
    assert all(f"{field.name}: " in shown for field in dataclasses.fields(SamplingParams))
    help(DiffusionLM)
    shown = capsys.readouterr().out
    for name, member in vars(DiffusionLM).items():
        if not name.startswith("_"):
            assert name in shown
            text = (member.__func__ if isinstance(member, staticmethod) else member).__doc__
            assert text and text.splitlines()[0] in shown, name
