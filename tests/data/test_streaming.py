"""Text that is read while it is learned: the rows of the whole text, from any place on, in any number of processes."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unmask.data.batch import Batch
from unmask.data.packing import PackedText
from unmask.data.sources import word_hash
from unmask.data.streaming import StreamedRows
from unmask.data.text import Corpus
from unmask.data.tokenized import TokenizedText
from unmask.errors import DataError, SettingsError
from unmask.models.tokenizers import byte_tokenizer
from unmask.settings.data import DataSettings

BYTES = byte_tokenizer()


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """Rows in three formats, some longer than a row of tokens, and some that are empty."""
    texts = ["word " * (number % 13) + f"number {number}" for number in range(60)]
    rows = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n\n".join(rows[:20]) + '\n{"text": "  "}\n', encoding="utf-8")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(rows[20:40]))
    (tmp_path / "c.csv").write_text("id,text\n" + "".join(f"{n},{t}\n" for n, t in enumerate(texts[40:])))
    return [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl.gz", "c.csv")]


def stream(sources: list[str], **options: Any) -> StreamedRows:
    chosen = {"context_length": 16, "bos": 0, "window": 1} | options
    return StreamedRows(Corpus(sources, DataSettings()), BYTES, **chosen)


def steps(rows: StreamedRows, numbers: range, size: int = 6) -> list[Batch]:
    return [rows.batch(np.arange(one * size, (one + 1) * size), 0, size, step=one) for one in numbers]


def equal(left: Batch, right: Batch) -> bool:
    names = ("ids_BL", "document_BL", "supervised_BL", "uid_B", "global_row_B", "bytes_BL", "fill_BL")
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in names)


@pytest.mark.parametrize("window", [1, 2, 7, 64])
@pytest.mark.parametrize(("bos", "fill"), [(0, 1), (None, 1), (0, 4)])
def test_the_rows_are_those_of_the_whole_text(
    sources: list[str], tmp_path: Path, window: int, bos: int | None, fill: int
) -> None:
    texts = list(Corpus(sources, DataSettings()))
    whole = TokenizedText.build([*texts, *texts], BYTES, tmp_path / "whole")
    options = {"context_length": 16, "bos": bos, "fill": fill, "eos": 1}
    packed = PackedText(whole, **options)
    streamed = stream(sources, window=window, **options)
    number = (len(packed) - 1) // window * window
    found = streamed.batch(np.arange(number), 0, number, step=0)
    wanted = packed.batch(np.arange(number), 0, number, step=0)
    seen, expected = ({tuple(row) for row in one.ids_BL.tolist()} for one in (found, wanted))
    assert seen == expected
    assert int(found.bytes_BL.sum()) == int(wanted.bytes_BL.sum())  # type: ignore[union-attr]
    if window == 1:
        assert torch.equal(found.ids_BL, wanted.ids_BL)
        assert torch.equal(found.document_BL, wanted.document_BL)
        assert torch.equal(found.fill_BL, wanted.fill_BL)  # type: ignore[arg-type]
    else:
        assert not torch.equal(found.ids_BL, wanted.ids_BL)


@pytest.mark.parametrize("window", [1, 5, 16])
def test_reading_goes_on_from_any_position(sources: list[str], window: int) -> None:
    straight = stream(sources, window=window, seed=3)
    batches, positions = [], []
    for number in range(80):
        positions.append(json.loads(json.dumps(straight.position(number * 6))))
        batches += steps(straight, range(number, number + 1))
    assert max(position["place"][0] for position in positions) >= 1  # the text was read more than once
    for number in (0, 1, 7, 33, 70):
        resumed = stream(sources, window=window, seed=3)
        resumed.seek(positions[number])
        assert all(map(equal, steps(resumed, range(number, 80)), batches[number:]))
        assert resumed.position(79 * 6) == positions[79]


def test_a_position_is_not_read_up_to(sources: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    straight = stream(sources)
    position = next(found for row in range(400) if (found := straight.position(row))["place"][1] == 2 and row % 6 == 0)
    resumed = stream(sources)
    read: list[int] = []
    of_source = resumed.sources.of_source
    monkeypatch.setattr(
        resumed.sources, "of_source", lambda number, **options: read.append(number) or of_source(number, **options)
    )
    resumed.seek(position)
    steps(resumed, range(position["window"] // 6, position["window"] // 6 + 1))
    assert read == [2]


def test_processes_read_the_shares_of_one_batch(sources: list[str]) -> None:
    rows = np.arange(12, 24)
    whole = stream(sources, window=8).batch(rows, 0, 12, step=1)
    halves = [stream(sources, window=8).batch(rows, start, start + 6, step=1) for start in (0, 6)]
    assert torch.equal(whole.ids_BL, torch.cat([half.ids_BL for half in halves]))
    assert torch.equal(whole.uid_B, torch.cat([half.uid_B for half in halves]))
    assert torch.equal(whole.global_row_B, torch.cat([half.global_row_B for half in halves]))


def test_going_back_reads_again(sources: list[str]) -> None:
    rows = stream(sources, window=4)
    first = steps(rows, range(0, 30))
    assert all(map(equal, steps(rows, range(0, 30)), first))
    assert rows.sample().batch(np.arange(4), 0, 4, step=0).ids_BL.shape == (4, 16)


def test_another_seed_shuffles_otherwise(sources: list[str]) -> None:
    one, other = (steps(stream(sources, window=16, seed=seed), range(4)) for seed in (0, 1))
    assert not all(map(equal, one, other))


def test_validation_documents_are_refused_or_left_out(sources: list[str]) -> None:
    barred = frozenset({word_hash("number 13")})
    with pytest.raises(DataError, match=r"a\.jsonl, row 27, is a validation document.*data\.overlap=drop"):
        steps(stream(sources, barred=barred), range(40))
    rows = stream(sources, barred=barred, drops=True)
    ids = [row for batch in steps(rows, range(40)) for row in batch.ids_BL.tolist()]
    assert not any("number 13\u0000" in BYTES.decode(row).replace("<|eos|>", "\u0000") for row in ids)


def test_a_stream_without_text_ends(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n' * 3)
    with pytest.raises(DataError, match=r"The text is empty: no document of .*empty\.jsonl has a token to learn"):
        stream([str(tmp_path / "empty.jsonl")]).sample()


def test_other_sources_cannot_be_gone_on_with(sources: list[str]) -> None:
    position = stream(sources).position(0)
    with pytest.raises(DataError, match=r"are not those of the run that is resumed.*model\.from_pretrained"):
        stream(sources[:2]).seek(position)
    with pytest.raises(DataError, match="in windows of 1 rows"):
        stream(sources, window=2).seek(position)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"Give data\.validation, or set data\.validation_fraction=0"),
        ({"validation_fraction": 0.0, "tokenizer": "bpe"}, "cannot train a tokenizer"),
        ({"validation_fraction": 0.0, "neat_packing": True}, r"data\.neat_packing needs all text"),
        ({"validation_fraction": 0.0, "weights": (1.0, 2.0)}, r"data\.weights needs all text"),
        ({"validation_fraction": 0.0, "max_tokens": 5}, r"data\.max_tokens needs all text"),
        ({"validation_fraction": 0.0, "shuffle_rows": 0}, "shuffle_rows must be at least 1, got 0"),
        ({"validation_fraction": 0.0, "format": "chat"}, r"data\.streaming is not used by data\.format `chat`"),
    ],
)
def test_what_needs_all_text_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        DataSettings(streaming=True, **options)


def test_every_row_of_a_window_is_learned_once(sources: list[str]) -> None:
    rows = stream(sources, window=16)
    uids = list(itertools.chain.from_iterable(batch.uid_B.tolist() for batch in steps(rows, range(8))))
    assert uids == list(range(48))
    ids = [tuple(row) for batch in steps(stream(sources, window=16), range(8)) for row in batch.ids_BL.tolist()]
    plain = [tuple(row) for batch in steps(stream(sources), range(8)) for row in batch.ids_BL.tolist()]
    assert sorted(ids) == sorted(plain)
