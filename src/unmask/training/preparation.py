"""From a recipe to what the loop needs: tokenizer, rows of text, conversations or tokens, model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from unmask.data.chat import Conversation, Conversations
from unmask.data.chat_rows import ChatRows
from unmask.data.chat_tokens import ChatDocuments, ChatEncoder
from unmask.data.neat import NeatRows
from unmask.data.packing import PackedText
from unmask.data.rows import Rows
from unmask.data.sources import Sources, held_out
from unmask.data.templates import ChatTemplate, use_template
from unmask.data.text import Corpus
from unmask.data.token_files import TokenFiles, words_of
from unmask.data.tokenized import Document, TokenizedText, beginning
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T", str, Conversation, Document)
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
        train: to learn from.
        held_out: to score, or None.
        skipped: malformed rows that were left out.
    """

    train: Rows
    held_out: Rows | None
    skipped: int


class _Part(Generic[T]):
    """The training or the held-out documents of a recipe; iterable more than once."""

    def __init__(self, sources: Sources[T], text_of: Callable[[T], str], data: DataSettings, is_held_out: bool) -> None:
        self.sources, self.text_of = sources, text_of
        self.fraction = 0.0 if data.validation else data.validation_fraction
        self.is_held_out = is_held_out and not data.validation

    def __iter__(self) -> Iterator[T]:
        return (one for one in self.sources if held_out(self.text_of(one), self.fraction) == self.is_held_out)

    def texts(self) -> Iterator[str]:
        """The documents as texts."""
        return map(self.text_of, self)


