"""Which documents `unmask compare` measures on: those that all runs hold out, or the sources that were given."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unmask import config
from unmask.errors import DataError
from unmask.runs import RunFolder
from unmask.settings.data import DataSettings
from unmask.settings.recipe import Recipe

if TYPE_CHECKING:
    from unmask.evaluation.pieces import Piece, Reader

_TEXT_OPTIONS = ("text_field", "separator", "split", "malformed")


@dataclass(frozen=True)
class SharedText:
    """The documents, and what is to be known about them.

    Attributes:
        documents: in the order of their sources.
        sources: where they come from.
        notes: what a reader of the comparison must know.
    """

    documents: list[str]
    sources: tuple[str, ...]
    notes: list[str]

    @property
    def digest(self) -> str:
        return _digest(self.documents)


def recipes(models: Sequence[str]) -> dict[str, Recipe]:
    """The recipes of those models that are run folders."""
    files = {model: RunFolder(Path(model)).config for model in models}
    return {model: config.load(Recipe, file=file) for model, file in files.items() if file.is_file()}


def shared_text(models: Sequence[str], runs: Mapping[str, Recipe], given: argparse.Namespace) -> SharedText:
    """The one text for all models.

    Raises:
        DataError: the runs hold different texts out and no other one was given, or there is no text.
    """
    if "data" in given:
        from unmask.data.text import Corpus

        chosen = {name: getattr(given, name) for name in _TEXT_OPTIONS if name in given}
        data = DataSettings(train=tuple(given.data), validation_fraction=0.0, **chosen)
        documents, sources = list(Corpus(data.train, data)), data.train
    else:
        documents, sources = held_out(models, runs)
    if not documents:
        raise DataError(f"The text of {', '.join(sources)} is empty. Name another: --data FILE")
    notes = [
        f"{model} is no run folder: whether it was trained on this text is not known."
        for model in models
        if model not in runs
    ]
    return SharedText(documents, sources, notes + _seen(documents, runs))


def measured_pieces(
    text: SharedText, readers: Sequence[Reader], *, at_most: int, seed: int
) -> tuple[list[str], list[Piece]]:
    """Documents in a seeded order and their pieces, so that what is measured of a long text is a sample of it."""
    from unmask import noise
    from unmask.evaluation.pieces import cut

    order = noise.permutation(noise.Purpose.DATA_ORDER, len(text.documents), seed).tolist()
    documents = [text.documents[at] for at in order]
    pieces = cut(documents, readers, at_most=at_most)
    return documents[: 1 + max(piece.document for piece in pieces)], pieces


def held_out(models: Sequence[str], runs: Mapping[str, Recipe]) -> tuple[list[str], tuple[str, ...]]:
    """The documents that all runs among the models hold out, and where they come from.

    Raises:
        DataError: none of the models is a run, a run held nothing out, or they hold different texts out.
    """
    from unmask.training import kept_split
    from unmask.training.preparation import held_out_texts

    if not runs:
        raise DataError(f"None of {', '.join(models)} is a run folder with a held-out text. Name the text: --data FILE")
    found: dict[str, list[str]] = {}
    for model, recipe in runs.items():
        try:
            kept = None
            if recipe.data.format == "text":
                kept = kept_split.of_run(RunFolder(Path(model)), recipe.data, None, purpose="compare")
            found[model] = held_out_texts(recipe.data, kept)
        except DataError as error:
            raise DataError(f"The held-out text of {model}: {error} Name a text for all: --data FILE") from None
        if not found[model]:
            raise DataError(f"The run {model} held no text out. Name a text for all: --data FILE")
    if len({_digest(documents) for documents in found.values()}) > 1:
        sizes = "; ".join(
            f"{model}: {len(documents):,} documents, {sum(len(one.encode()) for one in documents):,} bytes of "
            f"{', '.join(runs[model].data.validation or runs[model].data.train)}"
            for model, documents in found.items()
        )
        raise DataError(
            f"The runs hold different texts out ({sizes}). Figures of different texts cannot be compared. Name one "
            "that none has learned from: --data FILE"
        )
    first = next(iter(found))
    return found[first], runs[first].data.validation or runs[first].data.train


def _seen(documents: Sequence[str], runs: Mapping[str, Recipe]) -> list[str]:
    """Notes on the runs that learned from some of the documents, or that cannot be asked."""
    from unmask.training import kept_split
    from unmask.training.preparation import trained_texts

    wanted, notes = {_words(one) for one in documents}, []
    for model, recipe in runs.items():
        data = recipe.data
        if data.format != "text" or any(source.startswith("hf:") for source in data.train):
            notes.append(f"{model}: whether it was trained on documents of this text was not checked.")
            continue
        try:
            kept = kept_split.of_run(RunFolder(Path(model)), data, None, purpose="compare")
            seen = wanted & {_words(one) for one in trained_texts(data, kept)}
        except DataError as error:
            notes.append(f"{model}: whether it was trained on documents of this text is not known. {error}")
            continue
        if seen:
            notes.append(f"{model} was trained on {len(seen):,} of the {len(wanted):,} documents: it knows them.")
    return notes


def _words(text: str) -> bytes:
    """A name for a text's words, however they are spaced."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def _digest(documents: Iterable[str]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for document in documents:
        whole.update(_words(document))
    return whole.hexdigest()
