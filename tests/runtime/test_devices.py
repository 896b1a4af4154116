from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import openvino as ov
import psutil
import pytest

from edge.errors import DeviceError, ModelError
from edge.manifest import FORMAT, Architecture, Manifest, Source
from edge.runtime import devices, doctor
from edge.runtime.machine import Machine, Memory, Sight, look


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
        ("hetero: gpu, cpu", ["CPU", "GPU"], "HETERO:GPU,CPU"), ("AUTO", ["CPU", "GPU.0", "GPU.1"], "GPU.0"),
    ],
)  # fmt: skip
def test_resolve(asked: str, present: list[str], expected: str) -> None:
    assert devices.resolve(asked, lambda: present) == expected


@pytest.mark.parametrize("asked", ["TPU", "", "GPU.x", "CPU.0", "CUDA:0", "HETERO:", "HETERO:GPU", "HETERO:CPU,AUTO"])
def test_an_unknown_device_is_named_with_those_there_are(asked: str) -> None:
    with pytest.raises(DeviceError) as caught:
        devices.resolve(asked, lambda: ["CPU", "GPU"])
    assert f"'{asked}'" in caught.value.message
    assert "CPU, GPU or AUTO" in caught.value.hint


@pytest.mark.parametrize(
    ("asked", "present"),
    [("NPU", ["CPU"]), ("GPU", ["CPU"]), ("GPU.2", ["CPU", "GPU.0", "GPU.1"]), ("HETERO:NPU,CPU", ["CPU", "GPU"])],
)
def test_an_absent_device_is_named_with_those_there_are(asked: str, present: list[str]) -> None:
    with pytest.raises(DeviceError) as caught:
        devices.resolve(asked, lambda: present)
    assert asked.removeprefix("HETERO:").split(",")[0] in caught.value.message
    assert ", ".join(present) in caught.value.message


@pytest.mark.parametrize(
    ("target", "failed", "expected"),
    [("cpu", [], "GPU"), ("npu", [], "NPU"), ("npu", ["NPU"], "GPU"), ("igpu", ["GPU"], "CPU"),
     ("npu", ["NPU", "GPU", "CPU"], "CPU")],
)  # fmt: skip
def test_auto_goes_by_the_model_and_by_what_failed(target: str, failed: list[str], expected: str) -> None:
    found = devices.resolve("AUTO", lambda: ["CPU", "GPU", "NPU"], manifest(target=target), failed)
    assert found == expected


TWO = {
    ("GPU.0", "DEVICE_TYPE"): "Type.INTEGRATED", ("GPU.0", "GPU_DEVICE_TOTAL_MEM_SIZE"): 28_000_000_000,
    ("GPU.1", "DEVICE_TYPE"): "Type.DISCRETE", ("GPU.1", "GPU_DEVICE_TOTAL_MEM_SIZE"): 12_000_000_000,
    ("GPU.2", "DEVICE_TYPE"): "Type.DISCRETE", ("GPU.2", "GPU_DEVICE_TOTAL_MEM_SIZE"): 16_000_000_000,
}  # fmt: skip


def test_auto_takes_a_discrete_gpu_with_more_memory_first() -> None:
    def ask(device: str, name: str) -> Any:
        return TWO.get((device, name))

    assert devices.automatic(None, ["CPU", "GPU.0", "GPU.1", "GPU.2"], ask) == ["GPU.2", "GPU.1", "GPU.0", "CPU"]
    assert devices.automatic(None, ["CPU", "GPU.0", "GPU.1"], lambda *_: None) == ["GPU.0", "GPU.1", "CPU"]
    assert devices.automatic(manifest(target="npu"), ["CPU", "GPU", "NPU"]) == ["NPU", "GPU", "CPU"]


def test_openvinos_own_words_for_the_kinds_of_gpu() -> None:
    from openvino.properties.device import Type

    kinds = {"GPU.0": Type.INTEGRATED, "GPU.1": Type.DISCRETE}
    assert devices.automatic(None, list(kinds), lambda device, name: kinds[device] if name == "DEVICE_TYPE" else 1) == [
        "GPU.1", "GPU.0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("device", "here", "total", "available", "assumed"),
    [
        ("CPU", 32, 32, 24, False), ("GPU.1", 32, 12, 12, True), ("GPU.0", 32, 28, 24, False),
        ("GPU.0", 20, 20, 20, False),
        ("GPU.3", 32, 32, 24, True), ("NPU", 32, 32, 24, True), ("HETERO:GPU.1,CPU", 32, 32, 24, False),
    ],
)  # fmt: skip
def test_the_memory_of_a_device(device: str, here: int, total: int, available: int, assumed: bool) -> None:
    """A discrete GPU's own, else this machine's, and of a GPU that shares it no more than its driver gives."""
    gb = 10**9
    machine = Machine(root=Path("nowhere"), memory=lambda: Memory(here * gb, min(24, here) * gb, 0))
    found = devices.room(device, machine, lambda name, what: TWO.get((name, what)))
    assert (found.total, found.available, found.assumed is not None) == (total * gb, available * gb, assumed)


