"""What the tests of TiDAR share: its loss from one forward for each block, and networks that both sides drive."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from tests.block_cases import runs
from tests.references import tidar_loss
from tests.references.stock import MASK, stock
from unmask.data.batch import Batch
from unmask.models.backbone import Backbone
from unmask.objectives import tidar
from unmask.objectives.example import Example
from unmask.objectives.loss import row_losses
from unmask.settings.model import DiffusionConfig
from unmask.settings.objective import ObjectiveSettings

ENDLESS = 99


class Text(NamedTuple):
    """A packed document as the reference reads it: where it stands, its tokens, those to learn, the padding behind.

    Behind the last document of a row there is always room, however wide the batch is.
    """

    row: int
    start: int
    ids: list[int]
    supervised: set[int]
    room: int


def settings(**options: Any) -> ObjectiveSettings:
    return ObjectiveSettings(method="tidar", **options)


def example(
    batch: Batch, options: ObjectiveSettings, block_length: int, *, seed: int = 0, steps: int = 1, mask: int = MASK
) -> Example:
    stage = tidar.stage_at(options, block_length=block_length, step=batch.step, steps=steps)
    return tidar.example(batch, options, stage, mask_token_id=mask, seed=seed)


def backbone(block_length: int, family: str = "qwen3") -> Backbone:
    """The network `stock(family)`, float64 and random, as a TiDAR model."""
    entry = DiffusionConfig(method="tidar", vocabulary_size=MASK + 1, mask_token_id=MASK, block_length=block_length)
    return Backbone(stock(family), entry).eval()


def term_losses(network: Backbone, made: Example) -> list[float]:
    """Each term of an example's loss."""
    with torch.no_grad():
        hidden = network(made.ids_BL, made.layout.position_ids, network.render(made.layout, made.layout))
        nats_R = row_losses(hidden, made, network.logits) * made.weight_R.double()
    sums_T = torch.zeros(2, dtype=torch.float64).index_add(0, made.term_R, nats_R)
    return (sums_T / made.denominator_T.clamp(min=1)).tolist()


def texts(batch: Batch) -> Iterator[Text]:
    """Every document of a batch."""
    for row, line in enumerate(batch.document_BL.tolist()):
        found = runs(line)
        for number, (document, start, stop) in enumerate(found):
            if document >= 0:
                behind = found[number + 1 :]
                room = ENDLESS if len([one for one in behind if one[0] >= 0]) == 0 else 0
                if room == 0 and behind[0][0] < 0:
                    room = behind[0][2] - behind[0][1]
                ids, learned = batch.ids_BL[row, start:stop], batch.supervised_BL[row, start:stop]
                yield Text(row, start, ids.tolist(), set(learned.nonzero()[:, 0].tolist()), room)


def head_of(length: int, ratio: float) -> int:
    """The clean head of a document: its share, but at least one token and never all of several."""
    return max(1, min(math.floor(length * ratio), length - 1))


def reference_losses(
    batch: Batch, made: Example, options: ObjectiveSettings, block_length: int, network: Any
) -> list[float]:
    """Both terms from one causal forward for each document and one for each block.

    Of the example only which tokens are masked is read, and nothing where everything is.
    """
    split, length = options.tidar_layout == "split", batch.ids_BL.shape[1]
    found: list[tuple[str, int, float, float]] = []  # term, row, weight, nats
    sizes: Counter[tuple[str, int]] = Counter()
    for row, start, ids, supervised, room in texts(batch):
        head = head_of(len(ids), options.clean_ratio) if split else None
        first = head or 0
        stop = len(ids) if not split or options.tail_blocks is None else first + options.tail_blocks * block_length
        ids, supervised = ids[:stop], {place for place in supervised if place < stop}
        causal = tidar_loss.next_token(network, ids[: first + 1] if split else ids, {MASK})
        for place in supervised & causal.keys():
            found.append(("ar", row, 1.0, causal[place]))
            sizes["ar", row] += 1
        noisy = made.ids_BL[row, (0 if split else length) + start :][: len(ids)].tolist()
        masked = {place for place in range(first, len(ids)) if options.masking == "full" or noisy[place] == MASK}
        drafted = tidar_loss.drafts(
            network,
            ids,
            masked,
            block_length=block_length,
            mask_token_id=MASK,
            head=head,
            room=room,
            excluded_ids={MASK},
        )
        weights = _weights(options, masked, {one for one in supervised if one >= first}, first, block_length)
        for place, weight in weights.items():
            found.append(("diffusion", row, weight, drafted[place]))
        counts_all = options.weighting == "elbo" or options.masking == "full"
        sizes["diffusion", row] += len({one for one in supervised if one >= first} if counts_all else weights)
    return [_mean(found, sizes, term, options) for term in ("ar", "diffusion")]


def _weights(
    options: ObjectiveSettings, masked: set[int], candidates: set[int], first: int, block_length: int
) -> dict[int, float]:
    """The weight of each place that is masked and to be learned."""
    learned = masked & candidates
    if options.masking == "full" or options.weighting == "unweighted":
        return dict.fromkeys(learned, 1.0)

    def block(place: int) -> int:
        return (place - first) // block_length

    if options.masking == "block":
        every, hidden_blocks = set(map(block, candidates)), set(map(block, learned))
        return dict.fromkeys(learned, len(every) / max(1, len(hidden_blocks)))
    size, hidden = Counter(map(block, candidates)), Counter(map(block, learned))
    return {place: size[block(place)] / hidden[block(place)] for place in learned}


def _mean(
    found: list[tuple[str, int, float, float]],
    sizes: Counter[tuple[str, int]],
    term: str,
    options: ObjectiveSettings,
) -> float:
    rows = {row for name, row in sizes if name == term}
    loss_of = {row: math.fsum(w * nats for name, at, w, nats in found if (name, at) == (term, row)) for row in rows}
    if options.normalize == "answers":
        means = [loss_of[row] / sizes[term, row] for row in rows if sizes[term, row]]
        return math.fsum(means) / max(1, len(means))
    return math.fsum(loss_of.values()) / max(1, sum(sizes[term, row] for row in rows))
