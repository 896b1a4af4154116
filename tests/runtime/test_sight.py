from __future__ import annotations

from edge.runtime.sight import seen

CPU = {"name": "A processor", "architecture": "intel64"}
ARC = {"name": "Intel(R) Arc(TM) Graphics (iGPU)", "architecture": "GPU: vendor=0x8086 arch=v12.71.4"}
H200 = {"name": "NVIDIA H200 (dGPU)", "architecture": "GPU: vendor=0x10de arch=v9.0.0"}


def test_a_gpu_of_another_maker_is_not_there() -> None:
    """As OpenVINO 2026.4 lists it on a machine with NVIDIA's OpenCL."""
    found = seen({"CPU": CPU, "GPU": H200}, lambda kind: f"no {kind}")
    assert list(found["devices"]) == ["CPU"]
    assert found["reasons"] == {"GPU": "NVIDIA H200 (dGPU) is not Intel's, and runs no models here", "NPU": "no NPU"}


def test_intels_gpu_beside_it_is() -> None:
    found = seen({"CPU": CPU, "GPU.0": ARC, "GPU.1": H200}, lambda kind: None)
    assert found == {"devices": {"CPU": CPU, "GPU.0": ARC}, "reasons": {}}


def test_what_does_not_tell_its_maker_is_believed() -> None:
    assert list(seen({"NPU": {"name": "AI Boost"}}, lambda kind: None)["devices"]) == ["NPU"]
