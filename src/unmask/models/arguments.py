"""What callers hand to `DiffusionLM`: prompts, texts, token ids and parameters, checked before anything is computed.

In: whatever Python can hold. Out: the plain lists and settings that decoding and scoring take, or an error that says
what was given and what to give instead. NumPy and torch values become lists; ids are not made of floats or bools, and
nothing that is only iterable (a set, a generator, a mapping's keys) passes for a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor

from unmask.attention import Layout
from unmask.errors import PromptError, SettingsError
from unmask.models.prompts import Prompt
from unmask.settings.checks import at_least, at_most
from unmask.settings.decoding import SamplingParams
from unmask.settings.limits import MOST_OUTPUTS, MOST_ROWS
from unmask.settings.typed import fitted, plain, shown

T = TypeVar("T")
_KINDS = "text, a list of token ids or a list of messages"


def prompts_of(prompts: object) -> Prompt | list[Prompt | None] | None:
    """One prompt or a list of them, of plain Python types.

    Raises:
        PromptError: it is something else.
    """
    prompts = plain(prompts)
    if not _is_list(prompts) or _is_one_prompt(prompts):
        return _prompt(prompts, "A prompt")
    if not prompts:
        raise PromptError("The list of prompts is empty. Give at least one, or None to generate without a prompt.")
    each = [plain(prompt) for prompt in prompts]
    return [_prompt(prompt, f"Prompt {number}") for number, prompt in enumerate(each)]


def texts_of(texts: object) -> list[str | list[int]]:
    """Texts to score, or their token ids, as a list.

    Raises:
        PromptError: there is none, or one is something else.
    """
    texts = plain(texts)
    each: list[object] = [plain(text) for text in texts] if _is_list(texts) else [texts]
    is_one = not _is_list(texts) or (len(each) > 0 and isinstance(each[0], int | float))
    if is_one:
        each = [texts]
    if not each:
        raise PromptError("There is no text to score. Give a text, its token ids, or a list of these.")
    found: list[str | list[int]] = []
    for number, text in enumerate(each):
        name = "A text to score" if is_one else f"Text {number}"
        if isinstance(text, str):
            found.append(_text(text, name))
        elif _is_list(text) and not any(isinstance(item, str | Mapping) for item in text):
            found.append(_ids(text, name))
        else:
            raise PromptError(f"{name} must be text or a list of token ids, got {_described(text)}.")
    return found


def pieces_of(texts: object) -> list[list[str]]:
    """Texts with gaps, each a list of pieces.

    Raises:
        PromptError: one is no list of texts.
    """
    if isinstance(texts, str) or not _is_list(texts):
        raise PromptError(f"Texts to fill are a list of lists of pieces, got {_described(texts)}. {_FILL}")
    if not texts:
        raise PromptError(f"There is no text to fill. {_FILL}")
    found: list[list[str]] = []
    for number, pieces in enumerate(texts):
        if isinstance(pieces, str) or not _is_list(pieces):
            raise PromptError(f"Text {number} must be a list of at least two pieces, got {_described(pieces)}. {_FILL}")
        for piece in pieces:
            if not isinstance(piece, str):
                raise PromptError(f"The pieces of text {number} must be text, got {_described(piece)}. {_FILL}")
        if len(pieces) < 2:
            raise PromptError(
                f"Text {number} must have at least two pieces, with gaps between, got {len(pieces)}. {_FILL}"
            )
        found.append([_text(piece, f"Text {number}") for piece in pieces])
    return found


def id_rows(ids: object, *, vocabulary: int) -> Tensor:
    """Token ids as int64 [B, L] on the device where they are, the CPU for lists.

    Args:
        ids: a tensor or array [B, L], or lists of equal length.
        vocabulary: ids lie below.

    Raises:
        PromptError: they are something else.
    """
    if isinstance(ids, Tensor):
        found = ids
        if found.dtype.is_floating_point or found.dtype.is_complex or found.dtype == torch.bool:
            raise PromptError(f"Token ids must be integers, got a tensor of {found.dtype}.")
    else:
        found = _tensor(plain(ids))
    if found.ndim != 2 or found.numel() == 0:
        raise PromptError(
            f"Token ids must have the shape [rows, tokens], none of them 0, got {list(found.shape)}. {_ROWS}"
        )
    if found.is_meta:
        raise PromptError("Token ids must have values, got a tensor on the meta device.")
    found = found.to(torch.int64)
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= vocabulary:
        raise PromptError(f"Token ids must lie between 0 and {vocabulary - 1}, got {low if low < 0 else high}.")
    return found


def check_layout(layout: object, ids_BL: Tensor, *, context: int) -> None:
    """Whether a layout is one of these token ids and stays inside the context.

    Raises:
        PromptError: it has another shape, or its positions exceed the context.
        SettingsError: it is none.
    """
    position_ids = instance("layout", Layout, layout).position_ids
    shape = position_ids.shape
    if shape[1] != ids_BL.shape[1] or shape[0] not in (1, ids_BL.shape[0]):
        raise PromptError(f"The layout is for {list(shape)} tokens, got token ids of the shape {list(ids_BL.shape)}.")
    last = int(position_ids.max())
    if last >= context:
        raise PromptError(f"A row has {last + 1} positions, which exceed the model's context of {context}. Cut it.")


def params_of(params: object, count: int) -> SamplingParams | list[SamplingParams]:
    """One set of parameters for all of `count` prompts, or a list of one for each.

    Raises:
        SettingsError: there are more or fewer, or they are something else.
    """
    if params is None:
        return SamplingParams()
    if isinstance(params, SamplingParams):
        return params
    if not isinstance(params, Sequence) or isinstance(params, str | bytes):
        raise SettingsError(
            f"params must be SamplingParams, or a list of one for each prompt, got {_described(params)}."
        )
    if len(params) != count:
        raise SettingsError(f"Give one SamplingParams for all prompts or one for each: {count}, got {len(params)}.")
    return [instance("params", SamplingParams, each) for each in params]


def instance(name: str, kind: type[T], value: object) -> T:
    """A value that is of a class, e.g. of settings.

    Raises:
        SettingsError: it is something else.
    """
    if not isinstance(value, kind):
        raise SettingsError(f"{name} must be {kind.__name__}, got {_described(value)}. Use {kind.__name__}(...).")
    return value


def model_name(name: object) -> str:
    """A folder or hub id that a file system could hold.

    Raises:
        SettingsError: it could not.
    """
    return _path_text("name", name, "a run folder, a model folder or a hub id")


def folder_path(folder: object) -> Path:
    """A folder that a file system could hold.

    Raises:
        SettingsError: it could not.
    """
    return Path(_path_text("folder", folder, "a folder's path"))


def _path_text(option: str, value: object, kind: str) -> str:
    text = str(fitted(option, str, value))
    if not text.strip() or "\0" in text or max(len(part.encode("utf-8", "replace")) for part in text.split("/")) > 255:
        raise SettingsError(f"{option} must be {kind}, got {shown(text)}.")
    return text


def rows_together(batch_size: object) -> int:
    """How many rows a forward may have.

    Raises:
        SettingsError: it is no whole number from 1 to the limit.
    """
    size = int(fitted("batch_size", int, batch_size))
    at_least(1, batch_size=size)
    at_most(MOST_ROWS, batch_size=size)
    return size


def check_count(each: Sequence[SamplingParams]) -> None:
    """Refuse more texts than one call may make, before any of them is begun.

    Raises:
        SettingsError: there are more.
    """
    total = sum(params.n for params in each)
    if total > MOST_OUTPUTS:
        raise SettingsError(
            f"One call makes at most {MOST_OUTPUTS:,} texts, got n for {total:,}. Call it several times."
        )


def check_streamer(streamer: object) -> None:
    """Whether it can be told tokens.

    Raises:
        SettingsError: it cannot.
    """
    if isinstance(streamer, type) or not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise SettingsError(
            f"streamer must be an object with the methods put and end, as those of transformers, got "
            f"{_described(streamer)}."
        )


_FILL = 'Example: lm.infill([["The cat ", " the mat."]], SamplingParams(infill_length=2))'
_ROWS = "Example: lm.logits([[1, 2, 3]])"


def _prompt(prompt: object, name: str) -> Prompt | None:
    if prompt is None:
        return None
    if isinstance(prompt, str):
        return _text(prompt, name)
    if not _is_list(prompt):
        raise PromptError(f"{name} must be {_KINDS}, got {_described(prompt)}.{_instead(prompt)}")
    items = [plain(item) for item in prompt]
    if not items:
        raise PromptError(f'{name} is an empty list. Give None or "" to generate without a prompt.')
    if all(isinstance(item, Mapping) for item in items):
        return items
    if any(isinstance(item, str | Mapping) or _is_list(item) or item is None for item in items):
        raise PromptError(f"{name} must be {_KINDS}, got a list of {_kinds(items)}.")
    return _ids(items, name)


def _ids(items: Sequence[Any], name: str) -> list[int]:
    found: list[int] = []
    for item in map(plain, items):
        if isinstance(item, bool) or not isinstance(item, int):
            raise PromptError(f"{name} must have whole numbers as token ids, got {_described(item)} among them.")
        found.append(int(item))
    return found


def _text(text: str, name: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{name} has a lone surrogate at character {error.start} ({text[error.start]!a}), which no text in UTF-8 "
            "has. Remove it, or decode the bytes with errors='replace'."
        ) from None
    return str.__str__(text)


def _tensor(rows: object) -> Tensor:
    if (
        isinstance(rows, str)
        or not _is_list(rows)
        or any(isinstance(row, str) or not _is_list(row) for row in map(plain, rows))
    ):
        raise PromptError(f"Token ids must be a tensor or lists of lists, got {_described(rows)}. {_ROWS}")
    found = [_ids(plain(row), f"Row {number}") for number, row in enumerate(rows)]
    lengths = sorted({len(row) for row in found})
    if len(lengths) > 1:
        raise PromptError(
            f"Rows of token ids must have one length, got {lengths[0]} and {lengths[-1]}. Give each alone."
        )
    try:
        return torch.tensor(found, dtype=torch.int64)
    except (RuntimeError, OverflowError, ValueError):
        raise PromptError("Token ids must lie inside the vocabulary, got one beyond 64 bits.") from None


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def _is_one_prompt(prompts: Sequence[Any]) -> bool:
    """Whether a list is a prompt (ids, or messages) rather than a list of prompts."""
    if not prompts:
        return False
    first = plain(prompts[0])
    is_message = isinstance(first, Mapping) and not isinstance(plain(prompts[-1]), str)
    return is_message or not (first is None or isinstance(first, str | Mapping) or _is_list(first))


def _described(value: object) -> str:
    """A value in words: what it is, and itself."""
    if isinstance(value, Mapping):
        return f"a mapping with the keys {shown(', '.join(map(str, list(value)[:5])))}"
    if value is None or isinstance(value, str | int | float | list | tuple):
        return shown(value)
    return f"{type(value).__name__} ({shown(value)})"


def _kinds(items: Sequence[Any]) -> str:
    return " and ".join(sorted({type(item).__name__ for item in items}))


def _instead(prompt: object) -> str:
    """What to give for what is often given."""
    if isinstance(prompt, Mapping) and "input_ids" in prompt:
        return ' Give its token ids: prompt["input_ids"].'
    if isinstance(prompt, Mapping) and "role" in prompt:
        return " Put the message into a list."
    if isinstance(prompt, bytes):
        return " Decode it first."
    return " Make a list of it." if hasattr(prompt, "__iter__") and not isinstance(prompt, Mapping) else ""
