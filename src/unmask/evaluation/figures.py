"""Figures that may be reported: finite ones."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from unmask.errors import NonFiniteError


def finite(nats: Tensor, name: Callable[[int], str]) -> Tensor:
    """Negative log-likelihoods that can be summed, compared and reported.

    Args:
        nats: of any shape.
        name: says whose the figure of an index into the flattened tensor is.

    Raises:
        NonFiniteError: one is NaN or infinite.
    """
    if not bool(nats.isfinite().all()):
        at = int((~nats.isfinite()).flatten().nonzero()[0])
        raise NonFiniteError(
            f"The likelihood of {name(at)} is {float(nats.flatten()[at])}: weights are damaged, numbers overflow (try "
            "--dtype float32), or the text holds a token that this model never predicts."
        )
    return nats
