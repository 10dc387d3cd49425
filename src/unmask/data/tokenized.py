"""Tokenised text on disk: three flat arrays that are mapped, not loaded.

In: documents and a tokenizer. Out: all tokens end to end (EOS after each document), the UTF-8 bytes that each token
stands for (they sum to the text's bytes, so bits per byte are exact), and where each document starts.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unmask.errors import DataError
from unmask.runs import written_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DOCUMENTS_AT_ONCE = 256


@dataclass(frozen=True)
class TokenizedText:
    """Documents as flat arrays.

    Attributes:
        tokens: uint32 [N].
        bytes: uint16 [N]; UTF-8 bytes of text behind each token.
        starts: int64 [documents + 1]; document d is tokens[starts[d]:starts[d + 1]].
    """

    tokens: NDArray[np.uint32]
    bytes: NDArray[np.uint16]
    starts: NDArray[np.int64]

    @staticmethod
    def build(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, folder: Path) -> TokenizedText:
        """Tokenise into `folder`, which appears whole or not at all."""
        with written_folder(folder) as partial:
            starts = [0]
            with (partial / "tokens.bin").open("wb") as tokens, (partial / "bytes.bin").open("wb") as sizes:
                for ids, lengths in _encoded(texts, tokenizer):
                    tokens.write(ids.tobytes())
                    sizes.write(lengths.tobytes())
                    starts.append(starts[-1] + len(ids))
            np.save(partial / "starts.npy", np.array(starts, dtype=np.int64))
            (partial / "facts.json").write_text(json.dumps({"documents": len(starts) - 1, "tokens": starts[-1]}))
        return TokenizedText.open(folder)

    @staticmethod
    def open(folder: Path) -> TokenizedText:
        """Map the arrays of a folder that `build` wrote."""
        starts = np.load(folder / "starts.npy", allow_pickle=False)
        if starts[-1] == 0:
            empty = np.zeros(0, dtype=np.uint32)
            return TokenizedText(empty, empty.astype(np.uint16), starts)
        tokens = np.memmap(folder / "tokens.bin", dtype=np.uint32, mode="r")
        sizes = np.memmap(folder / "bytes.bin", dtype=np.uint16, mode="r")
        if not len(tokens) == len(sizes) == starts[-1]:
            raise DataError(f"The tokenised text in {folder} is damaged. Remove the folder; it will be made again.")
        return TokenizedText(tokens, sizes, starts)


def _encoded(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.uint16]]]:
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    iterator = iter(texts)
    while batch := list(itertools.islice(iterator, _DOCUMENTS_AT_ONCE)):
        encoded = tokenizer(
            batch,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for text, ids, offsets in zip(batch, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            lengths = byte_lengths(text, [stop for _, stop in offsets])
            yield np.array(ids + end, dtype=np.uint32), np.append(lengths, [0] * len(end)).astype(np.uint16)


def byte_lengths(text: str, stops: list[int]) -> NDArray[np.int64]:
    """UTF-8 bytes of each token, given the character where each one stops; they sum to the bytes of the text."""
    if not stops:
        return np.zeros(0, dtype=np.int64)
    reached = np.maximum.accumulate(np.array(stops, dtype=np.int64))
    reached[-1] = len(text)
    if not text.isascii():
        points = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
        sizes = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
        reached = np.concatenate([[0], sizes.cumsum()])[reached]
    return np.diff(reached, prepend=0)
