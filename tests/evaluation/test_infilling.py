"""HumanEval infilling: real problems, exact match, programs that run under limits, pieces kept byte for byte."""

import gzip
import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import tiny
from unmask.cli.main import main
from unmask.errors import CheckpointError, DataError
from unmask.evaluation.infilling import Infill, Problem, infills, read_problems, share
from unmask.evaluation.programs import each_passes, passes
from unmask.lm import DiffusionLM
from unmask.models.loading import Checkpoint, adapted, create
from unmask.models.tokenizers import byte_tokenizer
from unmask.settings.decoding import SamplingParams
from unmask.settings.objective import ObjectiveSettings

SQUARE = Problem(
    task_id="square/0",
    prompt="def square(x):\n",
    suffix="    return y\n",
    canonical_solution="    y = x * x\n",
    test="def check(f):\n    assert f(3) == 9\n",
    entry_point="square",
)


def model() -> DiffusionLM:
    tokenizer = byte_tokenizer()
    made = create(tiny.SHAPE, tokenizer, seed=3)
    return DiffusionLM(
        Checkpoint(adapted(made, ObjectiveSettings(method="masked_diffusion")).backbone.eval(), tokenizer)
    )


class Knowing:
    """A model that knows some solutions; it has the tokenizer and context of a real one."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.real, self.answers = model(), answers
        self.codec, self.backbone, self.tokenizer = self.real.codec, self.real.backbone, self.real.tokenizer
        self.lengths: list[int] = []

    def generate(self, *_: Any, **__: Any) -> list[Any]:
        raise AssertionError("infilling does not generate")

    def infill(self, texts: Sequence[Sequence[str]], params: Sequence[SamplingParams]) -> list[Any]:
        self.lengths += [one.infill_length[0] for one in params]
        found = [self.answers.get(before, "?") for before, _ in texts]
        return [
            SimpleNamespace(text=before + text + behind, infills=(text,), forwards=3)
            for (before, behind), text in zip(texts, found, strict=True)
        ]


def test_gaps_have_the_solutions_length_or_a_fixed_one() -> None:
    lm = Knowing({SQUARE.prompt: SQUARE.canonical_solution})
    other = Problem("square/1", "x = ", "\n", "12", "def check(f):\n    pass\n", "abs")
    found = list(infills(lm, [SQUARE, other], "oracle", {}))
    assert lm.lengths == [2, 14]
    assert [(one.problem.task_id, one.is_exact) for one in found] == [("square/1", False), ("square/0", True)]
    list(infills(lm, [SQUARE, other], 7, {"temperature": 0.5}))
    assert lm.lengths[2:] == [7, 7]


def test_nothing_is_asked_where_the_solution_is_empty() -> None:
    lm = Knowing({})
    nothing = Problem("empty", "x = 1", "\n", "", "", "abs")
    assert list(infills(lm, [nothing], "oracle", {})) == [Infill(nothing, "", 0, 0)]
    (asked,) = infills(lm, [nothing], 2, {})
    assert (asked.text, asked.is_exact, lm.lengths) == ("?", False, [2])


def test_a_problem_that_does_not_fit_counts_as_not_solved() -> None:
    long = Problem("long", "#" * 120 + "\n", "", "1", "", "abs")
    lm = Knowing({})
    (only,) = infills(lm, [long], 10, {})
    assert only == Infill(long, None, 10, 0)
    assert not only.is_exact
    assert lm.lengths == []


def test_a_real_model_keeps_prompt_and_suffix_byte_for_byte() -> None:
    odd = Problem("odd", "s = 'é\t  ", " \n\n  ü' ", "ab", "", "abs")
    for length in ("oracle", 5):
        for one in infills(model(), [SQUARE, odd], length, {}):  # type: ignore[arg-type]
            assert one.text is not None
            assert one.forwards == one.length


def test_shares_have_standard_errors() -> None:
    assert share([True, False, True, True]) == (0.75, pytest.approx((0.75 * 0.25 / 3) ** 0.5))
    assert share([True]) == (1.0, None)


# --- programs ---------------------------------------------------------------------------------------------------


def test_programs_pass_or_fail_by_their_tests() -> None:
    assert each_passes(
        [SQUARE.program(SQUARE.canonical_solution), SQUARE.program("    y = x + x\n"), "syntax error("]
    ) == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "raise SystemExit",
        "x = [0] * 10**10",
        "open('big', 'wb').write(b'x' * 2**22)",
        "import os\nos.fork()\nraise ValueError",
    ],
)
def test_leaving_early_and_exceeding_limits_is_no_pass(program: str) -> None:
    assert not passes(program + "\n")


def test_an_endless_program_is_stopped() -> None:
    began = time.monotonic()
    assert not passes("while True:\n    pass\n", timeout_s=1.0)
    assert time.monotonic() - began < 8


def test_programs_see_an_empty_folder_no_environment_and_print_into_the_void(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    (tmp_path / "leak").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert passes(
        "import os\nassert os.listdir('.') == []\nassert 'SECRET_TOKEN' not in os.environ\nprint('x' * 10**6)\n"
        "open('note', 'w').write('small')\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["leak"]


# --- files and the command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rows"), [("singleline", 1033), ("multiline", 5815), ("randomspan", 1640)])
def test_every_problem_of_the_public_files_is_read(shared_data: Path, name: str, rows: int) -> None:
    problems = read_problems(shared_data / "eval" / f"humaneval_infilling_{name}.jsonl.gz")
    assert len(problems) == rows
    assert sum(not problem.canonical_solution for problem in problems) == (14 if name == "randomspan" else 0)


def test_real_solutions_pass_and_wrong_ones_fail(shared_data: Path) -> None:
    problems = read_problems(shared_data / "eval" / "humaneval_infilling_singleline.jsonl.gz")[::260]
    assert len(problems) == 4
    assert each_passes([one.program(one.canonical_solution) for one in problems]) == [True] * 4
    assert each_passes([one.program("    raise ValueError\n") for one in problems]) == [False] * 4


def test_malformed_files_are_named(tmp_path: Path) -> None:
    def written(text: str) -> Path:
        (tmp_path / "problems.jsonl").write_text(text)
        return tmp_path / "problems.jsonl"

    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"task_id": "x"}\n' * 500)[:60])
    cases = [
        (lambda: read_problems("gone.jsonl"), "There is no file gone.jsonl"),
        (lambda: read_problems(written("")), "holds no problems"),
        (lambda: read_problems(written('{"task_id": "x", "prompt": 3}\n')), "line 1: the text fields prompt, suffix"),
        (lambda: read_problems(written("[1]\n")), "line 1: the text fields task_id"),
        (lambda: read_problems(written("{oops\n")), "cannot be read after line 0"),
        (lambda: read_problems(tmp_path / "cut.jsonl.gz"), "cannot be read|text fields"),
    ]
    for call, message in cases:
        with pytest.raises(DataError, match=message):
            call()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        list(infills(DiffusionLM(tiny.checkpoint("masked_diffusion")), [SQUARE], 3, {}))


def test_the_command_line_measures_infilling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model().save_pretrained(tmp_path / "model")
    long = SQUARE.__dict__ | {"task_id": "long", "prompt": "#" * 130 + "\n"}
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (SQUARE.__dict__, long)))
    words = ["evaluate", str(tmp_path / "model"), "--infilling", str(file)]
    samples = tmp_path / "samples.jsonl"
    assert (
        main([*words, "--infill-length", "4", "--json", "--allow-code", "--samples", str(samples), "--steps", "2"]) == 0
    )
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert (record["problems"], record["too_long"], record["exact_match"], record["pass_at_1"]) == (2, 1, 0.0, 0.0)
    assert (record["forwards"], record["infill_length"], record["sampling"]) == (2, 4, {"denoising_steps": 2})
    assert "1 problems do not fit" in captured.err
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [(row["task_id"], row["passed"]) for row in rows] == [("square/0", False), ("long", False)]
    assert main([*words, "--limit", "1"]) == 0
    table = capsys.readouterr().out
    assert "| oracle | 0.0000 | - | - | - | 0 |" in table
    assert "--allow-code" in table
    for given, message in (
        (["--infill-length", "none"], "--infill-length must be oracle or a number of tokens from 1 on, got none"),
        (
            ["--mc-num", "3"],
            "--mc-num goes with downstream tasks (--tasks, --recipe), and this command measures infilling",
        ),
        (["--data", "x"], "--data goes with the likelihood of text, and this"),
    ):
        assert main([*words, *given]) == 2
        assert message in capsys.readouterr().err
