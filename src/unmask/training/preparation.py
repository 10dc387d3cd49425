"""From a recipe to what the loop needs: tokenizer, packed text, model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.data.packing import PackedText
from unmask.data.text import Corpus, held_out
from unmask.data.tokenized import TokenizedText
from unmask.errors import DataError, SettingsError
from unmask.models import adapters, loading
from unmask.models.loading import Checkpoint
from unmask.models.tokenizers import byte_tokenizer, load_tokenizer, start_id, train_bpe
from unmask.runs import locate
from unmask.settings.data import DataSettings
from unmask.settings.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TrainingText:
    """Packed rows of a run.

    Attributes:
        train: to learn from.
        held_out: to score, or None.
        skipped: malformed rows that were left out.
    """

    train: PackedText
    held_out: PackedText | None
    skipped: int


class _Part:
    """The training or the held-out documents of a recipe; iterable more than once."""

    def __init__(self, data: DataSettings, *, is_held_out: bool) -> None:
        sources = data.validation if is_held_out and data.validation else data.train
        self.corpus = Corpus(sources, data)
        self.fraction = 0.0 if data.validation else data.validation_fraction
        self.is_held_out = is_held_out and not data.validation

    def __iter__(self) -> Iterator[str]:
        return (text for text in self.corpus if held_out(text, self.fraction) == self.is_held_out)


def prepare_tokenizer(recipe: Recipe, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that a recipe names; a trained one is kept in `folder` and found there again."""
    name = recipe.data.tokenizer or (recipe.model.from_pretrained and locate(recipe.model.from_pretrained)) or "bpe"
    if name == "byte":
        return byte_tokenizer()
    if name != "bpe":
        return load_tokenizer(name)
    part = _Part(recipe.data, is_held_out=False)
    key = _key(part.corpus.fingerprint(), part.fraction, recipe.data.vocabulary_size)
    kept = folder / f"bpe-{key}"
    if not (kept / "tokenizer.json").is_file():
        tokenizer = train_bpe(part, recipe.data.vocabulary_size)
        tokenizer.save_pretrained(kept)
    return load_tokenizer(kept)


def prepare_text(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path) -> TrainingText:
    """Tokenise (once, into `folder`) and pack a recipe's text.

    Raises:
        DataError: a part is empty.
    """
    data = recipe.data
    train, skipped = _packed(_Part(data, is_held_out=False), data, tokenizer, folder)
    if not data.validation and data.validation_fraction == 0:
        return TrainingText(train, None, skipped)
    try:
        rows, _ = _packed(_Part(data, is_held_out=True), data, tokenizer, folder)
    except DataError as error:
        raise DataError(
            f"{error} This is the held-out part: give data.validation, raise data.validation_fraction "
            f"({data.validation_fraction}), split the text with data.separator, or set data.validation_fraction=0."
        ) from None
    return TrainingText(train, rows, skipped)


def prepare_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, resume: Path | None) -> Checkpoint:
    """The model to train: resumed, continued or new, with a mask token if its method needs one, and its adapter."""
    backend = recipe.training.attention_backend
    # bitsandbytes quantises where the weights will be used.
    device = "cpu" if recipe.adapter.quantization is None else None
    if resume is not None:
        checkpoint = loading.load(resume, device=device, attention_backend=backend)
        adapters.take_up(checkpoint.backbone, recipe.adapter, source=str(resume))
        return checkpoint
    if recipe.model.from_pretrained is None:
        if recipe.adapter.rank is not None:
            raise SettingsError("adapter.rank needs a checkpoint below the adapter: set model.from_pretrained.")
        checkpoint = loading.create(recipe.model, tokenizer, seed=recipe.seed, attention_backend=backend)
        return loading.adapted(_fitting(checkpoint, recipe), recipe.objective)
    source = locate(recipe.model.from_pretrained)
    loaded = loading.load(
        source,
        device=device,
        dtype=recipe.model.dtype,
        attention_backend=backend,
        quantize=recipe.adapter.quantization,
    )
    checkpoint = _fitting(Checkpoint(loaded.backbone, tokenizer), recipe)
    if loaded.backbone.adapter is not None:
        adapters.take_up(loaded.backbone, recipe.adapter, source=source)
        return loading.adapted(checkpoint, recipe.objective)
    checkpoint = loading.adapted(checkpoint, recipe.objective)
    if recipe.adapter.rank is not None:
        adapters.attach(checkpoint.backbone, recipe.adapter, base=source, seed=recipe.seed)
    return checkpoint


def _fitting(checkpoint: Checkpoint, recipe: Recipe) -> Checkpoint:
    if recipe.data.context_length > checkpoint.backbone.context_length:
        raise SettingsError(
            f"data.context_length must be at most the model's {checkpoint.backbone.context_length} positions, got "
            f"{recipe.data.context_length}. Lower it, or raise model.max_position_embeddings of a new model."
        )
    return checkpoint


def _packed(
    part: _Part, data: DataSettings, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> tuple[PackedText, int]:
    # Text never encodes to the mask token, so a tokenizer that gained one still finds what it tokenised before.
    vocabulary = sorted(item for item in tokenizer.get_vocab().items() if item[0] != tokenizer.mask_token)
    words = hashlib.blake2b(json.dumps(vocabulary).encode(), digest_size=8).hexdigest()
    kept = folder / f"text-{_key(part.corpus.fingerprint(), part.fraction, part.is_held_out, words)}"
    facts = kept / "skipped.json"
    if not facts.is_file():
        TokenizedText.build(part, tokenizer, kept)
        facts.write_text(json.dumps(part.corpus.skipped), encoding="utf-8")
    text = TokenizedText.open(kept)
    rows = PackedText(text, context_length=data.context_length, bos=start_id(tokenizer))
    return rows, int(json.loads(facts.read_text(encoding="utf-8")))


def _key(*parts: object) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()
