"""HumanEval infilling: the middle of a program, given what stands before and behind it.

In: problems (Bavarian et al., arXiv 2207.14255: single-line, multi-line and random-span files) and a length for the
gap, the solution's own ("oracle") or one for all. Out: the text that the model put there, whether it is the solution's
to the letter, and, where the user allows it, whether the whole program passes the problem's test.
Prompt and suffix are kept byte for byte. A problem that does not fit the model's context counts as not solved; an empty
solution (14 of the random spans) has an empty gap at its own length.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unmask.errors import CheckpointError, DataError
from unmask.evaluation.model import LanguageModel
from unmask.models.tokenizers import encode
from unmask.settings.decoding import SamplingParams

_TEXTS_AT_ONCE = 32


@dataclass(frozen=True)
class Problem:
    """A program with a gap.

    Attributes:
        task_id: its name in the file.
        prompt: what stands before the gap.
        suffix: what stands behind it.
        canonical_solution: what the gap held.
        test: code that defines `check`.
        entry_point: the function that `check` is called with.
    """

    task_id: str
    prompt: str
    suffix: str
    canonical_solution: str
    test: str
    entry_point: str

    def program(self, infill: str) -> str:
        """The whole program with its test; it fails by an exception."""
        return f"{self.prompt}{infill}{self.suffix}\n{self.test}\ncheck({self.entry_point})\n"


@dataclass(frozen=True)
class Infill:
    """What a model put into a gap.

    Attributes:
        problem: whose gap.
        text: None if the problem does not fit the model's context.
        length: tokens of the gap.
        forwards: network evaluations.
    """

    problem: Problem
    text: str | None
    length: int
    forwards: int

    @property
    def is_exact(self) -> bool:
        """Whether it is the solution to the letter."""
        return self.text == self.problem.canonical_solution


def read_problems(file: str | Path) -> list[Problem]:
    """The problems of a `.jsonl` or `.jsonl.gz` file.

    Raises:
        DataError: the file is missing or a row malformed.
    """
    path, problems = Path(file), []
    if not path.is_file():
        raise DataError(f"There is no file {path} (in {Path.cwd()}). Problems: github.com/openai/human-eval-infilling")
    names = tuple(Problem.__dataclass_fields__)
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                missing = [name for name in names if not isinstance(row, dict) or not isinstance(row.get(name), str)]
                if missing:
                    raise DataError(f"{path}, line {number}: the text fields {', '.join(missing)} are missing.")
                halves = [name for name in names if not _has_utf8(row[name])]
                if halves:
                    raise DataError(f"{path}, line {number}: half a surrogate pair in {', '.join(halves)}. Replace it.")
                problems.append(Problem(**{name: row[name] for name in names}))
    except DataError:
        raise
    except (ValueError, RecursionError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read after line {len(problems)}: {error}. Is it complete?") from None
    if not problems:
        raise DataError(f"{path} holds no problems.")
    return problems


def _has_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def infills(
    lm: LanguageModel, problems: Sequence[Problem], length: int | Literal["oracle"], sampling: Mapping[str, Any]
) -> Iterator[Infill]:
    """What the model puts into each gap, as soon as it is known; the shortest gaps come first.

    Args:
        lm: with a tokenizer and a mask token.
        problems: in any order.
        length: tokens of every gap, or `oracle` for as many as the solution has.
        sampling: fields of `SamplingParams`.
    """
    tokenizer = lm.tokenizer
    if tokenizer is None:
        raise CheckpointError("Infilling is of texts, and this checkpoint has no tokenizer. Save one beside the model.")
    jobs: list[tuple[Problem, int]] = []
    for problem in problems:
        size = len(encode(tokenizer, problem.canonical_solution, special=False)) if length == "oracle" else length
        around = sum(map(len, lm.codec.encode_pieces([problem.prompt, problem.suffix])))
        if size == 0:
            yield Infill(problem, "", 0, 0)
        elif around + size > lm.backbone.context_length:
            yield Infill(problem, None, size, 0)
        else:
            jobs.append((problem, size))
    jobs.sort(key=lambda job: job[1])
    for start in range(0, len(jobs), _TEXTS_AT_ONCE):
        part = jobs[start : start + _TEXTS_AT_ONCE]
        params = [SamplingParams(**{**sampling, "infill_length": (size,)}) for _, size in part]
        outputs = lm.infill([(problem.prompt, problem.suffix) for problem, _ in part], params)
        for (problem, size), output in zip(part, outputs, strict=True):
            (text,) = output.infills
            assert output.text == problem.prompt + text + problem.suffix, "prompt and suffix are kept"
            yield Infill(problem, text, size, output.forwards)


def share(found: Sequence[bool]) -> tuple[float, float | None]:
    """Share of the true ones and its standard error."""
    mean = sum(found) / len(found)
    return mean, math.sqrt(mean * (1 - mean) / (len(found) - 1)) if len(found) > 1 else None
