"""Where weights go and of what type they are, as callers spell it; checked before anything is read.

In: `dtype`, `device` and `device_map` from Python or the command line. Out: what `torch` and `transformers` take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from unmask.errors import SettingsError, nearest
from unmask.settings.typed import shown

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
    "float64": torch.float64,
    "fp64": torch.float64,
    "double": torch.float64,
}
_OTHER_NAMES = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "metal": "mps", "apple": "mps"}
"""What devices are called elsewhere."""
_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def dtype_of(value: object) -> torch.dtype | str:
    """A type of weights: `auto`, a floating `torch.dtype`, or one of the names that recipes and `torch` have for it.

    Raises:
        SettingsError: it is none.
    """
    if isinstance(value, torch.dtype) and value in _DTYPES.values():
        return value
    name = value.removeprefix("torch.") if isinstance(value, str) else None
    if name == "auto":
        return "auto"
    if name in _DTYPES:
        return _DTYPES[name]
    names = ["auto", *_DTYPES]
    raise SettingsError(
        f"dtype must be auto, float32 (fp32), bfloat16 (bf16), float16 (fp16) or float64 (fp64), got {shown(value)}."
        + _hint(name, names)
    )


def device_of(value: object) -> torch.device:
    """A device that this machine has.

    Raises:
        SettingsError: it has no such device.
    """
    found = _parsed(value)
    if found is None or found.type == "meta" or (found.index or 0) < 0:
        why = ", which holds shapes and no values" if found is not None and found.type == "meta" else ""
        raise SettingsError(f"device must be {_devices()}, got {shown(value)}{why}.{_device_hint(value)}")
    own = torch.accelerator.current_accelerator(check_available=True)
    here = {"cpu": 1} if own is None else {"cpu": 1, own.type: torch.accelerator.device_count()}
    if (found.index or 0) >= here.get(found.type, 0):
        reason = f"{found.type} has {here[found.type]} here" if found.type in here else _reason(found.type)
        raise SettingsError(f"This machine has no device `{found}`: {reason}. Use {_devices()}.")
    return found


def placed(device: object, device_map: object) -> tuple[torch.device | None, str | dict[str, Any] | None]:
    """The device, or the map over several, that weights go to; both None where the default is wanted.

    Raises:
        SettingsError: one of them does not exist here, or both are given.
    """
    if device_map is None:
        return (None if device is None else device_of(device)), None
    if device is not None:
        raise SettingsError(f"Give device or device_map, got both: {shown(device)} and {shown(device_map)}.")
    if isinstance(device_map, str) and device_map in _MAPS:
        return None, device_map
    if isinstance(device_map, Mapping) and device_map and all(isinstance(name, str) for name in device_map):
        if "disk" in device_map.values():
            raise SettingsError(
                f"device_map must name devices, got {shown(device_map)}: weights cannot stay on the disk here. Name a "
                "device with enough memory, or load the model in another dtype."
            )
        return None, {name: device_of(where) for name, where in device_map.items()}
    if isinstance(device_map, str | torch.device) and _parsed(device_map) is not None:
        return None, {"": device_of(device_map)}
    name = device_map if isinstance(device_map, str) else None
    raise SettingsError(
        f"device_map must be {', '.join(_MAPS)}, a device, or a mapping of module names to devices, got "
        f"{shown(device_map)}." + _hint(name, _MAPS)
    )


def _parsed(value: object) -> torch.device | None:
    if isinstance(value, torch.device):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int) or (isinstance(value, int) and value < 0):
        return None
    try:
        return torch.device(value)
    except (RuntimeError, ValueError, OverflowError):
        return None


def _devices() -> str:
    """The devices of this machine, in words."""
    own = torch.accelerator.current_accelerator(check_available=True)
    if own is None:
        return "cpu, the only device of this machine"
    return " or ".join(["cpu", *(f"{own.type}:{index}" for index in range(torch.accelerator.device_count()))])


def _device_hint(value: object) -> str:
    """What a name that is no device's may have meant."""
    if not isinstance(value, str):
        return ""
    kind = value.partition(":")[0].lower()
    if kind in _OTHER_NAMES:
        return f" Did you mean `{_OTHER_NAMES[kind]}`?"
    return _hint(value, ["cpu", "cuda", "mps"])


def _reason(kind: str) -> str:
    """Why this machine has no device of a kind."""
    if kind == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        return "this PyTorch was built without CUDA"
    if kind == "cuda":
        return "no CUDA device is visible (see `nvidia-smi` and CUDA_VISIBLE_DEVICES)"
    return "this machine, or this PyTorch, has none"


def _hint(name: str | None, names: list[str] | tuple[str, ...]) -> str:
    found = nearest(name or "", names)
    return f" {found}" if found.startswith("Did") else ""
