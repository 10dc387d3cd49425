"""Names of devices and of types of weights: checked before anything is read, on the machine at hand.

In: what a user wrote. Out: what PyTorch calls it, or a `SettingsError` that lists what there is here.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from unmask.errors import SettingsError, nearest
from unmask.settings.model import Dtype

DTYPES = ("auto", *get_args(Dtype))
_SHORT = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
    "fp64": "float64",
    "double": "float64",
}
"""What others call a type of weights."""
_OTHER_NAMES = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "metal": "mps", "apple": "mps"}


def device_named(name: str | torch.device) -> torch.device:
    """The device of that name.

    Raises:
        SettingsError: there is no such device, or none here.
    """
    given = str(name)
    try:
        device = torch.device(given)
    except (RuntimeError, ValueError):  # also a number that does not fit
        kind = given.partition(":")[0].lower()
        guess = f"Did you mean `{_OTHER_NAMES[kind]}`? " if kind in _OTHER_NAMES else ""
        raise SettingsError(f"There is no device `{given}`. {guess}{_available()}") from None
    if device.type == "meta":
        raise SettingsError(
            "The device `meta` holds shapes and no values, so nothing can be computed there. " + _available()
        )
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    here = {"cpu": 1} if accelerator is None else {"cpu": 1, accelerator.type: torch.accelerator.device_count()}
    if device.type not in here:
        raise SettingsError(f"The device `{given}` is not available here: {_reason(device.type)}. {_available()}")
    if device.index is not None and device.index >= here[device.type]:
        raise SettingsError(f"There is no device `{given}`: {device.type} has {here[device.type]} here. {_available()}")
    return device


def dtype_named(name: str | torch.dtype) -> torch.dtype | Literal["auto"]:
    """The type of weights of that name; `auto` stays, and is what the checkpoint was saved in.

    Raises:
        SettingsError: there is no such type, or it is none that weights have.
    """
    given = str(name).removeprefix("torch.") if isinstance(name, torch.dtype) else name
    if given == "auto":
        return "auto"
    if given not in DTYPES:
        guess = f"Did you mean `{_SHORT[given]}`?" if given in _SHORT else nearest(given, DTYPES)
        raise SettingsError(f"There is no type of weights `{given}`. {guess}")
    found = getattr(torch, given)
    assert isinstance(found, torch.dtype)
    return found


def _available() -> str:
    """A sentence that lists the devices of this machine."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return "Available here: `cpu`."
    numbered = [f"{accelerator.type}:{number}" for number in range(torch.accelerator.device_count())]
    return "Available here: " + ", ".join(f"`{device}`" for device in ["cpu", accelerator.type, *numbered]) + "."


def _reason(kind: str) -> str:
    """Why this machine has no device of a kind."""
    if kind == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        return "this PyTorch was built without CUDA"
    if kind == "cuda":
        return "no CUDA device is visible (see `nvidia-smi` and CUDA_VISIBLE_DEVICES)"
    return "this machine, or this PyTorch, has none"
