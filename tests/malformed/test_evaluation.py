"""Malformed and odd inputs to evaluation: texts, answers, task recipes, problem files, figures."""

import functools
import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.evaluation.test_figures import broken, lm_of
from tests.malformed.case import Case, Command, check, parametrized, written
from unmask import DiffusionLM, SamplingParams
from unmask.errors import DataError, NonFiniteError, PromptError, SettingsError
from unmask.evaluation import answers
from unmask.evaluation.answers import Pair
from unmask.evaluation.compare import Scored, compared
from unmask.evaluation.infilling import read_problems
from unmask.evaluation.pieces import Reader, cut
from unmask.evaluation.recipes import read_recipe
from unmask.evaluation.texts import kept
from unmask.settings.evaluation import AnswerSettings, EvaluationSettings

lm = functools.cache(lm_of)
SETTINGS = EvaluationSettings(masks_per_sequence=2)


def scored(method: str, texts: Any) -> Callable[[Path], object]:
    return lambda _: [(one.tokens, one.bytes) for one in lm(method).score(texts, SETTINGS)]


def answered(
    method: str, context: tuple[int, ...], answer: tuple[int, ...], **options: Any
) -> Callable[[Path], object]:
    def use(_: Path) -> object:
        settings = AnswerSettings(**{"mc_num": 2, "mc_batch": 2, **options})
        (found,) = answers.score(lm(method).backbone, [Pair(context, answer)], settings)
        return found.tokens, found.lost

    return use


def problems(name: str, content: bytes | str) -> Callable[[Path], object]:
    return lambda folder: len(read_problems(written(folder, name, content)))


def recipe(content: bytes | str) -> Callable[[Path], object]:
    return lambda folder: [one.name for one in read_recipe(written(folder, "tasks.yaml", content))]


def pieces(*documents: str) -> Callable[[Path], object]:
    def use(_: Path) -> object:
        tokenizer = lm("autoregressive").tokenizer
        assert tokenizer is not None
        return [piece.text for piece in cut(documents, [Reader("m", tokenizer, 4)], at_most=9)]

    return use


