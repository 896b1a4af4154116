"""Down the ladder with devices that are not there, and once with the real one that is."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edge.errors import DeviceError, EdgeError, ModelError, OutputError, UsageError
from edge.files import HOME_VARIABLE, home
from edge.messages import Message, Sampling
from edge.runtime import devices
from edge.runtime.choices import Choices
from edge.runtime.compiled import compiled_folder
from edge.runtime.engine import Engine
from edge.runtime.ladder import label
from edge.runtime.opening import open_model
from edge.runtime.settings import Settings
from edge.runtime.trial import Outcome
from tests.runtime.test_devices import laptop, write_model

GPU_GUILTY, GPU_F32 = "GPU with what overflows f16 in f32", "GPU with all in f32"


@dataclass
class Finding:
    ok: bool
    reason: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Loaded:
    settings: Settings
    closed: bool = False

    def close(self) -> None:
        self.closed = True


def crash(on: str) -> Outcome:
    message = f"loading the model on {on} ended in a crash (SIGABRT)"
    return Outcome(False, message, 1.0, DeviceError(message, hint="Choose another device."), lasting=True)


@dataclass
class Laptop:
    """A laptop whose devices do as they are told. Faults, wrong numbers and crashes by a way's label."""

    model: Path
    choices: Choices
    present: list[str] = field(default_factory=lambda: ["CPU", "GPU", "NPU"])
    crashes: tuple[str, ...] = ()
    faults: dict[str, EdgeError] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()
    said: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    loaded: list[Loaded] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)

    def open(self, device: str, **options: Any) -> str:
        """The label of the way that was taken."""
        self.said, self.tried, self.loaded, self.checked = [], [], [], []
        engine: Any = open_model(
            self.model, options.pop("wanted", Settings(device)), load=self._load, trial=self._trial,
            check=options.pop("check", self._check), say=self.said.append, present=lambda: self.present,
            choices=self.choices, **options,
        )  # fmt: skip
        assert not engine.closed and all(other.closed for other in self.loaded if other is not engine)
        return label(engine.settings)

    def _trial(self, folder: Path, settings: Settings, **_: Any) -> Outcome:
        way = label(settings)
        self.tried.append(way)
        if way in self.crashes:
            return crash(way)
        if way in self.faults:
            return Outcome(False, self.faults[way].message, 1.0, self.faults[way])
        return Outcome(True, "fine", 1.0)

    def _load(self, folder: Path, settings: Settings) -> Any:
        way = label(settings)
        assert way not in self.crashes, "this process would be gone"
        if way in self.faults:
            raise self.faults[way]
        self.loaded.append(Loaded(settings))
        return self.loaded[-1]

    def _check(self, engine: Any) -> Finding:
        way = label(engine.settings)
        self.checked.append(way)
        return Finding(way not in self.wrong, "at 17 tokens it answers GGGG", {"kl": 0.1})


@pytest.fixture
def machine(tmp_path: Path) -> Laptop:
    notes = {"mode": "int4_sym", "group_size": "128", "ratio": "1"}
    model = write_model(tmp_path / "model", notes=notes, target="npu")
    return Laptop(model, Choices(tmp_path / "choices", laptop))


def test_what_works_is_taken_and_nothing_is_said(machine: Laptop) -> None:
    assert machine.open("NPU") == "NPU"
    assert (machine.said, machine.tried, machine.checked) == ([], ["NPU"], ["NPU"])
    assert machine.open("CPU") == "CPU"
    assert (machine.said, machine.tried, machine.checked) == ([], [], ["CPU"]), "the CPU needs no trial"


def test_what_was_tried_once_is_only_checked_at_the_next_start(machine: Laptop) -> None:
    machine.open("GPU")
    assert machine.open("GPU") == "GPU"
    assert (machine.tried, machine.checked) == ([], ["GPU"])
    kept = machine.choices.get(machine.model, Settings("GPU"))
    assert kept is not None and kept.ok and kept.checked and kept.figures == {"kl": 0.1}


