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
_here = threading.local()  # several threads may run models; each is in one last layer at a time


def hook_last_mlp(decoder: nn.Module) -> None:
    """Make the last MLP of a stock network obey the keyword; a second call changes nothing.

    `transformers` hands unknown keywords down to the attention of every layer. There the rows are picked up anew on
    each pass, so that a recomputation in the backward pass finds its own rows and a plain call finds none.
    """
    last: Any = decoder.layers[-1]  # type: ignore[index]
    if not hasattr(last, KEYWORD):
        setattr(last, KEYWORD, True)
        last.self_attn.register_forward_pre_hook(_begin, with_kwargs=True)
        last.mlp.register_forward_pre_hook(_gather)
        last.mlp.register_forward_hook(_scatter)


def read_rows(values_BLX: Tensor) -> Tensor:
    """Of a tensor with a value for each token, the rows that the last MLP is computing, [1, R, X]; only inside it."""
    return values_BLX.flatten(0, 1).index_select(0, _here.read_R)[None]


def _begin(module: nn.Module, args: Any, keywords: dict[str, Any]) -> None:
    _here.read_R = keywords.get(KEYWORD)


def _gather(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
    if _here.read_R is None:
        return None
    _here.shape = args[0].shape
    return (args[0].flatten(0, 1).index_select(0, _here.read_R)[None],)


def _scatter(module: nn.Module, args: Any, output_1RD: Tensor) -> Tensor | None:
    if _here.read_R is None:
        return None
    scattered_BLD = output_1RD.new_zeros(_here.shape)
    scattered_BLD.flatten(0, 1).index_copy_(0, _here.read_R, output_1RD[0])
    return scattered_BLD
