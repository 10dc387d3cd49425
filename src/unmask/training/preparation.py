"""From a recipe to what the loop needs: tokenizer, rows of text, conversations or tokens, model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from unmask.data.batch import Batch
from unmask.data.chat import Conversation
from unmask.data.chat_rows import ChatRows
from unmask.data.neat import NeatRows
from unmask.data.packing import PackedText
from unmask.data.rows import Mixture, Rows, rows_of_step
from unmask.data.sources import word_hash
from unmask.data.streaming import StreamedRows
from unmask.data.templates import ChatTemplate, use_template
from unmask.data.tokenized import TokenizedText, beginning
from unmask.errors import DataError, SettingsError
from unmask.models import adapters, loading
from unmask.models.loading import Checkpoint
from unmask.models.source import read_source
from unmask.models.tokenizers import byte_tokenizer, end_id, load_tokenizer, start_id, train_bpe
from unmask.runs import locate
from unmask.settings.data import DataSettings, PadMode
from unmask.settings.model import DEFAULT_BLOCK_LENGTH
from unmask.settings.objective import ObjectiveSettings
from unmask.settings.recipe import Recipe
from unmask.training.parts import (
    KeptSplit,
    Part,
    check_overlap,
    check_weights,
    hash_of,
    made_split,
    part_of,
    sources_of,
    tokens_of,
)
from unmask.writing import remove_leftovers, written_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DEFAULT_PAD_MODE: dict[str, PadMode] = {
    "autoregressive": "ignore",
    "masked_diffusion": "eos_supervised",
    "block_diffusion": "block",
    "tidar": "ignore",
}


@dataclass(frozen=True)
class Filling:
    """What stands behind a document or conversation in its row.

    Attributes:
        pad_mode: as in the settings; `block` also for text.
        length: with `block`, the multiple that documents are filled up to; else 1.
        eos: the id that fills up, or None.
    """

    pad_mode: PadMode
    length: int
    eos: int | None


@dataclass(frozen=True)
class TrainingText:
    """Rows of a run.

    Attributes:
        train: to learn from; of a stream, its first rows.
        held_out: to score, or None.
        skipped: malformed rows that were left out.
        mixture: shares of the sources, or None: as many rows as each holds.
        stream: all rows to learn from, where they are read while they are learned.
        split: the rule that held some of the training documents out, or None.
    """

    train: Rows
    held_out: Rows | None
    skipped: int
    mixture: Mixture | None = None
    stream: StreamedRows | None = None
    split: KeptSplit | None = None

    def rows_of_step(self, step: int, *, batch_size: int, seed: int) -> NDArray[np.int64]:
        """The rows to learn from in an optimiser step, for `batch`."""
        if self.stream is not None:
            return np.arange(step * batch_size, (step + 1) * batch_size)
        return rows_of_step(step, batch_size=batch_size, num_rows=len(self.train), seed=seed, mixture=self.mixture)

    def batch(self, rows: NDArray[np.int64], start: int, stop: int, *, step: int) -> Batch:
        """Rows number start..stop-1 of a step's rows."""
        return (self.stream or self.train).batch(rows, start, stop, step=step)

    def position(self, row: int) -> dict[str, Any] | None:
        """Where a stream stands at one of its rows; else None, as the step says it all."""
        return None if self.stream is None else self.stream.position(row)

    def seek(self, position: dict[str, Any] | None) -> None:
        """Go on where a stream stood; without a position it is read from its beginning."""
        if self.stream is not None and position is not None:
            self.stream.seek(position)


