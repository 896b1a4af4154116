from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.errors import DeviceError
from edge.manifest import FORMAT, Architecture, Manifest, Source
from edge.runtime import devices


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "format": FORMAT,
        "created": "2026-01-01T00:00:00+00:00",
        "source": Source(model="m", description=None, revision=None, sha256={}),
        "architecture": Architecture(
            model_type="glm", parameters=1, num_layers=1, num_kv_heads=1, head_dim=8, vocab_size=10, context_length=64
        ),
        "target": "cpu", "recipe": {"weights": "int4"}, "stop_ids": [2], "stop_tokens": ["x"], "versions": {},
        "bytes": {}, "checks": [],
    }  # fmt: skip
    return Manifest(**{**values, **changes})


@pytest.mark.parametrize(
    ("asked", "present", "expected"),
    [
        ("CPU", ["CPU"], "CPU"), ("cpu", ["CPU"], "CPU"), ("AUTO", ["CPU"], "CPU"), ("auto", ["CPU", "GPU"], "GPU"),
        ("AUTO", ["CPU", "NPU"], "CPU"), ("GPU", ["CPU", "GPU.0", "GPU.1"], "GPU"),
        ("GPU.1", ["GPU.0", "GPU.1"], "GPU.1"), ("GPU.0", ["CPU", "GPU"], "GPU.0"), ("NPU", ["CPU", "NPU"], "NPU"),
    ],
)  # fmt: skip
def test_resolve(asked: str, present: list[str], expected: str) -> None:
    assert devices.resolve(asked, lambda: present) == expected


@pytest.mark.parametrize("asked", ["TPU", "", "GPU.x", "CPU.0", "CUDA:0", "HETERO:GPU,CPU"])
def test_an_unknown_device_is_named_with_those_there_are(asked: str) -> None:
    with pytest.raises(DeviceError) as caught:
        devices.resolve(asked, lambda: ["CPU", "GPU"])
    assert f"'{asked}'" in caught.value.message
    assert "CPU, GPU or AUTO" in caught.value.hint


@pytest.mark.parametrize(
    ("asked", "present"), [("NPU", ["CPU"]), ("GPU", ["CPU"]), ("GPU.2", ["CPU", "GPU.0", "GPU.1"])]
)
def test_an_absent_device_is_named_with_those_there_are(asked: str, present: list[str]) -> None:
    with pytest.raises(DeviceError) as caught:
        devices.resolve(asked, lambda: present)
    assert asked in caught.value.message
    assert ", ".join(present) in caught.value.message


def test_this_machine_has_a_cpu() -> None:
    assert "CPU" in devices.available()


def test_f32_only_where_it_was_measured_to_help() -> None:
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    assert devices.default_properties("CPU", manifest()) == hint
    assert devices.default_properties("CPU", manifest(recipe={"weights": "bf16"})) == {}
    assert devices.default_properties("GPU", manifest()) == {}


def test_the_npu_is_not_given_what_would_end_the_process(tmp_path: Path) -> None:
    from edge.runtime.engine import Engine
    from edge.runtime.settings import Settings

    manifest().write(tmp_path)
    with pytest.raises(DeviceError, match="exported for cpu"):
        Engine.load(tmp_path, Settings("NPU"))