@pytest.mark.parametrize(
    ("device", "expected"),
    [("CPU", True), ("GPU", True), ("GPU.1", True), ("NPU", False), ("HETERO:GPU,CPU", False)],
)
def test_where_several_answers_are_made_at_once(device: str, expected: bool) -> None:
    assert devices.together(device) is expected


def test_one_name_for_the_first_gpu() -> None:
    names = ["CPU", "GPU", "GPU.0", "GPU.1", "HETERO:GPU.0,CPU"]
    assert [devices.canonical(name) for name in names] == ["CPU", "GPU", "GPU", "GPU.1", "HETERO:GPU,CPU"]


def test_a_damaged_ir_is_a_sentence_before_anything_is_compiled(tmp_path: Path) -> None:
    write_model(tmp_path, target="npu")
    path = tmp_path / "openvino_model.xml"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(ModelError, match=r"openvino_model\.xml is damaged \(") as caught:
        devices.illegal("NPU", Manifest.read(tmp_path), tmp_path)
    assert "\n" not in caught.value.message


def write_model(
    folder: Path, weights: bytes = b"weights", notes: Mapping[str, str] = MappingProxyType({}), **changes: Any
) -> Path:
    """What of an exported model's folder is looked at before it is loaded; its IR says `notes` of itself."""
    folder.mkdir(parents=True, exist_ok=True)
    port = ov.opset13.parameter([1], ov.Type.f32)
    model = ov.Model([ov.opset13.result(port)], [port])
    for key, value in notes.items():
        model.set_rt_info(value, ["nncf", "weight_compression", key])
    ov.save_model(model, folder / "openvino_model.xml")
    (folder / "openvino_model.bin").write_bytes(weights)
    (folder / "config.json").write_text(json.dumps(SIZES))
    sizes = {path.name: path.stat().st_size for path in folder.glob("openvino_model.*")}
    manifest(bytes=sizes, **changes).write(folder)
    return folder


SIZES = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 16, "tie_word_embeddings": True}
LAPTOP = {
    ("CPU", "FULL_DEVICE_NAME"): "Intel(R) Core(TM) Ultra 7 258V",
    ("CPU", "OPTIMIZATION_CAPABILITIES"): ["FP32", "INT8", "BIN", "EXPORT_IMPORT"],
    ("GPU", "FULL_DEVICE_NAME"): "Intel(R) Arc(TM) 140V GPU (iGPU)",
    ("GPU", "GPU_DRIVER_VERSION"): "32.0.101.6987",
    ("GPU", "GPU_DEVICE_TOTAL_MEM_SIZE"): 18_000_000_000,
    ("GPU", "OPTIMIZATION_CAPABILITIES"): ["FP32", "FP16", "INT8", "GPU_HW_MATMUL", "EXPORT_IMPORT"],
    ("NPU", "FULL_DEVICE_NAME"): "Intel(R) AI Boost",
    ("NPU", "NPU_DRIVER_VERSION"): 32001004,
    ("NPU", "NPU_DEVICE_TOTAL_MEM_SIZE"): 16_000_000_000,
    ("NPU", "NPU_DEVICE_ALLOC_MEM_SIZE"): 0,
}


def laptop(device: str, name: str) -> Any:
    return LAPTOP.get((device, name))


def described(folder: Path | None, present: list[str]) -> dict[str, devices.DeviceFacts]:
    return {facts.device: facts for facts in devices.describe(folder, lambda: present, laptop)}


def test_what_a_laptop_tells_of_its_devices() -> None:
    found = described(None, ["CPU", "GPU", "NPU"])
    assert (found["GPU"].name, found["GPU"].driver) == ("Intel(R) Arc(TM) 140V GPU (iGPU)", "32.0.101.6987")
    assert found["GPU"].precisions == ("FP32", "FP16", "INT8")
    assert (found["GPU"].memory_bytes, found["GPU"].free_bytes) == (18_000_000_000, None)
    assert (found["NPU"].driver, found["NPU"].free_bytes) == ("32001004", 16_000_000_000)
    assert found["CPU"].driver is None and found["CPU"].memory_bytes == Machine().room().total
    assert all(facts.absent is None and facts.why_not is None and facts.needs_bytes is None for facts in found.values())
    assert devices.identity("HETERO:GPU,CPU", laptop) == (
        "Intel(R) Arc(TM) 140V GPU (iGPU), driver 32.0.101.6987 + Intel(R) Core(TM) Ultra 7 258V"
    )


