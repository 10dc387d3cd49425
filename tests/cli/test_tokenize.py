"""`unmask tokenize`: ShareGPT-like conversations become files that both the port and `data.format=ckpt` read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli.test_checkpoints import failed
from unmask.cli.main import main
from unmask.data.chat import Conversations
from unmask.data.chat_tokens import ChatDocuments, ChatEncoder
from unmask.data.templates import ChatTemplate, use_template
from unmask.data.token_files import TokenFiles
from unmask.models.tokenizers import byte_tokenizer, decode, load_tokenizer
from unmask.settings.data import DataSettings


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that stands for a model of which only the tokenizer is read."""
    tokenizer = byte_tokenizer()
    use_template(tokenizer, "plain")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    rows = [
        {
            "id": str(number),
            "conversations": [
                {"from": "human", "value": f"What is {number}?"},
                {"from": "gpt", "value": "A number. " * (number + 1)},
                {"from": "human", "value": "And then?"},
                {"from": "gpt", "value": str(number + 1)},
            ],
        }
        for number in range(5)
    ]
    (tmp_path / "share.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path / "share.json"


def test_the_files_hold_what_chats_become(
    model: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "train_data"
    assert main(["tokenize", "--model-path", str(model), "--dataset-path", str(chats), "--outdir", str(out)]) == 0
    shown = capsys.readouterr()
    assert shown.out.split() == [str(out)]
    assert shown.err.startswith("5 rows, ")
    tokenizer = load_tokenizer(model)
    conversations = Conversations([str(chats)], DataSettings(format="chat"))
    expected = list(ChatDocuments(conversations, ChatEncoder(ChatTemplate(tokenizer)), "all", conversations.malformed))
    found = list(TokenFiles([str(out)], DataSettings(format="ckpt"), tokenizer))
    assert len(found) == len(expected) == 5
    for one, other in zip(found, expected, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert one.supervised is not None and other.supervised is not None
        assert one.supervised.tolist() == other.supervised.tolist()
        assert int(one.bytes.sum()) == int(other.bytes.sum())


def test_each_file_is_what_the_port_loads(model: Path, chats: Path, tmp_path: Path) -> None:
    out = tmp_path / "train_data"
    assert main(["tokenize", "--model", str(model), "--data", str(chats), "--out", str(out), "--end", "2"]) == 0
    assert sorted(file.name for file in out.rglob("*.ckpt")) == ["data_0.ckpt", "data_1.ckpt"]
    saved = torch.load(out / "0" / "data_1.ckpt", weights_only=True)
    assert saved.keys() == {"input_ids", "loss_mask"}
    assert saved["input_ids"].shape == saved["loss_mask"].shape and saved["input_ids"].dtype == torch.int64
    assert set(saved["loss_mask"].tolist()) == {0, 1}


def test_a_range_a_length_and_a_system_prompt_are_kept_to(
    model: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, words = tmp_path / "out", ["--model", str(model), "--data", str(chats), "--out", str(tmp_path / "out")]
    assert main(["tokenize", *words, "--start", "1", "--end", "4", "--max-length", "90", "--system-prompt", "Hm."]) == 0
    assert "3 rows" in capsys.readouterr().err
    rows = [torch.load(file, weights_only=True) for file in sorted(out.rglob("*.ckpt"))]
    texts = [decode(load_tokenizer(model), row["input_ids"].tolist()) for row in rows]
    assert [text.splitlines()[:4] for text in texts] == [
        ["System:", "Hm.", "User:", f"What is {n}?"] for n in (1, 2, 3)
    ]
    assert max(len(row["input_ids"]) for row in rows) == 90
    assert "cut" in failed(capsys, "tokenize", *words[:-1], tmp_path / "b", "--max-length", 90, "--over-long", "error")
    assert "There is no conversation to write" in failed(capsys, "tokenize", *words[:-1], tmp_path / "b", "--start", 9)
    assert not (tmp_path / "b").exists()


def test_what_is_supervised_is_each_reply_and_its_end(shared_data: Path, chats: Path, tmp_path: Path) -> None:
    """The port's masker has Llama 3's separators and offsets built in; with Qwen's tokenizer it fails."""
    folder, out = shared_data / "tokenizers" / "qwen2.5", tmp_path / "out"
    (tmp_path / "config.json").write_text("{}")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert main(["tokenize", "--model", str(tmp_path), "--data", str(chats), "--out", str(out), "--end", "1"]) == 0
    saved = torch.load(out / "0" / "data_0.ckpt", weights_only=True)
    learned = saved["input_ids"][saved["loss_mask"] == 1].tolist()
    assert decode(load_tokenizer(folder), learned, special=True) == "A number. <|im_end|>1<|im_end|>"


def test_mistakes_are_told(model: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tokenize", "--model", model, "--data", chats, "--out", tmp_path / "out"]
    assert "--gpus is not an option here: no network runs" in failed(capsys, *words, "--gpus", "0,1|2,3")
    assert "--num-processes is not an option here: a fast" in failed(capsys, *words, "--num-processes", 4)
    assert "--start must lie before --end" in failed(capsys, *words, "--start", 4, "--end", 4)
    (tmp_path / "out").mkdir()
    assert "exists already" in failed(capsys, *words)
    assert "the following arguments are required: --out" in failed(capsys, *words[:-2])
