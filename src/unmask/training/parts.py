"""The training and the held-out documents of a recipe, and their tokens on the disk.

In: a recipe's data settings and a tokenizer. Out: the documents of either side, and each side's tokens, made once and
found again as long as nothing changed that they depend on: files, settings, split, tokenizer, template.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import numpy as np
import tokenizers

from unmask.data.chat import Conversation, Conversations
from unmask.data.chat_tokens import ChatDocuments, ChatEncoder
from unmask.data.files import named
from unmask.data.sources import Sources, word_hash
from unmask.data.splitting import Split, split_of
from unmask.data.templates import ChatTemplate
from unmask.data.text import Corpus
from unmask.data.token_files import TokenFiles
from unmask.data.tokenized import Document, TokenizedText, encoded
from unmask.errors import DataError
from unmask.settings.data import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T", str, Conversation, Document)
_FORM = 2
"""Counts up when the same text is tokenised, split or stored in another way."""
_NOUNS = {"text": "document", "chat": "conversation", "ckpt": "row"}


@dataclass(frozen=True)
class KeptSplit:
    """A rule that outlives the sources that it was made of.

    Attributes:
        split: the rule.
        train: the names of the sources.
        basis: what the rule was made of (`basis_of`).
        files: the file of each document that the rule names, by the document's hash.
    """

    split: Split
    train: tuple[str, ...]
    basis: str
    files: Mapping[int, str]

    @property
    def key(self) -> list[object]:
        """What a side's documents depend on, where the sources are others than those of the rule."""
        split = self.split
        return [split.fraction, None if split.chosen is None else sorted(split.chosen), split.cut, split.share]


class Part(Generic[T]):
    """The training or the held-out documents of a recipe; iterable more than once.

    Args:
        sources: of both sides, or of this one where validation has its own.
        data: how they are split.
        is_held_out: which side this is.
        without: the documents of the other side that are left out of this one, or None.
        kept: the rule that splits them, or None: one is made of the sources.
    """

    def __init__(
        self,
        sources: Sources[T],
        data: DataSettings,
        *,
        is_held_out: bool,
        without: Part[T] | None = None,
        kept: KeptSplit | None = None,
    ) -> None:
        self.sources, self.data, self.without, self.kept = sources, data, without, kept
        self.fraction = 0.0 if data.validation else data.validation_fraction
        self.is_held_out = is_held_out and not data.validation
        self._split = None if kept is None else kept.split
        self._barred: frozenset[int] | None = None

    def __iter__(self) -> Iterator[T]:
        for group in self.groups():
            yield from group

    def groups(self) -> Iterator[Iterator[T]]:
        """The documents of each named source."""
        self.sources.skipped = 0
        return (self._chosen(self.sources.of_group(number)) for number in range(len(self.sources.groups)))

    def texts(self) -> Iterator[str]:
        """The documents as texts."""
        return map(self.sources.words, self)

    @property
    def key(self) -> list[object]:
        """What its documents depend on."""
        barred = None if self.without is None else self.without.sources.fingerprint()
        made = [_FORM, self.sources.fingerprint(), self.fraction, self.is_held_out, barred]
        if self.kept is None or self.kept.basis == basis_of(self.sources, self.data):
            return made  # such a rule is the one that the sources give
        return [*made, self.kept.key]

    def _chosen(self, documents: Iterable[T]) -> Iterator[T]:
        if self.without is not None:
            if self._barred is None:
                self._barred = frozenset(map(word_hash, self.without.texts()))
            barred = self._barred
            yield from (one for one in documents if word_hash(self.sources.words(one)) not in barred)
        elif self.fraction == 0:
            yield from () if self.is_held_out else documents
        else:
            yield from self._of_side(documents, self._rule())

    def _of_side(self, documents: Iterable[T], split: Split) -> Iterator[T]:
        for document in documents:
            found = split.part(self.sources.words(document), is_held_out=self.is_held_out)
            if found is not None:
                # Only documents of text are cut.
                yield cast(T, found) if isinstance(document, str) else document

    def _rule(self) -> Split:
        if self._split is None:
            self._split = _split_of(map(self.sources.words, self.sources), self.data)
            self.sources.skipped = 0
        return self._split


def _split_of(texts: Iterable[str], data: DataSettings) -> Split:
    return split_of(texts, data.validation_fraction, can_cut=data.format == "text", noun=_NOUNS[data.format])


def has_split(data: DataSettings) -> bool:
    """Whether some of the training documents are held out."""
    return not data.validation and data.validation_fraction > 0


def basis_of(sources: Sources[Any], data: DataSettings) -> str:
    """A name for all that the rule depends on which splits the documents of some sources."""
    return hash_of(_FORM, sources.fingerprint(), data.validation_fraction, data.format)


