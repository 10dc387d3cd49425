"""Odd tokenizers under chats: what cannot be used says so, and what can keeps messages and control tokens apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import AddedToken as RawToken
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AddedToken, PreTrainedTokenizerFast

from tests import chats
from tests.malformed.case import Case, check, parametrized, written
from unmask.data.chat import Conversation, Message
from unmask.data.chat_tokens import ChatEncoder
from unmask.data.templates import ChatTemplate, use_template
from unmask.errors import CheckpointError, DataError, PromptError, SettingsError
from unmask.models.prompts import PromptCodec
from unmask.models.tokenizers import byte_tokenizer, encode_prompt, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }} : {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant : {% endif %}"
)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
WORDS = ["<unk>", "<s>", "</s>", "user", "assistant", ":", "hi", "hello", "the", "end"]


def wrapped(backend: Tokenizer, **fields: Any) -> PreTrainedTokenizerBase:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **(SPECIAL | fields))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def of_words(**fields: Any) -> PreTrainedTokenizerBase:
    """Whole words, the names of the control tokens among them."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrapped(backend, **fields)


def of_pieces() -> PreTrainedTokenizerBase:
    """Pieces with scores, of which a control token's text is the best."""
    letters = sorted(set("userasitn:hilothend </>\u2581"))
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((letter, -2.0) for letter in letters)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return wrapped(backend)


def of_bytes_as_names() -> PreTrainedTokenizerBase:
    """Characters, and bytes for those that it does not know."""
    vocabulary = {name: number for number, name in enumerate(["<unk>", "<s>", "</s>"])}
    for name in [*(f"<0x{number:02X}>" for number in range(256)), *sorted(set("userasitn:hilothend </>\u2581"))]:
        vocabulary[name] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return wrapped(backend)