def test_a_crash_falls_to_the_next_device_in_one_line(machine: Laptop) -> None:
    machine.crashes = ("NPU",)
    assert machine.open("NPU") == "GPU"
    assert machine.said == ["NPU → GPU: loading the model on NPU ended in a crash (SIGABRT)"]
    assert machine.tried == ["NPU", "GPU"], "more precision does not help a compiler that crashes"


def test_the_crash_is_known_at_the_next_start(machine: Laptop) -> None:
    machine.crashes = ("NPU",)
    machine.open("NPU")
    assert machine.open("NPU") == "GPU"
    assert machine.tried == []
    assert len(machine.said) == 1 and machine.said[0].startswith("NPU → GPU: loading the model on NPU ended in a crash")
    assert "--no-fallback tries again" in machine.said[0]


def test_a_device_that_computes_wrongly_is_given_more_precision(machine: Laptop) -> None:
    machine.wrong = ("GPU", GPU_GUILTY)
    assert machine.open("GPU") == GPU_F32
    assert machine.said == [
        f"GPU → {GPU_GUILTY}: GPU computes wrongly: at 17 tokens it answers GGGG",
        f"{GPU_GUILTY} → {GPU_F32}: {GPU_GUILTY} computes wrongly: at 17 tokens it answers GGGG",
    ]
    assert machine.open("GPU") == GPU_F32
    assert (machine.tried, machine.checked) == ([], [GPU_F32]), "the choice is kept"
    assert len(machine.said) == 1 and machine.said[0].startswith(f"GPU → {GPU_F32}: GPU computes wrongly")


def test_then_another_device(machine: Laptop) -> None:
    machine.wrong = ("GPU", GPU_GUILTY, GPU_F32)
    assert machine.open("GPU") == "CPU"
    assert [line.split(":")[0] for line in machine.said][-1] == f"{GPU_F32} → CPU"
    assert machine.choices.failed(machine.model, ["CPU", "GPU"]).keys() == {"GPU"}


def test_auto_passes_over_what_failed(machine: Laptop) -> None:
    machine.present, machine.wrong = ["CPU", "GPU"], ("GPU", GPU_GUILTY, GPU_F32)
    assert machine.open("AUTO") == "CPU"
    assert machine.open("AUTO", fallback=False) == "CPU"
    assert machine.tried == [] and machine.said[0].startswith("AUTO → CPU: GPU computes wrongly")


def test_a_choice_that_holds_no_more_is_found_out(machine: Laptop) -> None:
    """A new driver under the same version, a damaged file: what was right may be wrong today."""
    machine.open("GPU")
    machine.wrong = ("GPU",)
    assert machine.open("GPU") == GPU_GUILTY
    kept = machine.choices.get(machine.model, Settings("GPU"))
    assert kept is not None and not kept.ok


def test_a_device_that_is_not_here(machine: Laptop) -> None:
    machine.present = ["CPU"]
    assert machine.open("NPU") == "CPU"
    assert machine.said == ["NPU → CPU: this machine has no NPU that OpenVINO can use; it has CPU"]
    with pytest.raises(DeviceError, match="this machine has no NPU"):
        machine.open("NPU", fallback=False)


def test_a_device_that_was_unplugged_since(machine: Laptop) -> None:
    machine.open("GPU")
    machine.present = ["CPU", "NPU"]
    assert machine.open("GPU") == "CPU"
    assert "no GPU" in machine.said[0]


def test_a_recipe_the_npu_does_not_take_is_never_tried(machine: Laptop) -> None:
    notes = {"mode": "int4_asym", "group_size": "32", "ratio": "0.73"}
    write_model(machine.model, notes=notes, target="npu")
    assert machine.open("NPU") == "GPU"
    assert "NPU" not in machine.tried and "mode int4_asym, group_size 32" in machine.said[0]
    with pytest.raises(DeviceError, match="mode int4_asym"):
        machine.open("NPU", fallback=False)


def test_without_fallback_the_devices_own_error_is_raised(machine: Laptop) -> None:
    fault = DeviceError("GPU cannot load it: no such kernel", hint="Update the driver.")
    machine.faults = {"GPU": fault}
    with pytest.raises(DeviceError) as caught:
        machine.open("GPU", fallback=False)
    assert caught.value is fault
    assert machine.tried == ["GPU"] and machine.said == []