TEXTS = [
    case
    for method in ("autoregressive", "masked_diffusion", "block_diffusion", "tidar")
    for case in (
        Case(f"{method}: an empty text", scored(method, ""), value=[(0, 0)]),
        Case(f"{method}: an empty text among others", scored(method, ["a", ""]), value=[(1, 1), (0, 0)]),
        Case(f"{method}: no texts", scored(method, []), "There is no text to score", PromptError),
        Case(f"{method}: a NUL", scored(method, "\0"), value=[(1, 1)]),
        Case(f"{method}: special tokens only", scored(method, "<|eos|><|bos|>"), value=[(14, 14)]),
        Case(f"{method}: white space only", scored(method, " \n\t"), value=[(3, 3)]),
        Case(f"{method}: a combining character alone", scored(method, "\u0301"), value=[(2, 2)]),
        Case(
            f"{method}: longer than the context",
            scored(method, "x" * 500),
            "between 1 and 128 tokens, got 501",
            PromptError,
        ),
        Case(f"{method}: ids beyond the context", scored(method, [[5] * 500]), "Cut it into pieces", PromptError),
        Case(f"{method}: a lone surrogate", scored(method, "ab\ud83d"), "lone surrogate at character 2", PromptError),
        Case(f"{method}: an id that does not exist", scored(method, [[5, 999]]), "got 999", PromptError),
        Case(f"{method}: a negative id", scored(method, [[-1]]), "got -1", PromptError),
        Case(f"{method}: fractional ids", scored(method, [[1.5]]), "whole numbers as token ids, got 1.5", PromptError),
        Case(
            f"{method}: truth values as ids",
            scored(method, [[True]]),
            "whole numbers as token ids, got True",
            PromptError,
        ),
        Case(f"{method}: bytes", scored(method, [b"abc"]), "got bytes", PromptError),
        Case(f"{method}: ids as texts", scored(method, [["a"]]), "list of token ids", PromptError),
        Case(f"{method}: nested ids", scored(method, [[[5]]]), "whole numbers as token ids, got [5]", PromptError),
    )
]
ANSWERS = [
    Case("an empty answer", answered("autoregressive", (5,), ()), value=(0, 0)),
    Case("nothing at all", answered("masked_diffusion", (), ()), value=(0, 0)),
    Case("no context, causal", answered("autoregressive", (), (5,)), "without context cannot be scored", PromptError),
    Case("no context, bidirectional", answered("masked_diffusion", (), (5,)), value=(1, 0)),
    Case(
        "an id of an answer beyond the vocabulary",
        answered("autoregressive", (5,), (999,)),
        "got 5 to 999",
        PromptError,
    ),
    Case("a negative id of a context", answered("masked_diffusion", (-3,), (5,)), "got -3 to 5", PromptError),
    Case("a mask token in a context", answered("masked_diffusion", (258,), (5,)), "holds the mask token", PromptError),
    Case("a mask token in an answer", answered("tidar", (5,), (258,)), "holds the mask token", PromptError),
    Case("an answer longer than the context", answered("autoregressive", (5,), (6,) * 400), value=(400, 0)),
    Case("a context longer than the model's", answered("autoregressive", (5,) * 400, (6,)), value=(1, 272)),
    Case(
        "a limit beyond the context",
        answered("autoregressive", (5,), (6,), max_length=999),
        "at most the model's context, 128",
        SettingsError,
    ),
    Case(
        "a limit below a block",
        answered("block_diffusion", (5,), (6,), max_length=3),
        "must hold a block (4 tokens)",
        SettingsError,
    ),
    Case(
        "guidance of autoregression",
        answered("autoregressive", (5,), (6,), cfg_scale=1.0),
        "cfg_scale guides masked-diffusion",
        SettingsError,
    ),
]
PIECES = [
    Case("no documents", pieces(), value=[]),
    Case("empty documents", pieces("", " \n"), value=[]),
    Case("a NUL to cut", pieces("\0\0"), value=["\0\0"]),
    Case("a lone surrogate to cut", pieces("a\udc00"), "half a surrogate pair", PromptError),
    Case("special tokens to cut", pieces("<|eos|>"), value=["<|eo", "s|>"]),
    Case(
        "a character longer than a piece",
        lambda _: len(cut(["\U0001f9ff" * 3], [Reader("m", lm("autoregressive").tokenizer, 2)], at_most=9)),
        value=3,
    ),  # type: ignore[arg-type]
    Case(
        "a lone surrogate to keep",
        lambda _: kept(lm("tidar").tokenizer, ["\ud83d"]),
        "half a surrogate pair",
        PromptError,
    ),  # type: ignore[arg-type]
]
ROW = json.dumps(dict.fromkeys(("task_id", "prompt", "suffix", "canonical_solution", "test", "entry_point"), "x"))
PACKED = gzip.compress((ROW + "\n").encode() * 50)
PROBLEMS = [
    Case("an empty problem file", problems("p.jsonl", ""), "holds no problems", DataError),
    Case("blank lines between problems", problems("p.jsonl", f"\n{ROW}\n \n{ROW}\n\n"), value=2),
    Case("a byte-order mark", problems("p.jsonl", b"\xef\xbb\xbf" + ROW.encode()), value=1),
    Case("a list", problems("p.jsonl", "[]"), "line 1: the text fields task_id", DataError),
    Case("a number", problems("p.jsonl", "3"), "line 1: the text fields task_id", DataError),
    Case(
        "a field that is null",
        problems("p.jsonl", f"{ROW}\n{ROW.replace(chr(34) + 'x' + chr(34), 'null', 1)}"),
        "line 2: the text fields task_id are missing",
        DataError,
    ),
    Case(
        "a field that is a list",
        problems("p.jsonl", ROW.replace('"x"', "[]", 1)),
        "line 1: the text fields task_id are missing",
        DataError,
    ),
    Case("a row cut off", problems("p.jsonl", ROW[:30]), "cannot be read after line 0", DataError),
    Case("no JSON", problems("p.jsonl", f"{ROW}\nhello"), "cannot be read after line 1", DataError),
    Case("no UTF-8", problems("p.jsonl", b"\xff\xfe\0"), "'utf-8' codec can't decode byte 0xff", DataError),
    Case("nesting without end", problems("p.jsonl", "[" * 100_000), "maximum recursion depth", DataError),
    Case("a number of 5,000 digits", problems("p.jsonl", "9" * 5000), "Exceeds the limit (4300 digits)", DataError),
    Case(
        "half a surrogate pair in a prompt",
        problems("p.jsonl", ROW.replace('"x"', r'"\ud83d"', 1)),
        "half a surrogate pair in task_id",
        DataError,
    ),
    Case("no gzip in a .gz", problems("p.jsonl.gz", "x"), "Not a gzipped file", DataError),
    Case("a .gz cut off", problems("p.jsonl.gz", PACKED[:20]), "ended before the end-of-stream marker", DataError),
    Case(
        "deflate data damaged",
        problems("p.jsonl.gz", PACKED[:12] + b"xxxxxx" + PACKED[18:]),
        "while decompressing data",
        DataError,
    ),
    Case("a wrong checksum", problems("p.jsonl.gz", PACKED[:-8] + b"\0" * 8), "CRC check failed", DataError),
    Case(
        "a folder with a file's name",
        lambda folder: read_problems((folder / "p.jsonl", (folder / "p.jsonl").mkdir())[0]),
        "There is no file",
        DataError,
    ),
    Case("no file", lambda folder: read_problems(folder / "p.jsonl"), "There is no file", DataError),
]
RECIPES = [
    Case("an empty recipe", recipe(""), "must hold `tasks:`", SettingsError),
    Case("a list as recipe", recipe("- a"), "`key: value` pairs, got [a]", SettingsError),
    Case("no tasks", recipe("tasks: []"), "must hold `tasks:`", SettingsError),
    Case("tasks that are a number", recipe("tasks: 3"), "must hold `tasks:`", SettingsError),
    Case("a task that is a word", recipe("tasks: [a]"), "must hold `tasks:`", SettingsError),
    Case("a task whose name is a number", recipe("tasks: [{task: 3}]"), "must hold `tasks:`", SettingsError),
    Case("a misspelled section", recipe("taks: []"), "Did you mean `tasks`", SettingsError),
    Case("a section that is a number", recipe("3: 4\ntasks: [{task: a}]"), "the key `3` is not text", SettingsError),
    Case("a key that is a number", recipe("tasks: [{task: a, 3: 4}]"), "the key `3` is not text", SettingsError),
    Case(
        "a misspelled key", recipe("tasks: [{task: a, num_fewshots: 4}]"), "Did you mean `num_fewshot`", SettingsError
    ),
    Case(
        "a word for a number",
        recipe("tasks: [{task: a, num_fewshot: x}]"),
        "`num_fewshot` must be an integer or null",
        SettingsError,
    ),
    Case("no draws", recipe("tasks: [{task: a, mc_num: 0}]"), "mc_num must be at least 1", SettingsError),
    Case(
        "sampling that is a number",
        recipe("tasks: [{task: a, sampling: 3}]"),
        "`sampling` must hold `key: value` pairs",
        SettingsError,
    ),
    Case(
        "sampling that is a list",
        recipe("defaults: {sampling: [1]}\ntasks: [{task: a}]"),
        "`sampling` must hold",
        SettingsError,
    ),
    Case(
        "a temperature that is no number",
        recipe("tasks: [{task: a, sampling: {temperature: .nan}}]"),
        "temperature",
        SettingsError,
    ),
    Case(
        "several texts for a question",
        recipe("tasks: [{task: a, sampling: {n: 3}}]"),
        "`n` is not set in an evaluation",
        SettingsError,
    ),
    Case(
        "a published figure that is a word",
        recipe("tasks: [{task: a, published: x}]"),
        "must be a number in percent",
        SettingsError,
    ),
    Case(
        "a published figure that is NaN",
        recipe("tasks: [{task: a, published: .nan}]"),
        "must be a number in percent, got nan",
        SettingsError,
    ),
    Case(
        "a published figure that is a truth value",
        recipe("tasks: [{task: a, published: true}]"),
        "must be a number in percent",
        SettingsError,
    ),
    Case("defaults that are a number", recipe("defaults: 3\ntasks: [{task: a}]"), "must hold `tasks:`", SettingsError),
    Case("YAML that does not end", recipe("{"), "is not valid YAML", SettingsError),
    Case("a recipe that is no UTF-8", recipe(b"\xff"), "is not valid YAML", SettingsError),
    Case(
        "one task twice, with other settings", recipe("tasks: [{task: a}, {task: a, num_fewshot: 5}]"), value=["a", "a"]
    ),
]


