"""Tokenised text on disk: flat arrays that are mapped, not loaded.

In: documents and a tokenizer, or tokenised conversations. Out: all tokens end to end (EOS after each document of text),
the UTF-8 bytes that each token stands for (they sum to the text's bytes, so bits per byte are exact), where each
document starts, and of conversations which tokens are supervised. Ids, bytes of a token and counts have as many bits as
they may ever need: a token may stand for a whole document, and a corpus for more tokens than 32 bits count.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from unmask.errors import DataError
from unmask.writing import written_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DOCUMENTS_AT_ONCE = 256
_FACTS = "facts.json"


class Document(NamedTuple):
    """One tokenised document.

    Attributes:
        ids: uint32 [N].
        bytes: uint32 [N]; UTF-8 bytes of text that each token stands for.
        supervised: bool [N], or None: every token is.
        where: what it was made of, for messages.
    """

    ids: NDArray[np.uint32]
    bytes: NDArray[np.uint32]
    supervised: NDArray[np.bool_] | None = None
    where: str = ""


@dataclass(frozen=True)
class TokenizedText:
    """Documents as flat arrays.

    Attributes:
        tokens: uint32 [N].
        bytes: uint32 [N]; UTF-8 bytes of text that each token stands for.
        starts: int64 [documents + 1]; document d is tokens[starts[d]:starts[d + 1]].
        supervised: bool [N], or None: every token is.
        places: file of what the documents were made of, a line for each, or None.
        groups: where the documents of each source end; empty where nobody asks.
        skipped: malformed rows that were left out.
    """

    tokens: NDArray[np.uint32]
    bytes: NDArray[np.uint32]
    starts: NDArray[np.int64]
    supervised: NDArray[np.bool_] | None = None
    places: Path | None = None
    groups: tuple[int, ...] = ()
    skipped: int = 0

    @staticmethod
    def build(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, folder: Path) -> TokenizedText:
        """Tokenise texts into `folder`, which appears whole or not at all."""
        return TokenizedText.write(encoded(texts, tokenizer), folder)

    @staticmethod
    def write(documents: Iterable[Document], folder: Path) -> TokenizedText:
        """Write documents, all with supervision or all without, into `folder`, which appears whole or not at all."""
        return TokenizedText.write_groups([documents], folder)

    @staticmethod
    def write_groups(
        groups: Iterable[Iterable[Document]], folder: Path, *, skipped: Callable[[], int] = lambda: 0
    ) -> TokenizedText:
        """Write the documents of each source into `folder`, which appears whole or not at all.

        Args:
            groups: the documents of each source, all with supervision or all without.
            folder: a new one.
            skipped: how many malformed rows were left out, once all documents are read.
        """
        with written_folder(folder) as partial:
            starts, ends = [0], []
            with contextlib.ExitStack() as files:
                tokens, sizes, flags, places = (
                    files.enter_context((partial / name).open("wb"))
                    for name in ("tokens.bin", "bytes.bin", "supervised.bin", "places.txt")
                )
                for group in groups:
                    for document in group:
                        tokens.write(document.ids.astype(np.uint32, copy=False).tobytes())
                        sizes.write(document.bytes.astype(np.uint32, copy=False).tobytes())
                        if document.supervised is not None:
                            flags.write(document.supervised.tobytes())
                            places.write(" ".join(document.where.splitlines()).encode(errors="replace") + b"\n")
                        starts.append(starts[-1] + len(document.ids))
                    ends.append(len(starts) - 1)
            np.save(partial / "starts.npy", np.array(starts, dtype=np.int64))
            facts = {"documents": len(starts) - 1, "tokens": starts[-1], "groups": ends, "skipped": skipped()}
            (partial / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
        return TokenizedText.open(folder)

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a folder was written here."""
        return (folder / _FACTS).is_file()

    @staticmethod
    def open(folder: Path) -> TokenizedText:
        """Map the arrays of a folder that was written here.

        Raises:
            DataError: the folder is damaged.
        """
        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            groups, skipped = tuple(map(int, facts["groups"])), int(facts["skipped"])
            starts = np.load(folder / "starts.npy", allow_pickle=False)
            if starts[-1] == 0:
                empty = np.zeros(0, dtype=np.uint32)
                return TokenizedText(empty, empty, starts, groups=groups, skipped=skipped)
            tokens = np.memmap(folder / "tokens.bin", dtype=np.uint32, mode="r")
            sizes = np.memmap(folder / "bytes.bin", dtype=np.uint32, mode="r")
            flags, supervised = folder / "supervised.bin", None
            if flags.is_file() and flags.stat().st_size > 0:
                supervised = np.memmap(flags, dtype=np.bool_, mode="r")
        except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError):
            raise _damaged(folder) from None
        if {len(one) for one in (tokens, sizes, supervised) if one is not None} != {int(starts[-1])}:
            raise _damaged(folder)
        return TokenizedText(tokens, sizes, starts, supervised, folder / "places.txt", groups, skipped)

    def first(self, tokens: int) -> TokenizedText:
        """The documents in the first `tokens` tokens, the last one perhaps cut; all of them if there are no more."""
        documents = int(np.searchsorted(self.starts[:-1], tokens))
        return dataclasses.replace(
            self,
            tokens=self.tokens[:tokens],
            bytes=self.bytes[:tokens],
            starts=np.minimum(self.starts[: documents + 1], tokens),
            supervised=None if self.supervised is None else self.supervised[:tokens],
            groups=tuple(min(end, documents) for end in self.groups),
        )

    def digests(self) -> NDArray[np.uint64]:
        """A hash of the ids of each document that has any, uint64."""
        bounds = itertools.pairwise(self.starts.tolist())
        made = [digest_of(self.tokens[start:stop]) for start, stop in bounds if start < stop]
        return np.array(made, dtype=np.uint64)

    def place(self, document: int) -> str:
        """What a document was made of: file and line, as far as that was written down."""
        if self.places is None:
            return f"number {document}"
        with self.places.open(encoding="utf-8") as lines:
            return next(itertools.islice(lines, document, None), "").strip() or f"number {document}"


def digest_of(ids: NDArray[np.uint32]) -> int:
    """A hash of a document's ids."""
    content = np.ascontiguousarray(ids, dtype=np.uint32).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def _damaged(folder: Path) -> DataError:
    return DataError(f"The tokenised text in {folder} is damaged. Remove the folder; it will be made again.")


def encoded(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[Document]:
    """Texts as documents, EOS after each."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    iterator = iter(texts)
    while batch := list(itertools.islice(iterator, _DOCUMENTS_AT_ONCE)):
        found = tokenizer(
            batch,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for text, ids, offsets in zip(batch, found["input_ids"], found["offset_mapping"], strict=True):
            lengths = byte_lengths(text, [stop for _, stop in offsets])
            sizes = np.append(lengths, [0] * len(end)).astype(np.uint32)
            yield Document(np.array(ids + end, dtype=np.uint32), sizes)


def beginning(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, tokens: int) -> Iterator[str]:
    """The texts in their first `tokens` tokens, EOS after each of them included; the last one perhaps cut."""
    for text in texts:
        if tokens <= 0:
            return
        found = tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        stops = [stop for _, stop in cast("list[tuple[int, int]]", found["offset_mapping"])]
        yield text if len(stops) <= tokens else text[: stops[tokens - 1]]
        tokens -= len(stops) + 1


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
