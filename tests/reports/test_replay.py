"""The replay: hostile tokens break no drawing, the page is self-contained and holds what was recorded."""

import io
import json
import math
import re
from collections.abc import Iterator

import pytest
from rich.cells import cell_len
from rich.console import Console

from unmask.reports.replay import ASCII_MASK_GLYPH, MASK_GLYPH, Frame, Replay, html_page, printable, watch

NAN = math.nan
HOSTILE = (
    *("</script><script>alert(1)</script>", "<!--", "\u2028", "\u2029", "\x1b[2J", "[bold]x[/bold]"),
    *("{{data}}", "a\nb\r\nc\rd", "\t", "\u4f60\u597d", "\u202e", "\ud83d", "\x00", "&amp;", ""),
    "\u0301",
)
CSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def masked(length: int, forwards: int = 0) -> Frame:
    return Frame((None,) * length, (NAN,) * length, forwards)


def left_to_right(pieces: tuple[str, ...]) -> Iterator[Frame]:
    for count in range(len(pieces) + 1):
        num_masked = len(pieces) - count
        yield Frame(pieces[:count] + (None,) * num_masked, (0.5,) * count + (NAN,) * num_masked, count)


def draw(
    frames: Iterator[Frame], *, terminal: bool = False, encoding: str = "utf-8", **environment: str
) -> tuple[str, Frame]:
    """Return what `watch` printed, on a terminal of 30 columns and 10 rows, and the frame it returned."""
    buffer = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    variables = {"TERM": "xterm", **environment}
    console = Console(file=buffer, force_terminal=terminal, width=30, height=10, _environ=variables)
    last = watch(frames, prompt="Say [red]hello[/red]", console=console)
    buffer.seek(0)
    return buffer.read(), last


def page_data(page: str) -> list[dict]:
    match = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert match
    return json.loads(match[1])


def test_a_pipe_gets_five_snapshots_and_no_escape_codes() -> None:
    text, last = draw(left_to_right(tuple(" word" for _ in range(40))))
    assert text.count("forwards ") == 5
    assert "\x1b" not in text
    assert "Say [red]hello[/red]" in text
    assert last.num_revealed == 40


def test_the_final_canvas_is_printed_even_when_masks_remain() -> None:
    frames = [masked(8), Frame(("a", *(None,) * 7), (0.9, *(NAN,) * 7), 3)]
    text, last = draw(iter(frames))
    assert last == frames[-1]
    assert text.rstrip().endswith("a" + MASK_GLYPH * 7)
    assert "forwards 3   tokens 1/8 (12%)   0.33 tokens per forward" in text


def test_a_terminal_is_redrawn_in_place_and_keeps_the_final_canvas() -> None:
    text, _ = draw(left_to_right(("one", " two", " three")), terminal=True)
    assert "\x1b[1A" in text or "\x1b[2K" in text
    assert CSI.sub("", text).rstrip().endswith("one two three")


def test_no_color_leaves_bold_and_no_colour() -> None:
    text, _ = draw(left_to_right(("one", " two")), terminal=True, NO_COLOR="1")
    assert "\x1b[1m" in text
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text)


def test_a_dumb_terminal_gets_snapshots() -> None:
    text, _ = draw(left_to_right(("one", " two")), terminal=True, TERM="dumb")
    assert "\x1b[2K" not in text
    assert text.count("forwards ") == 3


@pytest.mark.parametrize("is_terminal", [False, True])
def test_hostile_tokens_neither_reach_the_terminal_nor_break_lines(is_terminal: bool) -> None:
    text, _ = draw(left_to_right(HOSTILE), terminal=is_terminal)
    plain = CSI.sub("", text.replace("\x1b[2J", "clears the screen"))
    assert "clears the screen" not in plain
    assert "\\x1b[2J" in plain.replace("\n", "").replace("\r", "")
    assert not {"\u202e", "\x00", "\u2028", "\ud83d"} & set(plain)
    if is_terminal:
        assert max(cell_len(line) for line in re.split(r"[\r\n]+", plain)) <= 30


