"""The published networks written out: properties that hold for any weights, and cases done by hand."""

import math

import torch
from torch import Tensor

from tests.references.published import attention, gated, mixture, normed_heads, rms_norm, rotated


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rotations_keep_lengths_and_make_products_depend_on_the_distance_alone() -> None:
    x_LE = numbers(6, 8, seed=0)
    assert (rotated(x_LE, 100.0).norm(dim=1) - x_LE.norm(dim=1)).abs().max() < 1e-6
    q_LE, k_LE = numbers(1, 8, seed=1).expand(6, 8), numbers(1, 8, seed=2).expand(6, 8)
    products_LL = rotated(q_LE, 100.0) @ rotated(k_LE, 100.0).T
    for distance in range(-5, 6):
        diagonal = products_LL.diagonal(distance)
        assert (diagonal - diagonal[0]).abs().max() < 1e-5
    assert products_LL[0, 0] != products_LL[0, 1]


def test_the_first_channel_turns_by_one_radian_for_each_place_with_the_channel_half_a_head_on() -> None:
    x_LE = torch.zeros(2, 4, dtype=torch.float64)
    x_LE[1, 0] = 1.0
    expected = torch.tensor([math.cos(1), 0.0, math.sin(1), 0.0], dtype=torch.float64)
    assert (rotated(x_LE, 100.0)[1] - expected).abs().max() < 1e-6


def test_every_place_sees_every_place_and_heads_share_keys_in_order() -> None:
    q_LD, k_LK, v_LK = numbers(5, 8, seed=0), numbers(5, 4, seed=1), numbers(5, 4, seed=2)
    before = attention(q_LD, k_LK, v_LK, 4, 2, 100.0)
    changed = v_LK.clone()
    changed[4, :2] += 1.0  # the last place, in the first key head
    difference_LD = attention(q_LD, k_LK, changed, 4, 2, 100.0) - before
    assert (difference_LD[:, :4].abs() > 1e-6).all(), "both query heads of the first key head, at every place"
    assert (difference_LD[:, 4:] == 0).all()


def test_norm_and_gate_by_hand() -> None:
    x_LD = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    expected = torch.tensor([[3.0, 8.0]], dtype=torch.float64) / math.sqrt(12.5)
    assert (rms_norm(x_LD, torch.tensor([1.0, 2.0], dtype=torch.float64), 0.0) - expected).abs().max() < 1e-6
    one = torch.eye(2, dtype=torch.float64)
    silu = [value / (1 + math.exp(-value)) for value in (3.0, 4.0)]
    assert (gated(x_LD, one, 2 * one, one) - torch.tensor([[silu[0] * 6, silu[1] * 8]])).abs().max() < 1e-6


def test_a_place_sees_what_the_mask_shows_it_and_nothing_else() -> None:
    q_LD, k_LK, v_LK = (numbers(3, 4, seed=seed) for seed in (0, 1, 2))
    sees = [[True, False, False], [True, True, False], [True, True, True]]
    found_LD = attention(q_LD, k_LK, v_LK, 1, 1, 100.0, sees)
    assert (found_LD[0] - v_LK[0]).abs().max() < 1e-12, "one visible place has all the weight"
    assert (found_LD[2] - attention(q_LD, k_LK, v_LK, 1, 1, 100.0)[2]).abs().max() < 1e-12
    first_two = attention(q_LD[:2], k_LK[:2], v_LK[:2], 1, 1, 100.0)
    assert (found_LD[1] - first_two[1]).abs().max() < 1e-12


def test_heads_are_normalised_one_by_one() -> None:
    x_LD = torch.tensor([[3.0, 4.0, 30.0, 40.0]], dtype=torch.float64)
    expected = torch.tensor([[3.0, 8.0, 3.0, 8.0]], dtype=torch.float64) / math.sqrt(12.5)
    assert (normed_heads(x_LD, torch.tensor([1.0, 2.0], dtype=torch.float64), 0.0) - expected).abs().max() < 1e-6


def test_the_likeliest_experts_are_mixed_by_their_probabilities() -> None:
    one = torch.eye(2, dtype=torch.float64)
    tensors = {"mlp.gate.weight": torch.tensor([[0.0, 0.0], [1.0, 0.0], [math.log(2.0), 0.0]], dtype=torch.float64)}
    for expert in range(3):
        matrices = {"gate": one, "up": one, "down": (expert + 1) * one}
        tensors |= {f"mlp.experts.{expert}.{name}_proj.weight": matrix for name, matrix in matrices.items()}
    x_LD = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    plain = gated(x_LD, one, one, one)  # expert e gives (e + 1) times this; their odds are 1 : e : 2
    for normalised, whole in ((True, math.e + 2), (False, math.e + 3)):
        found = mixture(tensors, "", x_LD, {"num_experts_per_tok": 2, "norm_topk_prob": normalised})
        assert (found - plain * (2 * math.e + 3 * 2) / whole).abs().max() < 1e-6
