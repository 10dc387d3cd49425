"""The denoising replay: watch a canvas of tokens being filled in, in a terminal or in a browser.

Frames enter, one per drawn state of the canvas (from a decoder while it runs, or recorded); out come a
drawing in the terminal (`watch`) or one self-contained HTML file (`html_page`, layout in `replay.html`).
Tokens are hostile text: they may hold escape sequences, markup, `</script>` or half a character, so
every piece passes through `printable` before it is drawn.
"""

import html
import json
import math
import re
import time
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

NEW_STYLE = "bold green"
MASK_STYLE = "dim"
MASK_GLYPH = "\u2591"  # light shade
ASCII_MASK_GLYPH = "_"  # where the encoding lacks it
# A log gets a snapshot each time another quarter of the canvas is filled: five with the first and last.
NUM_QUARTERS = 4

_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # format characters that Persian, Hindi and others cannot be written without


@dataclass(frozen=True)
class Frame:
    """The canvas after `forwards` forward passes.

    `pieces` is the text of each position, None while it is masked. `confidence` is the probability with
    which each token was chosen, in [0, 1], NaN while masked or when it was not measured.
    The canvas may grow or shrink from frame to frame, as it does when decoding block by block; `total` is the number of
    positions that it can have at most, None where it has all of them.

    Raises:
        ValueError: `pieces` and `confidence` differ in length, or `total` is smaller.
    """

    pieces: tuple[str | None, ...]
    confidence: tuple[float, ...]
    forwards: int
    total: int | None = None

    def __post_init__(self) -> None:
        if len(self.pieces) != len(self.confidence):
            raise ValueError(
                f"a frame needs one confidence per piece, got {len(self.confidence)} for {len(self.pieces)} "
                f"pieces. Use NaN for a position that is masked."
            )
        if self.total is not None and self.total < len(self.pieces):
            raise ValueError(f"a frame of {len(self.pieces)} positions cannot be one of {self.total} in all.")

    @property
    def length(self) -> int:
        """Positions that the canvas can have at most."""
        return len(self.pieces) if self.total is None else self.total

    @property
    def num_revealed(self) -> int:
        """Number of positions that hold a token."""
        return sum(piece is not None for piece in self.pieces)


@dataclass(frozen=True)
class Replay:
    """One recorded generation.

    `facts` are shown in the order given, such as model, parameters, tokens per forward, seconds.

    Raises:
        ValueError: there are no frames.
    """

    title: str
    prompt: str
    frames: tuple[Frame, ...]
    facts: dict[str, str]

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError(f"replay `{self.title}` has no frames. Record at least the final canvas.")


def printable(text: str) -> str:
    """Return `text` with everything but visible characters and newlines made visible: ESC is `\\x1b`.

    A tab becomes four spaces, a CRLF a newline.
    """
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    return "".join(_printable_character(character) for character in text)


def _printable_character(character: str) -> str:
    if character == "\n" or character in _JOINERS or unicodedata.category(character) not in _UNPRINTABLE:
        return character
    return character.encode("unicode_escape").decode("ascii")


def watch(frames: Iterable[Frame], *, prompt: str, console: Console, delay_s: float = 0.0) -> Frame:
    """Draw `frames` as they arrive and return the last one.

    On a terminal the canvas is redrawn in place: masks dim, newly revealed tokens bold. Anywhere else
    (a file, a pipe, `TERM=dumb`) a plain snapshot is printed for each quarter of the canvas filled.
    `delay_s` seconds pass after each frame on a terminal, none elsewhere.

    Raises:
        ValueError: `frames` is empty.
    """
    console.print(Text(encodable(printable(prompt), console), "dim"), soft_wrap=True)
    if console.is_terminal and not console.is_dumb_terminal:
        last = _watch_live(frames, console, delay_s)
    else:
        last = _print_snapshots(frames, console)
    if last is None:
        raise ValueError("there are no frames to watch. The decoder must yield at least the final canvas.")
    return last


def animate(frames: Iterable[Frame], *, console: Console, delay_s: float = 0.0) -> Frame | None:
    """Redraw the canvas in place on a terminal as `frames` arrive, then take it away; the last frame, if any."""
    previous: Frame | None = None
    # Transient: the window may show a part only, so what follows prints the whole once it is final.
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for frame in frames:
            canvas = _canvas(frame, previous, console)
            live.update(Group(_progress(frame), _window(canvas, console)), refresh=True)
            time.sleep(delay_s)
            previous = frame
    return previous


def _watch_live(frames: Iterable[Frame], console: Console, delay_s: float) -> Frame | None:
    last = animate(frames, console=console, delay_s=delay_s)
    if last is not None:
        console.print(_progress(last))
        console.print(_canvas(last, last, console))
    return last


