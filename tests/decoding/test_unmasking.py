"""Policies: quotas are met, never exceeded, and only masked places are revealed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.references import llada
from unmask.decoding.unmasking import above_threshold, by_factor, most_confident, reveal_counts
from unmask.settings.decoding import RevealSchedule

confidences = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@settings(max_examples=150)
@given(confidences, st.integers(1, 15), st.data())
def test_the_most_confident_masked_places_are_revealed(values: list[float], quota: int, data: st.DataObject) -> None:
    masked = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    found = most_confident(torch.tensor([values]).double(), torch.tensor([masked]), quota)[0].tolist()
    order = sorted((place for place, flag in enumerate(masked) if flag), key=lambda place: (-values[place], place))
    exact = torch.tensor(values).double().tolist()
    order = sorted((place for place, flag in enumerate(masked) if flag), key=lambda place: (-exact[place], place))
    assert [place for place, flag in enumerate(found) if flag] == sorted(order[:quota])


@settings(max_examples=100)
@given(confidences, st.floats(0, 1), st.data())
def test_a_threshold_reveals_what_reaches_it_and_at_least_one(
    values: list[float], threshold: float, data: st.DataObject
) -> None:
    masked = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    exact = torch.tensor(values).double()
    found = above_threshold(exact[None], torch.tensor([masked]), threshold)[0]
    expected = torch.tensor(masked) & (exact >= threshold)
    if any(masked) and not bool(expected.any()):
        assert int(found.sum()) == 1
        assert float(exact[found]) == float(exact[torch.tensor(masked)].max())
    else:
        assert torch.equal(found, expected)


@settings(max_examples=100)
@given(confidences, st.floats(0, 3), st.data())
def test_the_factor_rule_takes_the_longest_sure_prefix(values: list[float], factor: float, data: st.DataObject) -> None:
    masked = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    exact = torch.tensor(values).double()
    found = by_factor(exact[None], torch.tensor([masked]), factor)[0].tolist()
    order = sorted(
        (place for place, flag in enumerate(masked) if flag), key=lambda place: (-float(exact[place]), place)
    )
    sure = [n for n in range(1, len(order) + 1) if float(exact[order[n - 1]]) >= 1 - factor / (n + 1)]
    assert [place for place, flag in enumerate(found) if flag] == sorted(order[: max([1, *sure])])


def test_the_factor_rule_does_not_round_its_bounds() -> None:
    # 1 - factor / 3 is 1e-16; as float32 it would be 0, which no certainty misses.
    found = by_factor(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool), 3 - 2**-51)
    assert found.tolist() == [[True, False]]


def test_the_factor_rule_divides_as_python_does() -> None:
    # Rounded twice, 1 - factor / 6 is above 0.5.
    confidence = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.5]], dtype=torch.float64)
    assert by_factor(confidence, torch.ones(1, 5, dtype=torch.bool), 3 - 2**-51).all()


def test_a_masked_place_without_any_certainty_still_comes_before_revealed_ones() -> None:
    certainty = torch.tensor([[-torch.inf, -torch.inf, -torch.inf]])
    found = most_confident(certainty, torch.tensor([[False, True, True]]), 1)
    assert found.tolist() == [[False, True, False]]


def test_quotas_may_differ_by_row() -> None:
    confidence = torch.tensor([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5]])
    found = most_confident(confidence, torch.ones(2, 3, dtype=torch.bool), torch.tensor([1, 2]))
    assert found.tolist() == [[False, True, False], [False, True, True]]


@settings(max_examples=200)
@given(
    st.sampled_from(["linear", "cosine", "cosine_squared", "dream", "floor"]), st.integers(1, 80), st.integers(1, 90)
)
def test_every_step_reveals_and_all_places_are_revealed(schedule: RevealSchedule, places: int, steps: int) -> None:
    found = reveal_counts(schedule, places, steps)
    assert sum(found) == places
    assert min(found) >= 1
    if schedule == "dream":  # without the steps that would reveal nothing
        assert len(found) <= min(places, steps)
    elif schedule == "floor":  # with more steps for what is left
        assert min(places, steps) <= len(found) and len(set(found[:-1])) <= 1
    else:
        assert len(found) == min(places, steps)


@pytest.mark.parametrize(("places", "steps"), [(8, 5), (128, 128), (20, 3), (7, 7)])
def test_linear_counts_are_the_quotas_of_the_published_sampler(places: int, steps: int) -> None:
    assert reveal_counts("linear", places, steps) == llada.quotas(places, steps)


@settings(max_examples=100)
@given(st.sampled_from(["cosine", "cosine_squared"]), st.integers(1, 60), st.integers(1, 60))
def test_cosine_counts_equal_the_reference(schedule: RevealSchedule, places: int, steps: int) -> None:
    assert reveal_counts(schedule, places, steps) == llada.reveal_counts(schedule, places, steps)
