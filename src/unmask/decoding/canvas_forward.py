"""How a canvas is evaluated: whole, or in part behind an approximate cache; with or without guidance.

In: the canvas and the columns whose predictions are wanted. Out: their logits. Guidance evaluates each row a second
time with everything given masked, and moves away from it: logits = u + (scale + 1)(c - u) (LLaDA's `cfg_scale`). The
head is affine and these weights sum to 1, so hidden states are mixed, and the head runs once.
Shapes: B rows, W columns, Q columns of the cached window, D width, R wanted columns of all rows, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from unmask import attention
from unmask.attention import Layout
from unmask.models.backbone import Backbone


class WholeCanvas:
    """Every step evaluates every visible column: exact.

    Args:
        backbone: the network.
        document_BW: 0 for the columns of a row's text, -1 for the padding before it.
        given_BW: bool; the columns that are given, which guidance hides.
        cfg_scale: strength of guidance; 0 is off.
    """

    def __init__(self, backbone: Backbone, document_BW: Tensor, given_BW: Tensor, *, cfg_scale: float) -> None:
        self.backbone, self.cfg_scale = backbone, cfg_scale
        self._document_BW, self._given_BW = document_BW, given_BW
        self._draw(document_BW)

    @property
    def evaluations(self) -> int:
        """Network evaluations per step."""
        return 2 if self.cfg_scale else 1

    def show(self, visible_BW: Tensor) -> None:
        """Let the canvas consist of these columns only, which reach from each text's start to some column."""
        width = int(visible_BW.any(dim=0).nonzero().max()) + 1
        self._draw(torch.where(visible_BW, self._document_BW, -1)[:, :width])

    def select(self, index_B: Tensor) -> None:
        """Keep only the chosen rows."""
        width = len(self._layout)
        self._document_BW, self._given_BW = self._document_BW[index_B], self._given_BW[index_B]
        self._draw(self._layout.document[index_B, :width])

    def logits(self, canvas_BW: Tensor, row_R: Tensor, column_R: Tensor) -> Tensor:
        """Logits [R, V] of the predictions for the given places."""
        width = len(self._layout)
        ids, positions, mask = canvas_BW[:, :width], self._layout.position_ids, self._mask
        if self.cfg_scale:
            ids = with_unconditional(ids, self._given_BW[:, :width], self.backbone)
            positions = positions.repeat(2, 1)
            mask = mask.repeat(2, 1, 1, 1) if isinstance(mask, Tensor) else mask
        read_R = self._rows(row_R, column_R - int(self.backbone.diffusion.logit_shift), len(canvas_BW), width)
        hidden = self.backbone(ids, positions, mask, read_R=read_R)
        return self.backbone.logits(guided(hidden.flatten(0, 1)[read_R], self.cfg_scale))

    def _rows(self, row_R: Tensor, column_R: Tensor, batch: int, width: int) -> Tensor:
        """Indices into the flattened hidden states; the unconditional rows follow the conditional ones."""
        read_R = row_R * width + column_R
        return torch.cat([read_R, read_R + batch * width]) if self.cfg_scale else read_R

    def _draw(self, document_BW: Tensor) -> None:
        self._layout = attention.bidirectional(document_BW)
        self._mask = self.backbone.render(self._layout, self._layout)


class CachedCanvas(WholeCanvas):
    """Fast-dLLM's approximate caches (arXiv 2505.22618, section 3.1): the first step of a block evaluates every column
    and keeps their keys; the others evaluate a window against the kept keys, which grow stale.

    `prefix` takes the columns from the block's start to the end into the window, `dual` the block alone. With a logit
    shift the window starts one column earlier, where the prediction for the block's first place stands.

    Args:
        kind: prefix or dual.
        others: as for `WholeCanvas`.
    """

    def __init__(
        self,
        backbone: Backbone,
        document_BW: Tensor,
        given_BW: Tensor,
        *,
        cfg_scale: float,
        kind: Literal["prefix", "dual"],
    ) -> None:
        super().__init__(backbone, document_BW, given_BW, cfg_scale=cfg_scale)
        self.kind = kind
        self._window: slice | None = None
        self._block = slice(0, document_BW.shape[1])

    def begin_block(self, start: int, stop: int) -> None:
        """The columns start..stop-1 come next; their first step evaluates everything."""
        start -= int(self.backbone.diffusion.logit_shift)
        self._block = slice(start, stop if self.kind == "dual" else len(self._layout))
        self._window = None

    def select(self, index_B: Tensor) -> None:
        batch = len(self._given_BW)
        super().select(index_B)
        if self._window is not None:
            self._cache.select(torch.cat([index_B, index_B + batch]) if self.cfg_scale else index_B)
            self._draw_window(self._window)

    def logits(self, canvas_BW: Tensor, row_R: Tensor, column_R: Tensor) -> Tensor:
        """Logits [R, V] of the predictions for places inside the block."""
        ids_BW = canvas_BW
        if self.cfg_scale:
            ids_BW = with_unconditional(canvas_BW, self._given_BW, self.backbone)
        column_R = column_R - int(self.backbone.diffusion.logit_shift)
        batch, width = canvas_BW.shape
        if self._window is None:
            read_R = self._rows(row_R, column_R, batch, width)
            hidden = self._refresh(ids_BW, read_R)
            self._draw_window(self._block)
        else:
            length = self._window.stop - self._window.start
            read_R = self._rows(row_R, column_R - self._window.start, batch, length)
            self._cache.rewrite(self._window.start, length)
            ids_BQ = ids_BW[:, self._window]
            hidden = self.backbone(ids_BQ, self._positions_BQ, self._window_mask, cache=self._cache, read_R=read_R)
        return self.backbone.logits(guided(hidden.flatten(0, 1)[read_R], self.cfg_scale))

    def _refresh(self, ids_BW: Tensor, read_R: Tensor) -> Tensor:
        layout = _doubled(self._layout) if self.cfg_scale else self._layout
        self._cache = self.backbone.new_cache(len(ids_BW), capacity=ids_BW.shape[1])
        mask = self.backbone.render(layout, self._cache.begin(layout))
        hidden = self.backbone(ids_BW, layout.position_ids, mask, cache=self._cache, read_R=read_R)
        self._cache.keep()
        return hidden

    def _draw_window(self, window: slice) -> None:
        self._window = window
        layout = _doubled(self._layout) if self.cfg_scale else self._layout
        part = layout.columns(window.start, window.stop)
        self._positions_BQ, self._window_mask = part.position_ids, self.backbone.render(part, layout)


def with_unconditional(ids_BW: Tensor, given_BW: Tensor, backbone: Backbone) -> Tensor:
    """The rows, and behind them the same rows with everything given masked; [2B, W]."""
    mask = backbone.diffusion.mask_token_id
    assert mask is not None, "guidance needs a mask token; the caller checks it"
    return torch.cat([ids_BW, ids_BW.masked_fill(given_BW, mask)])


def guided(hidden_RD: Tensor, cfg_scale: float) -> Tensor:
    """Hidden states moved away from the unconditional ones, which stand in the second half."""
    if not cfg_scale:
        return hidden_RD
    conditional_RD, unconditional_RD = hidden_RD.chunk(2)
    wide = torch.promote_types(hidden_RD.dtype, torch.float32)
    difference_RD = conditional_RD.to(wide) - unconditional_RD.to(wide)
    return (unconditional_RD.to(wide) + (cfg_scale + 1) * difference_RD).to(hidden_RD.dtype)


def _doubled(layout: Layout) -> Layout:
    """The rows twice."""
    return Layout(*(field.repeat(2, 1) for field in layout.fields))
