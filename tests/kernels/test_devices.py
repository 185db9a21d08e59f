"""What stands in for an accelerator."""

import jax
import pytest

from jaxml.kernels import devices


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of a CPU")
def test_a_cpu_has_neither_kind_nor_capability():
    assert devices.capability() is None
    assert devices.device_kind() == ""


def test_capability_is_that_of_the_first_device(monkeypatch):
    class Device:
        device_kind = "A GPU"
        compute_capability = "9.0"

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert devices.capability() == "9.0"
    assert devices.device_kind() == "A GPU"


def test_the_interpreter_is_there_from_jax_0_12_on(monkeypatch):
    assert (devices.gpu_interpreter() is not None) == (jax.__version_info__ >= (0, 12))
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 9))
    assert devices.gpu_interpreter() is None
