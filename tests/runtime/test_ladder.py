"""The order in which ways to load a model are tried."""

from __future__ import annotations

from typing import Any

import pytest

from edge.errors import DeviceError
from edge.runtime.ladder import Candidate, Failure, candidates, label
from edge.runtime.settings import Settings
from tests.runtime.test_devices import manifest

ALL = ["CPU", "GPU", "NPU"]
NPU_MODEL = manifest(target="npu")


def illegal(device: str) -> str | None:
    return "exported for cpu" if "NPU" in device else None


def labels(found: list[Candidate]) -> list[str]:
    return [label(candidate.settings) for candidate in found]


def ways(device: str, present: list[str] = ALL, **options: Any) -> list[str]:
    return labels(candidates(Settings(device), NPU_MODEL, present, **options))


GPU_WAYS = ["GPU", "GPU with what overflows f16 in f32", "GPU with all in f32"]
NPU_WAYS = ["NPU", "NPU with what overflows f16 in f32"]


def test_more_precision_comes_before_another_device() -> None:
    assert ways("NPU") == [*NPU_WAYS, *GPU_WAYS, "CPU"]
    assert ways("NPU", ["CPU", "NPU"]) == [*NPU_WAYS, "CPU"]
    assert ways("GPU") == [*GPU_WAYS, "CPU"]
    assert ways("CPU") == ["CPU"], "int4 runs in f32 there already"
    assert ways("NPU", ["CPU", "GPU.0", "GPU.1", "NPU"])[2::3] == ["GPU.0", "GPU.1", "CPU"]


def test_a_cpu_that_chooses_less_than_f32_is_given_f32() -> None:
    found = candidates(Settings("CPU"), manifest(recipe={"weights": "bf16"}), ALL)
    assert labels(found) == ["CPU", "CPU with all in f32"]


def test_without_fallback_the_device_stays() -> None:
    assert ways("GPU", fallback=False) == GPU_WAYS
    assert ways("NPU", fallback=False) == NPU_WAYS
    assert ways("AUTO", fallback=False) == NPU_WAYS


def test_hetero_passes_through() -> None:
    assert ways("HETERO:GPU,CPU", fallback=False)[0] == "HETERO:GPU,CPU"
    assert ways("HETERO:GPU,CPU")[-1] == "CPU"


def test_auto_takes_what_the_model_may_run_on() -> None:
    assert ways("AUTO")[0] == "NPU"
    assert ways("AUTO", illegal=illegal) == [*GPU_WAYS, "CPU"]
    assert labels(candidates(Settings("AUTO"), manifest(), ALL)) == [*GPU_WAYS, "CPU"]


def test_a_device_that_is_not_here_falls_back_with_the_reason() -> None:
    found = candidates(Settings("NPU"), NPU_MODEL, ["CPU"])
    assert labels(found) == ["CPU"]
    assert found[0].why == "this machine has no NPU that OpenVINO can use; it has CPU"
    with pytest.raises(DeviceError, match="has no NPU"):
        candidates(Settings("NPU"), NPU_MODEL, ["CPU"], fallback=False)
    with pytest.raises(DeviceError, match=r"has no GPU\.1"):
        candidates(Settings("HETERO:GPU.1,CPU"), NPU_MODEL, ["CPU", "GPU.0"], fallback=False)


def test_a_model_that_is_not_for_the_device_is_never_given_to_it() -> None:
    found = candidates(Settings("NPU"), manifest(), ALL, illegal=illegal)
    assert labels(found) == [*GPU_WAYS, "CPU"]
    assert [candidate.why for candidate in found] == ["exported for cpu", "", "", ""]
    with pytest.raises(DeviceError, match="NPU: exported for cpu") as caught:
        candidates(Settings("NPU"), manifest(), ALL, illegal=illegal, fallback=False)
    assert "--for npu" in caught.value.hint


def test_the_npus_shapes_on_the_cpu_need_no_npu_and_have_no_other_way() -> None:
    found = candidates(Settings("NPU", rehearse=True), NPU_MODEL, ["CPU"])
    assert {candidate.settings.device for candidate in found} == {"NPU"}
    assert labels(found)[0] == "NPU's shapes on the CPU"
    with pytest.raises(DeviceError):
        candidates(Settings("NPU", rehearse=True), manifest(), ["CPU"], illegal=illegal)


def test_what_is_known_to_fail_is_passed_over() -> None:
    def kept(settings: Settings) -> Failure | None:
        failed = settings.device == "GPU" and settings.precision != "f32"
        return Failure(f"{label(settings)} answers GGGG", True) if failed else None

    found = candidates(Settings("GPU"), NPU_MODEL, ALL, kept=kept)
    assert labels(found) == ["GPU with all in f32", "CPU"]
    assert [candidate.why for candidate in found] == ["GPU answers GGGG", ""]
    assert ways("GPU", kept=kept, fallback=False) == GPU_WAYS, "who insists tries again"


def test_a_device_that_did_not_load_the_model_is_passed_over_as_a_whole() -> None:
    def crashed(settings: Settings) -> Failure | None:
        return Failure("it crashed", False) if settings == Settings("GPU") else None

    def crashed_in_f32(settings: Settings) -> Failure | None:
        return Failure("it crashed", False) if settings.precision == "f32" else None

    assert ways("GPU", kept=crashed) == ["CPU"]
    assert ways("GPU", kept=crashed_in_f32) == [*GPU_WAYS[:2], "CPU"]


def test_auto_passes_over_a_device_that_failed_without_fallback_too() -> None:
    def kept(settings: Settings) -> Failure | None:
        return Failure("it crashed", False) if settings.device in ("NPU", "GPU") else None

    assert ways("AUTO", kept=kept, fallback=False) == ["CPU"]


def test_where_everything_is_known_to_fail_everything_is_tried_again() -> None:
    assert ways("GPU", kept=lambda settings: Failure("it failed", False)) == [*GPU_WAYS, "CPU"]


def test_properties_go_along_as_far_as_they_mean_something() -> None:
    asked = {"KV_CACHE_PRECISION": "u8", "GPU_ENABLE_LOOP_UNROLLING": "NO", "MAX_PROMPT_LEN": 2048, "NPU_TURBO": "YES",
             "NPUW_DUMP": "NO", "INFERENCE_PRECISION_HINT": "f16"}  # fmt: skip
    found = candidates(Settings("NPU", asked, context=4096), NPU_MODEL, ALL)
    by_label = {label(candidate.settings): dict(candidate.settings.properties) for candidate in found}
    assert by_label["NPU"] == asked
    neutral = {"KV_CACHE_PRECISION": "u8", "INFERENCE_PRECISION_HINT": "f16"}
    assert by_label["GPU"] == {**neutral, "GPU_ENABLE_LOOP_UNROLLING": "NO"}
    assert by_label["GPU with all in f32"] == {"KV_CACHE_PRECISION": "u8", "GPU_ENABLE_LOOP_UNROLLING": "NO"}
    assert by_label["CPU"] == neutral
    assert all(candidate.settings.context == 4096 for candidate in found)


def test_a_precision_that_was_asked_for_is_where_it_begins() -> None:
    found = candidates(Settings("GPU", precision="f32"), NPU_MODEL, ALL)
    assert labels(found) == ["GPU with all in f32", "CPU"]
