"""Chat rows: every usual shape gives one record; what is malformed or ambiguous says where and what to do."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from unmask.data.chat import Conversation, Conversations
from unmask.errors import DataError, SettingsError
from unmask.settings.data import DataSettings

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def read(file: Path, **options: Any) -> list[Conversation]:
    return list(Conversations([str(file)], DataSettings(format="chat", **options)))


def turns(row: Any, folder: Path, **options: Any) -> list[tuple[str, str]]:
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (found,) = read(file, **options)
    return [(one.role, one.content) for one in found.messages]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ASSISTANT]},
        {"conversations": [USER, ASSISTANT]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "id": "7"},
        {"messages": [USER | {"from": None, "value": None}, ASSISTANT | {"tool_calls": None}], "conversations": None},
        {"messages": [USER, ASSISTANT], "prompt": "Hi", "prompt_id": "0a"},
        {"messages": [USER, ASSISTANT, {"role": "user", "content": "never answered"}]},
        {"messages": [{"role": "system", "content": " "}, USER, ASSISTANT]},
        {"prompt": "Hi", "answer": "Hello", "source": "somewhere"},
        {"prompt": "Hi", "completion": "Hello"},
        {"question": "Hi", "answer": "Hello"},
        {"question": "Hi", "answer": ["Hello", "Good day"]},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"instruction": "Hi", "context": "", "response": "Hello", "category": "greeting"},
    ],
)
def test_every_shape_gives_the_same_conversation(tmp_path: Path, row: dict[str, Any]) -> None:
    assert turns(row, tmp_path) == [("user", "Hi"), ("assistant", "Hello")]


def test_systems_several_turns_and_material_are_kept(tmp_path: Path) -> None:
    chat = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    chat += [{"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]
    expected = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    assert turns({"conversations": chat}, tmp_path) == expected
    assert turns({"conversations": chat[1:], "system": "Be brief."}, tmp_path) == expected
    row = {"instruction": "Shorten.", "input": "A long text.", "output": "Text.", "system_prompt": "You edit."}
    assert turns(row, tmp_path) == [
        ("system", "You edit."),
        ("user", "Shorten.\n\nA long text."),
        ("assistant", "Text."),
    ]


def test_named_fields_win(tmp_path: Path) -> None:
    row = {"context": "Question: who?\nAnswer:", "answer": "Me", "aliases": ["I"], "question": "not this"}
    options = {"prompt_field": "context", "answer_field": "answer"}
    assert turns(row, tmp_path, **options) == [("user", "Question: who?\nAnswer:"), ("assistant", "Me")]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ([1], "expected an object with a conversation, got [1]"),
        ({}, "there is no conversation: the row has no field"),
        ({"text": "x"}, "there is no conversation: the row has text. Known are messages or conversations"),
        ({"messages": []}, "the conversation is empty"),
        ({"messages": "x"}, "the field `messages` must be a list of messages"),
        ({"messages": [USER]}, "has no assistant turn"),
        ({"messages": [ASSISTANT, USER, ASSISTANT]}, "begins with the assistant"),
        ({"messages": ["Hi"]}, "message 1 must be an object"),
        ({"messages": [USER, {"role": "assistent", "content": "x"}]}, 'unknown role "assistent". Did you mean `assist'),
        ({"messages": [USER, {"role": "assistant"}]}, "message 2 (assistant) has no content"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, "has content that is no text: 3"),
        ({"messages": [USER, {"content": "x"}]}, "message 2 must have role and content"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "a turn of the assistant is empty"),
        ({"messages": [USER | {"tool_calls": [{"name": "f"}]}, ASSISTANT]}, "only the assistant calls tools"),
        ({"messages": [USER, ASSISTANT], "conversations": [USER, ASSISTANT]}, "can be read in several ways"),
        ({"prompt": "a", "question": "b", "answer": "c"}, "can be read in several ways: the row has prompt, question"),
        (
            {"question": "a", "context": "b", "answer": "c"},
            "can be read in several ways: the row has question, context",
        ),
        ({"question": "a", "answer": 51.0}, "the field `answer` must be text, got 51.0"),
        ({"question": "a", "answer": []}, "the field `answer` must be text, got []"),
    ],
)
def test_malformed_rows_name_file_line_and_remedy_or_are_counted(tmp_path: Path, row: Any, what: str) -> None:
    good = json.dumps({"prompt": "a", "answer": "b"})
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{good}\n{json.dumps(row)}\n{good}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}, line 2: ")
    assert what in str(caught.value)
    assert str(caught.value).endswith("Fix the row, or skip such rows: data.malformed=skip")
    sources = Conversations([str(file)], DataSettings(format="chat", malformed="skip"))
    assert [one.where for one in sources] == [f"{file}, line 1", f"{file}, line 3"]
    assert sources.skipped == 1


def test_plain_text_holds_no_conversations(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Hi", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.txt holds plain text, and data\.format=chat needs conversations"):
        read(tmp_path / "a.txt")


def test_a_json_list_is_read_as_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"}]
    (tmp_path / "list.json").write_text(" \n" + json.dumps(rows, indent=1), encoding="utf-8")
    with gzip.open(tmp_path / "lines.json.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    for name, unit in (("list.json", "row"), ("lines.json.gz", "line")):
        found = read(tmp_path / name)
        assert [one.messages[0].content for one in found] == ["a", "c"]
        assert found[1].where == f"{tmp_path / name}, {unit} 2"
    (tmp_path / "cut.json").write_text('[{"prompt": "a",', encoding="utf-8")
    with pytest.raises(DataError, match=r"cut\.json begins like a JSON list and is not valid JSON.*, column"):
        read(tmp_path / "cut.json")


def test_a_local_hugging_face_dataset_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"messages": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT | {"extra": 1}]}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    settings = DataSettings(format="chat", ignored_fields=("extra",))
    found = list(Conversations([f"hf:{tmp_path / 'saved'}"], settings))
    assert [one.messages[1].content for one in found] == ["Hello", "Hello"]
    assert found[1].where == f"hf:{tmp_path / 'saved'}, row 1"


@pytest.mark.parametrize(
    ("name", "number", "options"),
    [
        ("gsm8k_test", 1319, {}),
        ("nq_open_dev", 3610, {}),
        ("dolly_12", 12, {}),
        ("triviaqa_3000", 3000, {"prompt_field": "context", "answer_field": "answer"}),
    ],
)
def test_real_rows_read(shared_data: Path, name: str, number: int, options: dict[str, Any]) -> None:
    found = read(shared_data / "instruct" / f"{name}.jsonl.gz", **options)
    assert len(found) == number
    assert all(len(one.messages) == 2 for one in found)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"format": "text", "over_long": "drop"}, "data.over_long is not used by data.format `text`"),
        ({"format": "text", "over_long": "cut"}, "belongs to `chat`, `ckpt` and data.neat_packing"),
        (
            {"format": "text", "neat_packing": True, "pad_mode": "block"},
            "data.pad_mode is not used by data.format `text`",
        ),
        (
            {"format": "chat", "neat_packing": True, "pad_mode": "eos_supervised"},
            "data.neat_packing puts conversations side by side, where pad_mode `eos_supervised`",
        ),
        (
            {"format": "chat", "neat_packing": True, "pad_mode": "eos_capped", "eos_cap": 2},
            "where pad_mode `eos_capped`",
        ),
        ({"format": "text", "chat_template": "plain"}, "data.chat_template is not used by data.format `text`"),
        ({"format": "chat", "text_field": "story"}, "data.text_field is not used by data.format `chat`"),
        ({"format": "chat", "pad_mode": "eos_capped"}, "pad_mode `eos_capped` and eos_cap belong together"),
        ({"format": "chat", "eos_cap": 3}, "pad_mode `eos_capped` and eos_cap belong together"),
        ({"format": "chat", "pad_mode": "eos_capped", "eos_cap": 0}, "eos_cap must be at least 1"),
        ({"format": "chat", "prompt_field": "q"}, "prompt_field and answer_field belong together"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(SettingsError) as caught:
        DataSettings(**options)
    assert what in str(caught.value)


def test_over_long_is_for_whatever_is_not_cut_into_rows() -> None:
    assert DataSettings(neat_packing=True, over_long="drop").over_long == "drop"
    assert DataSettings(format="chat", neat_packing=True, over_long="cut", pad_mode="block").pad_mode == "block"
