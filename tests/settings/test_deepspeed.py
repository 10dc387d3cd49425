"""DeepSpeed's files: what they mean here, which contradictions are told, and what DeepSpeed is handed."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from unmask import config
from unmask.errors import SettingsError
from unmask.settings.deepspeed import engine_config, training_of
from unmask.settings.training import TrainingSettings
from unmask.training.optim import learning_rate

PORT: dict[str, Any] = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 1,
    "steps_per_print": 100,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 2e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {"warmup_min_lr": 0, "warmup_max_lr": 2e-5, "warmup_num_steps": 100, "total_num_steps": 10000},
    },
    "fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 1000, "hysteresis": 2, "min_loss_scale": 1},
    "zero_optimization": {
        "stage": 2,
        "allgather_partitions": True,
        "allgather_bucket_size": 5e8,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 5e8,
        "contiguous_gradients": True,
    },
    "wall_clock_breakdown": False,
}
"""The `ds_config.json` of the port: every key that it has."""


def file(**changes: Any) -> dict[str, Any]:
    """The port's file with other values; None takes a key out."""
    made = copy.deepcopy(PORT) | changes
    return {key: value for key, value in made.items() if value is not None}


def settings_of(tree: dict[str, Any]) -> TrainingSettings:
    return config.from_tree(TrainingSettings, tree)


def test_every_key_of_the_port_means_something() -> None:
    tree, notes = training_of(PORT, source="ds_config.json", processes=8)
    assert notes == []
    assert tree == {
        "batch_size": 32,
        "micro_batch_size": 4,
        "max_grad_norm": 1.0,
        "logging_steps": 100,
        "learning_rate": 2e-5,
        "adam_betas": [0.9, 0.999],
        "adam_epsilon": 1e-8,
        "weight_decay": 0.01,
        "lr_schedule": "linear",
        "warmup_steps": 100,
        "min_lr_ratio": 0.0,
        "steps": 10000,
        "precision": "fp16",
        "deepspeed_config": "ds_config.json",
    }
    settings_of(tree)


@pytest.mark.parametrize(
    ("changes", "processes", "expected"),
    [
        ({}, 8, (32, 4)),
        ({"gradient_accumulation_steps": 8}, 1, (32, 4)),
        ({"gradient_accumulation_steps": None}, 2, (32, 4)),
        ({"gradient_accumulation_steps": "auto"}, 8, (32, 4)),
        ({"train_micro_batch_size_per_gpu": None, "gradient_accumulation_steps": 2}, 4, (32, 4)),
        ({"train_micro_batch_size_per_gpu": None, "gradient_accumulation_steps": None}, 4, (32, None)),
        ({"train_batch_size": None}, 3, (12, 4)),
        ({"train_batch_size": None, "gradient_accumulation_steps": None}, 2, (8, 4)),
    ],
)
def test_two_of_the_three_sizes_decide_the_third(
    changes: dict[str, Any], processes: int, expected: tuple[int, int | None]
) -> None:
    tree, _ = training_of(file(**changes), source="ds", processes=processes)
    assert (tree["batch_size"], tree.get("micro_batch_size")) == expected


