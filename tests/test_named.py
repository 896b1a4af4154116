"""Names and folders as every command takes them, and what is said of those that are none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge import golden, manifest
from edge.cli import _run
from edge.commands.export import default_folder
from edge.commands.named import exported
from edge.errors import ModelError
from edge.files import HOME_VARIABLE, as_others
from tests.conftest import write_checkpoint
from tests.runtime.test_devices import write_model

COMMANDS = ["devices", "plan", "canary", "doctor", "verify", "parity"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home"


def run(command: str, model: str, tmp_path: Path) -> int:
    return _run([command, model, *([str(tmp_path / "x.ref")] if command == "parity" else [])])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_was_not_exported(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "pocket", tmp_path) == 1
    told = capsys.readouterr().err
    assert "pocket is not exported yet" in told and "glm4-edge export pocket" in told
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    assert run(command, str(checkpoint), tmp_path) == 1
    assert f"glm4-edge export {checkpoint}" in capsys.readouterr().err


def test_a_name_is_the_folder_it_was_exported_to(capsys: pytest.CaptureFixture[str]) -> None:
    cpu = write_model(default_folder("pocket", "cpu"))
    assert exported("pocket") == exported("pocket", "GPU") == cpu
    assert capsys.readouterr().err == f"pocket is in {cpu}\n" * 2
    npu = write_model(default_folder("pocket", "npu"))
    assert exported("pocket", "NPU") == npu and exported("pocket", "GPU.1") == cpu
    assert _run(["devices", "pocket"]) == 0
    assert "CPU" in capsys.readouterr().out


def test_a_folder_stays_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported(str(tmp_path / "nothing")) == tmp_path / "nothing"
    made = write_model(tmp_path / "made")
    assert exported(str(made)) == made and capsys.readouterr().err == ""


@pytest.mark.parametrize("command", [*COMMANDS[:4], "verify", "chat"])
def test_what_is_no_model(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    (tmp_path / "file").write_text("x")

    def said(path: Path) -> str:
        assert _run([command, str(path)]) == 1
        captured = capsys.readouterr()
        return captured.out + captured.err  # doctor's is a finding

    assert f"there is no folder {tmp_path / 'absent'}" in said(tmp_path / "absent")
    assert "is a file, not the folder of an exported model" in said(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "no exported model" in said(tmp_path / "empty")


def test_an_exported_model_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = write_model(tmp_path / "made")
    (made / manifest.MODEL_FILE).touch()
    assert _run(["export", str(made), str(tmp_path / "out")]) == 1
    assert "is an exported model already" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc")
def test_a_place_on_no_disk(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["export", "pocket", "/proc/out"]) == 1
    told = capsys.readouterr().err
    assert "/proc/out cannot be written" in told and " GB" not in told


def as_nobody(function: Callable[[], object]) -> str:
    """What the function raises in a process that may not read everything: as root, in one that is nobody's."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            function()
            told = "nothing"
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(write, told.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as stream:
        return stream.read()


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX")
@pytest.mark.parametrize("name", [golden.FILE_NAME, "openvino_model.bin", manifest.FILE_NAME])
def test_a_file_that_may_not_be_read_is_not_called_damaged(name: str, tmp_path: Path) -> None:
    made = write_model(tmp_path / "made")
    for each in (golden.FILE_NAME, "openvino_model.bin", manifest.MODEL_FILE):
        (made / each).touch()
    held = manifest.Manifest.read(made)
    held.model_copy(update={"bytes": {"openvino_model.bin": (made / "openvino_model.bin").stat().st_size}}).write(made)
    for folder in (made, tmp_path, *list(tmp_path.parents)[:3]):
        if folder.owner() == made.owner() and folder.stat().st_uid == os.geteuid():
            folder.chmod(0o755)
    (made / name).chmod(0)

    def everything() -> None:
        from edge.export.verify_folder import require_model

        with pytest.raises(ModelError, match="may not be read"):
            require_model(made)
        manifest.Manifest.read(made)
        golden.read(made)

    told = as_nobody(everything)
    assert told.startswith(f"ModelError: {made / name} may not be read by this account"), told


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX")
def test_what_safetensors_wrote_is_for_others_too(tmp_path: Path) -> None:
    script = (
        "import os, sys, numpy as np\nfrom pathlib import Path\nos.umask(0o027)\n"
        "from edge import golden\n"
        "made = golden.Golden(np.arange(3), np.zeros(2, np.float32), (3,), np.zeros((1, 4), np.float32))\n"
        "golden.write(made, Path(sys.argv[1]))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=60)
    assert (tmp_path / golden.FILE_NAME).stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == [golden.FILE_NAME]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX")
def test_permissions_as_new_files_get_them(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch(mode=0o600)
    as_others(tmp_path / "b")
    assert (tmp_path / "b").stat().st_mode == (tmp_path / "a").stat().st_mode


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rehearse"], "Write --device NPU --rehearse"),
        (["--context", "200", "--evict-beyond", "256"], "--evict-beyond 256 has no effect in a context of 200 tokens"),
    ],
)
def test_options_that_do_nothing_are_refused(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["chat", str(write_model(tmp_path / "made")), *options]) == 2
    assert said in capsys.readouterr().err