def test_without_fallback_more_precision_is_still_tried_and_said(machine: Laptop) -> None:
    machine.wrong = ("GPU",)
    assert machine.open("GPU", fallback=False) == GPU_GUILTY
    assert machine.said == [f"GPU → {GPU_GUILTY}: GPU computes wrongly: at 17 tokens it answers GGGG"]
    machine.wrong = ("GPU", GPU_GUILTY, GPU_F32)
    with pytest.raises(DeviceError, match="GPU computes wrongly"):
        machine.open("GPU", fallback=False)
    assert machine.checked == ["GPU", GPU_GUILTY, GPU_F32], "who insists has it tried again"


def test_where_nothing_works_each_reason_is_told(machine: Laptop) -> None:
    machine.crashes, machine.wrong = ("NPU",), ("GPU", GPU_GUILTY, GPU_F32)
    machine.faults = {"CPU": ModelError("no memory for it", hint="Close other programs.")}
    with pytest.raises(DeviceError) as caught:
        machine.open("NPU")
    message = caught.value.message
    assert "no device here can run" in message and "NPU: loading the model on NPU ended in a crash" in message
    assert f"{GPU_F32}: {GPU_F32} computes wrongly" in message and message.endswith("CPU: no memory for it")
    assert caught.value.hint == "Close other programs."
    assert all(engine.closed for engine in machine.loaded)


def test_a_variant_that_cannot_be_written_is_a_rung_that_fails(machine: Laptop) -> None:
    machine.wrong = ("GPU",)
    machine.faults = {GPU_GUILTY: OutputError("the cache cannot be written", hint="Free some space.")}
    assert machine.open("GPU") == GPU_F32
    assert machine.said[-1] == f"{GPU_GUILTY} → {GPU_F32}: the cache cannot be written"
    assert machine.choices.get(machine.model, Settings("GPU", precision="guilty nodes")) is None, "no device's fault"


def test_a_fault_of_the_users_is_not_the_devices(machine: Laptop) -> None:
    machine.faults = {"GPU": UsageError("GPU does not take NO_SUCH", hint="Leave it out.")}
    with pytest.raises(UsageError):
        machine.open("GPU")
    assert machine.choices.about(machine.model, "GPU") == []


def blob_of(machine: Laptop, settings: Settings) -> Path:
    """Where a compiled model is kept, as an earlier start left it."""
    place = compiled_folder(machine.model, settings, laptop)
    assert place is not None
    (place / "1.blob").write_text("damaged")
    return place / "1.blob"


@pytest.mark.parametrize("how", ["load", "crash", "numbers"])
def test_a_damaged_compiled_model_is_compiled_again(how: str, machine: Laptop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(machine.model.parent / "home"))
    assert machine.open("GPU") == "GPU"
    blob = blob_of(machine, Settings("GPU"))
    load, tried, check = machine._load, machine._trial, machine._check

    def from_blob(folder: Path, settings: Settings) -> Any:
        if how == "load" and blob.exists():
            raise DeviceError("GPU cannot load it: broken blob", hint="Update the driver.")
        return load(folder, settings)

    def in_child(folder: Path, settings: Settings, **options: Any) -> Outcome:
        return crash("GPU") if how == "crash" and blob.exists() else tried(folder, settings, **options)

    def looked_at(engine: Any) -> Finding:
        return Finding(not (how == "numbers" and blob.exists()), "at 17 tokens it answers GGGG")

    monkeypatch.setattr(machine, "_load", from_blob)
    monkeypatch.setattr(machine, "_trial", in_child)
    if how == "crash":  # the start before this one ended in it
        monkeypatch.setattr(machine.choices, "crashed", lambda *_: blob.exists())
    assert machine.open("GPU", check=looked_at if how == "numbers" else check) == "GPU"
    assert not blob.exists() and len(machine.said) == 1 and machine.said[0].endswith("so it is compiled again")
    kept = machine.choices.get(machine.model, Settings("GPU"))
    assert kept is not None and kept.ok


