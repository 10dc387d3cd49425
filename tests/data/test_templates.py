"""Chat templates and their tokens: replies are supervised exactly, prompts are as asked, text stays text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from datetime import datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import Lowercase
from transformers import AddedToken

from tests import chats
from unmask.data.chat import Conversation, Message
from unmask.data.chat_tokens import ChatDocuments, ChatEncoder
from unmask.data.templates import ChatTemplate, use_template
from unmask.data.tokenized import Document
from unmask.errors import DataError, SettingsError
from unmask.models.tokenizers import byte_tokenizer, decode, encode, load_tokenizer
from unmask.settings.data import Supervise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = ["llada", "plain", "qwen2.5", "qwen3", "sdar"]
THINKING = "<think>\n\n</think>\n\n"


@functools.cache
def tokenizer_of(kind: str, folder: Path) -> PreTrainedTokenizerBase:
    if kind == "llada":
        return chats.llada_tokenizer()
    return chats.plain_tokenizer() if kind == "plain" else chats.shared_tokenizer(folder, kind)


def documents(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, supervise: Supervise) -> list[Document]:
    encoder = ChatEncoder(ChatTemplate(tokenizer))
    return encoder.documents(encoder.template.rows(conversation, supervise))


def reply(kind: str, content: str) -> str:
    """What a model of each kind has to write, by the words of its template, without the end."""
    if kind == "llada":
        return content.strip()
    if kind in ("qwen3", "sdar"):
        return THINKING + content.lstrip("\n")
    return content


END = {"llada": "<|eot_id|>", "plain": "<|eos|>", "qwen2.5": "<|im_end|>", "qwen3": "<|im_end|>", "sdar": "<|im_end|>"}


def llada_text(conversation: Conversation) -> str:
    turns = [
        f"<|start_header_id|>{one.role}<|end_header_id|>\n\n{one.content.strip()}<|eot_id|>"
        for one in conversation.messages
    ]
    return "<|startoftext|>" + "".join(turns)


def plain_text(conversation: Conversation) -> str:
    words = {"system": "System:\n{}\n", "user": "User:\n{}\n", "assistant": "Assistant:\n{}<|eos|>\n"}
    return "<|bos|>" + "".join(words[one.role].format(one.content) for one in conversation.messages)


@settings(max_examples=30)
@given(chats.conversations())
def test_our_templates_write_what_they_promise(conversation: Conversation) -> None:
    for tokenizer, expected in (
        (chats.llada_tokenizer(), llada_text(conversation)),
        (chats.plain_tokenizer(), plain_text(conversation)),
    ):
        template = ChatTemplate(tokenizer)
        assert template.render(chats.dicts(conversation)) == expected
        opening = {True: "<|start_header_id|>assistant<|end_header_id|>\n\n", False: "Assistant:\n"}
        asked = template.render(chats.dicts(conversation)[:-1], reply=True)
        assert asked.endswith(opening["<|eot_id|>" in template.end])
        assert expected.startswith(asked)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversation=chats.conversations(), supervise=st.sampled_from(["all", "last", "each"]))
def test_exactly_the_replies_and_their_ends_are_supervised(
    kind: str, shared_data: Path, conversation: Conversation, supervise: Supervise
) -> None:
    tokenizer = tokenizer_of(kind, shared_data)
    replies = [reply(kind, one.content) for one in conversation.messages if one.role == "assistant"]
    expected = {"all": [replies], "last": [replies[-1:]], "each": [[one] for one in replies]}[supervise]
    if supervise == "all" and len(replies) > 1 and kind in ("qwen3", "sdar"):
        with pytest.raises(SettingsError, match=r"rewrites earlier turns.*data\.supervise=each"):
            documents(tokenizer, conversation, supervise)
        return
    found = documents(tokenizer, conversation, supervise)
    for document, texts in zip(found, expected, strict=True):
        runs = supervised_runs(document)
        assert [tokenizer.decode(run) for run in runs] == [text + END[kind] for text in texts]
        end_id = tokenizer.convert_tokens_to_ids(END[kind])
        assert [run.count(end_id) for run in runs] == [1] * len(runs)
        assert int(document.bytes.sum()) == sum(len(text.encode()) for text in texts)
        assert not document.bytes[~document.supervised].any()
        assert document.supervised[-1]


def supervised_runs(document: Document) -> list[list[int]]:
    assert document.supervised is not None
    edges = np.flatnonzero(np.diff(document.supervised.astype(int), prepend=0, append=0)).reshape(-1, 2)
    return [document.ids[start:stop].tolist() for start, stop in edges]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversation=chats.conversations())
def test_no_message_makes_a_control_token_and_none_of_the_template_is_lost(
    kind: str, shared_data: Path, conversation: Conversation
) -> None:
    tokenizer = tokenizer_of(kind, shared_data)
    harmless = Conversation(tuple(Message(one.role, "x") for one in conversation.messages))
    special = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    found, expected = (
        [
            [token for token in document.ids.tolist() if token in special]
            for document in documents(tokenizer, one, "each")
        ]
        for one in (conversation, harmless)
    )
    assert found == expected


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversation=chats.conversations())
def test_prompts_have_the_ids_that_the_model_is_asked_with(
    kind: str, shared_data: Path, conversation: Conversation
) -> None:
    tokenizer = tokenizer_of(kind, shared_data)
    encoder = ChatEncoder(ChatTemplate(tokenizer))
    for number, document in zip(conversation.replies, documents(tokenizer, conversation, "each"), strict=True):
        asked = chats.dicts(conversation)[:number]
        assert document.supervised is not None
        prompt = document.ids[: int(document.supervised.argmax())].tolist()
        assert prompt == encoder.prompt(asked)
        spelled = any(token in one["content"] for one in asked for token in encoder.template.control_tokens)
        if not spelled:
            rendered = encoder.template.render(asked, reply=True)
            assert prompt == encode(tokenizer, rendered, special=False)


def test_a_row_of_all_replies_is_the_history_as_it_is_read_again(shared_data: Path) -> None:
    conversation = chats.conversation("Who are you?", "A model. ", " And\nthen?", "Nothing.", "Why", "So")
    stories = load_tokenizer(shared_data / "checkpoints" / "stories260k")
    use_template(stories, "plain")
    for tokenizer in (tokenizer_of("qwen2.5", shared_data), chats.llada_tokenizer(), chats.plain_tokenizer(), stories):
        template = ChatTemplate(tokenizer)
        (document,) = documents(tokenizer, conversation, "all")
        assert document.supervised is not None
        starts = np.flatnonzero(np.diff(document.supervised.astype(int)) == 1) + 1
        for number, start in zip(conversation.replies, starts.tolist(), strict=True):
            history = template.render(chats.dicts(conversation)[:number], reply=True)
            assert document.ids[:start].tolist() == encode(tokenizer, history, special=False)


def test_tokenizers_that_add_a_space_do_not_put_one_before_a_reply(shared_data: Path) -> None:
    stories = load_tokenizer(shared_data / "checkpoints" / "stories260k")
    use_template(stories, "plain")
    (document,) = documents(stories, chats.conversation("Who was sad?", "Tim </s> was."), "all")
    prompt, answer = document.ids[~document.supervised].tolist(), document.ids[document.supervised].tolist()
    assert decode(stories, [*prompt, *answer])[len(decode(stories, prompt)) :] == "Tim </s> was."
    assert answer.count(stories.eos_token_id) == 1
    # Its control tokens are found after normalisation only, that is behind a space.
    odd = load_tokenizer(shared_data / "checkpoints" / "tinystories-656k")
    use_template(odd, "plain")
    (document,) = documents(odd, chats.conversation("Who was sad?", "Tim was"), "all")
    assert document.ids[-1] == odd.eos_token_id
    assert document.ids[0] == odd.bos_token_id


def test_the_end_of_a_turn_ends_generation(shared_data: Path) -> None:
    for kind in KINDS:
        template = ChatTemplate(tokenizer_of(kind, shared_data))
        assert template.end == END[kind]
        assert template.end_id == template.tokenizer.convert_tokens_to_ids(END[kind])


# --- templates that cannot be trained with ------------------------------------------------------------------------


def jinja(text: str) -> PreTrainedTokenizerBase:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = text
    return tokenizer


def turns(end: str, opening: str = "") -> str:
    """A template: `role:content` and an end for each turn, and an opening of a reply."""
    loop = "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}END{% endfor %}".replace("END", end)
    return loop + "{% if add_generation_prompt %}" + opening + "{% endif %}"


def test_a_template_without_an_end_of_turn_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"writes no special token .* after a reply.*it writes ';'"):
        documents(jinja(turns(";")), chats.conversation("a", "b"), "all")


def test_a_generation_prompt_that_no_reply_begins_with_is_refused() -> None:
    odd = jinja(turns("<|eos|>", "assistant: <plan>"))
    with pytest.raises(SettingsError, match="does not begin a reply as its generation prompt does"):
        documents(odd, chats.conversation("a", "b"), "all")


def test_a_template_without_a_generation_prompt_gets_one(tmp_path: Path) -> None:
    tokenizer = jinja(turns("<|eos|>") + "\n")
    conversation = chats.conversation("a", "b", "c", "d")
    (document,) = documents(tokenizer, conversation, "all")
    assert [tokenizer.decode(run) for run in supervised_runs(document)] == ["b<|eos|>", "d<|eos|>"]
    asked = ChatEncoder(ChatTemplate(tokenizer)).prompt(chats.dicts(conversation)[:1])
    assert tokenizer.decode(asked) == "user:a<|eos|>assistant:"
    # Whoever asks the saved model by its template alone writes it too, and other texts stay.
    before = ChatTemplate(tokenizer).render(chats.dicts(conversation))
    use_template(tokenizer, None)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    question = chats.dicts(conversation)[:1]
    rendered = again.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert rendered == "user:a<|eos|>assistant:"
    assert again.apply_chat_template(chats.dicts(conversation), tokenize=False) == before
    assert ChatTemplate(again).missing_opening == ""


def test_a_template_whose_generation_prompt_is_the_end_of_the_question_stays() -> None:
    llama2 = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} <|eos|>{% endif %}{% endfor %}"
    )
    tokenizer = jinja(llama2)
    (document,) = documents(tokenizer, chats.conversation("a", "b"), "all")
    assert [tokenizer.decode(run) for run in supervised_runs(document)] == [" b <|eos|>"]
    use_template(tokenizer, None)
    assert tokenizer.chat_template == llama2


@pytest.mark.parametrize("supervise", ["all", "last", "each"])
def test_replies_of_weight_0_are_read_and_not_learned(supervise: Supervise) -> None:
    tokenizer = chats.plain_tokenizer()
    learned = {"all": [["b", "f"]], "last": [["f"]], "each": [["b"], ["f"]]}[supervise]
    turns = [*chats.conversation("a", "b", "c", "d", "e", "f", "g", "h").messages]
    for number in (3, 7):
        turns[number] = dataclasses.replace(turns[number], is_learned=False)
    found = documents(tokenizer, Conversation(tuple(turns)), supervise)
    assert [[tokenizer.decode(run) for run in supervised_runs(row)] for row in found] == [
        [f"{text}<|eos|>" for text in texts] for texts in learned
    ]
    whole = ChatTemplate(tokenizer).render(chats.dicts(Conversation(tuple(turns[:6]))))
    assert tokenizer.decode(found[-1].ids) == whole.removesuffix("\n")


def test_reasoning_and_calls_are_learned_as_the_template_writes_them(shared_data: Path) -> None:
    tokenizer = tokenizer_of("qwen3", shared_data)
    call = {"function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
    conversation = Conversation(
        (
            Message("user", "2 + 2?"),
            Message("assistant", "", {"reasoning_content": "Add.", "tool_calls": [call]}),
            Message("tool", "4", {"tool_call_id": "1"}),
            Message("assistant", "Four <|im_end|>.", {"reasoning_content": "It said 4."}),
        ),
        tools=({"type": "function", "function": {"name": "add"}},),
    )
    found = documents(tokenizer, conversation, "each")
    replies = [[tokenizer.decode(run) for run in supervised_runs(row)] for row in found]
    assert replies == [
        [
            "<think>\nAdd.\n</think>\n\n<tool_call>\n"
            '{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call><|im_end|>'
        ],
        ["<think>\nIt said 4.\n</think>\n\nFour <|im_end|>.<|im_end|>"],
    ]
    expected = tokenizer.apply_chat_template(
        [message.fields for message in conversation.messages[:1]],
        tools=list(conversation.tools),
        add_generation_prompt=True,
        return_dict=False,
    )
    assert found[0].ids[: len(expected)].tolist() == expected


def test_a_fingerprint_changes_with_all_that_decides_the_ids() -> None:
    def changed(change: Callable[[PreTrainedTokenizerBase], object]) -> str:
        tokenizer = chats.llada_tokenizer()
        change(tokenizer)
        return ChatTemplate(tokenizer).fingerprint()

    def lower(tokenizer: PreTrainedTokenizerBase) -> None:
        tokenizer.backend_tokenizer.normalizer = Lowercase()  # type: ignore[attr-defined]

    def set_template(tokenizer: PreTrainedTokenizerBase) -> None:
        tokenizer.chat_template = str(tokenizer.chat_template) + " "

    prints = [
        changed(lambda tokenizer: None),
        changed(set_template),
        changed(lower),
        changed(lambda tokenizer: tokenizer.add_tokens([AddedToken("<think>")])),
        changed(lambda tokenizer: tokenizer.add_tokens([AddedToken("<think>", special=True)])),
        changed(lambda tokenizer: tokenizer.add_tokens([AddedToken("<think>", special=True, rstrip=True)])),
        changed(lambda tokenizer: setattr(tokenizer, "bos_token", "<|startoftext|>")),
        changed(lambda tokenizer: setattr(tokenizer, "eos_token", "<|eot_id|>")),
        changed(lambda tokenizer: setattr(tokenizer, "pad_token", "<|eos|>")),
    ]
    assert len(set(prints)) == len(prints)
    # A tokenizer gains its mask token between two runs; texts never encode to it.
    assert changed(lambda tokenizer: tokenizer.add_special_tokens({"mask_token": "<|mask|>"})) == prints[0]
    # Padding and truncation are of a call, not of the tokenizer.
    assert changed(lambda tokenizer: tokenizer(["a", "bcd"], padding=False, truncation=True, max_length=2)) == prints[0]


def test_a_dated_template_has_a_fingerprint_for_each_day(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        day = 1

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2026, 1, cls.day, tzinfo=tz)

    dated = ChatTemplate(jinja("{{ strftime_now('%d') }}" + turns("<|eos|>", "assistant:")))
    plain = ChatTemplate(jinja(turns("<|eos|>", "assistant:")))
    monkeypatch.setattr("unmask.models.chat_templates.datetime", Clock)
    first = dated.fingerprint(), plain.fingerprint()
    Clock.day = 2
    assert dated.fingerprint() != first[0] and plain.fingerprint() == first[1]


def test_one_of_a_tokenizers_named_templates_is_used() -> None:
    tokenizer = byte_tokenizer()
    named = {"default": turns("<|eos|>", "assistant:"), "brief": turns("<|bos|>", "assistant:")}
    for own in (named, [{"name": name, "template": text} for name, text in named.items()]):
        tokenizer.chat_template = own
        assert ChatTemplate(tokenizer).end == "<|eos|>"
        use_template(tokenizer, "brief")
        assert ChatTemplate(tokenizer).end == "<|bos|>"


def test_a_reply_that_ends_in_another_way_is_refused() -> None:
    odd = jinja(turns("{{ '<|bos|>' if m['content'] == 'b' else '<|eos|>' }}"))
    with pytest.raises(SettingsError, match=r"ends some replies otherwise than with '<\|eos\|>'"):
        documents(odd, chats.conversation("a", "b"), "all")


STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['content'] }}<|eos|>{% endfor %}"
)


def test_conversations_that_the_template_refuses_are_named_or_skipped() -> None:
    encoder = ChatEncoder(ChatTemplate(jinja(STRICT)))
    good = chats.conversation("a", "b")
    twice = Conversation((Message("user", "a"), *good.messages), "rows.jsonl, line 7")

    def stop(message: str) -> None:
        raise DataError(message)

    with pytest.raises(DataError, match=r"rows\.jsonl, line 7: the chat template refuses.*roles must alternate"):
        list(ChatDocuments([good, twice], encoder, "all", stop))
    messages: list[str] = []
    found = ChatDocuments([good, twice, good], encoder, "all", messages.append)
    assert [len(list(found)), found.refused, len(messages)] == [2, 1, 1]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (None, r"has no chat template\. Set data\.chat_template to llada, plain"),
        ("llada", r"`llada` needs the tokens <\|startoftext\|>, .*which this tokenizer lacks"),
        ("plian", r"no chat template plian: neither a known one nor a file\. Did you mean `plain`"),
        ("nowhere.jinja", r"no chat template nowhere\.jinja"),
    ],
)
def test_templates_that_are_not_there_say_what_to_do(name: str | None, what: str) -> None:
    with pytest.raises(SettingsError, match=what):
        use_template(byte_tokenizer(), name)


def test_plain_needs_an_end_of_text() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(SettingsError, match="`plain` ends each reply with the end-of-text token"):
        use_template(tokenizer, "plain")


def test_a_template_file_is_used_and_saved_with_the_tokenizer(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(turns("<|eos|>", "assistant:"), encoding="utf-8")
    tokenizer = byte_tokenizer()
    use_template(tokenizer, str(file))
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    (document,) = documents(again, chats.conversation("a", "b"), "all")
    assert again.decode(document.ids) == "user:a<|eos|>assistant:b<|eos|>"
    file.write_text("{% for %}", encoding="utf-8")
    with pytest.raises(SettingsError, match="A question and its answer cannot be written"):
        use_template(tokenizer, str(file))
    file.write_text(turns(";"), encoding="utf-8")
    with pytest.raises(SettingsError, match="writes no special token"):
        use_template(tokenizer, str(file))


def test_many_conversations_are_tokenised_as_each_one_is(shared_data: Path) -> None:
    tokenizer = tokenizer_of("qwen2.5", shared_data)
    encoder = ChatEncoder(ChatTemplate(tokenizer))
    some = [chats.conversation(f"question {n}", "answer <|im_end|>" * (n % 2) + "z" * n) for n in range(300)]

    def never(message: str) -> None:
        raise AssertionError(message)

    together = list(ChatDocuments(some, encoder, "all", never))
    apart: Sequence[Document] = [one for each in some for one in documents(tokenizer, each, "all")]
    assert [one.ids.tolist() for one in together] == [one.ids.tolist() for one in apart]
