"""Settings of what is learned: which options go together, and what a curriculum says at a step."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask import config
from unmask.errors import SettingsError
from unmask.settings.curricula import value_at
from unmask.settings.objective import ObjectiveSettings
from unmask.settings.tidar import TIDAR_ONLY

SPLIT = {"tidar_layout": "split"}
GIVEN: dict[str, Any] = {
    "tidar_layout": "split",
    "clean_ratio": 0.3,
    "clean_ratio_range": (0.1, 0.2),
    "clean_ratio_curriculum": ((0.0, 0.3),),
    "tail_blocks": 1,
    "masking": "random",
    "mask_ratio_curriculum": ((0.0, 0.3),),
    "ar_loss_weight": 0.5,
    "ar_loss_weight_curriculum": ((0.0, 0.3),),
    "diffusion_loss_weight": 0.5,
    "diffusion_loss_weight_curriculum": ((0.0, 0.3),),
    "teacher": "somewhere",
    "distillation_weight": 0.5,
    "distillation_temperature": 2.0,
}


def test_every_option_of_tidar_is_refused_elsewhere() -> None:
    assert GIVEN.keys() == set(TIDAR_ONLY)
    for name, value in GIVEN.items():
        for method in ("autoregressive", "masked_diffusion", "block_diffusion"):
            with pytest.raises(SettingsError, match=f"{name} belongs to method tidar"):
                ObjectiveSettings(method=method, **{name: value})  # type: ignore[arg-type]


def test_options_of_block_diffusion_say_whose_they_are() -> None:
    with pytest.raises(SettingsError, match="block_length belongs to method block_diffusion and tidar"):
        ObjectiveSettings(block_length=4)
    with pytest.raises(SettingsError, match="mask_ratio_range belongs to method masked_diffusion and block_diffusion"):
        ObjectiveSettings(method="autoregressive", mask_ratio_range=(0.2, 0.8))
    with pytest.raises(SettingsError, match="complementary_masks belongs to method block_diffusion, got True"):
        ObjectiveSettings(method="tidar", complementary_masks=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clean_ratio": 0.3, "tail_blocks": 2}, "clean_ratio and tail_blocks: only for tidar_layout `split`"),
        (SPLIT | {"clean_ratio": 0.3, "clean_ratio_range": (0.1, 0.2)}, "Give one of clean_ratio, clean_ratio_range"),
        (SPLIT | {"clean_ratio": 1.0}, "between 0 and 1, both excluded"),
        (SPLIT | {"clean_ratio_range": (0.5, 0.2)}, "begin with the lower one"),
        (SPLIT | {"clean_ratio_curriculum": ((0.1, 0.5),)}, "clean_ratio_curriculum must begin at 0"),
        (SPLIT | {"clean_ratio_curriculum": ((0.0, 0.5), (0.5, 0.0))}, "both excluded"),
        (SPLIT | {"tail_blocks": 0}, "tail_blocks must be at least 1"),
        ({"mask_ratio_range": (0.2, 0.8)}, "need masking `random` or `block`, got `full`"),
        ({"mask_ratio_curriculum": ((0.0, 0.5),)}, "need masking `random` or `block`"),
        (
            {"masking": "random", "mask_ratio_range": (0.2, 0.8), "mask_ratio_curriculum": ((0.0, 0.5),)},
            "Set one of them",
        ),
        ({"masking": "block", "mask_ratio_curriculum": ((0.0, 0.0),)}, "must be above 0"),
        ({"masking": "block", "mask_ratio_curriculum": ((0.0, 1.5),)}, "must lie between 0 and 1"),
        ({"masking": "random", "schedule": "cosine", "mask_ratio_curriculum": ((0.0, 0.5),)}, "linear schedule"),
        ({"masking": "block", "t_granularity": "block"}, "t_granularity `block` does not go with masking `block`"),
        ({"ar_loss_weight": -1.0}, "ar_loss_weight must be at least 0"),
        ({"diffusion_loss_weight_curriculum": ((0.0, 1.0), (0.5, -1.0))}, "diffusion_loss_weight_curriculum must be"),
        ({"ar_loss_weight": 2.0, "ar_loss_weight_curriculum": ((0.0, 1.0),)}, "either ar_loss_weight or"),
        ({"ar_loss_weight": 0.0, "diffusion_loss_weight": 0.0}, "both 0 from share 0.0"),
        (
            {
                "ar_loss_weight_curriculum": ((0.0, 1.0), (0.5, 0.0)),
                "diffusion_loss_weight_curriculum": ((0.0, 0.0), (0.7, 1.0)),
            },
            "both 0 from share 0.5",
        ),
        ({"teacher": "somewhere"}, "teacher and distillation_weight belong together"),
        ({"distillation_weight": 1.0}, "teacher and distillation_weight belong together"),
        ({"distillation_temperature": 2.0}, "needs a teacher"),
        ({"teacher": "x", "distillation_weight": 1.0, "distillation_temperature": 0.0}, "must be above 0"),
        ({"logit_shift": True}, "logit_shift does not go with tidar"),
        ({"random_length_probability": 0.1}, "random_length_probability belongs to masked_diffusion"),
        ({"block_length": 4, "block_curriculum": ((0.0, 4), (0.5, 8))}, "block_length must be the curriculum's last"),
        ({"block_curriculum": ((0.0, 4), (0.0, 8))}, "block_curriculum must begin at 0 and rise"),
        ({"block_curriculum": ((0.0, 0),)}, "block_curriculum must be at least 1"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ObjectiveSettings(method="tidar", **options)


@pytest.mark.parametrize("method", ["masked_diffusion", "block_diffusion"])
def test_a_clipped_range_is_one_of_shares(method: Any) -> None:
    for wrong in ((0.8, 0.2), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(SettingsError, match="mask_ratio_range must be two shares between 0 and 1, the lower first"):
            ObjectiveSettings(method=method, mask_ratio_range=wrong)
    with pytest.raises(SettingsError, match="mask_ratio_range needs the linear schedule, got cosine"):
        ObjectiveSettings(method=method, schedule="cosine", mask_ratio_range=(0.2, 0.8))


def test_lengths_need_not_divide_each_other_where_nothing_is_filled_up() -> None:
    curriculum = ((0.0, 3), (0.5, 8))
    assert ObjectiveSettings(method="tidar", block_curriculum=curriculum).block_lengths == (3, 8)
    with pytest.raises(SettingsError, match="must divide the largest"):
        ObjectiveSettings(method="block_diffusion", block_curriculum=curriculum)


def test_a_recipe_survives_yaml() -> None:
    tree = {
        "method": "tidar",
        **SPLIT,
        "clean_ratio_range": [0.2, 0.7],
        "ar_loss_weight_curriculum": [[0, 1], [0.5, 2]],
    }
    settings = config.from_tree(ObjectiveSettings, tree)
    assert settings.clean_ratio_range == (0.2, 0.7)
    assert settings.ar_loss_weight_curriculum == ((0, 1), (0.5, 2))
    assert settings.curricula == {"ar_loss_weight_curriculum": ((0, 1), (0.5, 2))}
    assert config.to_yaml(config.from_tree(ObjectiveSettings, tree)) == config.to_yaml(settings)


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0, 9)), max_size=4), st.integers(1, 50), st.data())
def test_the_value_of_a_step_is_the_last_that_began(
    later: list[tuple[float, float]], steps: int, data: st.DataObject
) -> None:
    curriculum = ((0.0, 5.0), *sorted(later))
    step = data.draw(st.integers(0, steps - 1))
    expected = 5.0
    for share, value in curriculum:
        if round(share * steps) <= step:
            expected = value
    assert value_at(curriculum, -1.0, step=step, steps=steps) == expected
    assert value_at((), -1.0, step=step, steps=steps) == -1.0
