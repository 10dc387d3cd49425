"""Which documents are held out: a function of what they say, never of their order or of the process that reads them.

In: documents and the share to hold out. Out: what of each is trained on, and what is held out. Many documents are
chosen by a hash of their words, so that copies, up to white space, stay on one side. Few documents are chosen by their
sizes as well, so that about the share of the bytes is held out and neither side is empty; where no document is small
enough, the end of the largest one is held out.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from unmask.data.sources import held_out, word_hash
from unmask.errors import DataError

_ENOUGH = 5
"""With fewer documents than would hold out this many on average, their sizes are looked at."""
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Split:
    """The rule.

    Attributes:
        fraction: share of the documents to hold out.
        chosen: hashes of the documents that are held out, or None: those whose hash is small enough are.
        cut: hash of the document whose end is held out, or None.
        share: how much of that document is its end.
    """

    fraction: float
    chosen: frozenset[int] | None = None
    cut: int | None = None
    share: float = 0.0

    @property
    def documents(self) -> frozenset[int]:
        """Hashes of the documents without which the rule means nothing; none where the hash of each decides."""
        return (self.chosen or frozenset()) | (frozenset() if self.cut is None else {self.cut})

    def part(self, text: str, *, is_held_out: bool) -> str | None:
        """What of a document belongs to a side: all, nothing (None) or its beginning or end."""
        if self.chosen is None:
            return text if held_out(text, self.fraction) == is_held_out else None
        number = word_hash(text)
        if self.cut is not None and number == self.cut:
            at = cut_of(text, self.share)
            return text[at:] if is_held_out else text[:at]
        return text if (number in self.chosen) == is_held_out else None


def split_of(texts: Iterable[str], fraction: float, *, can_cut: bool, noun: str = "document") -> Split:
    """The rule for some documents, which are read only as far as it takes to see that they are many.

    Args:
        texts: what makes the documents equal or not; of a document of text, itself.
        fraction: share to hold out, between 0 and 1.
        can_cut: whether the end of a document may be held out.
        noun: what a document is called.

    Raises:
        DataError: there is nothing to hold out.
    """
    rule, sizes = Split(fraction), dict[int, int]()
    is_hit = is_missed = False
    for text in texts:
        number = word_hash(text)
        sizes[number] = sizes.get(number, 0) + len(text.encode(errors="surrogatepass"))
        is_held_out = held_out(text, fraction)
        is_hit, is_missed = is_hit or is_held_out, is_missed or not is_held_out
        # Once true it stays true, whatever follows: so the order of the documents does not matter.
        if is_hit and is_missed and len(sizes) * fraction >= _ENOUGH:
            return rule
    if not sizes:
        return rule
    return _by_size(sizes, fraction, can_cut=can_cut, noun=noun)


def _by_size(sizes: dict[int, int], fraction: float, *, can_cut: bool, noun: str) -> Split:
    """Documents in the order of their hashes, each held out if that brings the bytes held out closer to their share."""
    target = fraction * sum(sizes.values())
    chosen: set[int] = set()
    held = 0
    for number in sorted(sizes):
        if abs(held + sizes[number] - target) < abs(held - target) and len(chosen) + 1 < len(sizes):
            chosen.add(number)
            held += sizes[number]
    if chosen:
        return Split(fraction, frozenset(chosen))
    if can_cut:
        largest = max(sizes, key=lambda number: (sizes[number], number))
        return Split(fraction, frozenset(), largest, target / sizes[largest])
    if len(sizes) == 1:
        raise DataError(
            f"There is one {noun} only, so none can be held out. Give data.validation, or set "
            "data.validation_fraction=0."
        )
    return Split(fraction, frozenset({min(sizes, key=lambda number: (sizes[number], number))}))


def cut_of(text: str, fraction: float) -> int:
    """The character at which the end of a text begins that has about a share of its characters that are no white space.

    It begins with a word, the same one however the words are spaced, unless the words are too long for that.

    Raises:
        DataError: the text is a single character.
    """
    reached = np.cumsum(np.fromiter(map(len, text.split()), dtype=np.int64))
    total = int(reached[-1]) if len(reached) else 0
    wanted = (1 - fraction) * total
    if len(reached) > 1:
        word = int(np.abs(reached[:-1] - wanted).argmin())
        if abs(int(reached[word]) - wanted) <= fraction * total / 2:
            return next(itertools.islice(_WORD.finditer(text), word + 1, None)).start()
    places = [at for at, character in enumerate(text) if not character.isspace()]
    if len(places) < 2:
        raise DataError(
            "The text is a single character, of which none can be held out. Give data.validation, or set "
            "data.validation_fraction=0."
        )
    return places[min(max(1, round(wanted)), len(places) - 1)]
