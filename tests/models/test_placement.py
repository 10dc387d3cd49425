"""Names of devices and of types of weights."""

import pytest
import torch

from unmask.errors import SettingsError
from unmask.models.placement import device_of, dtype_of

CPU_ONLY = torch.accelerator.current_accelerator(check_available=True) is None


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_the_cpu_is_always_there(name: str) -> None:
    assert device_of(name).type == "cpu"
    assert device_of(torch.device(name)) == torch.device(name)


@pytest.mark.parametrize(
    ("name", "piece"),
    [
        ("gpu", "Did you mean `cuda`?"),
        ("GPU:0", "Did you mean `cuda`?"),
        ("metal", "Did you mean `mps`?"),
        ("", "device must be cpu"),
        ("cpu:1", "cpu has 1 here"),
        ("cpu:-1", "got 'cpu:-1'"),
        ("cuda:x", "got 'cuda:x'"),
        ("cuda:99999999999999999999", "device must be cpu"),
        ("meta", "holds shapes and no values"),
        ("ipu", "This machine has no device `ipu`"),
    ],
)
def test_a_device_that_is_not_there_is_named_with_those_that_are(name: str, piece: str) -> None:
    with pytest.raises(SettingsError) as caught:
        device_of(name)
    assert piece in str(caught.value)
    assert "cpu" in str(caught.value)


@pytest.mark.skipif(not CPU_ONLY, reason="there is an accelerator")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:99"])
def test_cuda_without_a_gpu_says_what_is_missing(name: str) -> None:
    with pytest.raises(SettingsError, match=r"no device `cuda.*CUDA.*Use cpu, the only device"):
        device_of(name)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bfloat16", torch.bfloat16),
        ("bf16", torch.bfloat16),
        ("half", torch.float16),
        ("fp32", torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_types_of_weights_have_long_and_short_names(name: str | torch.dtype, dtype: torch.dtype) -> None:
    assert dtype_of(name) is dtype
    assert dtype_of("auto") == "auto"


@pytest.mark.parametrize("name", ["foo", "", "int8", torch.int8, None, 16])
def test_other_types_are_refused(name: object) -> None:
    with pytest.raises(SettingsError, match=r"dtype must be auto, float32 \(fp32\)"):
        dtype_of(name)