def lower_casing(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer = chats.shared_tokenizer(folder, "bert-base-uncased")
    tokenizer.chat_template = TEMPLATE.replace("<s>", "[CLS]").replace("</s>", "[SEP]")
    return tokenizer


def normalising() -> PreTrainedTokenizerBase:
    """Looks for its control tokens in lower-cased text."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[attr-defined]
    tokenizer.add_tokens([AddedToken("<STOP>", special=True, normalized=True)], special_tokens=True)
    tokenizer.chat_template = TEMPLATE.replace("</s>", "<STOP>").replace("<s>", "<|bos|>")
    return tokenizer


def adding_bos() -> PreTrainedTokenizerBase:
    """Puts BOS in front of a text and EOS behind it, as its template does."""
    tokenizer = of_words()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[attr-defined]
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


ODD: dict[str, Callable[[Path], Any]] = {
    "words": lambda _: of_words(),
    "pieces": lambda _: of_pieces(),
    "bytes as names": lambda _: of_bytes_as_names(),
    "lower-casing": lower_casing,
    "normalising": lambda _: normalising(),
    "adding BOS and EOS": lambda _: adding_bos(),
    "gpt2": lambda folder: _with_template(chats.shared_tokenizer(folder, "gpt2")),
}
CONTENTS = [
    "the end",
    "</s>",
    "the </s> end",
    "</s></s>",
    "<s>",
    "a<s>b",
    "[SEP]",
    "[sep]",
    "<STOP>",
    "<stop>",
    "<Stop> x",
]
CONTENTS += [
    "<|bos|>",
    "<|endoftext|>",
    "<|endoftext",
    "<unk>",
    "\u4f60\u597d",
    "  the",
    "the\n",
    "</s",
    "s>",
    "<0x41>",
]


def _with_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer.chat_template = TEMPLATE.replace("</s>", "<|endoftext|>").replace("<s>", "")
    return tokenizer


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("kind", ODD)
def test_no_message_makes_a_control_token(kind: str, content: str, shared_data: Path) -> None:
    tokenizer = ODD[kind](shared_data)
    encoder = ChatEncoder(ChatTemplate(tokenizer))
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id}
    control = (added | set(tokenizer.all_special_ids)) - unknown

    def ids(content: str) -> list[int]:
        conversation = Conversation((Message("user", content), Message("assistant", content)))
        (row,) = encoder.documents(encoder.template.rows(conversation, "all"))
        assert row.supervised is not None
        start = int(row.supervised.argmax())
        asked = encoder.prompt([{"role": "user", "content": content}])
        assert row.ids[:start].tolist() == asked
        assert int(row.bytes.sum()) <= len(content.encode())
        return row.ids.tolist()

    found, expected = ([token for token in ids(text) if token in control] for text in (content, "the"))
    assert found == expected
    assert tokenizer.convert_tokens_to_ids(encoder.template.end) == found[-1]


@pytest.mark.parametrize("kind", ODD)
def test_a_prompt_has_its_front_once_and_no_end(kind: str, shared_data: Path) -> None:
    tokenizer = ODD[kind](shared_data)
    bare = tokenizer("the end", add_special_tokens=False)["input_ids"]
    found = encode_prompt(tokenizer, "the end")
    front = found[: len(found) - len(bare)]
    assert found[len(front) :] == bare
    assert encode_prompt(tokenizer, tokenizer.decode(front) + "the end") in (found, front + found[len(front) :])
    assert front == {"adding BOS and EOS": [1], "lower-casing": [101], "normalising": [0]}.get(kind, [])


# --- what cannot be used ------------------------------------------------------------------------------------------


def saved(folder: Path, **files: str) -> Path:
    """A tokenizer's folder whose files are replaced."""
    byte_tokenizer().save_pretrained(folder / "model")
    for name, content in files.items():
        written(folder, f"model/{name}.json", content)
    return folder / "model"


def slow(folder: Path) -> object:
    written(folder, "model/tokenizer_config.json", json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    written(folder, "model/config.json", json.dumps({"model_type": "t5"}))
    return load_tokenizer(folder / "model")


def one_letter(folder: Path) -> object:
    """A control token of one character cannot be written in another way."""
    vocabulary = {"<unk>": 0, "|": 1, "a": 2}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.add_special_tokens([RawToken("|", special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="|", unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    return ChatEncoder(ChatTemplate(tokenizer)).prompt([{"role": "user", "content": "|"}])


def without_end(folder: Path) -> object:
    tokenizer = of_words()
    tokenizer.eos_token = None
    use_template(tokenizer, "plain")
    return tokenizer


def asked(folder: Path, template: object) -> object:
    from tests import tiny
    from unmask.models.loading import create

    tokenizer: Any = byte_tokenizer()
    tokenizer.chat_template = template
    return PromptCodec(create(tiny.SHAPE, tokenizer, seed=0)).encode([{"role": "user", "content": "x"}])


CASES = [
    Case("no fast backend and no files", slow, "There is no usable tokenizer", CheckpointError),
    Case("no folder", lambda folder: load_tokenizer(folder / "nowhere"), "nowhere", CheckpointError),
    Case(
        "no tokenizer in the folder",
        lambda folder: load_tokenizer(written(folder, "m/config.json", "{}").parent),
        "no usable tokenizer",
        CheckpointError,
    ),
    Case("a control token of one letter", one_letter, "can only write as its control token", DataError),
    Case(
        "no chat template",
        lambda _: ChatTemplate(byte_tokenizer()),
        "Set data.chat_template to llada, plain",
        SettingsError,
    ),
    Case(
        "no chat template to ask",
        lambda folder: asked(folder, None),
        "has no chat template. Give the prompt as plain",
        PromptError,
    ),
    Case("an empty mapping of templates", lambda folder: asked(folder, {}), "has no chat template", PromptError),
    Case("an empty list of templates", lambda folder: asked(folder, []), "has no chat template", PromptError),
    Case(
        "named templates without default",
        lambda folder: asked(folder, {"rag": "x"}),
        "chat templates rag and none of them is called `default`",
        PromptError,
    ),
    Case(
        "a list of named templates",
        lambda folder: asked(folder, [{"name": "a", "template": "x"}]),
        "chat templates a and none",
        PromptError,
    ),
    Case("a template of bytes", lambda folder: asked(folder, b"x"), 'must be text, got "<bytes>"', PromptError),
    Case("a broken template", lambda folder: asked(folder, "{{"), "The chat template is not valid", PromptError),
    Case("no end of text for `plain`", without_end, "this tokenizer has none", SettingsError),
    Case(
        "no role tokens for `llada`",
        lambda _: use_template(of_words(), "llada"),
        "needs the tokens <|startoftext|>",
        SettingsError,
    ),
]


@parametrized(CASES)
def test_a_tokenizer_is_refused(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