def prepare_tokenizer(
    recipe: Recipe, folder: Path, *, inherited: PreTrainedTokenizerBase | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer that a recipe names, with its chat template; a trained one is kept in `folder` and found again.

    Args:
        recipe: what is trained on what.
        folder: for a trained tokenizer.
        inherited: the tokenizer of the run that goes on, which is taken whatever the recipe names.
    """
    data = recipe.data
    tokenizer = _named_tokenizer(recipe, folder) if inherited is None else inherited
    if data.format == "chat":
        use_template(tokenizer, data.chat_template)
    return tokenizer


def _named_tokenizer(recipe: Recipe, folder: Path) -> PreTrainedTokenizerBase:
    data = recipe.data
    name = data.tokenizer or (recipe.model.from_pretrained and locate(recipe.model.from_pretrained)) or "bpe"
    if name == "byte":
        return byte_tokenizer()
    if name != "bpe":
        return load_tokenizer(name)
    if data.format == "ckpt":
        raise SettingsError(
            "data.format `ckpt` reads ids, whose tokenizer must be known. Name the one that made them with "
            "data.tokenizer, or a model that has it with model.from_pretrained."
        )
    if data.streaming:
        raise SettingsError(
            "data.streaming cannot train a tokenizer, which would need all text. Set data.tokenizer to byte, a folder "
            "or a hub id, or model.from_pretrained."
        )
    part = part_of(data, None, is_held_out=False)
    key = hash_of(*part.key, data.vocabulary_size, data.max_tokens, tokenizers.__version__)
    kept = folder / f"bpe-{key}"
    if not (kept / "tokenizer.json").is_file():
        remove_leftovers(folder)
        with written_folder(kept) as partial:
            _trained_bpe(part, data).save_pretrained(partial)
    return load_tokenizer(kept)


def prepare_text(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    block_length: int | None = None,
    kept: KeptSplit | None = None,
) -> TrainingText:
    """Tokenise (once, into `folder`) a recipe's text or conversations and make rows of them.

    Args:
        recipe: what is trained on what.
        tokenizer: that does it.
        folder: for the tokens.
        block_length: the model's, where there is one already; default: that of the checkpoint that the recipe starts
            from, of which only the configuration is read.
        kept: the split of the run that the text is of, or None: one is made.

    Raises:
        DataError: a part is empty, or a document or conversation too long, or a document in both parts.
        SettingsError: the rows cannot be filled up as the recipe says.
    """
    data = recipe.data
    check_weights(data)
    filling = _filling(recipe, tokenizer, block_length)
    remove_leftovers(folder)
    if data.streaming:
        return _streamed(recipe, tokenizer, folder, filling)
    kept = made_split(data, tokenizer) if kept is None else kept
    text = tokens_of(data, tokenizer, folder, is_held_out=False, kept=kept)
    learned = text if data.max_tokens is None else text.first(data.max_tokens)
    _check_filled(learned, data.train, text.skipped)
    train = _rows(learned, data, filling, tokenizer)
    mixture = Mixture.of(train.groups, data.weights) if data.weights else None
    if not data.validation and data.validation_fraction == 0:
        return TrainingText(train, None, text.skipped, mixture)
    held = tokens_of(data, tokenizer, folder, is_held_out=True, kept=kept)
    _check_filled(held, data.validation or data.train, held.skipped)
    if data.validation:
        check_overlap(learned, held, data)
    scored = _rows(held, dataclasses.replace(data, weights=()), filling, tokenizer)
    return TrainingText(train, scored, text.skipped + held.skipped, mixture, split=kept)


def _streamed(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path, filling: Filling) -> TrainingText:
    """Rows that are read while they are learned; held-out text is tokenised as ever."""
    data, held, skipped, barred = recipe.data, None, 0, frozenset[int]()
    if data.validation:
        text = tokens_of(data, tokenizer, folder, is_held_out=True)
        _check_filled(text, data.validation, text.skipped)
        held, skipped = _rows(text, data, filling, tokenizer), text.skipped
        barred = frozenset(map(word_hash, part_of(data, None, is_held_out=True).texts()))
    stream = StreamedRows(
        sources_of(data, None, is_validation=False),
        tokenizer,
        context_length=data.context_length,
        bos=start_id(tokenizer),
        fill=filling.length,
        eos=filling.eos,
        window=data.shuffle_rows,
        seed=recipe.seed,
        barred=barred,
        drops=data.overlap == "drop",
    )
    return TrainingText(stream.sample(), held, skipped, stream=stream)


def _check_filled(text: TokenizedText, sources: Sequence[str], skipped: int) -> None:
    if text.starts[-1] == 0:
        counted = f", and {skipped:,} malformed rows were skipped" if skipped else ""
        raise DataError(
            f"The text is empty: no document of {', '.join(sources)} has a token{counted}. Check the sources, "
            "data.text_field and data.separator."
        )


def held_out_texts(data: DataSettings, kept: KeptSplit | None = None) -> list[str]:
    """The documents that a run holds out, by the split that it keeps or else by a new one, in the order of their
    sources; empty where it holds none out.

    Raises:
        DataError: a source is missing or malformed, or holds no text but conversations or tokens.
    """
    if data.format != "text":
        raise DataError(f"It holds {data.format} rows out, and documents of text are needed.")
    if not data.validation and data.validation_fraction == 0:
        return []
    return [*part_of(data, None, is_held_out=True, kept=kept)]


def trained_texts(data: DataSettings, kept: KeptSplit | None = None) -> Iterator[str]:
    """The documents of text that a run learns from; arguments and errors as in `held_out_texts`."""
    return iter(part_of(data, None, is_held_out=False, kept=kept))


def fill_length(settings: ObjectiveSettings, checkpoint_block_length: int | None) -> int:
    """The multiple that documents are filled up to: the block length at the end of the run, 1 without block diffusion.

    That is the one that is decoded with. In a curriculum's stages with shorter blocks the objective leaves the rest of
    the filling out; in those with longer ones the last block is a shorter one.
    """
    if settings.method != "block_diffusion":
        return 1
    return (*settings.block_lengths[-1:], checkpoint_block_length or DEFAULT_BLOCK_LENGTH)[0]


def prepare_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None, resume: Path | None) -> Checkpoint:
    """The model to train: resumed, continued or new, with a mask token if its method needs one, and its adapter.

    A resumed one has its own tokenizer, the others take `tokenizer`.
    """
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


def end_turns(checkpoint: Checkpoint) -> None:
    """Let generation end where the chat template ends a turn, besides where it ended before."""
    config, tokenizer = checkpoint.backbone.network.generation_config, checkpoint.tokenizer
    assert config is not None and tokenizer is not None
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    config.eos_token_id = sorted({one for one in known if one is not None} | {ChatTemplate(tokenizer).end_id})


def _trained_bpe(part: Part[str] | Part[Conversation], data: DataSettings) -> PreTrainedTokenizerBase:
    """A BPE trained on the part, or on as much of it as `max_tokens` of a BPE trained on all of it take."""
    tokenizer = train_bpe(part.texts(), data.vocabulary_size)
    if data.max_tokens is None:
        return tokenizer
    return train_bpe(beginning(part.texts(), tokenizer, data.max_tokens), data.vocabulary_size)


def _filling(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, block_length: int | None) -> Filling:
    """How a recipe's rows are filled up.

    Raises:
        SettingsError: they cannot be.
    """
    data, method = recipe.data, recipe.objective.method
    by_method = _DEFAULT_PAD_MODE[method] if data.format != "text" or method == "block_diffusion" else "ignore"
    pad_mode = data.pad_mode or by_method
    if pad_mode == "ignore":
        return Filling(pad_mode, 1, None)
    if pad_mode == "block" and method != "block_diffusion":
        raise SettingsError(
            f"data.pad_mode `block` fills up the last block of block diffusion, and objective.method is `{method}`. "
            f"Set data.pad_mode={'ignore' if data.neat_packing else _DEFAULT_PAD_MODE[method]}."
        )
    if pad_mode != "block" and method == "block_diffusion":
        raise SettingsError(
            f"data.pad_mode `{pad_mode}` fills rows up far behind a conversation's last block, and objective.method "
            "block_diffusion learns to fill up that block only. Set data.pad_mode=block or data.pad_mode=ignore."
        )
    if pad_mode != "block" and data.neat_packing:
        raise SettingsError(
            f"data.neat_packing puts conversations side by side, where pad_mode `{pad_mode}`, the default of {method}, "
            "has no place. Set data.pad_mode=ignore or data.neat_packing=false."
        )
    if end_id(tokenizer) is None:
        remedy = "Set data.pad_mode=ignore." if data.format != "text" else "Choose another with data.tokenizer."
        raise SettingsError(
            f"data.pad_mode `{pad_mode}` fills rows up with the end-of-text token, and this tokenizer has none. "
            f"{remedy}"
        )
    if pad_mode != "block":
        return Filling(pad_mode, 1, end_id(tokenizer))
    if block_length is None and not recipe.objective.block_lengths:
        block_length = _block_length(recipe)
    length = fill_length(recipe.objective, block_length)
    if data.context_length % length and (data.format != "text" or data.neat_packing):
        raise SettingsError(
            f"data.context_length must be a multiple of the block length {length}, so that a last block has room to be "
            f"filled up, got {data.context_length}. Set data.context_length="
            f"{max(1, round(data.context_length / length)) * length}, or choose another objective.block_length."
        )
    return Filling(pad_mode, length, end_id(tokenizer))


def _block_length(recipe: Recipe) -> int | None:
    """The block length of the checkpoint that a recipe starts from, of which only the configuration is read."""
    if recipe.model.from_pretrained is None:
        return None
    source = locate(recipe.model.from_pretrained)
    adapter = adapters.find(source)
    entry = read_source(source).entry if adapter is None else adapter.diffusion
    return None if entry is None else entry.block_length


def _rows(
    text: TokenizedText, data: DataSettings, filling: Filling, tokenizer: PreTrainedTokenizerBase
) -> PackedText | NeatRows | ChatRows:
    """Packed rows, or a conversation in each; held-out rows are filled up as those that are learned from."""
    bos = start_id(tokenizer) if data.format == "text" else None
    size, fill, eos, by_source = data.context_length, filling.length, filling.eos, bool(data.weights)
    if data.neat_packing:
        long = data.over_long
        return NeatRows(text, context_length=size, over_long=long, bos=bos, fill=fill, eos=eos, by_source=by_source)
    if data.format == "text":
        return PackedText(text, context_length=size, bos=bos, fill=fill, eos=eos, by_source=by_source)
    return ChatRows(
        text,
        context_length=size,
        over_long=data.over_long,
        eos=eos,
        eos_cap=data.eos_cap,
        fill=fill if filling.pad_mode == "block" else None,
    )
