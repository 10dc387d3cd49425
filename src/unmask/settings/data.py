"""Where text, conversations and tokens come from, and how they become rows."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from unmask.settings.checks import at_least, in_range, is_true
from unmask.settings.typed import settings

Supervise = Literal["all", "last", "each"]
PadMode = Literal["eos_supervised", "eos_capped", "block", "ignore"]
OverLong = Literal["error", "drop", "cut"]
_ROWS = ("chat", "ckpt")
"""Formats whose documents have rows of their own, and prompts that are not supervised."""
_ONLY_FOR = {
    **dict.fromkeys(("text_field", "separator", "max_tokens", "streaming"), ("text",)),
    **dict.fromkeys(("prompt_field", "answer_field", "ignored_fields", "chat_template", "supervise"), ("chat",)),
    **dict.fromkeys(("pad_mode", "eos_cap"), _ROWS),
}


@settings
class DataSettings:
    """Text or conversations, tokenizer and rows.

    A source is a path or glob of `.txt`, `.md`, `.jsonl`, `.json`, `.csv`, `.tsv` (also `.gz`, `.zst`) or `.parquet`
    files, a folder of them (hidden files are left out), a folder written by `datasets.save_to_disk`,
    `hf:NAME[:CONFIG][@SPLIT]` for a dataset of the Hugging Face hub or a local dataset folder, or `python-docs` for the
    documentation that comes with Python; `a,b` are two sources. Conversations come from rows only, not from plain text.
    With format ckpt it is a `.ckpt` file, a glob of them, or a folder that is searched with all its subfolders.
    """

    format: Literal["text", "chat", "ckpt"] = "text"
    """text: documents, packed into rows; chat: conversations (supervised fine-tuning), one in each row unless
    neat_packing packs them; ckpt: tokens with their loss mask, a row in each file (Gumiho, the first TiDAR port)."""
    train: tuple[str, ...] = ()
    """Sources of the training text."""
    validation: tuple[str, ...] = ()
    """Sources of the held-out text; default: `validation_fraction` of the training documents."""
    validation_fraction: float = 0.05
    """Share of the documents that is held out when no validation source is given, by a hash of their words, so that
    documents which are equal up to white space stay together. Of few documents the share is one of their bytes, and of
    a single one its end."""
    overlap: Literal["error", "drop"] = "error"
    """What to do with documents that validation sources share with training sources: stop and count them, or leave
    them out of the training text."""
    weights: tuple[float, ...] = ()
    """Share of the rows that each source of data.train has, in their order and on any scale; default: as many as it
    holds. A source with a larger share is read again before the others are, each time in a new order."""
    split: str = "train"
    """Split to read from a Hugging Face dataset whose source names none with @SPLIT."""
    validation_split: str | None = None
    """Split to read from a Hugging Face dataset among data.validation; default: `validation`, or the only one."""
    text_field: str = "text"
    """Field of a JSON row or dataset row that holds the text."""
    separator: str | None = None
    r"""Text between two documents of a plain-text file, in which \n, \t, \r and \\ mean what they do in Python;
    default: a file is one document."""
    prompt_field: str | None = None
    """Field of a chat row that holds the prompt; default: recognised (messages, question, instruction, ...)."""
    answer_field: str | None = None
    """Field of a chat row that holds the answer, with prompt_field."""
    ignored_fields: tuple[str, ...] = ()
    """Fields of chat rows and of their messages to read as if they were not there (`timestamp`, `name`); any other
    field of a message that nothing reads is an error."""
    malformed: Literal["error", "skip"] = "error"
    """What to do with rows that cannot be read, or the rest of a damaged file: stop and name the line, or skip and
    count them."""
    max_line_bytes: int = 2**26
    """Most bytes of a line, a field of a table or a `.json` file."""
    max_expansion: int = 100
    """Most times its size that a compressed file may grow to, beyond the first 64 MiB."""
    streaming: bool = False
    """Read the training text while it is learned, in the order of its sources, and keep no tokens on the disk: for
    sources larger than it. The tokenizer must be there already, and held-out text have sources of its own."""
    shuffle_rows: int = 1024
    """With streaming, rows that are read ahead and shuffled among one another; 1 keeps the order."""
    tokenizer: str | None = None
    """`bpe` or `byte` (trained on, or made for, the text), a folder or hub id; default: the model's, else `bpe`."""
    vocabulary_size: int = 4096
    """Size of a trained BPE vocabulary, special tokens included."""
    max_tokens: int | None = None
    """Unique tokens to learn from: the first ones of the training text, end-of-text tokens included; held-out text is
    not limited. A trained BPE learns from as much of the text as it takes. Default: all."""
    context_length: int = 256
    """Tokens per row of text, the leading BOS included, or per neatly packed row; the most tokens of a conversation."""
    neat_packing: bool = False
    """Pack whole documents or conversations into rows, each isolated from the others and none cut by the end of a row
    (greedy knapsack); default: text goes on in the next row, and a conversation has a row of its own."""
    chat_template: str | None = None
    """llada, plain (User: / Assistant: lines), a Jinja file; default: the tokenizer's own. Saved with the model."""
    supervise: Supervise = "all"
    """Replies to learn: all, the last, or each in a row of its own that ends with it."""
    pad_mode: PadMode | None = None
    """Fill shorter rows with EOS to learn (eos_supervised), with at most eos_cap of them (eos_capped), a conversation's
    last block with them (block), or rows with padding that is ignored (ignore); default: eos_supervised for masked
    diffusion, block for block diffusion (which fills documents of text up as well), ignore for autoregression and
    tidar."""
    eos_cap: int | None = None
    """Most EOS that eos_capped puts behind a conversation."""
    over_long: OverLong = "error"
    """What to do with conversations, or neatly packed documents, longer than context_length: stop, drop and count them,
    or cut their ends off."""
    cache_dir: str | None = None
    """Folder that keeps tokenised text between runs; default: the run folder."""

    def __post_init__(self) -> None:
        at_least(2, context_length=self.context_length)
        at_least(300, vocabulary_size=self.vocabulary_size)
        at_least(1, max_tokens=self.max_tokens)
        in_range(0, 0.9, validation_fraction=self.validation_fraction)
        is_true(self.separator != "", "separator must not be empty. Leave it out if a file is one document.")
        at_least(1, max_line_bytes=self.max_line_bytes, max_expansion=self.max_expansion)
        at_least(1, shuffle_rows=self.shuffle_rows)
        self._check_weights()
        self._check_streaming()
        at_least(1, eos_cap=self.eos_cap)
        is_true(
            (self.pad_mode == "eos_capped") == (self.eos_cap is not None),
            f"pad_mode `eos_capped` and eos_cap belong together, got pad_mode={self.pad_mode} and "
            f"eos_cap={self.eos_cap}.",
        )
        is_true(
            (self.prompt_field is None) == (self.answer_field is None),
            f"prompt_field and answer_field belong together, got {self.prompt_field} and {self.answer_field}.",
        )
        is_true(
            not self.neat_packing or self.pad_mode in (None, "block", "ignore"),
            f"data.neat_packing puts conversations side by side, where pad_mode `{self.pad_mode}`, which fills a row "
            "up behind its only one, has no place. Set data.pad_mode=ignore (with block diffusion: block), or "
            "data.neat_packing=false.",
        )
        self._check_format()

    def _check_weights(self) -> None:
        for weight in self.weights:
            is_true(
                0 < weight < math.inf,
                f"weights must be numbers above 0, got {weight}. Leave a source that is not to be read out of "
                "data.train.",
            )

    def _check_streaming(self) -> None:
        if not self.streaming:
            return
        is_true(
            bool(self.validation) or self.validation_fraction == 0,
            "data.streaming reads no text to its end before it is learned, so none can be held out of it. Give "
            "data.validation, or set data.validation_fraction=0.",
        )
        is_true(
            self.tokenizer != "bpe",
            "data.streaming cannot train a tokenizer, which would need all text. Set data.tokenizer to byte, a folder "
            "or a hub id.",
        )
        for name in ("neat_packing", "weights", "max_tokens"):
            is_true(
                not getattr(self, name),
                f"data.{name} needs all text before the first step, which data.streaming does not have. Leave one of "
                "them out.",
            )

    def _check_format(self) -> None:
        """An option that the chosen format does not use is an error, so that none is ignored silently."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, formats in _ONLY_FOR.items():
            is_true(
                self.format in formats or getattr(self, name) == defaults[name],
                f"data.{name} is not used by data.format `{self.format}`, got {getattr(self, name)!r}. It belongs to "
                f"{' and '.join(f'`{one}`' for one in formats)}.",
            )
        is_true(
            self.format in _ROWS or self.neat_packing or self.over_long == "error",
            f"data.over_long is not used by data.format `text`, whose documents go on in the next row, got "
            f"{self.over_long!r}. It belongs to `chat`, `ckpt` and data.neat_packing.",
        )
