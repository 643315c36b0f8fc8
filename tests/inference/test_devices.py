import pytest
import torch

from flasepformer.inference import DeviceError, pick_device


def test_the_processor_is_always_there():
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="has an accelerator"
)
def test_without_an_accelerator_auto_is_the_processor():
    assert pick_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_absent_is_refused_when_asked_for(name):
    if getattr(torch, name).is_available():
        pytest.skip(f"{name} is present")
    with pytest.raises(DeviceError, match=rf"device {name} cannot be used \(.+\); use auto or cpu"):
        pick_device(name)


def test_a_device_that_nobody_knows_is_refused_with_the_choice():
    with pytest.raises(DeviceError, match="no device is called 'abacus'; use auto, cpu, cuda or mps"):
        pick_device("abacus")
