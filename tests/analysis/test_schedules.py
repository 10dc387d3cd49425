"""Schedules: the profile against enumeration, the optimum against every schedule, excess against a sampler's law."""

from __future__ import annotations

import csv
import dataclasses
import functools
import itertools
import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.references import likelihood as reference
from tests.training import recipes
from unmask.analysis import schedules
from unmask.analysis.information_profile import Profile, Windows, check_method, mask_counts, measure, windows
from unmask.analysis.schedules import OPTIMUM
from unmask.cli.main import main
from unmask.errors import DataError, SettingsError
from unmask.lm import DiffusionLM
from unmask.models.backbone import Backbone
from unmask.models.loading import Checkpoint, save
from unmask.settings.decoding import SamplingParams
from unmask.training.preparation import held_out_texts
from unmask.training.run import train

VOCABULARY, LENGTH = 3, 4


def window_nats(model: Backbone, tokens: list[int], masked: tuple[int, ...], lead: list[int]) -> float:
    """Mean nats of the masked places, from the stock network's logits over the allowed ids."""
    ids = lead + [VOCABULARY if place in masked else token for place, token in enumerate(tokens)]
    with torch.no_grad():
        hidden = model(torch.tensor([ids]), torch.arange(len(ids))[None], None)
        logits = model.network.get_output_embeddings()(hidden)[0, len(lead) :, :VOCABULARY]
    nats = -logits.log_softmax(-1)[range(len(tokens)), tokens]
    return float(nats[list(masked)].mean())


def brute_profile(model: Backbone, tokens: list[int], lead: list[int]) -> list[float]:
    """f(1..n) by every mask."""
    found = []
    for count in range(1, len(tokens) + 1):
        masks = list(itertools.combinations(range(len(tokens)), count))
        found.append(math.fsum(window_nats(model, tokens, mask, lead) for mask in masks) / len(masks))
    return found


def profile(values_WM: Tensor, document_G: Tensor | None = None) -> Profile:
    rows, places = values_WM.shape
    owners = torch.arange(rows) if document_G is None else document_G
    return Profile(places, torch.arange(1, places + 1), values_WM.double(), owners)


def noisy(documents: int, places: int, seed: int = 0) -> Profile:
    """A rising profile with noise of its own for each document."""
    generator = torch.Generator().manual_seed(seed)
    rising = torch.linspace(0, 1.4, places, dtype=torch.float64).square()
    return profile(1 + rising + 0.1 * torch.randn(documents, places, generator=generator, dtype=torch.float64))


def every_schedule(places: int, steps: int) -> list[tuple[int, ...]]:
    cuts = itertools.combinations(range(1, places), steps - 1)
    return [tuple(b - a for a, b in itertools.pairwise((0, *cut, places))) for cut in cuts]


def plain_excess(counts: tuple[int, ...], values: list[float]) -> float:
    """Step by step from the definition, in nats per token."""
    left, total = len(values), 0.0
    for count in counts:
        total += sum(values[left - 1] - values[one - 1] for one in range(left - count + 1, left + 1))
        left -= count
    return total / len(values)


@pytest.mark.parametrize("lead", [[], [2]])
def test_the_profile_is_the_mean_over_all_masks(lead: list[int]) -> None:
    model = tiny.backbone("masked_diffusion", vocabulary=VOCABULARY)
    tokens, copies = [2, 0, 1, 1], 3000
    found = Windows(torch.tensor([tokens]).repeat(copies, 1), torch.arange(copies), 0)
    measured = measure(model, found, torch.arange(1, LENGTH + 1), lead=lead, batch_size=4000)
    expected = torch.tensor(brute_profile(model, tokens, lead), dtype=torch.float64)
    error = measured.stderr()
    assert (error[:-1] > 0).all() and error.max() < 0.05
    assert ((measured.mean() - expected).abs() <= 4 * error + 1e-6).all()
    assert measured.mean()[-1] == pytest.approx(float(expected[-1]), abs=1e-6)


