"""DeepSpeed's JSON files in our words, and the part of them that DeepSpeed itself reads.

In: the object of a `ds_config.json`. Out: what it means for `TrainingSettings`, so that the same file also works
without DeepSpeed, and what to hand DeepSpeed for given settings. Batch, optimiser, learning rate, clipping and
precision are the recipe's in either case; sharding (ZeRO) and what else concerns its engine is DeepSpeed's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from unmask.errors import SettingsError, nearest
from unmask.settings.training import TrainingSettings

BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "lr_schedule": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "adam_betas": [0.9, 0.999],
    "adam_epsilon": 1e-8,
    "max_grad_norm": 0.0,
    "precision": "fp32",
}
"""What DeepSpeed does where its file says nothing."""
_ENGINE = ("zero_optimization", "zero_allow_untested_optimizer", "wall_clock_breakdown")
_KNOWN = (*BATCH, "steps_per_print", "gradient_clipping", "optimizer", "scheduler", "fp16", "bf16", *_ENGINE)
_OPTIMIZER = {"lr": "learning_rate", "betas": "adam_betas", "eps": "adam_epsilon", "weight_decay": "weight_decay"}
# DeepSpeed's schedulers, with the course that ours has and the parameters that are read.
_SCHEDULERS = {
    "WarmupLR": ("constant", ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type")),
    "WarmupDecayLR": (
        "linear",
        ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type", "total_num_steps"),
    ),
    "WarmupCosineLR": ("cosine", ("warmup_num_steps", "cos_min_ratio", "warmup_type", "total_num_steps")),
}


def training_of(
    config: Mapping[str, Any], *, source: str, processes: int, checks_batch: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """What a DeepSpeed file says, as fields of `TrainingSettings`, and what there is to tell about it.

    Args:
        config: the object in the file; `auto` stands for nothing.
        source: the file, which `deepspeed_config` becomes where it asks for ZeRO.
        processes: how many take part.
        checks_batch: whether the batch must be micro-batch x accumulation x processes; not where the caller changes it.

    Raises:
        SettingsError: the file contradicts itself, or asks for something that is not done here.
    """
    given = _told(config)
    notes = _unknown(given, _KNOWN, source, "")
    found = _batch(given, source, processes if checks_batch else None)
    found |= _renamed(given, {"gradient_clipping": "max_grad_norm", "steps_per_print": "logging_steps"})
    found |= _optimizer(given.get("optimizer", {}), source, notes)
    found |= _schedule(given.get("scheduler", {}), source, found.get("learning_rate"), notes)
    found |= _precision(given, source)
    if zero_stage(given):
        found["deepspeed_config"] = source
    else:
        found["deepspeed_config"] = None
        notes.append(f"{source} asks for no ZeRO stage: accelerate trains without DeepSpeed, with the same settings")
    return found, notes


def zero_stage(config: Mapping[str, Any]) -> int:
    """The stage of sharding that a file asks for; 0 is none."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def engine_config(config: Mapping[str, Any], settings: TrainingSettings, *, processes: int) -> dict[str, Any]:
    """A DeepSpeed file as DeepSpeed is to read it: under our settings, whose optimiser and learning rate are ours.

    It is told of one micro-batch for each step: the loop accumulates, with losses that are divided for the whole step
    already, and DeepSpeed would divide them once more.
    """
    micro = settings.micro_batch_size or settings.batch_size // processes
    kept = {name: value for name, value in _told(config).items() if name not in ("optimizer", "scheduler")}
    sizes = dict(zip(BATCH, (micro * processes, micro, 1), strict=True))
    precision = {name: {**kept.get(name, {}), "enabled": settings.precision == name} for name in ("fp16", "bf16")}
    return kept | sizes | precision | {"gradient_clipping": settings.max_grad_norm}


def _told(value: Any) -> Any:
    """The settings without those that are left to the caller (`auto`, null)."""
    if not isinstance(value, Mapping):
        return value
    return {key: _told(one) for key, one in value.items() if one is not None and one != "auto"}


def _unknown(given: Mapping[str, Any], known: tuple[str, ...], source: str, prefix: str) -> list[str]:
    return [
        f"{source}: the key `{prefix}{key}` has no meaning here. {nearest(key, known)}"
        for key in given
        if key not in known
    ]


def _renamed(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {ours: given[theirs] for theirs, ours in names.items() if theirs in given}


def _batch(given: Mapping[str, Any], source: str, processes: int | None) -> dict[str, Any]:
    """Rows of a step and of a forward; `processes` is None where their product is not to be checked."""
    for name in BATCH:
        if name in given and (not isinstance(given[name], int) or given[name] < 1):
            raise SettingsError(f"{source}: `{name}` must be a whole number of at least 1, got {given[name]!r}.")
    whole, micro, steps = (cast("int | None", given.get(name)) for name in BATCH)
    if whole is None and micro is None:
        if steps is not None:
            raise SettingsError(f"{source}: beside gradient_accumulation_steps, give {BATCH[0]} or {BATCH[1]}.")
        return {}
    if processes is None or (micro is None and steps is None):
        return {
            name: value for name, value in (("batch_size", whole), ("micro_batch_size", micro)) if value is not None
        }
    if micro is None:
        micro = max(1, (whole or 1) // ((steps or 1) * processes))
    if steps is None:
        steps = 1 if whole is None else max(1, whole // (micro * processes))
    product = micro * steps * processes
    if whole is not None and whole != product:
        fitting = whole // (micro * steps)
        launch = f"accelerate launch --num_processes {fitting} -m unmask train ..."
        raise SettingsError(
            f"{source}: {BATCH[0]} ({whole}) must be {BATCH[1]} ({micro}) x {BATCH[2]} ({steps}) x processes "
            f"({processes}), which is {product}. "
            + (f"Start {fitting} of them: {launch}. " if fitting and whole % (micro * steps) == 0 else "")
            + f"Or leave {BATCH[2]} out, or set training.batch_size={whole} on the command line: either accumulates as "
            "often as it takes."
        )
    return {"batch_size": product, "micro_batch_size": micro}


def _optimizer(given: Mapping[str, Any], source: str, notes: list[str]) -> dict[str, Any]:
    kind = given.get("type", "AdamW")
    if kind not in ("AdamW", "Adam"):
        raise SettingsError(
            f"{source}: the optimizer `{kind}` is not one of ours, which is AdamW. Set optimizer.type to AdamW."
        )
    parameters = given.get("params", {})
    notes += _unknown(parameters, tuple(_OPTIMIZER), source, "optimizer.params.")
    return _renamed(parameters, _OPTIMIZER)


def _schedule(given: Mapping[str, Any], source: str, rate: float | None, notes: list[str]) -> dict[str, Any]:
    """Warm-up and course. Theirs rises by the logarithm by default, ours always by a line."""
    if not given:
        return {}
    kind = given.get("type")
    if kind not in _SCHEDULERS:
        raise SettingsError(f"{source}: there is no scheduler `{kind}`. {nearest(str(kind), _SCHEDULERS)}")
    course, known = _SCHEDULERS[kind]
    parameters = given.get("params", {})
    notes += _unknown(parameters, known, source, "scheduler.params.")
    found: dict[str, Any] = {"lr_schedule": course} | _renamed(parameters, {"warmup_num_steps": "warmup_steps"})
    peak = parameters.get("warmup_max_lr", rate)
    if peak is not None and "warmup_max_lr" in known:
        found |= {"learning_rate": peak, "min_lr_ratio": parameters.get("warmup_min_lr", 0) / peak if peak else 0.0}
        if rate not in (None, peak):
            notes.append(
                f"{source}: the peak is the scheduler's warmup_max_lr ({peak}), not the optimizer's lr ({rate})"
            )
    if course == "cosine":
        found["min_lr_ratio"] = parameters.get("cos_min_ratio", 1e-4)
    if parameters.get("total_num_steps") is not None:
        found["steps"] = parameters["total_num_steps"]
    return found


def _precision(given: Mapping[str, Any], source: str) -> dict[str, Any]:
    enabled = [name for name in ("fp16", "bf16") if given.get(name, {}).get("enabled")]
    if len(enabled) > 1:
        raise SettingsError(f"{source}: fp16 and bf16 are both enabled. Turn one of them off.")
    if enabled:
        return {"precision": enabled[0]}
    return {"precision": "fp32"} if "fp16" in given or "bf16" in given else {}
