"""What a model is loaded with here: the plan, held against the memory and the cores that this process has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.errors import ContextError, ResourceError, UsageError
from edge.manifest import Architecture
from edge.runtime import plan as plans
from edge.runtime.machine import Machine, Memory
from edge.runtime.scheduling import npu_schedule, schedule
from edge.runtime.settings import Settings
from tests.laptops import machine, write
from tests.runtime.test_devices import write_model

GB = 10**9


def model(folder: Path, context_length: int = 131_072, **changes: Any) -> Path:
    """Small weights, and a cache that takes much: 4 KB a token in f16, half of it in u8."""
    architecture = Architecture(
        model_type="glm", parameters=1, num_layers=8, num_kv_heads=1, head_dim=128, vocab_size=10,
        context_length=context_length,
    )  # fmt: skip
    return write_model(folder / "model", architecture=architecture, **changes)


def nothing(device: str, name: str) -> Any:
    return None


def small(root: Path, limit: int) -> Machine:
    """32 GB, of which a cgroup gives this process so many bytes."""
    write(root, **{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": str(limit)})
    return machine(root)


def test_a_containers_memory_is_what_the_context_is_chosen_by(tmp_path: Path) -> None:
    folder = model(tmp_path)
    free, _ = schedule(folder, Settings("CPU"), machine=machine(tmp_path / "a"), ask=nothing)
    bound, _ = schedule(folder, Settings("CPU"), machine=small(tmp_path / "b", GB // 5), ask=nothing)
    assert free == 32768 and 2048 <= bound < 32768
    asked = Settings("CPU", context=131_072)
    schedule(folder, asked, machine=machine(tmp_path / "a"), ask=nothing)
    with pytest.raises(ResourceError, match=r"131,072 tokens need .*, and 200 MB are available"):
        schedule(folder, asked, machine=small(tmp_path / "b", GB // 5), ask=nothing)


def test_threads_are_those_that_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plan = plans.plan

    def looked_at(*args: Any, threads: int, **options: Any) -> plans.Plan:
        seen.append(threads)
        return plan(*args, threads=threads, **options)

    monkeypatch.setattr(plans, "plan", looked_at)
    schedule(model(tmp_path), Settings("CPU"), machine=machine(tmp_path, affinity=lambda: 3), ask=nothing)
    assert set(seen) == {3}


def test_a_discrete_gpus_cache_is_planned_in_its_own_memory(tmp_path: Path) -> None:
    facts = {"DEVICE_TYPE": "Type.DISCRETE", "GPU_DEVICE_TOTAL_MEM_SIZE": GB // 5}
    folder, here = model(tmp_path), machine(tmp_path)
    own, _ = schedule(folder, Settings("GPU.1"), machine=here, ask=lambda device, name: facts.get(name))
    shared, _ = schedule(folder, Settings("GPU.1"), machine=here, ask=nothing)
    assert own < shared == 32768
    with pytest.raises(ResourceError):
        schedule(folder, Settings("GPU.1", context=131_072), machine=here, ask=lambda device, name: facts.get(name))
    facts["GPU_DEVICE_TOTAL_MEM_SIZE"] = 16 * GB  # more than a machine with little memory of its own
    poor = machine(tmp_path, memory=lambda: Memory(GB // 5, GB // 5, 0))
    assert schedule(folder, Settings("GPU.1"), machine=poor, ask=lambda device, name: facts.get(name))[0] == 32768


@pytest.mark.parametrize(
    ("device", "precision"),
    [("NPU", "u8"), ("NPU", "u4"), ("NPU", "f32"), ("GPU", "u4"), ("GPU.1", "f32"), ("HETERO:NPU,CPU", "u8")],
)
def test_a_cache_that_the_device_cannot_have_is_refused(tmp_path: Path, device: str, precision: str) -> None:
    settings = Settings(device, {"KV_CACHE_PRECISION": precision})
    with pytest.raises(UsageError, match=f"the {device} keeps no cache in {precision}"):
        (npu_schedule if device == "NPU" else schedule)(model(tmp_path), settings, machine=machine(tmp_path))


def test_caches_that_devices_can_have(tmp_path: Path) -> None:
    folder, here = model(tmp_path), machine(tmp_path)
    for device, precision in (("CPU", "f32"), ("CPU", "u4"), ("GPU", "f16"), ("HETERO:GPU,CPU", "u8"), ("CPU", "bf16")):
        schedule(folder, Settings(device, {"KV_CACHE_PRECISION": precision}), machine=here, ask=nothing)
    assert plans.kv_default("HETERO:NPU,CPU") == "f16"


@pytest.mark.parametrize(
    ("context", "longest", "lengths"),
    [(None, 8192, (1024, 128)), (None, 512, (384, 128)), (4096, 8192, (3072, 1024)), (512, 512, (384, 128))],
)
def test_the_npus_lengths(tmp_path: Path, context: int | None, longest: int, lengths: tuple[int, int]) -> None:
    settings = Settings("NPU", context=context)
    assert npu_schedule(model(tmp_path, longest), settings, machine=machine(tmp_path), ask=nothing) == lengths


@pytest.mark.parametrize("rehearse", [False, True])
def test_the_npu_refuses_what_the_cpu_refuses(tmp_path: Path, rehearse: bool) -> None:
    folder = model(tmp_path, 8192)
    here = small(tmp_path, 140_000_000)
    with pytest.raises(ContextError, match="999,999 tokens was asked for, and the model reads at most 8,192"):
        npu_schedule(folder, Settings("NPU", context=999_999, rehearse=rehearse), machine=here, ask=nothing)
    with pytest.raises(ResourceError, match="8,192 tokens need") as caught:
        npu_schedule(folder, Settings("NPU", context=8192, rehearse=rehearse), machine=here, ask=nothing)
    assert "--device NPU" in caught.value.hint
    with pytest.raises(UsageError, match="leaves the NPU no room"):
        npu_schedule(model(tmp_path, 128), Settings("NPU", rehearse=rehearse), machine=here, ask=nothing)
