"""The last MLP, for the rows that somebody reads only.

Attention mixes rows, an MLP does not, and behind the last one only some rows are read: the supervised ones in
training, the masked ones in decoding. Others leave the network as if the last MLP had added nothing to them.
Shapes: B batch, L length, D width, R read rows.
"""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor, nn

KEYWORD = "unmask_read_R"


def hook_last_mlp(decoder: nn.Module) -> None:
    """Make the last MLP of a stock network obey the keyword; a second call changes nothing."""
    last: Any = decoder.layers[-1]  # type: ignore[index]
    if not hasattr(last, KEYWORD):
        setattr(last, KEYWORD, _LastMLP(last))


class _LastMLP:
    """Hooks on the last layer of a stock network.

    `transformers` hands unknown keywords down to the attention of every layer. There the rows are picked up anew on
    each pass, so that a recomputation in the backward pass finds its own rows and a plain call finds none.
    """

    def __init__(self, last: Any) -> None:
        self._here = threading.local()  # several threads may share a model
        last.self_attn.register_forward_pre_hook(self._begin, with_kwargs=True)
        last.mlp.register_forward_pre_hook(self._gather)
        last.mlp.register_forward_hook(self._scatter)

    def _begin(self, module: nn.Module, args: Any, keywords: dict[str, Any]) -> None:
        self._here.read_R = keywords.get(KEYWORD)

    def _gather(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        if self._here.read_R is None:
            return None
        self._here.shape = args[0].shape
        return (args[0].flatten(0, 1).index_select(0, self._here.read_R)[None],)

    def _scatter(self, module: nn.Module, args: Any, output_1RD: Tensor) -> Tensor | None:
        if self._here.read_R is None:
            return None
        nothing_BLD = output_1RD.new_zeros(self._here.shape)
        filled_ND = nothing_BLD.flatten(0, 1).index_copy(0, self._here.read_R, output_1RD[0])
        return filled_ND.view(self._here.shape)