def test_what_is_not_here_says_why() -> None:
    """In doctor's words, on this machine, which may have either device: then there is nothing to explain."""
    findings = {finding.name: finding for finding in doctor.examine()}
    found = {facts.device: facts for facts in devices.describe()}
    for kind in ("GPU", "NPU"):
        here = [facts for facts in found.values() if facts.device.startswith(kind) and facts.absent is None]
        assert here or findings[kind].state == "ok" or found[kind].absent == findings[kind].what


class TestWithAModel:
    WEIGHTS = 4_000_000

    def folder(self, tmp_path: Path, notes: Mapping[str, str] = MappingProxyType({}), **changes: Any) -> Path:
        return write_model(tmp_path, bytes(self.WEIGHTS), notes, **changes)

    def test_an_export_for_the_cpu_is_not_for_the_npu(self, tmp_path: Path) -> None:
        found = described(self.folder(tmp_path), ["CPU", "GPU", "NPU"])
        assert found["NPU"].why_not is not None and "exported for cpu" in found["NPU"].why_not
        assert found["CPU"].why_not is None and found["GPU"].why_not is None
        assert all(facts.needs_bytes is not None and facts.needs_bytes > self.WEIGHTS for facts in found.values())

    @pytest.mark.parametrize(
        ("changes", "word"),
        [({}, None), ({"mode": "int4_asym"}, "mode int4_asym"), ({"group_size": "32"}, "group_size 32"),
         ({"ratio": "0.8"}, "ratio 0.8")],
    )  # fmt: skip
    def test_the_ir_has_its_own_say_about_the_npu(
        self, tmp_path: Path, changes: dict[str, str], word: str | None
    ) -> None:
        notes = {"mode": "int4_sym", "group_size": "128", "ratio": "1.0", **changes}
        why = described(self.folder(tmp_path, notes, target="npu"), ["CPU", "NPU"])["NPU"].why_not
        assert why is None if word is None else word in str(why)

    def test_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = self.folder(tmp_path)
        needs = described(folder, ["CPU", "GPU"])["CPU"].needs_bytes or 0
        monkeypatch.setitem(LAPTOP, ("GPU", "GPU_DEVICE_TOTAL_MEM_SIZE"), needs // 2)
        memory = SimpleNamespace(total=2 * needs, available=needs // 2)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        monkeypatch.setattr(Machine, "memory_limit", lambda self: None)
        found = described(folder, ["CPU", "GPU"])
        assert "it needs 0.1 GB of memory, of 0.1 GB" in str(found["GPU"].why_not)
        assert found["CPU"].why_not is None and "are free" in str(found["CPU"].remark)


def test_devices_are_listed_in_a_process_of_its_own_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that ends the process that asks ends no other; then there is the CPU, and it is said why."""
    asked: list[int] = []

    def crashing() -> Sight:
        asked.append(1)
        return look((sys.executable, "-c", "import os; os.abort()"))

    monkeypatch.setattr(devices, "look", crashing)
    devices.sight.cache_clear()
    try:
        assert devices.available() == ["CPU"] == devices.available()
        with pytest.raises(
            DeviceError, match=r"no GPU .* it has CPU \(listing OpenVINO's devices ended with exit code"
        ):
            devices.require("GPU", devices.available())
        assert "exit code" in str({facts.device: facts for facts in devices.describe()}["NPU"].absent)
        assert devices.identity("GPU") == "GPU" and asked == [1]
    finally:
        devices.sight.cache_clear()


def test_name_and_driver_are_known_without_a_driver_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge import infer

    seen = {"CPU": {"name": "x"}, "GPU.0": {"name": "Arc", "driver": "32.0"}, "GPU.1": {"name": "Other"}}
    monkeypatch.setattr(devices, "sight", lambda: Sight(seen))
    monkeypatch.setattr(infer, "core", lambda: pytest.fail("it starts the driver"))
    assert devices.identity("GPU") == "Arc, driver 32.0" == devices.identity("GPU.0")
    assert devices.identity("GPU.1") == "Other" and devices.available() == ["CPU", "GPU.0", "GPU.1"]


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