def test_each_window_is_scored_at_its_own_counts_whatever_the_batch() -> None:
    model = tiny.backbone("masked_diffusion")
    found = Windows(tiny.random_ids(5, 6), torch.tensor([0, 0, 1, 2, 3]), 0)
    counts = torch.tensor([1, 4, 6])
    one = measure(model, found, counts, batch_size=64, seed=3)
    assert torch.allclose(one.nats_GM, measure(model, found, counts, batch_size=4, seed=3).nats_GM)
    assert not torch.allclose(one.nats_GM, measure(model, found, counts, seed=4).nats_GM)
    # All masked, the input is the same for every window, and the loss the mean over its own tokens.
    ids = torch.full((1, 6), model.diffusion.mask_token_id)
    with torch.no_grad():
        law = model.logits(model(ids, torch.arange(6)[None], None))[0].log_softmax(-1)
    expected = [-law[range(6), row].mean().item() for row in found.ids_WN.tolist()]
    assert one.nats_GM[:, -1].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_shifted_row_reads_a_token() -> None:
    model = tiny.backbone("masked_diffusion", logit_shift=True)
    found = Windows(tiny.random_ids(4, 3), torch.arange(4), 0)
    measured = measure(model, found, torch.tensor([3]), lead=[5])
    mask = model.diffusion.mask_token_id
    with torch.no_grad():
        law = model.logits(model(torch.tensor([[5, mask, mask, mask]]), torch.arange(4)[None], None))[0].log_softmax(-1)
    expected = [-law[range(3), row].mean().item() for row in found.ids_WN.tolist()]
    assert measured.nats_GM[:, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_standard_error_counts_documents_not_windows() -> None:
    values = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    alone = profile(values)
    assert alone.stderr().tolist() == pytest.approx((values.std(dim=0) / math.sqrt(6)).tolist())
    tripled = profile(values.repeat_interleave(3, dim=0), torch.arange(6).repeat_interleave(3))
    assert tripled.stderr().tolist() == pytest.approx(alone.stderr().tolist())


def test_windows_are_whole_and_stay_inside_their_document() -> None:
    documents = [list(range(7)), [9, 9], list(range(10, 13)), list(range(20, 23)), list(range(30, 34)), [1] * 50]
    found = windows(documents, 3, per_document=2, max_documents=4)
    assert found.ids_WN.tolist() == [[0, 1, 2], [3, 4, 5], [10, 11, 12], [20, 21, 22], [30, 31, 32]]
    assert found.document_W.tolist() == [0, 0, 1, 2, 3]
    assert found.short == 1
    with pytest.raises(DataError, match="at least 4 documents of 5 tokens or more, got 2 and 4 shorter"):
        windows(documents, 5, per_document=1, max_documents=9)


@pytest.mark.parametrize(("places", "limit"), [(8, 8), (64, 20), (1000, 32), (5, 2), (7, 1)])
def test_counts_measured_reach_from_one_to_all(places: int, limit: int) -> None:
    found = mask_counts(places, limit).tolist()
    assert found[0] == 1 and found[-1] == places
    assert found == sorted(set(found))
    assert len(found) == places if places <= limit else len(found) <= max(limit, 2)
    assert len(found) >= min(places, limit) * 0.6


def test_excess_is_the_sum_of_what_each_step_loses() -> None:
    values = noisy(3, 7).mean()
    for steps in range(1, 8):
        for counts in every_schedule(7, steps):
            weights = schedules.excess_weights(counts, torch.arange(1, 8))
            assert float(weights @ values) == pytest.approx(plain_excess(counts, values.tolist()))
    one_by_one = schedules.excess_weights((1,) * 7, torch.arange(1, 8))
    assert one_by_one.abs().max() == 0


def test_excess_of_an_exact_model_is_the_divergence_of_its_sampler() -> None:
    """KL(law || K-step random-order sampler) averaged over orders, from the joint law itself."""
    law = torch.rand([VOCABULARY] * LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    law /= law.sum()
    predict = reference.bayes_predictor(law)
    texts = list(itertools.product(range(VOCABULARY), repeat=LENGTH))

    @functools.cache
    def log_laws(visible: tuple[int | None, ...]) -> list[list[float]]:
        masked = tuple(one is None for one in visible)
        return predict([one or 0 for one in visible], masked).tolist()

    def nats(text: tuple[int, ...], hidden: tuple[int, ...], place: int) -> float:
        visible = tuple(None if one in hidden else token for one, token in enumerate(text))
        return -log_laws(visible)[place][text[place]]

    values = []
    for count in range(1, LENGTH + 1):
        sets = list(itertools.combinations(range(LENGTH), count))
        values.append(
            math.fsum(
                float(law[text]) * nats(text, hidden, place) / count / len(sets)
                for text in texts
                for hidden in sets
                for place in hidden
            )
        )
    entropy = float(-(law * law.log()).sum())
    orders = list(itertools.permutations(range(LENGTH)))
    for counts in [(4,), (2, 2), (1, 3), (3, 1), (2, 1, 1)]:
        total = 0.0
        for text, order in itertools.product(texts, orders):
            start = 0
            for count in counts:
                step, hidden = order[start : start + count], tuple(order[start:])
                total += float(law[text]) / len(orders) * sum(nats(text, hidden, place) for place in step)
                start += count
        weights = schedules.excess_weights(counts, torch.arange(1, LENGTH + 1))
        found = float(weights @ torch.tensor(values, dtype=torch.float64)) * LENGTH
        assert found == pytest.approx(total - entropy, abs=1e-9)
    independent = sum(float(-(one * one.log()).sum()) for one in (law.sum((1, 2, 3)), law.sum((0, 2, 3))))
    independent += sum(float(-(one * one.log()).sum()) for one in (law.sum((0, 1, 3)), law.sum((0, 1, 2))))
    weights = schedules.excess_weights((4,), torch.arange(1, LENGTH + 1))
    assert float(weights @ torch.tensor(values, dtype=torch.float64)) * LENGTH == pytest.approx(independent - entropy)


def test_between_counts_measured_the_profile_is_a_line() -> None:
    found = schedules.interpolation(torch.tensor([1, 2, 6])) @ torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)
    assert found.tolist() == pytest.approx([1, 3, 3.5, 4, 4.5, 5])


def test_isotonic_regression_pools_what_falls() -> None:
    found = schedules.isotonic(torch.tensor([1.0, 3.0, 2.0, 2.5, 2.0, 4.0]))
    assert found.tolist() == pytest.approx([1, 2.375, 2.375, 2.375, 2.375, 4])
    rising = torch.tensor([0.0, 1.0, 1.0, 7.0], dtype=torch.float64)
    assert torch.equal(schedules.isotonic(rising), rising)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_optimum_is_the_best_of_all_schedules(seed: int) -> None:
    values = torch.rand(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).cumsum(0)
    found = schedules.optimal_counts(values, [1, 2, 3, 4, 7, 9])
    for steps, counts in found.items():
        assert len(counts) == steps and sum(counts) == 9 and min(counts) >= 1
        best = min(plain_excess(one, values.tolist()) for one in every_schedule(9, steps))
        assert plain_excess(counts, values.tolist()) == pytest.approx(best)


def test_the_optimum_never_sees_the_scoring_half() -> None:
    whole = noisy(40, 8)
    found = schedules.analysed(whole, ["linear"], [2, 3, 4], resamples=50)
    fit, score = set(found.fit_documents.tolist()), set(found.score_documents.tolist())
    assert fit.isdisjoint(score) and len(fit) == len(score) == 20

    def replaced(rows: Tensor) -> schedules.Analysis:
        values = whole.nats_GM.clone()
        # A cliff at the other end, which asks for other counts.
        values[rows] = torch.tensor([0.0] + [9.0] * 7, dtype=torch.float64)
        return schedules.analysed(profile(values), ["linear"], [2, 3, 4], resamples=50)

    other = replaced(found.score_documents)
    assert other.optimum == found.optimum
    assert other.scored[2][0].excess != found.scored[2][0].excess
    assert replaced(found.fit_documents).optimum != found.optimum
    assert {row.schedule: row.excess for row in replaced(found.fit_documents).scored[3]}["linear"] == pytest.approx(
        {row.schedule: row.excess for row in found.scored[3]}["linear"]
    )


def test_ranks_are_ranges_where_paired_differences_hold_zero() -> None:
    whole = noisy(60, 8)
    rows = {"a": (1, 7), "b": (3, 5), "same": (3, 5), OPTIMUM: (2, 6)}
    found = {one.schedule: one for one in schedules.scores(whole, rows, resamples=500, seed=0)}
    values = whole.mean().tolist()
    for name, counts in rows.items():
        assert found[name].excess == pytest.approx(plain_excess(counts, values))
        assert found[name].low < found[name].excess < found[name].high
    assert (found["b"].first, found["b"].last) == (found["same"].first, found["same"].last)
    assert found["b"].last - found["b"].first >= 1
    best = sorted(rows, key=lambda name: plain_excess(rows[name], values))
    certain = [found[name] for name in best if found[name].first == found[name].last]
    assert all(one.first == 1 + best.index(one.schedule) for one in certain)
    assert found["a"].optimality == pytest.approx(found[OPTIMUM].excess / found["a"].excess)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truth = plain_excess((4, 4), (1 + torch.linspace(0, 1.4, 8, dtype=torch.float64).square()).tolist())
    rows = {OPTIMUM: (4, 4)}
    hits = 0
    for seed in range(200):
        (one,) = schedules.scores(noisy(50, 8, seed), rows, resamples=200, seed=seed)
        hits += one.low <= truth <= one.high
    assert 180 <= hits <= 199


def test_a_negative_excess_has_no_optimality() -> None:
    falling = profile(torch.linspace(2, 1, 6).repeat(4, 1))
    (one,) = schedules.scores(falling, {OPTIMUM: (3, 3)}, resamples=20, seed=0)
    assert one.excess < 0 and math.isnan(one.optimality)


def test_grids() -> None:
    cosine = schedules.counts_of("cosine_squared", 1000, 10)
    found = schedules.conformance("cosine_squared", cosine, 1000, 10)
    assert found.faults == () and found.rounding < 1 and found.angle < 0.03
    linear = schedules.conformance("linear", (100,) * 10, 1000, 10)
    assert linear.rounding < 1e-9 and linear.angle > 0.5
    assert schedules.counts_of("polynomial:1", 64, 8) == schedules.counts_of("linear", 64, 8)
    assert schedules.counts_of("polynomial:2", 64, 4) == (28, 20, 12, 4)
    wrong = schedules.conformance("4+0+5", (4, 0, 5), 8, 2)
    assert len(wrong.faults) == 3 and math.isnan(wrong.angle)


def test_lists_of_counts_are_scored_at_their_own_steps(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"places": 8, "counts": {"2": [1, 7], "5": [1, 1, 1, 1, 4]}}))
    found = schedules.analysed(noisy(12, 8), [str(file), "2+3+3"], [2, 4], resamples=20)
    names = {steps: {row.schedule for row in rows} for steps, rows in found.scored.items()}
    assert names == {2: {str(file), OPTIMUM}, 3: {"2+3+3", OPTIMUM}, 4: {OPTIMUM}}
    counts = {row.schedule: row.counts for row in (*found.scored[2], *found.scored[3])}
    assert counts[str(file)] == (1, 7) and counts["2+3+3"] == (2, 3, 3)
    with pytest.raises(SettingsError, match=r"has counts for \[2, 5\] steps, got \[4\]"):
        schedules.analysed(noisy(12, 8), [str(file)], [4], resamples=20)


