"""The share of the optimum against an enumeration of every schedule, over a profile from plain forwards."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from unmask import noise
from unmask.analysis.information_profile import measure, window_length, windows
from unmask.analysis.schedule_optimality import schedule_figures
from unmask.analysis.schedules import halves
from unmask.data.batch import Batch
from unmask.lm import DiffusionLM
from unmask.models.loading import Checkpoint, adapted, create
from unmask.models.tokenizers import byte_tokenizer
from unmask.noise import Purpose
from unmask.objectives.methods import objective
from unmask.settings.decoding import SamplingParams
from unmask.settings.objective import ObjectiveSettings
from unmask.training.module import TrainingModule

SEED = 4


def model_of(**options: Any) -> DiffusionLM:
    return DiffusionLM(Checkpoint(tiny.backbone("masked_diffusion", **options), None))


def texts_of(number: int, length: int) -> list[list[int]]:
    """Runs of ids upwards, of this length and some longer and shorter ones, so that it is their median."""
    starts = tiny.random_ids(number, seed=1).tolist()
    return [[(start + place) % 23 for place in range(length - 1 + row % 3)] for row, start in enumerate(starts)]


def taught() -> DiffusionLM:
    """A model that knows such runs a little: the more of one is masked, the less sure it is."""
    lm = model_of()
    module = TrainingModule(lm.backbone, chunk_rows=512)
    learner = torch.optim.Adam(lm.backbone.network.parameters(), lr=0.01)
    learn = objective(ObjectiveSettings(), lm.backbone.diffusion, seed=0)
    for step in range(60):
        starts = tiny.random_ids(32, 1, seed=step)
        example = learn(Batch.of_rows(((starts + torch.arange(9)) % 23).tolist(), step=step))
        learner.zero_grad()
        module(example, 1 / example.denominator_T).total.backward()
        learner.step()
    return lm


@torch.no_grad()
def nats(lm: DiffusionLM, texts: list[list[int]], places: int, lead: list[int]) -> list[list[float]]:
    """Mean nats of the masked places of each text's first places when 1, 2, ... of them are masked."""
    mask = lm.backbone.diffusion.mask_token_id
    assert mask is not None
    orders = noise.permutation(Purpose.MASK, places, SEED, torch.arange(len(texts))).tolist()
    found = []
    for text, order in zip(texts, orders, strict=True):
        row = []
        for count in range(1, places + 1):
            hidden = [place for place in range(places) if order[place] < count]
            ids = lead + [mask if place in hidden else text[place] for place in range(places)]
            output = lm.backbone(torch.tensor([ids]), torch.arange(len(ids))[None], None)
            logits = lm.backbone.network.get_output_embeddings()(output)[0]  # type: ignore[misc]
            logits[:, mask] = -math.inf
            law = logits.double().log_softmax(-1)
            shift = int(lm.backbone.diffusion.logit_shift)
            losses = [-float(law[len(lead) + place - shift, text[place]]) for place in hidden]
            row.append(math.fsum(losses) / count)
        found.append(row)
    return found


@torch.no_grad()
def block_nats(lm: DiffusionLM, texts: list[list[int]], lead: list[int]) -> list[list[list[float]]]:
    """Of each text, of each block of it: mean nats of the masked places when 1, 2, ... of them are masked. Each is a
    forward of its own over the clean text before the block and the block, under a mask written out."""
    entry = lm.backbone.diffusion
    mask, size = entry.mask_token_id, entry.block_length
    assert mask is not None and size is not None
    head = lm.backbone.network.get_output_embeddings()
    rest = -len(lead) % size
    number = (len(texts[0]) - rest) // size
    orders = iter(noise.permutation(Purpose.MASK, size, SEED, torch.arange(len(texts) * number)).tolist())
    found = []
    for text in texts:
        ids, of_text = [*lead, *text], []
        for start in range(len(lead) + rest, len(ids), size):
            order, row = next(orders), []
            end = start + size
            block_N = torch.arange(end) // size
            seen = block_N[:, None] >= block_N[None, :]
            for count in range(1, size + 1):
                hidden = [start + place for place in range(size) if order[place] < count]
                given = [mask if place in hidden else ids[place] for place in range(end)]
                output = lm.backbone(torch.tensor([given]), torch.arange(end)[None], seen[None, None])
                logits = head(output)[0]  # type: ignore[misc]
                logits[:, mask] = -math.inf
                law = logits.double().log_softmax(-1)
                row.append(math.fsum(-float(law[place, ids[place]]) for place in hidden) / count)
            of_text.append(row)
        found.append(of_text)
    return found


def mean(rows: list[list[float]]) -> list[float]:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def rising(values: list[float]) -> list[float]:
    """Isotonic regression by its minimax formula."""
    size = len(values)

    def average(begin: int, end: int) -> float:
        return math.fsum(values[begin : end + 1]) / (end + 1 - begin)

    return [max(min(average(j, k) for k in range(i, size)) for j in range(i + 1)) for i in range(size)]