def prepare_tokenizer(recipe: Recipe, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that a recipe names, with its chat template; a trained one is kept in `folder` and found again."""
    data = recipe.data
    name = data.tokenizer or (recipe.model.from_pretrained and locate(recipe.model.from_pretrained)) or "bpe"
    if name == "bpe" and data.format == "ckpt":
        raise SettingsError(
            "data.format `ckpt` reads ids, whose tokenizer must be known. Name the one that made them with "
            "data.tokenizer, or a model that has it with model.from_pretrained."
        )
    if name == "byte":
        tokenizer = byte_tokenizer()
    elif name == "bpe":
        part = _texts(data) if data.format == "text" else _conversations(data)
        limit = () if data.max_tokens is None else (data.max_tokens,)
        key = _key(part.sources.fingerprint(), part.fraction, data.vocabulary_size, *limit)
        kept = folder / f"bpe-{key}"
        if not (kept / "tokenizer.json").is_file():
            _trained_bpe(part, data).save_pretrained(kept)
        tokenizer = load_tokenizer(kept)
    else:
        tokenizer = load_tokenizer(name)
    if data.format == "chat":
        use_template(tokenizer, data.chat_template)
    return tokenizer


def prepare_text(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path, *, block_length: int | None = None
) -> TrainingText:
    """Tokenise (once, into `folder`) a recipe's text or conversations and make rows of them.

    Args:
        recipe: what is trained on what.
        tokenizer: that does it.
        folder: for the tokens.
        block_length: the model's, where there is one already; default: that of the checkpoint that the recipe starts
            from, of which only the configuration is read.

    Raises:
        DataError: a part is empty, or a document or conversation too long.
        SettingsError: the rows cannot be filled up as the recipe says.
    """
    data = recipe.data
    filling = _filling(recipe, tokenizer, block_length)
    text, skipped = _tokenized(data, tokenizer, folder, is_held_out=False)
    learned = text if data.max_tokens is None else text.first(data.max_tokens)
    train = _rows(learned, data, filling, tokenizer)
    if not data.validation and data.validation_fraction == 0:
        return TrainingText(train, None, skipped)
    text, skipped_there = _tokenized(data, tokenizer, folder, is_held_out=True)
    if text.starts[-1] == 0:
        raise DataError(
            "The held-out part is empty: give data.validation, raise data.validation_fraction "
            f"({data.validation_fraction}), split the text with data.separator, or set data.validation_fraction=0."
        )
    return TrainingText(train, _rows(text, data, filling, tokenizer), skipped + skipped_there)


def held_out_texts(data: DataSettings) -> list[str]:
    """The documents that a run holds out, in the order of their sources; empty where it holds none out.

    Raises:
        DataError: a source is missing or malformed, or holds no text but conversations or tokens.
    """
    if data.format != "text":
        raise DataError(f"It holds {data.format} rows out, and documents of text are needed.")
    return [] if not data.validation and data.validation_fraction == 0 else [*_texts(data, is_held_out=True)]


def trained_texts(data: DataSettings) -> Iterator[str]:
    """The documents of text that a run learns from; arguments and errors as in `held_out_texts`."""
    return iter(_texts(data))


def fill_length(settings: ObjectiveSettings, checkpoint_block_length: int | None) -> int:
    """The multiple that documents are filled up to: the block length at the end of the run, 1 without block diffusion.

    That is the one that is decoded with. In a curriculum's stages with shorter blocks the objective leaves the rest of
    the filling out; in those with longer ones the last block is a shorter one.
    """
    if settings.method != "block_diffusion":
        return 1
    return (*settings.block_lengths[-1:], checkpoint_block_length or DEFAULT_BLOCK_LENGTH)[0]


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


def end_turns(checkpoint: Checkpoint) -> None:
    """Let generation end where the chat template ends a turn, besides where it ended before."""
    config, tokenizer = checkpoint.backbone.network.generation_config, checkpoint.tokenizer
    assert config is not None and tokenizer is not None
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    config.eos_token_id = sorted({one for one in known if one is not None} | {ChatTemplate(tokenizer).end_id})


def _trained_bpe(part: _Part[str] | _Part[Conversation], data: DataSettings) -> PreTrainedTokenizerBase:
    """A BPE trained on the part, or on as much of it as `max_tokens` of a BPE trained on all of it take."""
    tokenizer = train_bpe(part.texts(), data.vocabulary_size)
    if data.max_tokens is None:
        return tokenizer
    return train_bpe(beginning(part.texts(), tokenizer, data.max_tokens), data.vocabulary_size)


def _texts(data: DataSettings, *, is_held_out: bool = False) -> _Part[str]:
    return _Part(Corpus(_names(data, is_held_out), data), str, data, is_held_out)


def _conversations(data: DataSettings, *, is_held_out: bool = False) -> _Part[Conversation]:
    return _Part(Conversations(_names(data, is_held_out), data), lambda one: one.text, data, is_held_out)


def _token_files(
    data: DataSettings, tokenizer: PreTrainedTokenizerBase, *, is_held_out: bool = False
) -> _Part[Document]:
    return _Part(TokenFiles(_names(data, is_held_out), data, tokenizer), words_of, data, is_held_out)


def _names(data: DataSettings, is_held_out: bool) -> tuple[str, ...]:
    return data.validation if is_held_out and data.validation else data.train


def _tokenized(
    data: DataSettings, tokenizer: PreTrainedTokenizerBase, folder: Path, *, is_held_out: bool
) -> tuple[TokenizedText, int]:
    """The tokens of a part, and the malformed rows that it adds to those left out."""
    # Text never encodes to the mask token, so a tokenizer that gained one still finds what it tokenised before.
    vocabulary = sorted(item for item in tokenizer.get_vocab().items() if item[0] != tokenizer.mask_token)
    words = hashlib.blake2b(json.dumps(vocabulary).encode(), digest_size=8).hexdigest()
    written: tuple[object, ...] = ()
    part: _Part[str] | _Part[Conversation] | _Part[Document]
    if data.format == "text":
        part = _texts(data, is_held_out=is_held_out)
    elif data.format == "ckpt":
        part = _token_files(data, tokenizer, is_held_out=is_held_out)
    else:
        part = _conversations(data, is_held_out=is_held_out)
        written = (ChatTemplate(tokenizer).fingerprint(), data.supervise)
    key = _key(part.sources.fingerprint(), part.fraction, part.is_held_out, words, *written)
    kept = folder / f"{data.format}-{key}"
    facts = kept / "skipped.json"
    if not facts.is_file():
        refused = _write(part, data, tokenizer, kept)
        # Both parts of one source meet the same unreadable rows: those count once.
        unreadable = 0 if part.is_held_out else part.sources.skipped
        facts.write_text(json.dumps(unreadable + refused), encoding="utf-8")
    return TokenizedText.open(kept), int(json.loads(facts.read_text(encoding="utf-8")))


def _write(
    part: _Part[str] | _Part[Conversation] | _Part[Document],
    data: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> int:
    """Tokenise a part into `folder`; how many conversations the chat template refused."""
    if data.format == "text":
        TokenizedText.build(part.texts(), tokenizer, folder)
        return 0
    if data.format == "ckpt":
        TokenizedText.write(cast("_Part[Document]", part), folder)
        return 0
    conversations = cast("_Part[Conversation]", part)
    encoder = ChatEncoder(ChatTemplate(tokenizer))
    documents = ChatDocuments(conversations, encoder, data.supervise, part.sources.malformed)
    TokenizedText.write(documents, folder)
    return documents.refused


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


def _rows(text: TokenizedText, data: DataSettings, filling: Filling, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """Packed rows, or a conversation in each; held-out rows are filled up as those that are learned from."""
    bos = start_id(tokenizer) if data.format == "text" else None
    size, fill, eos = data.context_length, filling.length, filling.eos
    if data.neat_packing:
        return NeatRows(text, context_length=size, over_long=data.over_long, bos=bos, fill=fill, eos=eos)
    if data.format == "text":
        return PackedText(text, context_length=size, bos=bos, fill=fill, eos=eos)
    return ChatRows(
        text,
        context_length=size,
        over_long=data.over_long,
        eos=eos,
        eos_cap=data.eos_cap,
        fill=fill if filling.pad_mode == "block" else None,
    )


def _key(*parts: object) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()
