"""Texts to score: as token ids, as a batch, and what a tokenizer loses of them.

A text that spells special tokens (`<|endoftext|>`) is text to every scorer, as it is to training: no part of it becomes
a control token, and all of its bytes are scored. Only a conversation that a chat template wrote holds control tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from unmask.data.batch import Batch
from unmask.data.tokenized import byte_lengths
from unmask.errors import PromptError
from unmask.models.prompts import PromptCodec
from unmask.models.tokenizers import end_id, start_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    """Token ids of a text that holds no control tokens, whatever it spells, after BOS if `special`."""
    encoded = tokenizer(_readable(text), add_special_tokens=special, split_special_tokens=True, verbose=False)
    return cast("list[int]", encoded["input_ids"])


def ids_and_stops(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """The same ids, and the character of the text where each one stops."""
    encoded = tokenizer(
        _readable(text),
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    offsets = cast("list[tuple[int, int]]", encoded["offset_mapping"])
    return cast("list[int]", encoded["input_ids"]), [stop for _, stop in offsets]


def _readable(text: str) -> str:
    """The text, if it has a UTF-8 form, which is what tokenizers read and bytes are counted of."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"A text to score has half a surrogate pair ({text[error.start]!a}) at character {error.start}, which has "
            "no UTF-8 form. Replace it: text.encode(errors='replace').decode()"
        ) from None
    return text


@dataclass
class Kept:
    """What a tokenizer keeps of some texts.

    Attributes:
        documents: texts that were read.
        changed: texts that do not come back from their token ids as they were; space around them does not count.
        unknown: tokens that stand for what the vocabulary has not.
        text_bytes: UTF-8 bytes of the texts.
        scored_bytes: those that tokens stand for.
        example: the beginning of the first difference, and what comes back.
    """

    documents: int = 0
    changed: int = 0
    unknown: int = 0
    text_bytes: int = 0
    scored_bytes: int = 0
    example: tuple[str, str] = ("", "")

    @property
    def warning(self) -> str:
        """What a reader of a figure must know, or nothing."""
        if not self.changed and self.text_bytes == self.scored_bytes:
            return ""
        text, back = self.example
        return (
            f"The tokenizer changes {self.changed:,} of {self.documents:,} texts ({text!r} comes back as {back!r}; "
            f"{self.unknown:,} unknown tokens) and scores {self.scored_bytes:,} of their {self.text_bytes:,} bytes: "
            "bits per byte are those of the text that it keeps, and too low for the one that was given."
        )


def kept(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Kept:
    """Count what a tokenizer keeps of texts."""
    found, unknown = Kept(), tokenizer.unk_token_id
    for text in texts:
        ids, stops = ids_and_stops(tokenizer, text)
        found.documents += 1
        found.unknown += 0 if unknown is None else ids.count(cast(int, unknown))
        found.text_bytes += len(text.encode())
        found.scored_bytes += int(byte_lengths(text, stops).sum())
        difference = changed(tokenizer, text, ids)
        if difference is not None:
            found.example = found.example if found.changed else difference
            found.changed += 1
    return found


def changed(tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int]) -> tuple[str, str] | None:
    """The first difference between a text and what its ids say, with what stands around it; None if there is none."""
    back = cast(str, tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    # Some tokenizers put a space in front of every text, and take it away again.
    if back.strip() == text.strip():
        return None
    pairs = enumerate(itertools.zip_longest(back.strip(), text.strip()))
    at = next(at for at, (one, other) in pairs if one != other)
    begin = max(0, at - 10)
    return text.strip()[begin : at + 20], back.strip()[begin : at + 20]


def text_batch(codec: PromptCodec, texts: Sequence[str | Sequence[int]], *, or_end: bool = False) -> Batch:
    """Texts (or token ids) after BOS as rows whose draws do not depend on the batch; BOS is not scored.

    Args:
        codec: of the model.
        texts: to score.
        or_end: where there is no BOS, the end-of-text token stands in front.

    Raises:
        PromptError: a text is empty, longer than the context, or needs a tokenizer that is not there.
    """
    bos = None if codec.tokenizer is None else start_id(codec.tokenizer)
    if bos is None and or_end and codec.tokenizer is not None:
        bos = end_id(codec.tokenizer)
    start = [] if bos is None else [bos]
    ids, sizes = [], []
    for text in texts:
        if isinstance(text, str):
            if codec.tokenizer is None:
                raise PromptError("This checkpoint has no tokenizer: give texts as lists of token ids.")
            found, stops = ids_and_stops(codec.tokenizer, text)
            tokens = codec.checked(found) if found else []
            sizes.append(byte_lengths(text, stops).tolist())
        else:
            tokens = codec.checked(text) if text else []
            sizes.append([0] * len(tokens))
        ids.append(start + tokens)
    if not all(ids):
        raise PromptError(
            f"Text {ids.index([])} is empty, and this model has no BOS to read before it, so nothing of it is scored. "
            "Leave it out."
        )
    longest = max(map(len, ids))
    if longest > codec.backbone.context_length:
        raise PromptError(
            f"A text to score must have between 1 and {codec.backbone.context_length} tokens, got {longest}. "
            "Cut it into pieces."
        )
    lead = len(start)
    supervised = [[False] * lead + [True] * (len(row) - lead) for row in ids]
    batch = Batch.of_rows(ids, supervised)
    bytes_BL = torch.zeros_like(batch.ids_BL)
    for row, size in enumerate(sizes):
        bytes_BL[row, lead : lead + len(size)] = torch.tensor(size, dtype=torch.int64)
    return dataclasses.replace(batch, uid_B=torch.zeros(len(ids), dtype=torch.int64), bytes_BL=bytes_BL)
