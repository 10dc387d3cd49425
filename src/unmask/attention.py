"""The one attention rule of the library, its layouts and its renderings.

In: lengths, packed documents, block lengths. Out: a `Layout`, four small integers per token, and from two layouts
(queries and keys) a dense boolean mask for SDPA, a `BlockMask` for FlexAttention or a picture. The rule:

    sees(q, k) = document[q] == document[k] and (position[k] <= limit[q] or block[q] == block[k] >= 0)

`position` counts the tokens of a document from 0 and leaves padding out; it is `HIDDEN`, larger than any limit, for
what nobody outside its own block may see (noisy halves, draft masks, empty cache slots) and for padding. RoPE uses
`position_ids`, which repeat where a clean and a noisy token stand for the same place.

Sources: BD3-LM (arXiv 2503.09573, section 3) for [noisy | clean], TiDAR (arXiv 2511.08923, figures 3 and 7) for its
training and decoding layouts, SDAR (arXiv 2510.06303) for block-causal decoding.
Shapes: B batch (1 broadcasts), L length, Q queries, K keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

HIDDEN = 2**31 - 1
EVERYTHING = HIDDEN - 1


@dataclass(frozen=True)
class Layout:
    """Where each token stands and what it may see; every field is int64 [B, L].

    Attributes:
        position_ids: the place that RoPE encodes; 0 for padding.
        position: the place that decides visibility, or `HIDDEN`.
        limit: the highest `position` that the token sees; -1 sees none.
        block: an id of the token's noisy block, unique within its document, or -1 for a clean token.
        document: the packed document that the token belongs to, or -1 for padding.
    """

    position_ids: Tensor
    position: Tensor
    limit: Tensor
    block: Tensor
    document: Tensor

    def __len__(self) -> int:
        return self.position.shape[1]

    @property
    def fields(self) -> tuple[Tensor, ...]:
        """The five tensors, in the order of their declaration."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def columns(self, start: int, stop: int) -> Layout:
        """The tokens start..stop-1 of every row."""
        return Layout(*(field[:, start:stop] for field in self.fields))

    def rows(self, index_B: Tensor) -> Layout:
        """The chosen rows; a layout of one row stays one row."""
        return self if self.position.shape[0] == 1 else Layout(*(field[index_B] for field in self.fields))

    def to(self, device: torch.device | str) -> Layout:
        """The same layout on another device."""
        return Layout(*(field.to(device, non_blocking=True) for field in self.fields))

    def moved(self, offset_B: Tensor) -> Layout:
        """The layout with every visible place moved right by a row's offset: built once, reused at each step."""
        offset_B1 = offset_B[:, None]
        visible = self.position < HIDDEN
        return Layout(
            self.position_ids + offset_B1,
            torch.where(visible, self.position + offset_B1, self.position),
            torch.where(self.limit < EVERYTHING, self.limit + offset_B1, self.limit),
            self.block.expand(offset_B.shape[0], -1),
            self.document.expand(offset_B.shape[0], -1),
        )


def joined(layouts: Sequence[Layout]) -> Layout:
    """The layouts one after another in every row; single rows are repeated to the largest batch."""
    batch = max(layout.position.shape[0] for layout in layouts)
    fields = zip(*(layout.fields for layout in layouts), strict=True)
    return Layout(*(torch.cat([part.expand(batch, -1) for part in parts], dim=1) for parts in fields))


# --- packed documents -------------------------------------------------------------------------------------------


def documents(lengths_B: Tensor, width: int, *, left: bool = False) -> Tensor:
    """Document ids [B, width] of one document per row, padded on the right (or on the left) with -1."""
    column = torch.arange(width, device=lengths_B.device)
    present = column >= width - lengths_B[:, None] if left else column < lengths_B[:, None]
    return torch.where(present, 0, -1)


