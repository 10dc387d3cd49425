"""The KV cache: slots per row, each with the integers of the key it holds.

In: the layout of the new tokens of a forward. Out: the layout of all keys that this forward may see (stored slots and
new tokens), and, after the forward, how many of the new tokens stay (`keep`: all, none or a prefix of each row).
A slot that was given up is only marked hidden: its stale key is never seen, and the next token overwrites it. So a
rollback costs nothing, rows may be ragged, and a forward without commit is `keep(0)`.
Shapes: B rows, S slots, Q new tokens, H key-value heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from unmask.attention import HIDDEN, Layout

_FIRST_CAPACITY = 64


class KVCache(Cache):
    """Keys and values of every layer, and the `Layout` of the slots that hold them.

    Args:
        num_layers: layers of the network.
        batch: rows.
        capacity: slots per row. With `static` they are allocated once and every forward sees all of them, so shapes
            never change (one compiled graph); otherwise they grow by doubling, and a forward sees only the used ones.
        device: where the integers live (the keys follow the network's device, layer by layer).

    Attributes:
        span: the slots that the running forward fills in every row; None where rows are ragged or shapes static.
        visible: how many slots the running forward sees.
        is_ragged: whether rows hold different numbers of tokens.
    """

    def __init__(
        self,
        num_layers: int,
        batch: int,
        *,
        device: torch.device,
        capacity: int = _FIRST_CAPACITY,
        static: bool = False,
    ) -> None:
        self.static = static
        self.capacity = capacity
        self.length_B = torch.zeros(batch, dtype=torch.int64, device=device)
        self.span: slice | None = None
        self.visible = 0
        self._longest = 0
        self.is_ragged = False
        self._new = 0
        self._stored = _empty(batch, capacity, device)
        super().__init__(layers=[_SlotLayer(self) for _ in range(num_layers)])

    def begin(self, new: Layout) -> Layout:
        """Make room for the new tokens and return the layout of every key that they may see, themselves included."""
        self._forget_unfinished()
        batch, self._new = self.length_B.shape[0], len(new)
        needed = self._longest + self._new
        if needed > self.capacity:
            self._grow(needed)
        self.write_BQ = self.length_B[:, None] + torch.arange(self._new, device=self.length_B.device)
        for slots, field in zip(self._stored.fields, new.fields, strict=True):
            slots.scatter_(1, self.write_BQ, field.expand(batch, -1))
        self.span = None if self.static or self.is_ragged else slice(self._longest, needed)
        self.visible = self.capacity if self.static else needed
        return self._stored.columns(0, self.visible)

    def rewrite(self, start: int, length: int) -> Layout:
        """Let the next forward's `length` tokens replace the keys of the slots from `start` on, in every row.

        The slots keep their integers, and nothing is to `keep`. Returns the layout of every slot in use. For
        bidirectional models, whose keys depend on all tokens: what is not rewritten is stale.
        """
        self._forget_unfinished()
        assert not self.static and not self.is_ragged and start >= 0 and start + length <= self._longest
        self.span, self.visible = slice(start, start + length), self._longest
        return self._stored.columns(0, self.visible)

    def keep(self, count: int | Tensor | None = None) -> None:
        """Store the first `count` new tokens of each row (int, or int64 [B]; None: all) and hide the rest."""
        if count is None:
            count = self._new
        if isinstance(count, int):
            assert 0 <= count <= self._new, f"{count} tokens to keep of {self._new} new ones"
            self.length_B = self.length_B + count
            self._longest += count
        else:
            self.length_B = self.length_B + count
            shortest, self._longest = torch.stack(self.length_B.aminmax()).tolist()
            self.is_ragged = shortest < self._longest
        given_up = self.write_BQ >= self.length_B[:, None]
        position, block = self._stored.position, self._stored.block
        position.scatter_(1, self.write_BQ, position.gather(1, self.write_BQ).masked_fill(given_up, HIDDEN))
        block.scatter_(1, self.write_BQ, block.gather(1, self.write_BQ).masked_fill(given_up, -1))
        self._new = 0

    def drop(self, count: int) -> None:
        """Give up the last `count` tokens of every row, all of one length."""
        self._forget_unfinished()
        assert not self.is_ragged and 0 <= count <= self._longest
        self.length_B = self.length_B - count
        self._longest -= count
        given_up = slice(self._longest, self._longest + count)
        self._stored.position[:, given_up] = HIDDEN
        self._stored.block[:, given_up] = -1

    def select(self, index_B: Tensor) -> None:
        """Keep only the chosen rows, in the order of the index (int64), which may repeat them."""
        self._forget_unfinished()
        self.length_B = self.length_B[index_B]
        self._stored = Layout(*(field[index_B] for field in self._stored.fields))
        for layer in self.layers:
            layer.select(index_B)  # type: ignore[union-attr]

    def _forget_unfinished(self) -> None:
        """Hide what a forward that failed before its `keep` has announced."""
        if self._new:
            self.keep(0)

    def _grow(self, needed: int) -> None:
        if self.static:
            raise ValueError(f"The static cache holds {self.capacity} tokens per row, and {needed} are needed.")
        self.capacity = max(needed, 2 * self.capacity)
        batch = self.length_B.shape[0]
        wide = _empty(batch, self.capacity, self.length_B.device)
        for target, source in zip(wide.fields, self._stored.fields, strict=True):
            target[:, : source.shape[1]] = source
        self._stored = wide


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [B, H, S, D] each."""

    is_compileable = True

    def __init__(self, cache: KVCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, heads, _, width = key_states.shape
        self.keys = key_states.new_zeros(batch, heads, self.cache.capacity, width)
        self.values = value_states.new_zeros(batch, heads, self.cache.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        if self.keys.shape[2] < self.cache.capacity:
            self.keys = _widened(self.keys, self.cache.capacity)
            self.values = _widened(self.values, self.cache.capacity)
        span = self.cache.span
        for slots, new in ((self.keys, key_states), (self.values, value_states)):
            if span is not None:
                slots[:, :, span] = new
            else:
                index = self.cache.write_BQ.to(new.device)[:, None, :, None].expand_as(new)
                slots.scatter_(2, index, new)
        visible = self.cache.visible
        return self.keys[:, :, :visible], self.values[:, :, :visible]

    def select(self, index_B: Tensor) -> None:
        if self.keys is not None and self.values is not None:
            index = index_B.to(self.keys.device)
            self.keys, self.values = self.keys[index], self.values[index]

    def get_seq_length(self) -> int:
        return self.cache._longest

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.visible, 0


def _empty(batch: int, capacity: int, device: torch.device) -> Layout:
    """Slots that nobody sees."""
    zeros = torch.zeros(batch, capacity, dtype=torch.int64, device=device)
    return Layout(zeros, zeros + HIDDEN, zeros.clone(), zeros - 1, zeros.clone())


def _widened(slots: Tensor, capacity: int) -> Tensor:
    wide = slots.new_zeros(*slots.shape[:2], capacity, slots.shape[3])
    wide[:, :, : slots.shape[2]] = slots
    return wide
