"""Malformed arguments of `DiffusionLM`: prompts, texts, pieces, token ids, parameters, streamers, types and devices."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TextStreamer

from tests import tiny
from tests.malformed.case import Case, check, parametrized
from tests.test_lm import with_bytes
from unmask import DiffusionLM, SamplingParams
from unmask.errors import CheckpointError, NonFiniteError, PromptError, SettingsError
from unmask.models.placement import placed

FEW = SamplingParams(max_new_tokens=2, ignore_eos=True)
GAP = SamplingParams(infill_length=2)
MESSAGE = {"role": "user", "content": "hi"}
model: Any = functools.cache(lambda: with_bytes("masked_diffusion"))
without: Any = functools.cache(lambda: DiffusionLM(tiny.checkpoint("masked_diffusion")))


class Silent:
    def put(self, value: torch.Tensor) -> None: ...


def prompt(name: str, given: Callable[[], Any], message: str) -> Case:
    return Case(f"prompt: {name}", lambda _: model().generate(given(), FEW), message, PromptError)


def same_prompt(name: str, given: Callable[[], Any], ids: Any) -> Case:
    def use(_: Path) -> object:
        found = [output.token_ids for output in model().generate(given(), FEW)]
        return found == [output.token_ids for output in model().generate(ids, FEW)]

    return Case(f"prompt: {name}", use, value=True)


def scored(name: str, given: Callable[[], Any], message: str) -> Case:
    return Case(f"score: {name}", lambda _: model().score(given()), message, PromptError)


def filled(name: str, given: Callable[[], Any], message: str) -> Case:
    return Case(f"infill: {name}", lambda _: model().infill(given(), GAP), message, PromptError)


def ids(name: str, given: Callable[[], Any], message: str) -> Case:
    return Case(f"logits: {name}", lambda _: model().logits(given()), message, PromptError)


def other(name: str, use: Callable[[Any], object], message: str, error: Any = SettingsError) -> Case:
    return Case(name, lambda _: use(model()), message, error)


def loaded(name: str, message: str, folder: Any = "model", error: Any = SettingsError, **given: Any) -> Case:
    return Case(f"loading: {name}", lambda _: DiffusionLM.from_pretrained(folder, **given), message, error)


KINDS = "must be text, a list of token ids or a list of messages, got "
PROMPTS = [
    prompt("a number", lambda: 5, f"A prompt {KINDS}5"),
    prompt("a float", lambda: 1.5, f"A prompt {KINDS}1.5"),
    prompt("bytes", lambda: b"abc", "got bytes (b'abc'). Decode it first."),
    prompt("a set", lambda: {1, 2}, "got set ({1, 2}). Make a list of it."),
    prompt("a generator", lambda: (token for token in [1]), "got generator"),
    prompt("keys", lambda: {"a": 1}.keys(), "got dict_keys"),
    prompt("a function", lambda: len, "got builtin_function_or_method"),
    prompt("an object", object, "got object (<object object at"),
    prompt("what a tokenizer returns", lambda: model().tokenizer("hi"), 'Give its token ids: prompt["input_ids"].'),
    prompt("a mapping", lambda: {"input_ids": [1]}, "got a mapping with the keys 'input_ids'"),
    prompt("one message", lambda: MESSAGE, "Put the message into a list."),
    prompt("an empty list", list, "The list of prompts is empty"),
    prompt("an empty tensor", lambda: torch.zeros(0), "The list of prompts is empty"),
    prompt("an empty list in a list", lambda: [[]], "Prompt 0 is an empty list"),
    prompt("a text and a number", lambda: ["a", 3], f"Prompt 1 {KINDS}3"),
    prompt("a text and a message", lambda: [MESSAGE, "a"], "Prompt 0 must be text"),
    prompt("ids and text", lambda: [1, "a"], "got a list of int and str"),
    prompt("floats for ids", lambda: [1.0, 2.0], "must have whole numbers as token ids, got 1.0"),
    prompt("bools for ids", lambda: [True, False], "must have whole numbers as token ids, got True"),
    prompt("None among ids", lambda: [1, None], "got a list of NoneType and int"),
    prompt("a tensor of floats", lambda: torch.tensor([1.0]), "whole numbers as token ids, got 1.0"),
    prompt("an array of floats", lambda: np.array([1.5]), "whole numbers as token ids, got 1.5"),
    prompt("a tensor without values", lambda: torch.empty(2, device="meta"), "got Tensor"),
    prompt("a tensor of three dimensions", lambda: torch.zeros(1, 1, 1, dtype=torch.int64), "a list of list"),
    prompt("texts in lists", lambda: [["a", "b"]], "got a list of str"),
    prompt("a negative id", lambda: [-1], "must lie between 0 and 258, got -1"),
    prompt("an id beyond the vocabulary", lambda: [259], "must lie between 0 and 258, got 259"),
    prompt("an id beyond 64 bits", lambda: [2**70], "must lie between 0 and 258, got 1180591620717411303424"),
    prompt("the mask token", lambda: [model().backbone.diffusion.mask_token_id], "holds the mask token"),
    prompt("a lone surrogate", lambda: "a\ud800", "lone surrogate at character 1 ('\\ud800')"),
    prompt("a lone surrogate in a batch", lambda: ["a", "\udfff"], "Prompt 1 has a lone surrogate"),
    prompt("longer than the context", lambda: "x" * 200, "has 201 tokens, which with 2 new ones exceed"),
    prompt("ids longer than the context", lambda: [1] * 10_000, "has 10000 tokens, which with 2 new"),
    same_prompt("an array", lambda: np.array([1, 2]), [1, 2]),
    same_prompt("a tensor", lambda: torch.tensor([1, 2]), [1, 2]),
    same_prompt("a matrix", lambda: torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    same_prompt("tensors in a list", lambda: [torch.tensor([1, 2]), torch.tensor([3])], [[1, 2], [3]]),
    same_prompt("NumPy ids in a list", lambda: [np.int64(1), np.int64(2)], [1, 2]),
    same_prompt("tensor ids in a list", lambda: [torch.tensor(1), torch.tensor(2)], [1, 2]),
    same_prompt("a range", lambda: range(1, 4), [1, 2, 3]),
    same_prompt("a tuple", lambda: (1, 2), [1, 2]),
    same_prompt("an array of texts", lambda: np.array(["a", "b"]), ["a", "b"]),
    same_prompt("no prompt in a batch", lambda: [None, "a"], ["", "a"]),
]
SCORES = [
    scored("nothing", list, "There is no text to score"),
    scored("None", lambda: None, "A text to score must be text or a list of token ids, got None"),
    scored("a number", lambda: 3, "A text to score must be text or a list of token ids, got 3"),
    scored("bytes", lambda: b"a", "got bytes (b'a')"),
    scored("a set", lambda: {"a"}, "got set"),
    scored("a generator", lambda: (text for text in "ab"), "got generator"),
    scored("None in a list", lambda: ["a", None], "Text 1 must be text or a list of token ids, got None"),
    scored("messages", lambda: [MESSAGE], "got a mapping with the keys 'role, content'"),
    scored("messages in a list", lambda: [[MESSAGE]], "Text 0 must be text or a list of token ids"),
    scored("nested ids", lambda: [[[1]]], "whole numbers as token ids, got [1]"),
    scored("bools", lambda: [True], "whole numbers as token ids, got True"),
    scored("floats", lambda: [1.0], "whole numbers as token ids, got 1.0"),
    scored("a negative id", lambda: [-1], "must lie between 0 and 258"),
    scored("an id beyond the vocabulary", lambda: [[10**6]], "must lie between 0 and 258"),
    scored("a lone surrogate", lambda: ["a", "\ud800"], "Text 1 has a lone surrogate"),
    scored("longer than the context", lambda: "x" * 500, "between 1 and 128 tokens, got 501"),
    Case("score: settings as a mapping", lambda _: model().score("a", {"seed": 1}),
         "settings must be EvaluationSettings, got a mapping", SettingsError),
    Case("score: no ids", lambda _: [score.tokens for score in model().score([[], [5]])], value=[0, 1]),
    Case("score: no ids and no BOS", lambda _: without().score([[3], []]), "Text 1 is empty", PromptError),
    Case("saving: None", lambda _: model().save_pretrained(None), "folder must be text, got None", SettingsError),
    Case("saving: bytes", lambda _: model().save_pretrained(b"x"), "folder must be text, got b'x'", SettingsError),
    Case("saving: a NUL", lambda _: model().save_pretrained("a\0b"), "folder must be a folder's path", SettingsError),
    Case("saving: no name", lambda _: model().save_pretrained(""), "folder must be a folder's path", SettingsError),
    Case("saving: a long name", lambda _: model().save_pretrained("x" * 300), "folder must be", SettingsError),
    Case("score: an array of ids", lambda _: model().score(np.array([1, 2])) == model().score([1, 2]), value=True),
    Case("score: text and ids", lambda _: len(model().score(["a", [1, 2]])), value=2),
]  # fmt: skip
FILLS = [
    filled("a text", lambda: "abc", "a list of lists of pieces, got 'abc'"),
    filled("texts", lambda: ["ab", "cd"], "Text 0 must be a list of at least two pieces, got 'ab'"),
    filled("nothing", list, "There is no text to fill"),
    filled("None", lambda: None, "a list of lists of pieces, got None"),
    filled("one piece", lambda: [["a"]], "Text 0 must have at least two pieces"),
    filled("no piece", lambda: [["a", "b"], []], "Text 1 must have at least two pieces"),
    filled("ids", lambda: [[1, 2]], "The pieces of text 0 must be text, got 1"),
    filled("None for a gap", lambda: [["a", None, "b"]], "must be text, got None"),
    filled("a generator", lambda: (pieces for pieces in []), "got generator"),
    filled("a mapping", lambda: {"a": "b"}, "got a mapping with the keys 'a'"),
    filled("a lone surrogate", lambda: [["a", "\ud800"]], "Text 0 has a lone surrogate"),
    filled("longer than the context", lambda: [["x" * 90, "x" * 90]], "exceed the model's context of 128"),
]
IDS = [
    ids("a text", lambda: "A", "must be a tensor or lists of lists, got 'A'"),
    ids("a flat list", lambda: [1, 2], "must be a tensor or lists of lists, got [1, 2]"),
    ids("texts", lambda: ["ab"], "must be a tensor or lists of lists"),
    ids("a number", lambda: 5, "must be a tensor or lists of lists, got 5"),
    ids("None", lambda: None, "must be a tensor or lists of lists, got None"),
    ids("a mapping", lambda: {"a": 1}, "got a mapping with the keys 'a'"),
    ids("a generator", lambda: (row for row in [[1]]), "got generator"),
    ids("ragged rows", lambda: [[1], [1, 2]], "must have one length, got 1 and 2"),
    ids("no rows", list, "none of them 0, got [0]"),
    ids("rows without tokens", lambda: [[]], "none of them 0, got [1, 0]"),
    ids("floats", lambda: [[1.5]], "whole numbers as token ids, got 1.5"),
    ids("bools", lambda: [[True]], "whole numbers as token ids, got True"),
    ids("a tensor of floats", lambda: torch.ones(1, 1), "must be integers, got a tensor of torch.float32"),
    ids("a tensor of bools",
          lambda: torch.ones(1, 1, dtype=torch.bool), "must be integers, got a tensor of torch.bool"),
    ids("three dimensions", lambda: torch.ones(1, 1, 1, dtype=torch.int64), "got [1, 1, 1]"),
    ids("a vector", lambda: torch.ones(3, dtype=torch.int64), "got [3]"),
    ids("a tensor without values", lambda: torch.ones(1, 1, dtype=torch.int64, device="meta"), "on the meta device"),
    ids("a negative id", lambda: [[-1]], "must lie between 0 and 258, got -1"),
    ids("an id beyond the vocabulary", lambda: [[259]], "must lie between 0 and 258, got 259"),
    ids("an id beyond 64 bits", lambda: [[2**70]], "beyond 64 bits"),
    ids("more than the context", lambda: [[1] * 129], "has 129 positions, which exceed the model's context of 128"),
    Case("logits: an array", lambda _: list(model().logits(np.array([[1, 2]])).shape), value=[1, 2, 259]),
    Case("logits: bytes of ids", lambda _: len(model().logits(torch.ones(2, 1, dtype=torch.uint8))), value=2),
    other("logits: a layout that is none", lambda lm: lm.logits([[1]], layout=3), "layout must be Layout, got 3"),
    other("logits: a layout for others",
          lambda lm: lm.logits([[1, 2]], layout=lm.backbone.clean_layout(torch.zeros(1, 5))),
          "The layout is for [1, 5] tokens, got token ids of the shape [1, 2]", PromptError),
]  # fmt: skip
ARGUMENTS = [
    other("stream: two prompts",
          lambda lm: list(lm.stream(["a", "b"], FEW)), "stream takes one prompt, got 2", PromptError),
    other("stream: a number", lambda lm: list(lm.stream(3, FEW)), f"A prompt {KINDS}3", PromptError),
    other("params: a mapping", lambda lm: lm.generate("a", {"n": 1}), "got a mapping with the keys 'n'"),
    other("params: text", lambda lm: lm.generate("a", "greedy"), "params must be SamplingParams, or a list"),
    other("params: the class", lambda lm: lm.generate("a", SamplingParams), "or a list of one for each"),
    other("params: none for one prompt", lambda lm: lm.generate("a", []), "one for each: 1, got 0"),
    other("params: two for one prompt", lambda lm: lm.generate("a", [FEW, FEW]), "one for each: 1, got 2"),
    other("params: a number in a list", lambda lm: lm.generate("a", [3]), "params must be SamplingParams, got 3"),
    other("params: None in a list", lambda lm: lm.generate("a", [None]), "params must be SamplingParams, got None"),
    other("params: two for one text", lambda lm: lm.infill([["a", "b"]], [GAP, GAP]), "one for each: 1, got 2"),
    other("params: a number for a text", lambda lm: lm.infill([["a", "b"]], 3), "params must be SamplingParams"),
    other("params: resolved from nothing", lambda lm: lm.resolved(None), "params must be SamplingParams, got None"),
    other("params: a gap too many",
          lambda lm: lm.infill([["a", "b"]], SamplingParams(infill_length=[1, 2])), "one each (1)"),
    other("streamer: a number", lambda lm: lm.generate("a", FEW, streamer=3), "with the methods put and end"),
    other("streamer: without an end", lambda lm: lm.generate("a", FEW, streamer=Silent()), "got Silent ("),
    other("streamer: a class", lambda lm: lm.generate("a", FEW, streamer=TextStreamer), "streamer must be an object"),
    other("streamer: a list", lambda lm: lm.generate("a", FEW, streamer=[]), "streamer must be an object"),
    other("batch size: 0", lambda lm: lm.generate("a", FEW, batch_size=0), "batch_size must be at least 1, got 0"),
    other("batch size: True", lambda lm: lm.generate("a", FEW, batch_size=True), "must be an integer, got True"),
    other("batch size: 2.5", lambda lm: lm.generate("a", FEW, batch_size=2.5), "must be an integer, got 2.5"),
    other("batch size: text", lambda lm: lm.infill([["a", "b"]], GAP, batch_size="2"), "must be an integer, got '2'"),
    other("batch size: None", lambda lm: lm.generate("a", FEW, batch_size=None), "must be an integer, got None"),
    other("batch size: below 0", lambda lm: lm.infill([["a", "b"]], GAP, batch_size=-1), "must be at least 1, got -1"),
    other("moving: a device that is none", lambda lm: lm.to("gpu"), "device must be cpu"),
    other("moving: None", lambda lm: lm.to(None), "device must be cpu"),
    other("moving: to nowhere", lambda lm: lm.to("meta"), "device must be cpu"),
    Case("a model from a name",
          lambda _: DiffusionLM("model"), "DiffusionLM.from_pretrained(name) loads one", SettingsError),
    Case("a text without a tokenizer", lambda _: DiffusionLM(tiny.checkpoint("masked_diffusion")).generate("a"),
         "no tokenizer", PromptError),
]  # fmt: skip
LOADING = [
    loaded("no name", "name must be a run folder, a model folder or a hub id, got ''", ""),
    loaded("None for a name", "name must be text, got None", None),
    loaded("a number for a name", "name must be text, got 3", 3),
    loaded("bytes for a name", "name must be text, got b'x'", b"x"),
    loaded("a name with a null byte", "name must be a run folder", "a\0b"),
    loaded("a name longer than a file's", "name must be a run folder", "x" * 300),
    loaded("a folder that is not there", "There is no folder nowhere", "nowhere", CheckpointError),
    loaded("an objective as text", "objective must be ObjectiveSettings, got 'tidar'", objective="tidar"),
    loaded("an objective as a mapping", "objective must be ObjectiveSettings", objective={"method": "tidar"}),
]


def of_folder(name: str, message: str, **given: Any) -> Case:
    def use(folder: Path) -> object:
        from unmask.models.loading import load

        return load(folder, **given)

    return Case(f"loading: {name}", use, message, SettingsError)


DEVICES = [
    of_folder("a type unknown", "dtype must be auto, float32 (fp32), bfloat16 (bf16)", dtype="foo"),
    of_folder("a type misspelt", "Did you mean `bf16`", dtype="b16"),
    of_folder("a type of integers", "dtype must be auto", dtype=torch.int8),
    of_folder("a type of integers by name", "dtype must be auto", dtype="int8"),
    of_folder("None for a type", "dtype must be auto", dtype=None),
    of_folder("a number for a type", "dtype must be auto", dtype=16),
    of_folder("a device that is none", "Did you mean `cuda`", device="gpu"),
    of_folder("a device without a name", "device must be cpu", device=""),
    of_folder("a device below 0", "device must be cpu", device=-1),
    of_folder("a bool for a device", "device must be cpu", device=True),
    of_folder("a float for a device", "device must be cpu", device=1.5),
    of_folder("no values", "device must be cpu", device="meta"),
    of_folder("a device that no machine has", "This machine has no device", device="cuda:77"),
    of_folder("device and map", "Give device or device_map, got both", device="cpu", device_map="auto"),
    of_folder("a map unknown", "Did you mean `balanced`", device_map="balance"),
    of_folder("a map of nothing", "device_map must be auto", device_map={}),
    of_folder("a map of numbers", "device_map must be auto", device_map={1: "cpu"}),
    of_folder("a map to nowhere", "device must be cpu", device_map={"": "gpu"}),
    of_folder("a number for a map", "device_map must be auto", device_map=3.5),
    of_folder("attention unknown", "Did you mean `flex`", attention_backend="fle"),
    of_folder("None for attention", "attention_backend must be one of dense, flex, got None", attention_backend=None),
    Case("loading: a map of one device", lambda _: placed(None, "cpu"), value=(None, {"": torch.device("cpu")})),
    Case("loading: a map to the disk", lambda _: placed(None, {"a": "disk"}), "cannot stay on the disk", SettingsError),
]


@parametrized([*PROMPTS, *SCORES, *FILLS, *IDS, *ARGUMENTS, *LOADING, *DEVICES])
def test_arguments(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def test_a_likelihood_that_is_not_finite_is_an_error() -> None:
    broken = with_bytes("autoregressive")
    with torch.no_grad():
        next(broken.backbone.network.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="likelihood of row 0 of a batch is nan"):
        broken.score("a text")


def test_types_have_the_names_of_recipes_and_of_torch(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "model")
    for name, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32, "torch.float16": torch.float16}.items():
        found = DiffusionLM.from_pretrained(tmp_path / "model", dtype=name, device="cpu")
        assert next(found.backbone.network.parameters()).dtype == dtype
    assert DiffusionLM.from_pretrained(tmp_path / "model").backbone.network.dtype == torch.float64
