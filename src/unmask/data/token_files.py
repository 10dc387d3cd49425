"""Rows of tokens from `.ckpt` files, the format of Gumiho and of the first public TiDAR port.

In: files, one row in each: a dictionary written by `torch.save` with `input_ids` and `loss_mask` (1 where a token is
to be learned), [L] or [1, L], tensors or lists. Out: documents with their supervision. The teacher's `hidden_state`,
nearly all of such a file, is never read: files are mapped. Nothing is unpickled but plain data and tensors. And back:
documents -> files, without hidden states.
"""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask.data.sources import Sources, listed, short
from unmask.data.tokenized import Document
from unmask.errors import DataError
from unmask.models.tokenizers import token_sizes
from unmask.settings.data import DataSettings, OverLong
from unmask.writing import written_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IDS, LOSS_MASK = "input_ids", "loss_mask"
SUFFIX = ".ckpt"
_FILES_PER_FOLDER = 1000
_DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError),
    *(RuntimeError, MemoryError, ImportError, struct.error, zipfile.BadZipFile),
)
"""What torch.load raises for files of which a few bytes differ."""


class TokenFiles(Sources[Document]):
    """The rows of some `.ckpt` files and folders.

    Args:
        sources: files, globs, and folders with all that is in them.
        settings: what to do with files that cannot be read.
        tokenizer: whose ids they hold.
    """

    suffixes = (SUFFIX,)
    remedy = "Fix or remove the file, or skip such files: data.malformed=skip"

    def __init__(self, sources: Sequence[str], settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(sources, settings)
        self._size_V, self._mask = token_sizes(tokenizer), tokenizer.mask_token_id

    def words(self, document: Document) -> str:
        """The ids as words."""
        return words_of(document)

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
        size_N = np.where(supervised, self._size_V[ids], 0).astype(np.uint32)
        return Document(ids.astype(np.uint32), size_N, supervised, source)


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        rows: files.
        tokens: in all of them.
        supervised: of these tokens.
        cut: rows that lost their ends.
        dropped: rows left out because they were too long, or had nothing supervised before the cut.
    """

    rows: int = 0
    tokens: int = 0
    supervised: int = 0
    cut: int = 0
    dropped: int = 0


def write_token_files(documents: Iterable[Document], folder: Path, *, max_length: int, over_long: OverLong) -> Written:
    """Write each document as `N/data_M.ckpt` into `folder`, which appears whole or not at all.

    Args:
        documents: with supervision.
        folder: a new one.
        max_length: the most tokens of a row.
        over_long: what to do with longer ones: stop, leave them out, or keep their first tokens if one of them is
            supervised.

    Raises:
        DataError: a document is too long, or none is left.
    """
    rows = tokens = supervised = cut = dropped = 0
    with written_folder(folder) as partial:
        for document in documents:
            assert document.supervised is not None, "conversations say what is supervised"
            is_long, flags = len(document.ids) > max_length, document.supervised[:max_length]
            if is_long and over_long == "error":
                raise DataError(
                    f"{document.where} has {len(document.ids):,} tokens, more than {max_length:,}. Raise --max-length, "
                    "or set --over-long to cut or drop."
                )
            if is_long and (over_long == "drop" or not flags.any()):
                dropped += 1
                continue
            ids = document.ids[:max_length].astype(np.int64)
            place = partial / str(rows // _FILES_PER_FOLDER) / f"data_{rows}{SUFFIX}"
            place.parent.mkdir(exist_ok=True)
            torch.save({IDS: torch.from_numpy(ids), LOSS_MASK: torch.from_numpy(flags.astype(np.int64))}, place)
            rows, tokens, supervised, cut = rows + 1, tokens + len(ids), supervised + int(flags.sum()), cut + is_long
        if rows == 0:
            raise DataError(
                "There is no conversation to write. Check the data sources and the range of --start and --end."
            )
    return Written(rows, tokens, supervised, cut, dropped)


def words_of(row: Document) -> str:
    """The ids of a row as words, for the split into training and held-out rows: equal rows stay together."""
    return " ".join(map(str, row.ids.tolist()))


def _loaded(source: str) -> dict[str, Any]:
    """The dictionary in a file, its tensors mapped where the file can be (all but those of torch before 1.6)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns about in a damaged file is an error below
            saved = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    except pickle.UnpicklingError:
        raise DataError("it holds pickled objects, which are not opened: only tensors, lists and numbers are") from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:160].partition(". ")[0]
        raise DataError(f"torch.load cannot read it ({type(error).__name__}: {reason}). Is it complete?") from None
    if not isinstance(saved, dict):
        raise DataError(f"it holds a {type(saved).__name__}, and must hold a dictionary with {IDS} and {LOSS_MASK}")
    return saved


def _values(saved: dict[str, Any], name: str) -> Tensor:
    """One of the two entries, [L]."""
    if name not in saved:
        raise DataError(f"there is no `{name}`; the file has {listed(saved) or 'nothing'}")
    try:
        values = torch.as_tensor(saved[name])
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise DataError(f"`{name}` must be a row of numbers, got {short(saved[name])}") from None
    kinds = (values.is_nested, values.layout != torch.strided, values.is_quantized, values.is_meta)
    for kind, is_so in zip(("nested", "sparse", "quantised", "meta"), kinds, strict=True):
        if is_so:
            raise DataError(f"`{name}` must be a plain tensor of numbers, got a {kind} one")
    if values.ndim == 2 and len(values) == 1:
        values = values[0]
    if values.ndim != 1 or len(values) == 0:
        raise DataError(f"`{name}` must have the shape [L] or [1, L], got {list(values.shape)}")
    return values


def _ids(values: Tensor) -> NDArray[np.int64]:
    if values.dtype.is_floating_point or values.dtype.is_complex or values.dtype == torch.bool:
        raise DataError(f"`{IDS}` must hold whole numbers, got {values.dtype}")
    if values.dtype == torch.uint64 and (values.numpy() > np.iinfo(np.int64).max).any():
        raise DataError(f"`{IDS}` has the id {values.numpy().max()}, which no vocabulary has")
    return values.long().numpy()


def _flags(values: Tensor) -> NDArray[np.bool_]:
    if values.dtype.is_complex:
        raise DataError(f"`{LOSS_MASK}` must hold 0 and 1, got {values.dtype}")
    wrong = values[(values != 0) & (values != 1)]
    if len(wrong):
        raise DataError(f"`{LOSS_MASK}` must hold 0 and 1, got {wrong[0].item()}")
    return values.bool().numpy()
