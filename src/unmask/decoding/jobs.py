"""Jobs of one call: each prompt or text with gaps, its parameters and its samples, and which go together."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from unmask.decoding.step import Row
from unmask.errors import SettingsError
from unmask.settings.decoding import SamplingParams


@dataclass(frozen=True)
class Job:
    """One prompt (or text with gaps) to generate from: its first sample, its parameters, its number, its pieces."""

    row: Row
    params: SamplingParams
    number: int
    pieces: tuple[str, ...] = ()

    def samples(self) -> list[Row]:
        return [dataclasses.replace(self.row, sample=sample) for sample in range(self.params.n)]

    def gaps(self, tokens: Sequence[int], ends: Collection[int]) -> Iterator[tuple[list[int], list[int]]]:
        """Of each gap, all ids before it and those that filled it, up to the first of `ends`."""
        filled = iter(tokens)
        template = self.row.template(0)
        whole = [next(filled) if token is None else token for token in template]
        starts = [position for position, token in enumerate(template) if token is None]
        done = 0
        for length in self.params.infill_length:
            start = starts[done]
            done += length
            yield (
                whole[:start],
                list(itertools.takewhile(lambda token: token not in ends, whole[start : start + length])),
            )


def for_gaps(params: SamplingParams, gaps: int) -> SamplingParams:
    """The parameters with one length for each gap."""
    lengths = params.infill_length
    if gaps > 0 and len(lengths) not in (1, gaps):
        raise SettingsError(
            f"infill_length must give the tokens of the gaps, one number for all or one each ({gaps}), got {lengths}."
        )
    if params.cache not in (None, "none") or params.canvas_mode == "semi_autoregressive_origin":
        raise SettingsError(
            f"Gaps are filled with the whole text in view: leave out cache ({params.cache}) and canvas_mode "
            f"({params.canvas_mode})."
        )
    return dataclasses.replace(params, infill_length=lengths * gaps if len(lengths) == 1 else lengths)


def grouped(params: Sequence[SamplingParams], batch_size: int) -> Iterator[list[int]]:
    """Indices of rows that can be decoded together: equal parameters, whatever their seeds and numbers of samples."""
    groups: dict[SamplingParams, list[int]] = {}
    key = functools.cache(functools.partial(dataclasses.replace, seed=0, n=1))
    for index, one in enumerate(params):
        groups.setdefault(key(one), []).append(index)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]