def test_an_ascii_terminal_gets_ascii() -> None:
    text, _ = draw(iter([masked(3), Frame(("\u4f60", None, "b"), (0.5, NAN, 0.5), 1)]), encoding="ascii")
    assert text.rstrip().endswith("\\u4f60" + ASCII_MASK_GLYPH + "b")


def test_a_canvas_taller_than_the_screen_shows_the_newest_token() -> None:
    pieces = tuple(f"line {index}\n" for index in range(50))
    frames = list(left_to_right(pieces))[:41]
    text, _ = draw(iter(frames), terminal=True)
    drawn = text.split("forwards ")
    assert "line 39" in drawn[-2]  # the last frame in the window; after it comes the whole canvas
    assert not re.search(r"line 2\b", drawn[-2])
    assert CSI.sub("", drawn[-1]).count("line ") == 40


def test_printable_keeps_text_and_shows_the_rest() -> None:
    assert printable("caf\u00e9 \u4f60\r\n\tx\u200d\x07\ufeff") == "caf\u00e9 \u4f60\n    x\u200d\\x07\\ufeff"


def test_watching_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no frames"):
        draw(iter(()))


def test_records_reject_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="one confidence per piece, got 1 for 2"):
        Frame(("a", "b"), (0.5,), 1)
    with pytest.raises(ValueError, match="`empty` has no frames"):
        Replay("empty", "", (), {})
    with pytest.raises(ValueError, match="at least one replay"):
        html_page([], title="x")


def test_page_data_is_the_recorded_canvas() -> None:
    frames = (
        masked(3),
        Frame(("a", None, "c"), (0.25, NAN, 0.123456), 1),
        Frame(("a", "b", None, "d"), (0.25, 0.5, NAN, NAN), 2),
        Frame(("a", "b"), (0.25, 0.5), 4),
    )
    (record,) = page_data(html_page([Replay("t", "p", frames, {"Model": "m"})], title="x"))
    canvas: list[list] = []
    for frame, stored in zip(frames, record["frames"], strict=True):
        canvas = canvas[: stored["length"]] + [[]] * (stored["length"] - len(canvas))
        for position, piece, confidence in stored["changes"]:
            canvas[position] = [piece, confidence]
        assert tuple(piece for piece, _ in canvas) == frame.pieces
        expected = [None if math.isnan(value) else round(value, 4) for value in frame.confidence]
        assert [confidence for _, confidence in canvas] == expected
        assert stored["forwards"] == frame.forwards
    assert record["frames"][3]["changes"] == []
    assert record["facts"] == [["Model", "m"]]


def test_hostile_text_cannot_leave_the_data_or_the_title() -> None:
    joined = "".join(HOSTILE)
    page = html_page([Replay(joined, joined, tuple(left_to_right(HOSTILE)), {joined: joined})], title=joined)
    assert page.isascii()
    assert page.count("<script") == page.count("</script>") == 2
    assert "<!--" not in page
    (record,) = page_data(page)
    assert record["frames"][1]["changes"] == [[0, HOSTILE[0], 0.5]]
    assert record["prompt"] == printable(joined)


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = html_page([Replay("t", "p", (masked(2),), {})], title="x")
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|\bsrc=|\bhref=|@import|url\(|\{\{", page)
    assert "prefers-reduced-motion" in page


def relative_luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("text", "background"),
    [
        *(("ink", f"level-{level}") for level in range(5)),
        *(("ink", "surface"), ("muted", "surface"), ("muted", "page"), ("accent", "page"), ("page", "ink")),
    ],
)
def test_text_contrast_meets_wcag_aa(text: str, background: str, theme: int) -> None:
    page = html_page([Replay("t", "p", (masked(2),), {})], title="x")
    colours = {name: pair for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", page)}
    low, high = sorted(relative_luminance(colours[name][theme]) for name in (text, background))
    assert (high + 0.05) / (low + 0.05) >= 4.5
