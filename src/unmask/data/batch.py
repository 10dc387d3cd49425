"""The record that the data room makes: clean rows and who they are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Clean rows of one micro-batch.

    Attributes:
        ids_BL: token ids, int64 [B, L].
        document_BL: packed document of each token, -1 for padding.
        supervised_BL: bool; the tokens to learn or score. BOS and padding never are.
        uid_B: which row of the data each is.
        global_row_B: which row of the optimiser step's global batch each is.
        global_rows: rows of the global batch, over all micro-batches and processes.
        step: optimiser step (or a fixed number in evaluation); every draw is keyed by it.
        bytes_BL: UTF-8 bytes of text that each token stands for.
        fill_BL: bool; EOS that fills a row or a document's last block up: supervised like any token, but none of the
            text.
    """

    ids_BL: Tensor
    document_BL: Tensor
    supervised_BL: Tensor
    uid_B: Tensor
    global_row_B: Tensor
    global_rows: int
    step: int
    bytes_BL: Tensor | None = None
    fill_BL: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same rows on another device."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    def cut(self, length: int) -> Batch:
        """The first `length` tokens of every row."""
        fields = {
            field.name: value[:, :length]
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor) and value.ndim == 2
        }
        return dataclasses.replace(self, **fields)

    def rows(self, start: int, stop: int) -> Batch:
        """Rows start..stop-1, which keep their places in the global batch."""
        fields = {
            field.name: value[start:stop]
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **fields)

    def repeated(self, copies: int) -> Batch:
        """Every row `copies` times in succession, each with its own global row, for averages over several masks."""
        fields = {
            field.name: value.repeat_interleave(copies, dim=0)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        copy = torch.arange(copies, device=self.uid_B.device).repeat(self.uid_B.shape[0])
        fields["global_row_B"] = fields["global_row_B"] * copies + copy
        return dataclasses.replace(self, **fields, global_rows=self.global_rows * copies)

    @staticmethod
    def of_rows(ids: list[list[int]], supervised: list[list[bool]] | None = None, *, step: int = 0) -> Batch:
        """A batch of single-document rows of any length, padded on the right."""
        width = max(len(row) for row in ids)
        pad = [width - len(row) for row in ids]
        chosen = supervised or [[True] * len(row) for row in ids]
        return Batch(
            ids_BL=torch.tensor([row + [0] * extra for row, extra in zip(ids, pad, strict=True)]),
            document_BL=torch.tensor([[0] * len(row) + [-1] * extra for row, extra in zip(ids, pad, strict=True)]),
            supervised_BL=torch.tensor([row + [False] * extra for row, extra in zip(chosen, pad, strict=True)]),
            uid_B=torch.arange(len(ids)),
            global_row_B=torch.arange(len(ids)),
            global_rows=len(ids),
            step=step,
        )
