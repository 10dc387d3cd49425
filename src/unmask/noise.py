"""All randomness of the library: every draw is a hash of integers that name it.

In: a purpose and integer keys (seed, step, sample uid, position, ...), scalars or tensors that broadcast.
Out: float64 uniforms in (0, 1), or permutations. Nothing is stateful, so resuming needs no generator state, and a
batch draws the same numbers however it is split over processes and micro-batches. The hash is splitmix64
(Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014) in wrapping int64 arithmetic, which is
the same on every device.
"""

import contextlib
import enum
from collections.abc import Iterator

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_UNIFORM_BITS = 52


class Purpose(enum.IntEnum):
    """What a draw is for: two draws with equal keys and different purposes are independent."""

    TIME = 1
    STRATUM = 2
    MASK = 3
    LENGTH = 4
    DATA_ORDER = 5
    WEIGHTS = 6
    DROPOUT = 7
    TOKEN = 8
    REVEAL = 9
    GUMBEL = 10
    SPLIT = 11
    ADAPTER = 12
    ADAPTER_DROPOUT = 13
    DRAFT = 14
    ACCEPT = 15
    CLEAN_SHARE = 16
    RESAMPLE = 17
    PROBE = 18
    INPUT_MASK = 19


def _mix(state: Tensor) -> Tensor:
    """The finaliser of splitmix64; int64 shifts are arithmetic, so the sign bits are cleared after each."""
    state = (state ^ ((state >> 30) & ((1 << 34) - 1))) * _MIX_1
    state = (state ^ ((state >> 27) & ((1 << 37) - 1))) * _MIX_2
    return state ^ ((state >> 31) & ((1 << 33) - 1))


def hashed(purpose: Purpose, *keys: int | Tensor) -> Tensor:
    """Hash integer keys, which broadcast against each other, to int64 (all 64 bits used).

    The purpose is mixed like a key, before the first of them: both are small, and one XORed into the other would be
    another purpose with another seed.
    """
    device = next((key.device for key in keys if isinstance(key, Tensor)), torch.device("cpu"))
    state = torch.zeros((), dtype=torch.int64, device=device)
    for key in (int(purpose), *keys):
        value = key.to(torch.int64) if isinstance(key, Tensor) else torch.full((), key, device=device)
        state = _mix((state ^ value) + _GOLDEN)
    return state


def uniform(purpose: Purpose, *keys: int | Tensor) -> Tensor:
    """Uniform float64 draws strictly inside (0, 1), one for each element of the broadcast keys."""
    bits = (hashed(purpose, *keys) >> (64 - _UNIFORM_BITS)) & ((1 << _UNIFORM_BITS) - 1)
    return (bits.to(torch.float64) + 0.5) * 2.0**-_UNIFORM_BITS


def permutation(purpose: Purpose, length: int, *keys: int | Tensor) -> Tensor:
    """A permutation of 0..length-1 (int64 [length]), or one for each element of the keys ([*, length])."""
    expanded = [key.unsqueeze(-1) if isinstance(key, Tensor) else key for key in keys]
    device = next((key.device for key in keys if isinstance(key, Tensor)), torch.device("cpu"))
    return hashed(purpose, *expanded, torch.arange(length, device=device)).argsort(dim=-1, stable=True)


@contextlib.contextmanager
def seeded(purpose: Purpose, seed: int) -> Iterator[None]:
    """Seed PyTorch's global generator inside the block only, for code that draws from it (initial weights)."""
    with torch.random.fork_rng():
        torch.manual_seed(int(hashed(purpose, seed)))
        yield
