"""`glm4-edge itrex`, and --runtime itrex where it is not set up."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.cli import _run
from edge.errors import DownloadError, OutputError, UsageError
from edge.files import HOME_VARIABLE
from edge.runtime import itrex_home, itrex_pip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home"


def state(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert _run(["itrex", "status", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("words", [["chat"], ["bench"], ["parity"]])
def test_without_a_setup_it_says_how(words: list[str], tiny_npu: Path, capsys: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # fmt: skip
    (tmp_path / "x.ref").write_bytes(b"")
    more = [str(tmp_path / "x.ref")] if words == ["parity"] else []
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello"))
    assert _run([*words, str(tiny_npu), *more, "--runtime", "itrex"]) == 1
    assert "glm4-edge itrex setup" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "GPU"], "on the CPU"),
        (["--kv-precision", "u8"], "--kv-precision"),
        (["--prompt-lookup"], "--prompt-lookup"),
        (["--evict-beyond", "500"], "--evict-beyond"),
    ],
)
def test_what_it_does_not_have_is_refused(
    options: list[str], said: str, tiny_npu: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["chat", str(tiny_npu), "--runtime", "itrex", *options]) == 2
    assert said in capsys.readouterr().err


def test_setup_asks_first(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(itrex_home, "find_python", lambda wanted: Path(sys.executable))
    assert _run(["itrex", "setup"]) == 2  # nobody is there to answer
    said = capsys.readouterr().err
    assert "3 GB" in said and "--yes" in said and "archived" in said
    assert state(capsys)["state"] == "absent"


def test_an_interrupted_setup_is_gone_on_with(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
                                              home: Path) -> None:  # fmt: skip
    monkeypatch.setattr(itrex_home, "find_python", lambda wanted: Path(sys.executable))
    monkeypatch.setattr(itrex_home, "DISK_BYTES", 0)
    run = itrex_home._run

    def away(python: Path, pins: Path, progress: Any) -> None:
        assert python == itrex_home._python(home / "itrex") and "torch==" in pins.read_text(encoding="utf-8")
        raise DownloadError("no network", hint="Wait for it.")

    monkeypatch.setattr(itrex_pip, "fill", away)
    assert _run(["itrex", "setup", "--yes"]) == 1
    assert "no network" in capsys.readouterr().err
    assert state(capsys)["state"] == "unfinished"

    def broken_off(python: Path, pins: Path, progress: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(itrex_pip, "fill", broken_off)
    assert _run(["itrex", "setup", "--yes"]) == 130
    assert "goes on with" in capsys.readouterr().err

    monkeypatch.setattr(itrex_pip, "fill", lambda python, pins, progress: None)
    monkeypatch.setattr(itrex_home, "_run", lambda words, cwd=None: run(words) if "venv" in words else '{"torch": "2"}')
    assert _run(["itrex", "setup", "--yes"]) == 0
    assert state(capsys)["state"] == "ready" and itrex_home.python().is_file()
    monkeypatch.setattr(itrex_home, "_digest", lambda: "other pins")
    assert state(capsys)["state"] == "outdated"
    assert _run(["itrex", "remove"]) == 0 and not (home / "itrex").exists()
    assert _run(["itrex", "remove"]) == 0 and "does not exist" in capsys.readouterr().err


def test_what_it_costs_is_told_alike(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["itrex", "--help"]) == 0
    document = Path(__file__).parents[1] / "docs" / "itrex.md"
    for text in (capsys.readouterr().out, document.read_text(encoding="utf-8")):
        assert itrex_home.COST in " ".join(text.split())


def test_what_will_be_deleted_is_not_there_already(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("tmp/torch.whl", 3000), ("lib/kept.so", 500)):
        path = home / "itrex" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(size))
    asked: list[int] = []

    def full(folder: Path, needed: int, purpose: str) -> None:
        asked.append(needed)
        raise OutputError("the disk is full", hint="Free some space.")

    monkeypatch.setattr(itrex_home, "find_python", lambda wanted: Path(sys.executable))
    monkeypatch.setattr(itrex_home, "check_room", full)
    with pytest.raises(OutputError):
        itrex_home.setup(lambda stage, done, total: None)
    assert asked == [itrex_home.DISK_BYTES - 500]
    assert not (home / "itrex" / "tmp").exists()


def test_a_python_without_wheels_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    probes = {"a": [[3, 13], "x86_64", "linux"], "b": [[3, 11], "arm64", "darwin"], "c": [[3, 10], "amd64", "win32"]}
    monkeypatch.setattr(itrex_home, "_probe", lambda name: probes.get(name))
    monkeypatch.setattr(itrex_home, "_candidates", lambda: iter(["gone", "a", "b"]))
    with pytest.raises(UsageError, match=r"a is 3\.13; b is for darwin on arm64"):
        itrex_home.find_python()
    with pytest.raises(UsageError, match="nowhere does not run"):
        itrex_home.find_python(Path("nowhere"))
    monkeypatch.setattr(itrex_home, "_candidates", lambda: iter(["gone", "a", "c"]))
    assert itrex_home.find_python() == Path("c")


def test_the_pins_are_whole() -> None:
    from importlib import resources

    from packaging.requirements import Requirement

    text = resources.files("edge.runtime").joinpath("itrex-pins.txt").read_text(encoding="utf-8")
    pins = [Requirement(line) for line in text.splitlines() if not line.startswith("#")]
    assert all(len(pin.specifier) == 1 and str(pin.specifier).startswith("==") for pin in pins)
    always = {pin.name: str(pin.specifier) for pin in pins if pin.marker is None}
    assert always["torch"] == "==2.3.1" and always["transformers"] == "==4.49.0"
