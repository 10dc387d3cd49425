"""Tokenizers: trained on the text, plain bytes, or any `AutoTokenizer`.

Those made here are byte-level, so every text survives a round trip, and put BOS in front of what they encode.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from unmask.errors import CheckpointError, DataError
from unmask.models.files import CONFIG, TOKENIZER_CONFIG, fetched
from unmask.models.json_files import read_json
from unmask.models.published.registry import FORMATS
from unmask.models.tokenizer_files import check_tokenizer_files, damage
from unmask.settings.model import DiffusionConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

BOS, EOS, MASK = "<|bos|>", "<|eos|>", "<|mask|>"
# What a vocabulary of whole characters falls back to.
_ONE_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Tokenizer classes that exist in remote code only -> the stock class that does the same.
_STOCK_CLASS = {"DreamTokenizer": "Qwen2Tokenizer"}


def train_bpe(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of at most `vocabulary_size` ids, trained on the texts; deterministic."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer)


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """One id for each of the 256 bytes, after BOS and EOS."""
    return train_bpe([], 258)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id.

    Raises:
        CheckpointError: there is none, or it has no fast backend (byte counts need its offsets).
    """
    import transformers

    folder = fetched(name)
    check_tokenizer_files(folder)
    stock = getattr(transformers, _class_name(folder))
    with damage(name):
        tokenizer = stock.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise CheckpointError(f"The tokenizer of {name} has no fast backend, whose offsets count bytes. Convert it.")
    tokenizer.init_kwargs.pop("auto_map", None)  # what is saved is the stock class, and needs no remote code
    return tokenizer


def _class_name(folder: Path) -> str:
    """The stock class of a tokenizer; `AutoTokenizer` trips over the configurations of published formats."""
    named = (read_json(folder, TOKENIZER_CONFIG) or {}).get("tokenizer_class")
    model_type = (read_json(folder, CONFIG) or {}).get("model_type")
    published = next((one.tokenizer_class for one in FORMATS.values() if one.model_type == model_type), "AutoTokenizer")
    return _STOCK_CLASS.get(str(named), published)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    """Token ids of a text, with what the tokenizer puts around it (BOS) if `special`."""
    return cast("list[int]", tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text to be continued: after what the tokenizer puts in front (BOS), which stands there once.

    What it would put at the end (BERT's `[SEP]`) is left out, since the text goes on.
    """
    ids, front = encode(tokenizer, text, special=False), _front(tokenizer)
    return ids if ids[: len(front)] == front else front + ids


def _front(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that a tokenizer puts in front of a text."""
    whole, inner = (encode(tokenizer, "a", special=special) for special in (True, False))
    starts = range(len(whole) - len(inner) + 1)
    start = next((at for at in starts if whole[at : at + len(inner)] == inner), 0)
    return whole[:start]


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, special: bool = False) -> str:
    """Text of token ids, with special tokens only if `special`."""
    return cast(str, tokenizer.decode(list(ids), skip_special_tokens=not special))


def start_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of BOS, or None."""
    return cast("int | None", tokenizer.bos_token_id)


def end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of end of text, or None."""
    return cast("int | None", tokenizer.eos_token_id)


def lead_ids(tokenizer: PreTrainedTokenizerBase | None, *, needed: bool) -> tuple[int, ...]:
    """What stands in front of a text: BOS, or end of text where there is no BOS and something is `needed`."""
    if tokenizer is None:
        return ()
    start = start_id(tokenizer)
    lead = end_id(tokenizer) if start is None and needed else start
    return () if lead is None else (lead,)


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id."""
    vocabulary = tokenizer.get_vocab()
    if not vocabulary:
        raise DataError("The tokenizer has an empty vocabulary.")
    return max(vocabulary.values()) + 1


def token_sizes(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.uint32]:
    """UTF-8 bytes of the text that each id stands for, uint32 [V]; special tokens and unused ids stand for none.

    In a byte-level vocabulary each character of a token is one byte; elsewhere a token is as long as what it adds to
    the text behind a letter.
    """
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    sizes = np.zeros(vocabulary_size(tokenizer), dtype=np.uint32)
    letter = encode(tokenizer, "a", special=False)
    is_byte_level = "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)  # type: ignore[attr-defined]
    before = len(decode(tokenizer, letter).encode())
    for number, token in names.items():
        if is_byte_level:
            sizes[number] = len(token)
        elif _ONE_BYTE.fullmatch(token):
            sizes[number] = 1
        else:
            sizes[number] = max(0, len(decode(tokenizer, [*letter, number]).encode()) - before)
    for number, added in tokenizer.added_tokens_decoder.items():
        sizes[number] = 0 if added.special else len(added.content.encode())
    return sizes


def limited(entry: DiffusionConfig, tokenizer: PreTrainedTokenizerBase | None) -> DiffusionConfig:
    """The entry of a checkpoint with its tokenizer's vocabulary, so that spare embedding rows are never predicted."""
    if tokenizer is None:
        return entry
    known = max(vocabulary_size(tokenizer), 0 if entry.mask_token_id is None else entry.mask_token_id + 1)
    return dataclasses.replace(entry, vocabulary_size=min(entry.vocabulary_size, known))


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    special = [(BOS, tokenizer.token_to_id(BOS))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )
