"""What an adapter's two JSON files may say, checked before a network is changed by it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from unmask.errors import CheckpointError
from unmask.settings.adapter import Quantization
from unmask.settings.model import Dtype

_MOST_RANK = 2**14
DAMAGE = (ValueError, TypeError, AttributeError, LookupError, RuntimeError, ImportError)
"""What PEFT raises on values of a wrong kind, and on kinds of adapters that need other packages."""


def check_config(entry: Mapping[str, Any], path: Path) -> None:
    """Refuse values of LoRA's adapter_config.json that would only fail, or take all memory, in the network.

    Raises:
        CheckpointError: there is one.
    """
    if entry.get("peft_type") != "LORA":
        return
    targets, base = entry.get("target_modules"), entry.get("base_model_name_or_path")
    names = targets if isinstance(targets, list) else [targets]
    wrong = {
        "r": (not _is_number(entry.get("r", 8), int, _MOST_RANK), f"a whole number from 1 to {_MOST_RANK:,}"),
        "lora_alpha": (not _is_number(entry.get("lora_alpha", 8), int | float, 2**31), "a positive number"),
        "target_modules": (not all(isinstance(name, str) for name in names), "names of linear layers"),
        "base_model_name_or_path": (not isinstance(base, str) or not base, "the folder or hub id of its base"),
    }
    for name, (is_wrong, words) in wrong.items():
        if is_wrong:
            raise CheckpointError(f"{path} is damaged: it has `{name}: {entry.get(name)!r}`, which must be {words}.")


def check_facts(facts: Mapping[str, Any], path: Path) -> None:
    """Refuse a diffusion.json that names a type or quantisation that does not exist.

    Raises:
        CheckpointError: it does.
    """
    for name, allowed in (("dtype", get_args(Dtype)), ("quantization", get_args(Quantization))):
        value = facts.get(name)
        if value is not None and value not in allowed:
            raise CheckpointError(
                f"{path} is damaged: it has `{name}: {value!r}`, which must be {', '.join(allowed)} or null."
            )


def _is_number(value: object, kind: Any, most: int) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and 0 < value <= most  # type: ignore[operator]