def made_split(data: DataSettings, tokenizer: PreTrainedTokenizerBase | None) -> KeptSplit | None:
    """The rule that splits the documents of a recipe, for whoever keeps it; None where no rule does.

    Raises:
        DataError: a source cannot be read, or nothing can be held out.
    """
    if not has_split(data):
        return None
    sources = sources_of(data, tokenizer, is_validation=False)
    basis, files = basis_of(sources, data), dict[int, str]()

    def texts() -> Iterator[str]:
        for file, text in read_in_order(sources):
            files.setdefault(word_hash(text), file)
            yield text

    split = _split_of(texts(), data)
    return KeptSplit(split, data.train, basis, {number: files[number] for number in split.documents})


def read_in_order(sources: Sources[Any]) -> Iterator[tuple[str, str]]:
    """The file or dataset of each document, and the document as a text."""
    for number, file in enumerate(sources.sources):
        for _, document in sources.of_source(number):
            yield file, sources.words(document)


def part_of(
    data: DataSettings,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    is_held_out: bool,
    kept: KeptSplit | None = None,
) -> Part[Any]:
    """A side of a recipe's documents; rows of tokens need the tokenizer that made them."""
    without = None
    if data.overlap == "drop" and data.validation and not is_held_out:
        without = part_of(data, tokenizer, is_held_out=True)
    sources = sources_of(data, tokenizer, is_validation=is_held_out and bool(data.validation))
    return Part(sources, data, is_held_out=is_held_out, without=without, kept=kept)


def sources_of(data: DataSettings, tokenizer: PreTrainedTokenizerBase | None, *, is_validation: bool) -> Sources[Any]:
    """The sources of the training text, or of validation text that has its own."""
    names = data.validation if is_validation else data.train
    if data.format == "text":
        return Corpus(names, data, is_validation=is_validation)
    if data.format == "chat":
        return Conversations(names, data, is_validation=is_validation)
    assert tokenizer is not None, "token files are read with a tokenizer"
    return TokenFiles(names, data, tokenizer)


def tokens_of(
    data: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    is_held_out: bool,
    kept: KeptSplit | None = None,
) -> TokenizedText:
    """The tokens of a side, made in `folder` unless they are there."""
    part = part_of(data, tokenizer, is_held_out=is_held_out, kept=kept)
    written: list[object] = []
    if data.format == "chat":
        written = [ChatTemplate(tokenizer).fingerprint(), data.supervise]
    found = folder / f"{data.format}-{hash_of(*part.key, tokenizer_key(tokenizer), *written)}"
    if not TokenizedText.is_in(found):
        _write(part, data, tokenizer, found)
    return TokenizedText.open(found)


def _write(part: Part[Any], data: DataSettings, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    def unreadable() -> int:
        # Both parts of one source meet the same unreadable rows: those count once.
        return 0 if part.is_held_out else part.sources.skipped

    if data.format == "text":
        TokenizedText.write_groups((encoded(group, tokenizer) for group in part.groups()), folder, skipped=unreadable)
    elif data.format == "ckpt":
        TokenizedText.write_groups(part.groups(), folder, skipped=unreadable)
    else:
        encoder = ChatEncoder(ChatTemplate(tokenizer))
        made = [ChatDocuments(group, encoder, data.supervise, part.sources.malformed) for group in part.groups()]
        TokenizedText.write_groups(made, folder, skipped=lambda: unreadable() + sum(one.refused for one in made))


def check_overlap(train: TokenizedText, validation: TokenizedText, data: DataSettings) -> None:
    """Refuse validation documents that are trained on as well.

    Raises:
        DataError: there are some; the message counts them.
    """
    known = validation.digests()
    number = int(np.isin(known, train.digests()).sum())
    if number:
        raise DataError(
            f"{number:,} of {len(known):,} validation documents are training documents too, so their score would say "
            "nothing. Name other sources or splits (hf:NAME@SPLIT, data.validation_split) than "
            f"{', '.join(data.train)}, leave data.validation out to hold some out, or set data.overlap=drop to train "
            "without them."
        )


def check_weights(data: DataSettings) -> None:
    """There are as many weights as sources, if there are any.

    Raises:
        DataError: there are not.
    """
    number = len(named(data.train))
    if data.weights and len(data.weights) != number:
        raise DataError(
            f"data.weights must have a weight for each source of data.train, of which there are {number}, got "
            f"{len(data.weights)}. A glob or folder is one source."
        )


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """A name for all that a text's ids depend on: vocabulary, merges, normaliser, added tokens, library.

    Text never encodes to the mask token, so a tokenizer that gained one still finds what it tokenised before.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    backend |= {"truncation": None, "padding": None}
    mask = tokenizer.mask_token
    backend["added_tokens"] = [one for one in backend["added_tokens"] if one["content"] != mask]
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hash_of(backend, ends, tokenizers.__version__)


def hash_of(*parts: object) -> str:
    """A name for plain data."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()
