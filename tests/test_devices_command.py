"""`glm4-edge devices`, on this machine and on one that is made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge import files
from edge.cli import _run
from edge.errors import DeviceError
from edge.runtime import devices
from edge.runtime.choices import Choices, Kept
from edge.runtime.settings import Settings
from tests.runtime.test_devices import laptop, write_model


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model for the CPU, on a laptop with everything."""
    monkeypatch.setenv(files.HOME_VARIABLE, str(tmp_path / "home"))
    for function in (devices.describe, devices.identity, Choices.__init__):
        values = tuple(laptop if value is devices.ask else value for value in function.__defaults__ or ())
        monkeypatch.setattr(function, "__defaults__", values)
    monkeypatch.setattr(devices.describe, "__defaults__", (None, lambda: ["CPU", "GPU", "NPU"], laptop))
    return write_model(tmp_path / "model")


def test_this_machine(capfd: pytest.CaptureFixture[str]) -> None:
    assert _run(["devices"]) == 0
    out = capfd.readouterr().out
    assert out.startswith("CPU") and "GB of memory" in out and "AUTO" in out.splitlines()[-1]
    assert _run(["devices", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert {"CPU"} <= {each["device"] for each in told["devices"]} and told["folder"] is None
    assert any(each["device"].startswith("NPU") for each in told["devices"]), "there or not"


def test_a_device_that_there_is_none_of_names_those_that_are_here() -> None:
    with pytest.raises(DeviceError, match="'GPUU' is no device") as caught:
        devices.parse("GPUU")
    here = devices.available()
    assert all(device in caught.value.hint for device in here)
    assert ("NPU" in caught.value.hint) == devices.has(here, "NPU")


def test_what_a_model_may_do(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert _run(["devices", str(model)]) == 0
    out = capfd.readouterr().out
    assert "GPU     Intel(R) Arc(TM) 140V GPU (iGPU), driver 32.0.101.6987" in out
    assert "not for this model: the model was exported for cpu" in out
    assert out.count("not tried yet") == 2 and out.splitlines()[-1] == "AUTO    takes GPU"


def test_what_was_found_out(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    choices = Choices()
    choices.keep(model, Settings("GPU"), Kept(False, "GPU computes wrongly: at 17 tokens it answers GGGG"))
    choices.keep(model, Settings("CPU"), Kept(True, checked=True))
    assert _run(["devices", str(model)]) == 0
    out = capfd.readouterr().out
    assert "GPU computes wrongly: at 17 tokens it answers GGGG" in out and "verified on 20" in out
    assert out.splitlines()[-1] == "AUTO    takes CPU"
    assert _run(["devices", str(model), "--json"]) == 0
    told = {each["device"]: each for each in json.loads(capfd.readouterr().out)["devices"]}
    assert told["CPU"]["kept"]["checked"] is True and told["GPU"]["kept"]["ok"] is False
    assert told["NPU"]["kept"] is None and "exported for cpu" in told["NPU"]["why_not"]


def test_no_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert _run(["devices", str(tmp_path)]) == 1
    assert "holds no exported model" in capfd.readouterr().err
