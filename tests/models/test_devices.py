"""Names of devices and of types of weights."""

import pytest
import torch

from unmask.errors import SettingsError
from unmask.models.devices import device_named, dtype_named


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_the_cpu_is_always_there(name: str) -> None:
    assert device_named(name).type == "cpu"
    assert device_named(torch.device(name)) == torch.device(name)


@pytest.mark.parametrize(
    ("name", "piece"),
    [
        ("gpu", "Did you mean `cuda`?"),
        ("GPU:0", "Did you mean `cuda`?"),
        ("metal", "Did you mean `mps`?"),
        ("", "There is no device ``"),
        ("cpu:1", "cpu has 1 here"),
        ("cpu:-1", "There is no device `cpu:-1`"),
        ("cuda:x", "There is no device `cuda:x`"),
        ("cuda:99999999999999999999", "There is no device"),
        ("meta", "holds shapes and no values"),
        ("ipu", "The device `ipu` is not available here"),
    ],
)
def test_a_device_that_is_not_there_is_named_with_those_that_are(name: str, piece: str) -> None:
    with pytest.raises(SettingsError) as caught:
        device_named(name)
    assert piece in str(caught.value)
    assert "Available here: `cpu`" in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:99"])
def test_cuda_without_a_gpu_says_what_is_missing(name: str) -> None:
    with pytest.raises(SettingsError, match=r"not available here: .*CUDA"):
        device_named(name)


def test_types_of_weights_have_their_long_names() -> None:
    assert dtype_named("auto") == "auto"
    assert dtype_named("bfloat16") is torch.bfloat16
    assert dtype_named(torch.float64) is torch.float64


@pytest.mark.parametrize(
    ("name", "piece"),
    [
        ("bf16", "Did you mean `bfloat16`?"),
        ("half", "Did you mean `float16`?"),
        ("fp32", "Did you mean `float32`?"),
        ("foo", "Allowed: `auto`, `bfloat16`"),
        (torch.int8, "There is no type of weights `int8`"),
    ],
)
def test_other_types_are_refused(name: str | torch.dtype, piece: str) -> None:
    with pytest.raises(SettingsError) as caught:
        dtype_named(name)
    assert piece in str(caught.value)