def document_positions(document_BL: Tensor) -> Tensor:
    """The place of each token within its document (contiguous runs of one id), from 0; int64 [B, L]."""
    index = torch.arange(document_BL.shape[1], device=document_BL.device).expand_as(document_BL)
    starts = torch.ones_like(document_BL, dtype=torch.bool)
    starts[:, 1:] = document_BL[:, 1:] != document_BL[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values


def _clean(document_BL: Tensor, place_BL: Tensor, limit_BL: Tensor) -> Layout:
    """Clean tokens with the given limits; padding sees only padding."""
    padding = document_BL < 0
    return Layout(
        torch.where(padding, 0, place_BL),
        torch.where(padding, HIDDEN, place_BL),
        torch.where(padding, HIDDEN, limit_BL),
        torch.full_like(place_BL, -1),
        document_BL,
    )


def _noisy(document_BL: Tensor, place_BL: Tensor, limit_BL: Tensor, block_BL: Tensor) -> Layout:
    """Noisy tokens: hidden from all but their own block."""
    clean = _clean(document_BL, place_BL, limit_BL)
    padding = document_BL < 0
    return dataclasses.replace(
        clean, position=torch.full_like(place_BL, HIDDEN), block=torch.where(padding, -1, block_BL)
    )


# --- training layouts -------------------------------------------------------------------------------------------


def causal(document_BL: Tensor) -> Layout:
    """Autoregression: each token sees its document up to itself."""
    place = document_positions(document_BL)
    return _clean(document_BL, place, place)


def bidirectional(document_BL: Tensor) -> Layout:
    """Masked diffusion: each token, masked or not, sees its whole document."""
    place = document_positions(document_BL)
    return _clean(document_BL, place, torch.full_like(place, EVERYTHING))


def block_causal(document_BL: Tensor, block_length: int) -> Layout:
    """Clean tokens of block diffusion: each sees its document up to the end of its own block."""
    place = document_positions(document_BL)
    return _clean(document_BL, place, _block_end(place, block_length))


def noisy_blocks(document_BL: Tensor, block_length: int, *, copy: int = 0) -> Layout:
    """A noisy copy: each token sees its own noisy block and the clean tokens before that block."""
    place = document_positions(document_BL)
    block = place // block_length
    return _noisy(document_BL, place, block * block_length - 1, block + copy * document_BL.shape[1])


def block_diffusion_training(document_BL: Tensor, block_length: int, *, copies: int = 1) -> Layout:
    """[noisy | clean], 2L tokens (BD3-LM, SDAR); several noisy copies share the clean one and see no other copy."""
    noisy = [noisy_blocks(document_BL, block_length, copy=copy) for copy in range(copies)]
    return joined([*noisy, block_causal(document_BL, block_length)])


def tidar_training(document_BL: Tensor, block_length: int) -> Layout:
    """[clean | masks], 2L tokens (TiDAR, figure 3): a causal half and blocks that see the clean tokens before them."""
    return joined([causal(document_BL), noisy_blocks(document_BL, block_length)])


def tidar_split(document_BL: Tensor, clean_length: int | Tensor, block_length: int) -> Layout:
    """A causal head of `clean_length` tokens (int, or int64 broadcasting to [B, L]), then blocks of masks behind it.

    The layout of the first public TiDAR port (`clean_ratio`): every tail block sees the whole head and itself.
    """
    place = document_positions(document_BL)
    clean_BL = torch.as_tensor(clean_length, device=place.device).expand_as(place)
    head = _clean(document_BL, place, place)
    tail = _noisy(document_BL, place, clean_BL - 1, (place - clean_BL) // block_length)
    fields = zip(head.fields, tail.fields, strict=True)
    return Layout(*(torch.where(place < clean_BL, clean, noisy) for clean, noisy in fields))


def _block_end(place: Tensor, block_length: int) -> Tensor:
    return (place // block_length + 1) * block_length - 1


# --- decoding layouts: `start_B` tokens of each row are committed already ------------------------------------------


def causal_step(start_B: Tensor, length: int) -> Layout:
    """`length` new tokens that continue each row causally (autoregression, verification)."""
    place = _places(start_B, length)
    return _clean(torch.zeros_like(place), place, place)


def block_step(start_B: Tensor, length: int, block_length: int, *, lengths_B: Tensor | None = None) -> Layout:
    """`length` new tokens, block-causal by absolute place: one block, a prefill, or a fused [block k | block k+1].

    Rows that have fewer new tokens (`lengths_B`) are padded on the right.
    """
    place = _places(start_B, length)
    document = torch.zeros_like(place)
    if lengths_B is not None:
        document = torch.where(place < (start_B + lengths_B)[:, None], document, -1)
    return _clean(document, place, _block_end(place, block_length))


def tidar_prefill(lengths_B: Tensor, width: int, draft_length: int) -> Layout:
    """[prompt (padded to `width`) | masks]: causal prompts, masks that see the whole prompt (TiDAR, figure 7)."""
    prompt = causal(documents(lengths_B, width))
    return joined([prompt, _draft_block(lengths_B - 1, draft_length, block=0)])


def tidar_step(start_B: Tensor, draft_length: int) -> Layout:
    """[d_0 .. d_k-1 | k blocks of k masks]: block j drafts on for the case that exactly d_0 .. d_j are accepted."""
    drafts = causal_step(torch.zeros_like(start_B[:1]), draft_length)
    blocks = [_draft_block(start_B.new_tensor([seen]), draft_length, block=seen) for seen in range(draft_length)]
    return joined([drafts, *blocks]).moved(start_B)


def tidar_linear(start_B: Tensor, draft_length: int) -> Layout:
    """[y | masks x (k-1)]: the first forward of TiDAR's two cheaper ones; the second is a `causal_step`."""
    return joined([causal_step(start_B, 1), _draft_block(start_B, draft_length - 1, block=0)])


def _places(start_B: Tensor, length: int) -> Tensor:
    return start_B[:, None] + torch.arange(length, device=start_B.device)


def _draft_block(limit_B: Tensor, length: int, *, block: int) -> Layout:
    """Masks that stand right after `limit_B`, see everything up to it and each other."""
    place = _places(limit_B + 1, length)
    limit = limit_B[:, None].expand_as(place)
    return _noisy(torch.zeros_like(place), place, limit, torch.full_like(place, block))


# --- the rule and its renderings --------------------------------------------------------------------------------


def sees(query: Layout, key: Layout) -> Tensor:
    """The rule: bool [B, Q, K], whether each query sees each key."""
    within = key.position[:, None, :] <= query.limit[:, :, None]
    same_block = (query.block[:, :, None] == key.block[:, None, :]) & (key.block[:, None, :] >= 0)
    return (query.document[:, :, None] == key.document[:, None, :]) & (within | same_block)


def dense_mask(query: Layout, key: Layout) -> Tensor | None:
    """The rule for SDPA: bool [B, 1, Q, K], or None where every query sees every key (the fast kernels take that).

    Reads one value back from the device: render once per layout, not once per forward.
    """
    visible_BQK = sees(query, key)
    return None if bool(visible_BQK.all()) else visible_BQK[:, None]


def block_mask(query: Layout, key: Layout) -> BlockMask:
    """The rule for FlexAttention, never materialised; one mask serves every layer."""
    from torch.nn.attention.flex_attention import create_block_mask

    batch = max(query.position.shape[0], key.position.shape[0])
    wide_query = [field.expand(batch, -1).contiguous() for field in query.fields]
    wide_key = [field.expand(batch, -1).contiguous() for field in key.fields]
    _, _, limit, query_block, query_document = wide_query
    _, position, _, key_block, key_document = wide_key

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        b = b if batch > 1 else torch.zeros_like(b)  # FlexAttention asks with the row of the ids, which may be many
        same_block = (query_block[b, q] == key_block[b, k]) & (key_block[b, k] >= 0)
        return (query_document[b, q] == key_document[b, k]) & ((position[b, k] <= limit[b, q]) | same_block)

    return create_block_mask(rule, batch, None, len(query), len(key), device=position.device)


def picture(query: Layout, key: Layout, *, row: int = 0) -> str:
    """The rule as text, one line per query: `#` sees, `.` does not."""
    visible_QK = sees(query, key)[row].tolist()
    return "\n".join("".join("#" if visible else "." for visible in line) for line in visible_QK)
