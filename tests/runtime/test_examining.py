"""Down the ladder on request: what canary finds is what the next start goes by."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import DeviceError, EdgeError, ModelError, OutputError
from edge.golden import Golden
from edge.runtime.canary import Finding
from edge.runtime.choices import Choices, Kept
from edge.runtime.examining import Examined, examine
from edge.runtime.ladder import label
from edge.runtime.opening import open_model
from edge.runtime.settings import Settings
from edge.runtime.trial import Outcome
from tests.runtime.test_devices import laptop, write_model

GOLDEN = Golden(np.array([1]), np.array([], np.float32), (1,), np.zeros((1, 10), np.float32))
GPU_GUILTY, GPU_F32 = "GPU with what overflows f16 in f32", "GPU with all in f32"


@dataclass
class Laptop:
    """Devices that compute wrongly at a length which a start does not look at."""

    model: Path
    choices: Choices
    present: tuple[str, ...] = ("CPU", "GPU", "NPU")
    wrong: tuple[str, ...] = ()
    failed: dict[str, EdgeError] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def examine(self, device: str, **options: Any) -> list[tuple[str, bool]]:
        self.said.clear()
        found = examine(
            self.model, Settings(device), GOLDEN, look=self._look, say=self.said.append, present=lambda: self.present,
            choices=self.choices, **options,
        )  # fmt: skip
        return [(label(each.settings), each.finding.ok) for each in found]

    def chat(self, settings: Settings, **options: Any) -> str:
        """The way that a start takes, to whose short look everything is right."""
        engine: Any = open_model(
            self.model, settings, load=lambda folder, settings: settings,  # type: ignore[arg-type, return-value]
            trial=lambda *_, **__: Outcome(True, "fine", 1.0), check=lambda engine: Finding(True, None, {}),
            say=self.said.append, present=lambda: self.present, choices=self.choices, **options,
        )  # fmt: skip
        return label(engine)

    def _look(self, folder: Path, settings: Settings, *_: Any) -> Examined:
        way = label(settings)
        if way in self.failed:
            return Examined(settings, Finding(False, self.failed[way].message, {}), self.failed[way])
        right = way not in self.wrong
        return Examined(settings, Finding(right, None if right else "at 129 tokens it answers GGGG", {"x": 1}))


@pytest.fixture
def machine(tmp_path: Path) -> Laptop:
    return Laptop(write_model(tmp_path / "model"), Choices(tmp_path / "choices", laptop))


def test_what_is_right_is_looked_at_once_and_kept(machine: Laptop) -> None:
    assert machine.examine("GPU") == [("GPU", True)]
    kept = machine.choices.get(machine.model, Settings("GPU"))
    assert kept is not None and kept.ok and kept.checked and kept.figures == {"x": 1}


def test_the_next_safer_way_is_tried_kept_and_taken(machine: Laptop) -> None:
    assert machine.chat(Settings("GPU")) == "GPU"
    machine.wrong = ("GPU",)
    assert machine.examine("GPU") == [("GPU", False), (GPU_GUILTY, True)]
    assert machine.chat(Settings("GPU")) == GPU_GUILTY
    assert "at 129 tokens it answers GGGG" in machine.said[0] and "canary looks again" in machine.said[0]
    (precision, kept), *_ = machine.choices.about(machine.model, "GPU")
    assert precision == "guilty nodes" and kept.ok


def test_it_holds_for_a_context_of_any_length(machine: Laptop) -> None:
    assert machine.chat(Settings("GPU", context=512)) == "GPU"
    machine.wrong = ("GPU", GPU_GUILTY)
    machine.examine("GPU")
    assert machine.chat(Settings("GPU", context=512)) == GPU_F32


def test_a_start_takes_back_nothing_that_a_closer_look_found(machine: Laptop) -> None:
    machine.wrong = ("GPU",)
    machine.examine("GPU")
    assert machine.chat(Settings("GPU"), fallback=False) == "GPU", "who insists has a reason"
    assert machine.chat(Settings("GPU")) == GPU_GUILTY
    machine.wrong = ()
    assert machine.examine("GPU") == [("GPU", True)]
    assert machine.chat(Settings("GPU")) == "GPU"


def test_one_way_alone(machine: Laptop) -> None:
    machine.wrong = ("GPU",)
    assert machine.examine("GPU", only=True) == [("GPU", False)]
    assert machine.choices.get(machine.model, Settings("GPU", precision="guilty nodes")) is None


def test_a_device_that_is_named_is_left_for_no_other(machine: Laptop) -> None:
    machine.wrong = ("GPU", GPU_GUILTY, GPU_F32)
    assert machine.examine("GPU") == [("GPU", False), (GPU_GUILTY, False), (GPU_F32, False)]
    assert machine.chat(Settings("AUTO")) == "CPU"


def test_auto_goes_as_a_chat_does(machine: Laptop) -> None:
    machine.wrong = ("GPU", GPU_GUILTY, GPU_F32)
    assert machine.examine("AUTO")[-1] == ("CPU", True)
    assert machine.examine("AUTO") == [("CPU", True)] and machine.said[0].startswith("AUTO → CPU: at 129 tokens")


def test_what_does_not_load_is_given_up(machine: Laptop) -> None:
    machine.failed = {"GPU": DeviceError("no such kernel", hint="Update the driver.")}
    assert machine.examine("GPU") == [("GPU", False)]
    kept = machine.choices.get(machine.model, Settings("GPU"))
    assert kept is not None and not kept.ok and not kept.loaded


def test_a_variant_that_cannot_be_written_is_passed(machine: Laptop) -> None:
    machine.wrong, machine.failed = ("GPU",), {GPU_GUILTY: OutputError("no room", hint="Free some.")}
    assert machine.examine("GPU") == [("GPU", False), (GPU_GUILTY, False), (GPU_F32, True)]
    assert machine.choices.get(machine.model, Settings("GPU", precision="guilty nodes")) is None


def test_a_damaged_model_is_held_against_no_device(machine: Laptop) -> None:
    machine.failed = {"GPU": DeviceError("it does not load", hint="Update the driver.")}
    path = machine.model / "openvino_model.xml"
    path.write_bytes(path.read_bytes().replace(b"<layers>", b"<layerz>"))
    with pytest.raises(ModelError, match="is damaged"):
        machine.examine("GPU")
    assert machine.choices.about(machine.model, "GPU") == []


@pytest.mark.parametrize("device", ["NPU", "HETERO:GPU,NPU"])
def test_a_recipe_that_the_npu_does_not_take(device: str, machine: Laptop) -> None:
    with pytest.raises(DeviceError, match="exported for cpu"):
        machine.examine(device)


def test_what_the_npu_gets_right_is_still_tried_at_a_start(machine: Laptop) -> None:
    """Its pipeline was not loaded."""
    notes = {"mode": "int4_sym", "group_size": "128", "ratio": "1"}
    write_model(machine.model, notes=notes, target="npu")
    machine.choices.keep(machine.model, Settings("NPU"), Kept(False, "wrong", checked=True))
    assert machine.examine("NPU") == [("NPU", True)]
    assert machine.choices.get(machine.model, Settings("NPU")) is None
    assert machine.chat(Settings("NPU")) == "NPU"


def test_a_crash_in_the_child_comes_back_as_the_ways_failure(machine: Laptop, monkeypatch: pytest.MonkeyPatch) -> None:
    error = DeviceError("loading the model on GPU ended in a crash (SIGSEGV)", hint="Update the driver.")
    monkeypatch.setattr("edge.runtime.trial.run", lambda *_, **__: Outcome(False, error.message, 1, error, True))
    (found,) = examine(machine.model, Settings("GPU"), GOLDEN, present=lambda: machine.present, choices=machine.choices)
    assert found.failed is error
    kept = machine.choices.get(machine.model, Settings("GPU"))
    assert kept is not None and not kept.ok and kept.lasting
