"""The floor: the matrix products of a step or a forward and nothing else, on operands and results made beforehand.

No library built on the same products can be faster; what a contender takes beyond its floor is its overhead.
"""

from __future__ import annotations

import torch
from shape import Shape


class Linear:
    """One linear layer's products for up to `rows` rows."""

    def __init__(self, rows: int, inputs: int, outputs: int) -> None:
        self.weight = torch.randn(outputs, inputs)
        self.weight_gradient = torch.empty(outputs, inputs)
        self.x, self.x_gradient = torch.randn(rows, inputs), torch.empty(rows, inputs)
        self.y, self.y_gradient = torch.empty(rows, outputs), torch.randn(rows, outputs)

    def forward(self, rows: int) -> None:
        torch.mm(self.x[:rows], self.weight.T, out=self.y[:rows])

    def backward(self, rows: int) -> None:
        torch.mm(self.y_gradient[:rows], self.weight, out=self.x_gradient[:rows])
        torch.mm(self.y_gradient[:rows].T, self.x[:rows], out=self.weight_gradient)


class Attention:
    """The products of one layer's attention; queries that share a key head lie end to end."""

    def __init__(self, shape: Shape, batch: int, length: int) -> None:
        count, groups = batch * shape.key_value_heads, shape.heads // shape.key_value_heads
        self.query, self.out_gradient = (torch.randn(count, groups * length, shape.head_width) for _ in range(2))
        self.key, self.value = (torch.randn(count, length, shape.head_width) for _ in range(2))
        self.scores = torch.empty(count, groups * length, length)
        self.scores_gradient = torch.empty_like(self.scores)
        self.out, self.query_gradient = torch.empty_like(self.query), torch.empty_like(self.query)
        self.key_gradient, self.value_gradient = torch.empty_like(self.key), torch.empty_like(self.value)

    def forward(self) -> None:
        torch.bmm(self.query, self.key.mT, out=self.scores)
        torch.bmm(self.scores, self.value, out=self.out)

    def backward(self) -> None:
        torch.bmm(self.scores.mT, self.out_gradient, out=self.value_gradient)
        torch.bmm(self.out_gradient, self.value.mT, out=self.scores_gradient)
        torch.bmm(self.scores_gradient, self.key, out=self.query_gradient)
        torch.bmm(self.scores_gradient.mT, self.query, out=self.key_gradient)


class Floor:
    """All products of a network on `batch` rows of `length` tokens.

    The head and the last layer's MLP run on the rows that somebody reads: the outputs of the others are not used.
    """

    def __init__(self, shape: Shape, batch: int, length: int) -> None:
        self.rows = batch * length
        layer = shape.linears
        mlp = {name: layer[name] for name in ("gate", "up", "down")}
        self.whole = [Linear(self.rows, *layer[name]) for _ in range(shape.layers) for name in layer if name not in mlp]
        self.whole += [Linear(self.rows, *mlp[name]) for _ in range(shape.layers - 1) for name in mlp]
        self.read = [Linear(self.rows, *size) for size in (*mlp.values(), (shape.hidden, shape.vocabulary))]
        self.attention = [Attention(shape, batch, length) for _ in range(shape.layers)]

    def linears(self, num_read: int, *, backward: bool, rows: int | None = None) -> None:
        """The products of the linear layers for `rows` rows (default: all), where `num_read` of them are read."""
        for linears, num_rows in ((self.whole, rows or self.rows), (self.read, num_read)):
            for linear in linears:
                linear.forward(num_rows)
                if backward:
                    linear.backward(num_rows)

    def everything(self, num_read: int, *, backward: bool) -> None:
        """The products of the linear layers and of attention."""
        self.linears(num_read, backward=backward)
        for attention in self.attention:
            attention.forward()
            if backward:
                attention.backward()
