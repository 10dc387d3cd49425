"""How near the reveal schedule that a model decodes with comes to the best one for it, in a few numbers.

In: a model of masked or block diffusion and token ids of texts. Out: the excess of its schedule and the optimum's share
of it, as `unmask analyze schedule` measures them, on fewer texts.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence

from unmask.analysis.information_profile import (
    FEWEST_DOCUMENTS,
    group_places,
    mask_counts,
    measure,
    window_length,
    windows,
)
from unmask.analysis.schedules import analysed
from unmask.lm import DiffusionLM
from unmask.models.tokenizers import lead_ids
from unmask.settings.decoding import SamplingParams
from unmask.settings.reveal_files import is_file_name, read

_PLACES, _READ, _WINDOWS, _COUNTS = 64, 256, 128, 16
_STEPS = {"masked_diffusion": (4, 8, 16), "block_diffusion": (2, 4, 8, 16)}
_RESAMPLES = 2  # the intervals are not asked for


def schedule_figures(
    lm: DiffusionLM, texts: Iterable[Sequence[int]], params: SamplingParams, *, seed: int
) -> dict[str, float]:
    """schedule/excess_K (nats per token above one place at a time) and schedule/optimality_K for K steps, by name.

    NaN where too few texts are long enough, or the context is too short; nothing for other methods, whose decoding has
    no schedule, a block-diffusion model that decodes otherwise than in its blocks, or one without a token to stand in
    front where it needs one. Half of the texts fit the optimum, the other half score both.
    """
    entry = lm.backbone.diffusion
    lead = lead_ids(lm.tokenizer, needed=entry.logit_shift)
    if entry.method not in _STEPS or (entry.logit_shift and not lead):
        return {}
    resolved = lm.resolved(params)
    schedule = resolved.reveal_schedule or "linear"
    in_blocks = resolved.decoding == "blocks" and resolved.block_length == entry.block_length
    if entry.method == "block_diffusion" and not in_blocks:
        return {}
    read_texts = list(itertools.islice(texts, _READ))
    typical = statistics.median_low([len(one) for one in read_texts]) if read_texts else 0
    room = min(lm.backbone.context_length, typical + len(lead))
    if is_file_name(schedule):
        places, steps = read(schedule).places, tuple(sorted(read(schedule).counts))
    else:
        places = group_places(entry, max(1, min(_PLACES, room - len(lead))))
        steps = tuple(one for one in _STEPS[entry.method] if one < places)
    length = window_length(entry, places, lead=len(lead), room=room)
    chosen = [one for one in read_texts if len(one) >= length][:_WINDOWS]
    if len(chosen) < FEWEST_DOCUMENTS or len(lead) + length > lm.backbone.context_length:
        return {f"schedule/{name}_{number}": math.nan for number in steps for name in ("excess", "optimality")}
    if not steps:
        return {}
    found = windows(chosen, length, per_document=1, max_documents=_WINDOWS)
    profile = measure(lm.backbone, found, mask_counts(places, _COUNTS), lead=lead, seed=seed)
    made = {}
    for number, ranked in analysed(profile, [schedule], steps, resamples=_RESAMPLES, seed=seed).scored.items():
        one = next(one for one in ranked if one.schedule == schedule)
        made |= {f"schedule/excess_{number}": one.excess, f"schedule/optimality_{number}": one.optimality}
    return made
