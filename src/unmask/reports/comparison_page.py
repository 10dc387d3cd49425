"""A comparison's record as one HTML page that needs no other file: pictures, tables, texts, settings."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from typing import Any

from unmask.reports.comparison import Table, summary, tables
from unmask.reports.comparison_plots import pictures

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; } .words { text-align: left; min-width: 16rem; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
p.legend { color: #555; max-width: 60rem; }
img { max-width: 100%; height: auto; display: block; }
blockquote { margin: .3rem 0 .8rem; padding-left: .8rem; border-left: 3px solid #ccc; white-space: pre-wrap; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; }
"""  # noqa: E501
# Longer cells are sentences, and read from the left.
_WORDS = 30


def page(record: dict[str, Any]) -> str:
    """The whole page; every text in it is escaped."""
    names = " vs ".join(model["name"] for model in record["models"])
    shown = pictures(record)
    parts = [f"<h1>{_text(names)}</h1>", f"<p>Compared on {_text(summary(record))}</p>"]
    parts += [_notes(record["notes"])]
    parts += [_picture(title, shown[title]) for title in ("Bits per byte", "Differences")]
    parts += [_table(table) for table in tables(record)]
    parts += [_picture(title, png) for title, png in shown.items() if title not in ("Bits per byte", "Differences")]
    parts += [_samples(record), _facts(record)]
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{_text(names)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _notes(notes: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(note)}</li>" for note in notes) + "</ul>" if notes else ""


def _picture(title: str, png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<h2>{_text(title)}</h2>\n<img alt="{_text(title)}" src="data:image/png;base64,{data}">'


def _table(table: Table) -> str:
    wordy = [any(len(cell) > _WORDS for cell in column) for column in zip(*table.rows, strict=True)]
    head = "".join(map(_cell, ["th"] * len(wordy), table.header, wordy))
    rows = "".join(f"<tr>{''.join(map(_cell, ['td'] * len(wordy), row, wordy))}</tr>\n" for row in table.rows)
    return (
        f'<h2>{_text(table.title)}</h2>\n<div class="wide"><table>\n<tr>{head}</tr>\n{rows}</table></div>\n'
        f'<p class="legend">{_text(table.legend)}</p>'
    )


def _cell(tag: str, text: str, wordy: bool) -> str:
    return f'<{tag} class="words">{_text(text)}</{tag}>' if wordy else f"<{tag}>{_text(text)}</{tag}>"


def _samples(record: dict[str, Any]) -> str:
    if record["generation"] is None:
        return ""
    lines = ["<h2>Some of the texts</h2>"]
    for sample in record["generation"]["samples"]:
        lines.append(f"<p><b>{_text(sample['prompt'])} ...</b></p>")
        for name, text in sample["continuations"].items():
            lines.append(f"<div>{_text(name)}</div><blockquote>{_text(text)}</blockquote>")
    return "\n".join(lines)


def _facts(record: dict[str, Any]) -> str:
    """Where and how it was measured."""
    facts = {"settings": record["settings"], "text": record["text"], "environment": record["environment"]}
    return f"<h2>Settings</h2>\n<pre>{_text(json.dumps(facts, indent=2))}</pre>"