def excess(counts: tuple[int, ...], profile: list[float]) -> float:
    """Nats per token beyond one place at a time: each place is paid at its step's count instead of its own."""
    left, total = len(profile), 0.0
    for count in counts:
        total += sum(profile[left - 1] - profile[one - 1] for one in range(left - count + 1, left + 1))
        left -= count
    assert left == 0
    return total / len(profile)


def every_schedule(places: int, steps: int) -> list[tuple[int, ...]]:
    cuts = itertools.combinations(range(1, places), steps - 1)
    return [tuple(b - a for a, b in itertools.pairwise((0, *cut, places))) for cut in cuts]


def linear(places: int, steps: int) -> tuple[int, ...]:
    """LLaDA's: equal counts, what is left over in the first steps."""
    return tuple(places // steps + (step < places % steps) for step in range(steps))


def assert_figures(
    found: dict[str, float], rows: list[list[float]], places: int, steps: int, counts: Any, *, seed: int = SEED
) -> float:
    """The excess and the optimum's share of it; where several fit best, the share of one of them."""
    fit, score = (mean([rows[one] for one in half]) for half in halves(torch.arange(len(rows)), seed))
    fitted = rising(fit)
    costs = {one: excess(one, fitted) for one in every_schedule(places, steps)}
    best = [one for one, cost in costs.items() if cost < min(costs.values()) + 1e-9]
    own = excess(tuple(counts), score)
    assert found[f"schedule/excess_{steps}"] == pytest.approx(own, abs=1e-6)
    share = found[f"schedule/optimality_{steps}"]
    values = [excess(one, score) for one in best]
    if math.isnan(share):
        assert own <= 1e-6 or min(values) <= 1e-6
    else:
        assert any(share == pytest.approx(value / own, rel=1e-4) for value in values)
    return share


def test_excess_and_optimum_against_every_schedule() -> None:
    lm, texts = taught(), texts_of(24, 9)
    found = schedule_figures(lm, texts, SamplingParams(), seed=SEED)
    chosen = [one for one in texts if len(one) >= 9]
    assert len(chosen) == 16
    rows = nats(lm, chosen, 9, [])
    shares = [assert_figures(found, rows, 9, steps, linear(9, steps)) for steps in (4, 8)]
    assert found.keys() == {f"schedule/{name}_{steps}" for name in ("excess", "optimality") for steps in (4, 8)}
    assert all(0 < one < 1 for one in shares), "the linear schedule is not the best, nor is it for nothing"


def test_the_schedule_is_the_one_that_decodes(tmp_path: Path) -> None:
    lm, texts = model_of(), tiny.random_ids(12, 8).tolist()
    rows = nats(lm, texts, 8, [])
    found = schedule_figures(lm, texts, SamplingParams(reveal_schedule="cosine"), seed=SEED)
    grid = [math.floor(8 * math.cos(math.pi / 2 * step / 4)) for step in range(5)]
    cosine = [one - other for one, other in itertools.pairwise(grid)]
    assert_figures(found, rows, 8, 4, cosine)
    listed = {"places": 8, "counts": {"3": [1, 2, 5]}}
    (tmp_path / "mine.json").write_text(json.dumps(listed))
    params = SamplingParams(reveal_schedule=str(tmp_path / "mine.json"), max_new_tokens=8, denoising_steps=3)
    found = schedule_figures(lm, texts, params, seed=SEED)
    assert found.keys() == {"schedule/excess_3", "schedule/optimality_3"}
    assert_figures(found, rows, 8, 3, [1, 2, 5])


@pytest.mark.parametrize("shift", [False, True])
def test_a_start_of_text_stands_before_the_places(shift: bool) -> None:
    tokenizer = byte_tokenizer()
    made = create(tiny.SHAPE, tokenizer, seed=0)
    backbone = adapted(made, ObjectiveSettings(logit_shift=shift)).backbone.double().eval()
    lm = DiffusionLM(Checkpoint(backbone, tokenizer))
    assert tokenizer.bos_token_id is not None
    texts = tiny.random_ids(8, 6, vocabulary=200).tolist()
    found = schedule_figures(lm, texts, SamplingParams(), seed=SEED)
    assert_figures(found, nats(lm, texts, 6, [tokenizer.bos_token_id]), 6, 4, linear(6, 4))


def test_too_few_texts_are_nan() -> None:
    found = schedule_figures(model_of(), tiny.random_ids(3, 9).tolist(), SamplingParams(), seed=SEED)
    assert found and all(math.isnan(value) for value in found.values())


def test_texts_shorter_than_any_number_of_steps_say_nothing() -> None:
    assert schedule_figures(model_of(), [[1, 2, 3]] * 8, SamplingParams(), seed=SEED) == {}


@pytest.mark.parametrize("size", [3, 4])
def test_blocks_have_their_own_schedule_behind_the_clean_text(size: int, tmp_path: Path) -> None:
    backbone = tiny.backbone("block_diffusion", block_length=size)
    lm, texts = DiffusionLM(Checkpoint(backbone, None)), tiny.random_ids(6, 2 * size + 1).tolist()
    by_text = block_nats(lm, [one[: 2 * size] for one in texts], [])
    rows = [mean(blocks) for blocks in by_text]  # documents have equally many blocks, so their means weigh the same
    found = schedule_figures(lm, texts, SamplingParams(), seed=SEED)
    assert found.keys() == {"schedule/excess_2", "schedule/optimality_2"}
    assert_figures(found, rows, size, 2, linear(size, 2))
    (tmp_path / "mine.json").write_text(json.dumps({"places": size, "counts": {"2": [1, size - 1]}}))
    listed = SamplingParams(reveal_schedule=str(tmp_path / "mine.json"), unmasking="random", denoising_steps=2)
    assert_figures(schedule_figures(lm, texts, listed, seed=SEED), rows, size, 2, (1, size - 1))


@pytest.mark.parametrize("lead", [[], [7], [1, 2, 3]])
def test_the_profile_of_each_block_is_that_of_a_forward_of_its_own(lead: list[int]) -> None:
    """And so no block sees what stands behind it, nor its own masked tokens."""
    backbone = tiny.backbone("block_diffusion", block_length=4)
    length = window_length(backbone.diffusion, 4, lead=len(lead), room=len(lead) + 14)
    assert (len(lead) + length) % 4 == 0 and length <= 14
    documents = [tiny.random_ids(2 * length + 1, seed=row).tolist() for row in range(4)]
    found = windows(documents, length, per_document=2, max_documents=4)
    measured = measure(backbone, found, torch.arange(1, 5), lead=lead, batch_size=5, seed=SEED)
    by_text = block_nats(DiffusionLM(Checkpoint(backbone, None)), found.ids_WN.tolist(), lead)
    torch.testing.assert_close(
        measured.nats_GM, torch.tensor(list(itertools.chain.from_iterable(by_text)), dtype=torch.float64)
    )
    blocks = len(by_text[0])
    assert measured.places == 4 and blocks == (length - -len(lead) % 4) // 4
    assert measured.document_G.tolist() == [row for row in range(4) for _ in range(2 * blocks)]


def test_a_window_of_blocks_fills_the_leads_block_and_its_room() -> None:
    entry = tiny.backbone("block_diffusion", block_length=8).diffusion
    assert window_length(entry, 8, lead=1, room=1000) == 7 + 64
    assert window_length(entry, 8, lead=0, room=1000) == 64
    assert window_length(entry, 8, lead=1, room=31) == 7 + 16
    assert window_length(entry, 8, lead=1, room=9) == 7 + 8, "one block at least: who has less room is told"
    assert window_length(tiny.backbone("masked_diffusion").diffusion, 8, lead=1, room=1000) == 8


def test_a_block_longer_than_the_context_is_nan() -> None:
    lm = DiffusionLM(Checkpoint(tiny.backbone("block_diffusion", block_length=8), None))
    lm.backbone.network.config.max_position_embeddings = 7
    found = schedule_figures(lm, tiny.random_ids(8, 20).tolist(), SamplingParams(), seed=SEED)
    assert found.keys() >= {"schedule/excess_2", "schedule/excess_4"} and all(map(math.isnan, found.values()))


@pytest.mark.parametrize(
    "options", [{"decoding": "canvas", "max_new_tokens": 4}, {"block_length": 4, "unmasking": "random"}]
)
def test_a_block_model_that_decodes_otherwise_has_no_figures(options: dict[str, Any], tmp_path: Path) -> None:
    lm = DiffusionLM(Checkpoint(tiny.backbone("block_diffusion", block_length=8), None))
    (tmp_path / "four.json").write_text('{"places": 4, "counts": {"4": [1, 1, 1, 1], "2": [3, 1]}}')
    for schedule in (str(tmp_path / "four.json"), "cosine"):
        params = SamplingParams(reveal_schedule=schedule, **options)
        assert schedule_figures(lm, tiny.random_ids(12, 9).tolist(), params, seed=SEED) == {}


def test_no_texts_are_too_few(tmp_path: Path) -> None:
    (tmp_path / "four.json").write_text('{"places": 4, "counts": {"2": [3, 1]}}')
    params = SamplingParams(reveal_schedule=str(tmp_path / "four.json"), max_new_tokens=4, denoising_steps=2)
    assert schedule_figures(model_of(), [], params, seed=SEED).keys() == {"schedule/excess_2", "schedule/optimality_2"}
    assert schedule_figures(model_of(), [], SamplingParams(), seed=SEED) == {}


def test_tidar_has_no_reveal_schedule() -> None:
    lm = DiffusionLM(Checkpoint(tiny.backbone("tidar"), None))
    assert schedule_figures(lm, tiny.random_ids(12, 9).tolist(), SamplingParams(), seed=SEED) == {}


def test_places_fit_into_the_context() -> None:
    lm = model_of()
    lm.backbone.network.config.max_position_embeddings = 7
    texts = tiny.random_ids(8, 20).tolist()
    found = schedule_figures(lm, texts, SamplingParams(), seed=SEED)
    assert_figures(found, nats(lm, texts, 7, []), 7, 4, linear(7, 4))