def test_what_this_very_start_compiled_is_not_compiled_twice(machine: Laptop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(machine.model.parent / "home"))
    monkeypatch.setattr(machine, "_load", lambda folder, settings: blob_of(machine, settings) and Loaded(settings))
    machine.wrong = ("GPU",)
    assert machine.open("GPU") == GPU_GUILTY
    assert machine.tried == ["GPU", GPU_GUILTY]


@pytest.mark.parametrize("fault", [AttributeError("'NoneType' object has no attribute 'encoding'"), TypeError("x")])
def test_a_fault_of_our_own_is_no_models_and_no_devices(
    fault: Exception, machine: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise fault

    monkeypatch.setattr("edge.runtime.engine.open_pipeline", broken)
    with pytest.raises(type(fault)):
        open_model(machine.model, Settings("CPU"), choices=machine.choices)
    assert machine.choices.about(machine.model, "CPU") == []


@pytest.mark.parametrize("rehearse", [False, True])
def test_what_openvino_raises_is_the_models_where_the_cpu_computes(
    rehearse: bool, machine: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("Exception from src/x.cpp:1:\nNPUW: Assertion quant_unpack_gather failed.")

    monkeypatch.setattr("edge.runtime.engine.open_pipeline", broken)
    settings = Settings("NPU", rehearse=True) if rehearse else Settings("CPU")
    with pytest.raises(ModelError, match=r"cannot be loaded: NPUW: Assertion quant_unpack_gather failed") as caught:
        Engine.load(machine.model, settings)
    assert "driver" not in caught.value.hint


@pytest.mark.parametrize("device", ["NPU", "GPU", "CPU"])
def test_a_damaged_file_is_no_devices_fault(device: str, machine: Laptop) -> None:
    """Of the same size, as a bad disk or a bad copy leaves it."""
    path = machine.model / "openvino_model.xml"
    path.write_bytes(path.read_bytes().replace(b"<layers>", b"<layerz>"))
    machine.faults = {"GPU": DeviceError("GPU cannot load it", hint="Update the driver."),
                      "CPU": ModelError("it cannot be loaded", hint="Export the model again.")}  # fmt: skip
    with pytest.raises(ModelError, match=r"openvino_model\.xml is damaged") as caught:
        machine.open(device)
    assert caught.value.hint == "Export the model again."
    assert all(machine.choices.about(machine.model, each) == [] for each in ("NPU", "GPU", "CPU"))


def test_for_the_cpu_no_driver_is_asked(machine: Laptop) -> None:
    def ask() -> list[str]:
        raise AssertionError("listing devices starts every driver")

    engine: Any = open_model(machine.model, Settings("CPU"), load=machine._load, present=ask, choices=machine.choices)
    assert label(engine.settings) == "CPU"


def test_wrong_numbers_on_the_cpu_point_to_the_files(machine: Laptop) -> None:
    machine.wrong = ("CPU", "CPU with all in f32")
    with pytest.raises(DeviceError, match="CPU computes wrongly") as caught:
        machine.open("CPU", fallback=False)
    assert "glm4-edge verify" in str(caught.value.hint)


def test_a_single_way_raises_its_own_error(machine: Laptop) -> None:
    machine.faults = {"CPU": ModelError("damaged", hint="Export it again.")}
    with pytest.raises(ModelError, match="damaged"):
        machine.open("CPU")
    with pytest.raises(ModelError, match="no exported model"):
        open_model(machine.model.parent, Settings("CPU"), present=lambda: ["CPU"])


def test_without_a_check_it_is_not_called_verified(machine: Laptop) -> None:
    assert machine.open("GPU", check=None) == "GPU"
    kept = machine.choices.get(machine.model, Settings("GPU"))
    assert kept is not None and kept.ok and not kept.checked
    machine.open("GPU")
    kept = machine.choices.get(machine.model, Settings("GPU"))
    assert kept is not None and kept.checked


def test_ctrl_c_closes_what_was_loaded_and_leaves_no_mark(machine: Laptop, tmp_path: Path) -> None:
    def interrupted(engine: Any) -> Finding:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        machine.open("GPU", check=interrupted)
    assert machine.loaded[0].closed
    assert not list((tmp_path / "choices").glob("*.trying"))
    assert machine.choices.get(machine.model, Settings("GPU")) is None


DYING = """
import os, sys
from pathlib import Path
from edge.runtime.choices import Choices
from edge.runtime.opening import open_model
from edge.runtime.settings import Settings
open_model(Path(sys.argv[1]), Settings("CPU"), load=lambda *_: os._exit(9), present=lambda: ["CPU"],
           choices=Choices(Path(sys.argv[2])))
"""


def test_on_the_cpu_a_trial_comes_after_a_crash(machine: Laptop, tmp_path: Path) -> None:
    folder = tmp_path / "choices of another process"
    command = [sys.executable, "-c", DYING, str(machine.model), str(folder)]
    assert subprocess.run(command, timeout=60).returncode == 9
    machine.choices = Choices(folder)
    assert machine.open("CPU") == "CPU"
    assert machine.tried == ["CPU"]
    machine.open("CPU")
    assert machine.tried == [], "and once only"


def test_a_crash_on_the_cpu_that_a_trial_confirms(machine: Laptop, tmp_path: Path) -> None:
    folder = tmp_path / "choices of another process"
    subprocess.run([sys.executable, "-c", DYING, str(machine.model), str(folder)], timeout=60)
    machine.choices, machine.crashes = Choices(folder), ("CPU",)
    with pytest.raises(DeviceError, match="ended in a crash"):
        machine.open("CPU")
    with pytest.raises(DeviceError, match="ended in a crash"):
        machine.open("CPU")
    assert machine.tried == ["CPU"], "it does not crash this process at every second start, either"


class TestForReal:
    """The devices of this machine, and children that really load."""

    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))

    def answer(self, engine: Any) -> tuple[str, int]:
        """Text and number of tokens; a tiny model with random weights may say nothing that is text."""
        with engine:
            chunks = list(engine.stream([Message("user", "What is the capital of France?")],
                                        Sampling(temperature=0, max_new_tokens=8)))  # fmt: skip
            return "".join(chunk.text for chunk in chunks), chunks[-1].usage.completion_tokens

    def test_what_is_not_here_ends_on_the_cpu(self, tiny_npu: Path) -> None:
        said: list[str] = []
        if set(devices.available()) != {"CPU"}:
            pytest.skip("this machine has more than a CPU")
        engine = open_model(tiny_npu, Settings("NPU"), say=said.append)
        assert engine.device == "CPU" and self.answer(engine)[1] > 0
        assert said == ["NPU → CPU: this machine has no NPU that OpenVINO can use; it has CPU"]

    def test_the_npus_shapes_are_tried_in_a_child_and_then_loaded(self, tiny_npu: Path) -> None:
        stages: list[str] = []
        wanted = Settings("NPU", context=256, rehearse=True)
        trying, loading = ("trying NPU's shapes on the CPU in a process of its own",
                           "loading out on NPU's shapes on the CPU")  # fmt: skip
        for expected in ([trying, loading], [loading]):
            stages.clear()
            engine = open_model(tiny_npu, wanted, fallback=False, progress=lambda stage, *_: stages.append(stage))
            assert engine.device == "NPU" and self.answer(engine)[1] > 0
            assert list(dict.fromkeys(stages)) == expected

    @pytest.mark.model
    def test_the_pocket_model_after_a_crash(self, pocket_dir: Path) -> None:
        """The mark of a process that is gone: the child finds that nothing is wrong, and all goes on."""
        choices = Choices()
        subprocess.run([sys.executable, "-c", DYING, str(pocket_dir), str(home() / "choices")], timeout=60)
        assert choices.crashed(pocket_dir, Settings("CPU"))
        stages: list[str] = []
        engine = open_model(pocket_dir, Settings("AUTO"), check=lambda engine: Finding(engine.probe([5, 6]).token > 0),
                            present=lambda: ["CPU"], progress=lambda stage, *_: stages.append(stage))  # fmt: skip
        assert "Paris" in self.answer(engine)[0]
        assert stages[0] == "trying CPU in a process of its own" and not choices.crashed(pocket_dir, Settings("CPU"))
        kept = choices.get(pocket_dir, Settings("CPU"))
        assert kept is not None and kept.ok and kept.checked