def of_model(name: str, nats: list[float], errors: list[float] | None = None) -> Scored:
    figures = torch.tensor(nats, dtype=torch.float64)
    return Scored(name, "autoregressive", False, figures, torch.tensor(errors) if errors else torch.zeros_like(figures))


def comparing(*models: Scored, sizes: tuple[int, ...] = (3, 4)) -> Callable[[Path], object]:
    return lambda _: compared(models, torch.tensor(sizes, dtype=torch.int64), seed=0)["documents"]


GOOD = of_model("good", [1.0, 2.0])
FIGURES = [
    Case(
        "a figure that is NaN",
        comparing(GOOD, of_model("b", [math.nan, 1])),
        "document 0 under b is nan",
        NonFiniteError,
    ),
    Case(
        "an infinite figure", comparing(GOOD, of_model("b", [1, math.inf])), "document 1 under b is inf", NonFiniteError
    ),
    Case(
        "an infinite standard error",
        comparing(GOOD, of_model("b", [1, 2], [math.inf, 0])),
        "standard errors of b are not finite",
        NonFiniteError,
    ),
    Case("one model only", comparing(GOOD), "two or more models", DataError),
    Case("one name twice", comparing(GOOD, GOOD), "names of their own", DataError),
    Case("other documents", comparing(GOOD, of_model("b", [1.0])), "the same 2 documents", DataError),
    Case(
        "a document without bytes", comparing(GOOD, of_model("b", [1, 2]), sizes=(3, 0)), "at least one byte", DataError
    ),
    Case(
        "weights that are NaN, scored", lambda _: broken("tidar").score("a"), "The likelihood of row 0", NonFiniteError
    ),
    Case(
        "infinite weights, scored",
        lambda _: broken("autoregressive", math.inf).score("a"),
        "The likelihood of row 0",
        NonFiniteError,
    ),
    Case(
        "weights that are NaN, decoded",
        lambda _: broken("masked_diffusion").generate([5], SamplingParams(max_new_tokens=4)),
        "is not finite",
        NonFiniteError,
    ),
]