def _print_snapshots(frames: Iterable[Frame], console: Console) -> Frame | None:
    last: Frame | None = None
    printed: Frame | None = None
    next_quarter = 0
    for frame in frames:
        quarter = NUM_QUARTERS * frame.num_revealed // max(1, frame.length)
        if quarter >= next_quarter:
            _print_snapshot(frame, console)
            printed = frame
            next_quarter = quarter + 1
        last = frame
    if last is not None and last is not printed:
        _print_snapshot(last, console)
    return last


def _print_snapshot(frame: Frame, console: Console) -> None:
    console.print()
    console.print(_progress(frame), soft_wrap=True)
    console.print(_canvas(frame, frame, console), soft_wrap=True)


def _progress(frame: Frame) -> Text:
    revealed, total = frame.num_revealed, frame.length
    line = f"forwards {frame.forwards}   tokens {revealed}/{total} ({revealed / max(1, total):.0%})"
    if frame.forwards:
        line += f"   {revealed / frame.forwards:.2f} tokens per forward"
    return Text(line, no_wrap=True, overflow="crop")  # one line, or the window would outgrow the screen


def _canvas(frame: Frame, previous: Frame | None, console: Console) -> Text:
    """Return the canvas as text, what differs from `previous` in NEW_STYLE."""
    before = previous.pieces if previous else ()
    mask = Text(MASK_GLYPH if encodable(MASK_GLYPH, console) == MASK_GLYPH else ASCII_MASK_GLYPH, MASK_STYLE)
    canvas = Text(overflow="fold")
    for position, piece in enumerate(frame.pieces):
        if piece is None:
            canvas.append_text(mask)
        else:
            is_new = position >= len(before) or before[position] != piece
            canvas.append(encodable(printable(piece), console), NEW_STYLE if is_new else None)
    return canvas


def encodable(text: str, console: Console) -> str:
    """Return `text` with characters that the encoding of `console` lacks as escapes."""
    return text.encode(console.encoding, errors="backslashreplace").decode(console.encoding)


def _window(canvas: Text, console: Console) -> Text:
    """Return the part of `canvas` that fits the screen, around the newest token."""
    lines = canvas.wrap(console, console.width)
    height = max(1, console.height - 2)  # the progress line, and the line the cursor is on
    if len(lines) <= height:
        return canvas
    is_newest = [any(span.style == NEW_STYLE for span in line.spans) for line in lines]
    newest = max((index for index, is_new in enumerate(is_newest) if is_new), default=0)
    start = min(max(0, newest - height // 2), len(lines) - height)
    return Text("\n").join(lines[start : start + height])


def html_page(replays: Sequence[Replay], *, title: str) -> str:
    """Return one HTML file (ASCII, no external assets) that plays `replays` in any recent browser.

    With two or more replays a further tab shows them side by side, one forward pass per step.
    `#replay=1&frame=12&theme=dark` after the address selects a tab (from 0, or `all`), a step and a theme.

    Raises:
        ValueError: `replays` is empty.
    """
    if not replays:
        raise ValueError("a page needs at least one replay, got none.")
    values = {
        "title": html.escape(printable(title)).encode("ascii", errors="xmlcharrefreplace").decode("ascii"),
        "data": _script_json([_record(replay) for replay in replays]),
    }
    template = Path(__file__).with_name("replay.html").read_text(encoding="ascii")
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


def _record(replay: Replay) -> dict[str, object]:
    previous: list[tuple[str | None, float | None]] = []
    frames: list[dict[str, object]] = []
    for frame in replay.frames:
        cells = [_cell(*pair) for pair in zip(frame.pieces, frame.confidence, strict=True)]
        # Only changes are stored: one token per frame would otherwise cost the square of the length.
        changes = [
            (position, *cell)
            for position, cell in enumerate(cells)
            if position >= len(previous) or previous[position] != cell
        ]
        sizes = {"length": len(cells), "total": frame.length}
        frames.append({"forwards": frame.forwards, **sizes, "changes": changes})
        previous = cells
    facts = [(printable(name), printable(value)) for name, value in replay.facts.items()]
    texts = {"title": printable(replay.title), "prompt": printable(replay.prompt)}
    return {**texts, "facts": facts, "frames": frames}


def _cell(piece: str | None, confidence: float) -> tuple[str | None, float | None]:
    # JSON has no NaN; four digits are more than the page shows.
    rounded = round(confidence, 4) if math.isfinite(confidence) else None
    return (None, None) if piece is None else (printable(piece), rounded)


def _script_json(value: object) -> str:
    """Return JSON that is safe inside `<script>`: ASCII, and no `<` that could close the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
