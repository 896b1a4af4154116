"""Options of `glm4-edge chat` that are looked at before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.cli import _run
from edge.errors import DeviceError
from edge.files import HOME_VARIABLE
from edge.runtime.settings import Settings
from tests.runtime.test_devices import write_model


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Settings]:
    """What would have been loaded, on a machine with a GPU."""
    asked: list[Settings] = []

    def stop_here(folder: Path, wanted: Settings, **_: Any) -> None:
        asked.append(wanted)
        raise DeviceError("nothing is loaded in this test", hint="None.")

    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setattr("edge.runtime.guarding.open_guarded", stop_here)
    monkeypatch.setattr("edge.runtime.devices.available", lambda: ["CPU", "GPU"])
    monkeypatch.setattr("edge.ui.terminal.read_prompt", lambda: "Why?")
    return asked


def chat(folder: Path, *options: str) -> int:
    return _run(["chat", str(write_model(folder / "model")), *options])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "NPU", "--rehearse", "--kv-precision", "u8"], "the NPU keeps no cache in u8"),
        (["--device", "NPU", "--rehearse", "--kv-precision", "u4"], "the NPU keeps no cache in u4"),
        (["--device", "NPU", "--kv-precision", "f32"], "the NPU keeps no cache in f32"),
        (["--device", "gpu", "--kv-precision", "u4"], "the GPU keeps no cache in u4"),
        (["--device", "AUTO", "--kv-precision", "f32", "--no-fallback"], "the GPU keeps no cache in f32"),
        (["--prompt-lookup", "--device", "NPU", "--rehearse"], "NPU has no --prompt-lookup"),
        (["--prompt-lookup", "--device", "HETERO:GPU,CPU"], "HETERO:GPU,CPU has no --prompt-lookup"),
        (["--prompt-lookup", "--sparse", "trishape"], "--prompt-lookup does not go with --sparse"),
        (["--prompt-lookup", "--evict-beyond", "256"], "--prompt-lookup does not go with --evict-beyond"),
        (["--context", "9" * 400], "--context"), (["--evict-beyond", "9" * 400], "--evict-beyond"),
    ],
)  # fmt: skip
def test_what_a_device_cannot_have_is_refused(
    options: list[str], said: str, loaded: list[Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(tmp_path, *options) == 2
    assert said in capsys.readouterr().err and loaded == []


@pytest.mark.parametrize(
    ("options", "properties"),
    [
        (["--kv-precision", "f16"], {"KV_CACHE_PRECISION": "f16"}),
        (["--kv-precision", "u4"], {}),
        (["--device", "CPU", "--kv-precision", "u4"], {"KV_CACHE_PRECISION": "u4"}),
        ([], {}),
    ],
)
def test_auto_leaves_out_what_its_device_cannot_have_and_says_so(
    options: list[str],
    properties: dict[str, str],
    loaded: list[Settings],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert chat(tmp_path, *options) == 1
    (wanted,) = loaded
    assert wanted.properties == properties
    told = "The GPU keeps no cache in u4: --kv-precision is left out." in capsys.readouterr().err
    assert told is (options == ["--kv-precision", "u4"])


@pytest.mark.parametrize("options", [[], ["--prompt-lookup"]])
def test_prompt_lookup_is_asked_for(options: list[str], loaded: list[Settings], tmp_path: Path) -> None:
    assert chat(tmp_path, *options) == 1
    assert [settings.prompt_lookup for settings in loaded] == [bool(options)]


def test_what_cannot_be_interrupted_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["chat", "--help"]) == 0
    assert "Ctrl-C takes effect only after that" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lora", "nowhere"], "nowhere is not there"), (["--lora", "ADAPTER:nan"], "the scale nan of"),
        (["--lora", "ADAPTER", "--device", "NPU", "--rehearse"], "the NPU has no --lora"),
        (["--lora", "ADAPTER", "--prompt-lookup"], "--lora does not go with --prompt-lookup"),
        (["--lora", "ADAPTER", "--lora", "ADAPTER:2"], "two adapters are called 'adapter'"),
    ],
)  # fmt: skip
def test_adapters_that_cannot_be(
    options: list[str], said: str, loaded: list[Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge.model.spec import GlmSpec
    from tests.conftest import TINY_CONFIG
    from tests.lora.made import write_adapter

    folder = write_adapter(tmp_path / "adapter", GlmSpec.from_config(TINY_CONFIG))
    assert chat(tmp_path, *(word.replace("ADAPTER", str(folder)) for word in options)) != 0
    assert said in capsys.readouterr().err and loaded == []
