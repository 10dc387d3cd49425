"""Malformed and odd traces and replays: frames that do not fit, hostile texts, canvases of masks only."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.malformed.case import Case, check, parametrized
from unmask.decoding.step import Step
from unmask.models.tokenizers import byte_tokenizer
from unmask.reports.replay import Frame, Replay, html_page, printable
from unmask.reports.traces import frame, pieces

BYTES = byte_tokenizer()
EOS = BYTES.eos_token_id


def shown(canvas: list[int | None], **options: object) -> Callable[[Path], object]:
    return lambda _: pieces(canvas, BYTES, **options)  # type: ignore[arg-type]


def ids(text: str) -> list[int]:
    return BYTES(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]


CASES = [
    Case("no positions", shown([]), value=[]),
    Case("masks only", shown([None, None]), value=[None, None]),
    Case("special tokens only", shown([EOS, None, EOS]), value=["<|eos|>", None, "<|eos|>"]),
    Case("half a character", shown(ids("\u20ac")[:2]), value=["", "\ufffd"]),
    Case(
        "a character around a mask",
        shown([ids("\u20ac")[0], None, *ids("\u20ac")[1:]]),
        value=["\ufffd", None, "", "\u20ac"],
    ),
    Case("bytes that are no text", shown([ids("\u20ac")[1], *ids("a")]), value=["", "\ufffda"]),
    Case("a stop at once", shown(ids("abc"), stops=("a",)), value=[]),
    Case("a stop inside", shown(ids("abc"), stops=("bc",)), value=["a"]),
    Case("a special token as stop", shown([*ids("a"), EOS, *ids("b")], stops=("<|eos|>",)), value=["a"]),
    Case("a stop after a mask", shown([*ids("a"), None, *ids("bc")], stops=("c",)), value=["a", None, "b"]),
    Case("an escape sequence", lambda _: printable("\x1b[2J"), value="\\x1b[2J"),
    Case("a lone surrogate", lambda _: printable("\ud83d"), value="\\ud83d"),
    Case(
        "a step without tokenizer",
        lambda _: frame(Step((7, None), (0,), (0.5, math.nan), 1), None).pieces,
        value=(" 7", None),
    ),
]


@parametrized(CASES)
def test_traces(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Frame(("a",), (), 1), "one confidence per piece, got 0 for 1"),
        (lambda: Frame(("a", "b"), (0.5, 0.5), 1, total=1), "2 positions cannot be one of 1"),
        (lambda: Replay("t", "p", (), {}), "has no frames"),
        (lambda: html_page([], title="t"), "at least one replay"),
    ],
)
def test_what_cannot_be_drawn_is_refused(made: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made()


def test_confidences_that_are_no_numbers_are_drawn_as_unmeasured() -> None:
    page = html_page([Replay("t", "p", (Frame(("a", "b"), (math.nan, math.inf), 1, total=4),), {})], title="t")
    assert '"changes":[[0,"a",null],[1,"b",null]]' in page and '"total":4' in page