@pytest.mark.parametrize(
    ("names", "steps", "message"),
    [
        (["cosin"], [2], "There is no schedule `cosin`. Did you mean `cosine`"),
        (["polynomial:0"], [2], "power above 0"),
        (["polynomial:x"], [2], "power above 0"),
        (["4+3"], [2], "7 places revealed instead of 8"),
        (["4+0+4"], [2], "a step that reveals nothing"),
        (["4+x+4"], [2], "a step that reveals nothing"),
        (["linear"], [9], r"between 1 and the 8 places, got \[9\]"),
        (["linear"], [], "between 1 and the 8 places"),
        (["none.json"], [2], "There is no reveal schedule none.json"),
    ],
)
def test_what_cannot_be_scored_is_refused(names: list[str], steps: list[int], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        schedules.analysed(noisy(6, 8), names, steps, resamples=5)


def test_models_that_have_no_profile_are_refused() -> None:
    found = Windows(tiny.random_ids(4, 6), torch.arange(4), 0)
    with pytest.raises(SettingsError, match="this one is autoregressive"):
        measure(tiny.backbone("autoregressive"), found, torch.tensor([6]))
    long = Windows(tiny.random_ids(4, 128), torch.arange(4), 0)
    with pytest.raises(SettingsError, match="Set --places to at most 127"):
        measure(tiny.backbone("masked_diffusion"), long, torch.tensor([128]), lead=[1])
    blocks = tiny.backbone("block_diffusion", block_length=4)
    with pytest.raises(SettingsError, match="end with a block of 4 places, got 6 tokens behind 1 others"):
        measure(blocks, found, torch.tensor([4]), lead=[1])
    with pytest.raises(SettingsError, match="room for a block of 4 behind"):
        measure(blocks, long, torch.tensor([4]), lead=[1])
    for name, message in (("block_length", "no block_length"), ("mask_token_id", "no mask token")):
        with pytest.raises(SettingsError, match=f"names {message}"):
            check_method(dataclasses.replace(blocks.diffusion, **{name: None}))
    with pytest.raises(SettingsError, match="needs a token before it"):
        measure(tiny.backbone("masked_diffusion", logit_shift=True), found, torch.tensor([6]))
    with pytest.raises(SettingsError, match="training mode"):
        measure(tiny.backbone("masked_diffusion").train(), found, torch.tensor([6]))


@pytest.fixture(scope="module")
def model(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`stories260k` as an untrained masked-diffusion model: its profile means little, and its tokenizer is real."""
    from unmask.models.loading import adapted, load
    from unmask.settings.objective import ObjectiveSettings

    folder = tmp_path_factory.mktemp("model") / "stories"
    made = load(str(shared_data / "checkpoints" / "stories260k"))
    save(adapted(made, ObjectiveSettings(method="masked_diffusion")), folder)
    return folder


def test_the_command_measures_saves_and_its_schedule_decodes(
    model: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, best = shared_data / "text" / "tinystories_sample.jsonl.gz", tmp_path / "best.json"
    words = ["analyze", "schedule", str(model), "--data", str(text), "--places", "12", "--documents", "10"]
    words += ["--steps", "3,5", "--schedules", "linear,cosine,polynomial:0.5,6+4+2", "--resamples", "50"]
    assert main([*words, "--save", str(best), "--output-dir", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "information profile of 10 windows of 12 tokens, 10 documents" in out
    assert "on 5 documents; the optimum was fitted on the other 5" in out
    assert "5 documents are few" in out
    assert {one.name for one in (tmp_path / "out").iterdir()} == {
        "profile.csv",
        "excess.csv",
        "conformance.csv",
        "schedules.png",
    }
    with (tmp_path / "out" / "excess.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["steps"] for row in rows] == ["3"] * 5 + ["5"] * 4
    assert [float(row["excess"]) for row in rows[:5]] == sorted(float(row["excess"]) for row in rows[:5])
    saved = json.loads(best.read_text())
    counts = {row["steps"]: row["counts"] for row in rows if row["schedule"] == "optimum"}
    assert {steps: "+".join(map(str, row)) for steps, row in saved["counts"].items()} == counts
    lm = DiffusionLM.from_pretrained(model)
    options = {"decoding": "canvas", "max_new_tokens": 12, "reveal_schedule": str(best), "ignore_eos": True}
    (found,) = lm.generate(["Once"], SamplingParams(denoising_steps=3, trace=True, **options))  # type: ignore[arg-type]
    assert found.revealed_at is not None
    assert [found.revealed_at.count(step) for step in (1, 2, 3)] == saved["counts"]["3"]


def test_generations_are_judged(
    model: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, judge = shared_data / "text" / "tinystories_sample.jsonl.gz", shared_data / "checkpoints" / "stories260k"
    words = ["analyze", "schedule", str(model), "--data", str(text), "--places", "6", "--documents", "4"]
    words += ["--steps", "2", "--schedules", "4+2", "--generate", "3", "--temperatures", "1", "--resamples", "9"]
    assert main([*words, "--judge", str(judge), "--output-dir", str(tmp_path)]) == 0
    assert "3 texts of each, judged by" in capsys.readouterr().out
    with (tmp_path / "generation.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["schedule"] == "4+2"]
    assert [row["order"] for row in rows] == ["random", "low_confidence_static"]
    own, lm = DiffusionLM.from_pretrained(judge), DiffusionLM.from_pretrained(model)
    counts = tmp_path / "counts.json"
    counts.write_text('{"places": 6, "counts": {"2": [4, 2]}}')
    options = {"decoding": "canvas", "max_new_tokens": 6, "reveal_schedule": str(counts), "ignore_eos": True}
    params = SamplingParams(temperature=1.0, n=3, unmasking="random", **options)  # type: ignore[arg-type]
    outputs = lm.generate(None, params)
    nats = [-one.log_likelihood for one in own.score([output.text for output in outputs])]
    sizes = [len(output.text.encode()) for output in outputs]
    ratio = sum(nats) / sum(sizes)
    assert float(rows[0]["nats_per_byte"]) == pytest.approx(ratio)
    # How far each text moves the ratio, in units of its share.
    moves = [(own - ratio * size) / statistics.mean(sizes) for own, size in zip(nats, sizes, strict=True)]
    assert float(rows[0]["stderr"]) == pytest.approx(statistics.stdev(moves) / math.sqrt(3))
    tokens = [token for output in outputs for token in output.token_ids]
    shares = [tokens.count(token) / len(tokens) for token in set(tokens)]
    assert float(rows[0]["entropy"]) == pytest.approx(-sum(share * math.log2(share) for share in shares))
    assert main([*words, "--judge", str(model), "--output-dir", str(tmp_path)]) == 2
    assert "A judge says exactly how likely a text is" in capsys.readouterr().err


def test_the_schedule_of_a_block_model_fills_its_blocks(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from unmask.models.loading import adapted, load
    from unmask.settings.objective import ObjectiveSettings

    stories, folder = shared_data / "checkpoints" / "stories260k", tmp_path / "blocks"
    settings = ObjectiveSettings(method="block_diffusion", block_length=8)
    save(adapted(load(str(stories)), settings), folder)
    text, best = shared_data / "text" / "tinystories_sample.jsonl.gz", tmp_path / "best.json"
    words = ["analyze", "schedule", str(folder), "--data", str(text), "--documents", "8", "--resamples", "9"]
    words += ["--schedules", "linear,5+3", "--steps", "2,3", "--output-dir", str(tmp_path / "out")]
    judged = ["--generate", "2", "--judge", str(stories), "--temperatures", "1"]
    assert main([*words, *judged, "--save", str(best)]) == 0
    captured = capsys.readouterr()
    # 7 tokens complete the block that BOS begins; the 64 behind them are 8 blocks.
    assert "information profile of 64 blocks of 8 tokens, 8 documents" in captured.out
    with (tmp_path / "out" / "generation.csv").open() as file:
        assert {(row["steps"], row["schedule"]) for row in csv.DictReader(file)} == {
            ("2", "linear"),
            ("2", "5+3"),
            ("2", OPTIMUM),
            ("3", "linear"),
            ("3", OPTIMUM),
        }
    counts = json.loads(best.read_text())["counts"]
    lm = DiffusionLM.from_pretrained(folder)
    options = {"max_new_tokens": 16, "reveal_schedule": str(best), "unmasking": "random", "ignore_eos": True}
    params = SamplingParams(denoising_steps=3, trace=True, **options)  # type: ignore[arg-type]
    (found,) = lm.generate([list(range(8))], params)
    assert [found.revealed_at.count(step) for step in range(1, 7)] == 2 * counts["3"]  # type: ignore[union-attr]
    assert main([*words, "--schedules", "linear", "--places", "16"]) == 2
    assert "fills blocks of 8 places, got --places 16. Leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--generate", "4"], "--generate N and --judge MODEL belong together"),
        (["--temperatures", "1"], "--generate N and --judge MODEL belong together"),
        (["--generate", "4", "--judge", "x", "--temperatures", "hot"], "--temperatures must be numbers of at least 0"),
        (["--steps", "2,x"], "--steps must be numbers from 1 to the 64 places"),
        (["--steps", "65"], "--steps must be numbers from 1 to the 64 places"),
        (["--schedules", "linier"], "Did you mean `linear`"),
        (["--schedules", "32+16"], "48 places revealed instead of 64"),
        (["--save", "best.txt"], "--save must name a .json file"),
        (["--documents", "0"], "documents must be at least 1"),
        (["--data", "nowhere.jsonl"], "there is no nowhere.jsonl"),
        (["--place", "4"], "There is no option `--place`. Did you mean `--places`"),
    ],
)
def test_wrong_commands(model: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [] if "--data" in words else ["--data", "README.md"]
    assert main(["analyze", "schedule", str(model), *given, *words]) == 2
    assert message in capsys.readouterr().err


def test_texts_that_are_too_few_or_no_texts(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "text.txt"
    file.write_text("Once upon a time there was a little girl. " * 20)
    assert main(["analyze", "schedule", str(model), "--data", str(file)]) == 2
    assert "at least 4 documents of 64 tokens or more, got 1" in capsys.readouterr().err
    save(Checkpoint(tiny.backbone("masked_diffusion").float(), None), tmp_path / "bare")
    assert main(["analyze", "schedule", str(tmp_path / "bare"), "--data", str(file)]) == 2
    assert "no tokenizer" in capsys.readouterr().err


def test_a_run_is_measured_on_what_it_holds_out(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes.write_text(tmp_path)
    run = train(recipes.recipe(tmp_path, steps=1)).run
    held_out = held_out_texts(recipes.recipe(tmp_path).data)
    (tmp_path / "held-out.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in held_out))
    words = ["analyze", "schedule", str(run.root), "--places", "8", "--steps", "2", "--resamples", "20"]
    tables = []
    for given in ([], ["--data", str(tmp_path / "held-out.jsonl")]):
        assert main([*words, *given, "--output-dir", str(tmp_path / f"out-{len(given)}")]) == 0
        tables.append((tmp_path / f"out-{len(given)}" / "excess.csv").read_text())
    assert tables[0] == tables[1]
    capsys.readouterr()
    assert main(["analyze", "schedule", str(model)]) == 2
    assert "Name the text" in capsys.readouterr().err
