"""Sources of text: every format, and errors that name the file and the line."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from unmask.data.sources import Sources, held_out
from unmask.data.text import Corpus
from unmask.errors import DataError
from unmask.settings.data import DataSettings


def read(*sources: object, **options: object) -> list[str]:
    return list(Corpus([str(source) for source in sources], DataSettings(**options)))  # type: ignore[arg-type]


def test_text_files_are_one_document_or_split_at_a_separator(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\n###\ntwo\n###\n  \n", encoding="utf-8")
    assert read(file) == ["one\n###\ntwo\n###\n  \n"]
    assert read(file, separator="\n###\n") == ["one", "two"]


def test_sources_are_of_some_kind() -> None:
    class Halves(Sources[str]):
        def from_text(self, source: str) -> Iterator[str]:
            yield source

    for kind in (Sources, Halves):
        with pytest.raises(TypeError, match="from_row"):
            kind(["a.txt"], DataSettings())


def test_folders_globs_and_gz_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "b1"}\n\n{"text": "b2"}\n', encoding="utf-8")
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as file:
        file.write("gr\u00fcn")
    with gzip.open(tmp_path / "c.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"story": "c1"}\n')
    (tmp_path / "ignored.bin").write_bytes(b"\x00")
    assert read(tmp_path / "*.txt.gz", tmp_path / "b.jsonl") == ["gr\u00fcn", "b1", "b2"]
    assert read(tmp_path / "c.jsonl.gz", text_field="story") == ["c1"]
    (tmp_path / "c.jsonl.gz").unlink()
    assert read(tmp_path) == ["gr\u00fcn", "b1", "b2"]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ('{"text": "cut', "not valid JSON"),
        ('{"txt": "x"}', "there is no field `text`; the row has txt"),
        ('{"text": 3}', "the field `text` must be text, got 3"),
        ("[1, 2]", "expected an object"),
    ],
)
def test_malformed_rows_name_file_and_line_or_are_counted(tmp_path: Path, row: str, what: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"text": "good"}}\n{row}\n{{"text": "also"}}\n', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(file)
    assert f"{file}, line 2" in str(caught.value)
    assert what in str(caught.value)
    assert "data.malformed=skip" in str(caught.value)
    corpus = Corpus([str(file)], DataSettings(malformed="skip"))
    assert list(corpus) == ["good", "also"]
    assert list(corpus) == ["good", "also"]
    assert corpus.skipped == 1


def test_damaged_files_are_named(tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("gr\u00fcn".encode("latin-1"))
    cut = tmp_path / "cut.jsonl.gz"
    whole = gzip.compress(b'{"text": "some words that take some room"}\n' * 400)
    cut.write_bytes(whole[: len(whole) // 2])
    for file in (latin, cut):
        with pytest.raises(DataError, match=f"{file.name}.*cannot be read"):
            read(file)


def test_missing_sources_say_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*nowhere\.txt.*hf:NAME"):
        read(tmp_path / "nowhere.txt")
    with pytest.raises(DataError, match=r"holds no \.txt"):
        read(tmp_path)
    (tmp_path / "image.png").write_bytes(b"x")
    with pytest.raises(DataError, match="none of the endings"):
        read(tmp_path / "image.png")
    with pytest.raises(DataError, match="No data source"):
        read()


def test_a_local_hugging_face_dataset_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"text": "first"}, {"text": "second"}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    assert read(f"hf:{tmp_path / 'saved'}") == ["first", "second"]
    parts = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(rows[:1]), "test": datasets.Dataset.from_list(rows)}
    )
    parts.save_to_disk(str(tmp_path / "parts"))
    assert read(f"hf:{tmp_path / 'parts'}", split="test") == ["first", "second"]
    with pytest.raises(DataError, match="cannot be loaded"):
        read(f"hf:{tmp_path / 'parts'}", split="none")


def test_the_split_is_a_function_of_the_words_and_meets_its_share() -> None:
    texts = [f"document number {number} about something" for number in range(4000)]
    share = sum(held_out(text, 0.1) for text in texts) / len(texts)
    assert share == pytest.approx(0.1, abs=5 * (0.09 / 4000) ** 0.5)
    assert all(held_out(text, 0.1) == held_out("  " + text.replace(" ", "\n"), 0.1) for text in texts[:50])
    assert not any(held_out(text, 0.0) for text in texts)


def test_real_text_reads(shared_data: Path) -> None:
    stories = read(shared_data / "text" / "tinystories_sample.jsonl.gz")
    assert len(stories) == 2316
    with gzip.open(shared_data / "text" / "tinystories_sample.jsonl.gz", "rt", encoding="utf-8") as file:
        assert stories[7] == json.loads(file.readlines()[7])["text"]