def saved(folder: Path, model: DiffusionLM, *words: str) -> list[str]:
    model.save_pretrained(folder / "model")
    return ["evaluate", str(folder / "model"), *words]


def evaluating(content: bytes | str, *words: str) -> Callable[[Path], list[str]]:
    return lambda folder: saved(
        folder, lm("autoregressive"), "--data", str(written(folder, "t.jsonl", content)), *words
    )


COMMANDS = [
    Command(
        "a model of NaN",
        lambda folder: saved(
            folder, broken("autoregressive"), "--data", str(written(folder, "t.txt", "some text " * 40))
        ),
        "The likelihood of row 0",
    ),
    Command("an empty text to evaluate", evaluating(""), "empty"),
    Command("no text and no run", lambda folder: saved(folder, lm("tidar")), "is no run folder with a held-out text"),
    Command(
        "no masks", evaluating('{"text": "a"}', "--masks-per-sequence", "0"), "masks_per_sequence must be at least 2"
    ),
    Command(
        "options of two ways",
        evaluating('{"text": "a"}', "--num-fewshot", "3"),
        "--num-fewshot goes with downstream tasks",
    ),
]


@parametrized(TEXTS + ANSWERS + PIECES)
def test_texts_and_answers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@parametrized(PROBLEMS + RECIPES)
def test_files(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@parametrized(FIGURES)
def test_figures(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@parametrized(COMMANDS)
def test_commands(case: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check(case, tmp_path)
