"""Rows of tokens from `.ckpt` files, the format of Gumiho and of the first public TiDAR port.

In: files, one row in each: a dictionary written by `torch.save` with `input_ids` and `loss_mask` (1 where a token is
to be learned), [L] or [1, L], tensors or lists. Out: documents with their supervision. The teacher's `hidden_state`,
nearly all of such a file, is never read: files are mapped. Nothing is unpickled but plain data and tensors.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask.data.sources import Sources, short
from unmask.data.tokenized import Document
from unmask.errors import DataError
from unmask.models.tokenizers import token_sizes
from unmask.settings.data import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IDS, LOSS_MASK = "input_ids", "loss_mask"
SUFFIX = ".ckpt"


class TokenFiles(Sources[Document]):
    """The rows of some `.ckpt` files and folders.

    Args:
        sources: files, globs, and folders with all that is in them.
        settings: what to do with files that cannot be read.
        tokenizer: whose ids they hold.
    """

    suffixes = (SUFFIX,)
    remedy = "Mend or remove the file, or skip such files: data.malformed=skip"

    def __init__(self, sources: Sequence[str], settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(sources, settings)
        self._size_V, self._mask = token_sizes(tokenizer), tokenizer.mask_token_id

    def from_row(self, row: Any, where: str) -> Iterator[Document]:
        """JSON and datasets hold no such rows."""
        raise DataError(f"{where} is no {SUFFIX} file, which data.format=ckpt reads")

    def from_text(self, source: str) -> Iterator[Document]:
        """The row of one file."""
        try:
            yield self._document(source)
        except DataError as error:
            self._skip(f"{source}: {error}")

    def _document(self, source: str) -> Document:
        saved = _loaded(source)
        ids, supervised = _ids(_values(saved, IDS)), _flags(_values(saved, LOSS_MASK))
        if len(ids) != len(supervised):
            raise DataError(f"{IDS} has {len(ids):,} tokens and {LOSS_MASK} {len(supervised):,}; they must be as many")
        if ids.min() < 0 or ids.max() >= len(self._size_V):
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise DataError(
                f"{IDS} has the id {wrong}, and the tokenizer's ids end at {len(self._size_V) - 1}. Was the file made "
                "with another tokenizer? Name it with data.tokenizer"
            )
        if self._mask is not None and (ids == self._mask).any():
            raise DataError(f"{IDS} has the id of the mask token, {self._mask}, which stands for no text")
        size_N = np.where(supervised, self._size_V[ids], 0).astype(np.uint16)
        return Document(ids.astype(np.uint32), size_N, supervised, source)


def words_of(row: Document) -> str:
    """The ids of a row as words, for the split into training and held-out rows: equal rows stay together."""
    return " ".join(map(str, row.ids.tolist()))


def _loaded(source: str) -> dict[str, Any]:
    """The dictionary in a file, its tensors mapped where the file can be (all but those of torch before 1.6)."""
    try:
        saved = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    except pickle.UnpicklingError:
        raise DataError("it holds pickled objects, which are not opened: only tensors, lists and numbers are") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:160].partition(". ")[0]
        raise DataError(f"torch.load cannot read it ({type(error).__name__}: {reason}). Is it complete?") from None
    if not isinstance(saved, dict):
        raise DataError(f"it holds a {type(saved).__name__}, and must hold a dictionary with {IDS} and {LOSS_MASK}")
    return saved


def _values(saved: dict[str, Any], name: str) -> Tensor:
    """One of the two entries, [L]."""
    if name not in saved:
        raise DataError(f"there is no `{name}`; the file has {', '.join(map(str, saved)) or 'nothing'}")
    try:
        values = torch.as_tensor(saved[name])
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"`{name}` must be a row of numbers, got {short(saved[name])}") from None
    if values.ndim == 2 and len(values) == 1:
        values = values[0]
    if values.ndim != 1 or len(values) == 0:
        raise DataError(f"`{name}` must have the shape [L] or [1, L], got {list(values.shape)}")
    return values


def _ids(values: Tensor) -> NDArray[np.int64]:
    if values.dtype.is_floating_point or values.dtype.is_complex or values.dtype == torch.bool:
        raise DataError(f"`{IDS}` must hold whole numbers, got {values.dtype}")
    return values.long().numpy()


def _flags(values: Tensor) -> NDArray[np.bool_]:
    wrong = values[(values != 0) & (values != 1)]
    if len(wrong):
        raise DataError(f"`{LOSS_MASK}` must hold 0 and 1, got {wrong[0].item()}")
    return values.bool().numpy()