@pytest.mark.parametrize(
    ("changes", "processes", "message"),
    [
        ({}, 4, r"train_batch_size \(32\) must be .*\(4\) x .*\(1\) x processes \(4\), which is 16\. Start 8 of them"),
        ({"gradient_accumulation_steps": 3}, 1, r"which is 12\. Or leave gradient_accumulation_steps out"),
        ({"gradient_accumulation_steps": None}, 3, r"which is 24"),
        ({"train_micro_batch_size_per_gpu": None, "gradient_accumulation_steps": 5}, 1, r"which is 30"),
        ({"train_batch_size": 4.5}, 1, r"`train_batch_size` must be a whole number of at least 1, got 4\.5"),
        ({"train_batch_size": None, "train_micro_batch_size_per_gpu": None}, 1, r"beside gradient_accumulation_steps"),
        ({"optimizer": {"type": "Lamb"}}, 8, r"the optimizer `Lamb` is not one of ours, which is AdamW"),
        ({"scheduler": {"type": "OneCycle"}}, 8, r"there is no scheduler `OneCycle`\. .*WarmupDecayLR"),
        ({"bf16": {"enabled": True}}, 8, r"fp16 and bf16 are both enabled"),
    ],
)
def test_contradictions_are_told(changes: dict[str, Any], processes: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        training_of(file(**changes), source="ds", processes=processes)


def test_sizes_are_not_compared_where_the_caller_changes_them() -> None:
    tree, _ = training_of(PORT, source="ds", processes=1, checks_batch=False)
    assert (tree["batch_size"], tree["micro_batch_size"]) == (32, 4)


@pytest.mark.parametrize(
    ("changes", "precision"),
    [
        ({}, "fp16"),
        ({"fp16": None, "bf16": {"enabled": True}}, "bf16"),
        ({"fp16": {"enabled": False}}, "fp32"),
        ({"fp16": None}, None),
    ],
)
def test_precision(changes: dict[str, Any], precision: str | None) -> None:
    assert training_of(file(**changes), source="ds", processes=8)[0].get("precision") == precision


def test_unknown_keys_are_told_by_name() -> None:
    changed = file(flops_profiler={})
    changed["optimizer"]["params"]["torch_adam"] = True
    _, notes = training_of(changed, source="ds", processes=8)
    first, second = notes
    assert first.startswith("ds: the key `flops_profiler` has no meaning here. Allowed: `bf16`, ")
    assert second.startswith("ds: the key `optimizer.params.torch_adam` has no meaning here. Allowed: `betas`, ")


def test_without_zero_no_deepspeed_is_needed() -> None:
    for changes in ({"zero_optimization": None}, {"zero_optimization": {"stage": 0}}):
        tree, notes = training_of(file(**changes), source="ds", processes=8)
        assert tree["deepspeed_config"] is None
        assert notes == ["ds asks for no ZeRO stage: accelerate trains without DeepSpeed, with the same settings"]


def theirs(step: int, kind: str, *, low: float, high: float, warmup: int, total: int) -> float:
    """The learning rate of DeepSpeed's schedulers at a step (from 1), with `warmup_type: linear`."""
    if step <= warmup:
        return low + (high - low) * step / warmup
    return high if kind == "WarmupLR" else low + (high - low) * (total - step) / (total - warmup)


@pytest.mark.parametrize("kind", ["WarmupLR", "WarmupDecayLR"])
def test_the_learning_rate_takes_their_course(kind: str) -> None:
    low, high = (0.0, 2e-5) if kind == "WarmupLR" else (5e-6, 2e-5)
    parameters = {"warmup_min_lr": low, "warmup_max_lr": high, "warmup_num_steps": 10}
    if kind == "WarmupDecayLR":
        parameters["total_num_steps"] = 50
    tree, _ = training_of(file(scheduler={"type": kind, "params": parameters}), source="ds", processes=8)
    settings = settings_of(tree)
    for step in range(10, 50):
        expected = theirs(step, kind, low=low, high=high, warmup=10, total=50)
        assert learning_rate(step - 1, 50, settings) == pytest.approx(expected, rel=1e-12)


def test_the_scheduler_decides_where_the_optimizer_says_another_rate() -> None:
    changed = file()
    changed["optimizer"]["params"]["lr"] = 1e-3
    tree, notes = training_of(changed, source="ds", processes=8)
    assert tree["learning_rate"] == 2e-5
    assert notes == ["ds: the peak is the scheduler's warmup_max_lr (2e-05), not the optimizer's lr (0.001)"]
    cosine = {"type": "WarmupCosineLR", "params": {"total_num_steps": 9, "warmup_num_steps": 2, "cos_min_ratio": 0.3}}
    tree, _ = training_of(file(scheduler=cosine), source="ds", processes=8)
    settings = settings_of(tree)
    assert learning_rate(8, 9, settings) == pytest.approx(6e-6)


def test_deepspeed_is_handed_the_recipes_numbers() -> None:
    settings = TrainingSettings(batch_size=24, micro_batch_size=3, precision="bf16", max_grad_norm=0.5)
    handed = engine_config(PORT, settings, processes=2)
    assert "optimizer" not in handed and "scheduler" not in handed
    assert [handed[name] for name in list(PORT)[:3]] == [6, 3, 1], "the loop accumulates, DeepSpeed does not"
    assert handed["gradient_clipping"] == 0.5
    assert (handed["fp16"]["enabled"], handed["bf16"]["enabled"]) == (False, True)
    assert handed["fp16"]["loss_scale_window"] == 1000
    assert handed["zero_optimization"] == PORT["zero_optimization"]
