"""An environment filled by the real pip from wheels of nothing, without a network."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import pytest

from edge.errors import DownloadError, OutputError
from edge.runtime import itrex_home, itrex_pip

PINS = "# of nothing\nsmall==1.0\ntorch==2.0\n"


def wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    inside = f"{name.replace('-', '_')}-{version}"
    files = {
        f"{name.replace('-', '_')}.py": "",
        f"{inside}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{inside}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{inside}.dist-info/RECORD"
    with zipfile.ZipFile(folder / f"{inside}-py3-none-any.whl", "w") as file:
        for path, text in files.items():
            file.writestr(path, text)
        file.writestr(record, "".join(f"{path},,\n" for path in (*files, record)))


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only wheels there are."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder, "torch", "2.0", 'nvidia-a==1.0 ; python_version >= "3"', 'nvidia-b==9 ; python_version < "3"', "tiny")
    for name in ("nvidia-a", "small", "tiny"):
        wheel(folder, name, "1.0")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def python(tmp_path: Path) -> Path:
    place = tmp_path / "place"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    return itrex_home._python(place)


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    path = tmp_path / "pins.txt"
    path.write_text(PINS, encoding="utf-8")
    return path


def there(python: Path) -> set[str]:
    place = python.parents[1]
    return {name for name in ("torch", "nvidia-a", "nvidia-b", "small", "tiny") if itrex_pip._installed(place, name)}


def silent(stage: str, done: int, total: int) -> None:
    pass


def alive(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_was_broken_off_is_gone_on_with(wheels: Path, python: Path, pins: Path) -> None:
    stages: dict[str, set[str]] = {}

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage not in stages:
            stages[stage] = there(python)
        if stage == itrex_pip._REST:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        itrex_pip.fill(python, pins, interrupt)
    parts = [f"{itrex_pip._PARTS}, {number} of 2" for number in (1, 2)]
    assert list(stages) == [itrex_pip._UNPACKING, *parts, itrex_pip._REST]
    assert [stages[stage] for stage in parts] == [{"torch"}, {"torch", "nvidia-a"}]
    assert there(python) == {"torch", "nvidia-a"} and not (python.parents[1] / "tmp").exists()
    for path in wheels.glob("[tn][ov]*.whl"):  # torch and nvidia-a: they are not asked for again
        path.unlink()
    itrex_pip.fill(python, pins, silent)
    assert there(python) == {"torch", "nvidia-a", "small", "tiny"}  # nvidia-b is for other machines
    assert not (python.parents[1] / "tmp").exists()


def test_what_pip_was_unpacking_is_installed_again(wheels: Path, python: Path, pins: Path) -> None:
    (place,) = (path for path in itrex_pip._packages(python.parents[1]) if path.is_dir())
    left = {
        "torch-2.0": {"METADATA"}, "nvidia_a-1.0": {"METADATA", "WHEEL", "RECORD"},
        "tiny-1.0": {"METADATA", "INSTALLER"}, "small-1.0": set[str](),
    }  # fmt: skip
    modules = [place / f"{name.partition('-')[0]}.py" for name in left]
    for name, module in zip(left, modules, strict=True):
        module.write_text("half a fi", encoding="utf-8")
        (place / f"{name}.dist-info").mkdir()
        with zipfile.ZipFile(wheels / f"{name}-py3-none-any.whl") as file:
            for each in left[name]:
                text = b"pip\n" if each == "INSTALLER" else file.read(f"{name}.dist-info/{each}")
                (place / f"{name}.dist-info" / each).write_bytes(text)
    assert there(python) == set()
    itrex_pip.fill(python, pins, silent)
    assert there(python) == {"torch", "nvidia-a", "small", "tiny"}
    assert [module.read_text(encoding="utf-8") for module in modules] == [""] * len(left)


def test_another_environment_is_left_alone(python: Path, tmp_path: Path) -> None:
    place = python.parents[1]
    other = tmp_path / "other" / "lib" / "python3" / "site-packages"
    half = [other / "torch-2.0.dist-info", place / "lib" / "python3" / "site-packages" / "torch-2.0.dist-info"]
    for path in half:
        path.mkdir(parents=True)
        (path / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.0\n", encoding="utf-8")
    with contextlib.suppress(OSError):  # Windows lets few make links
        (place / "lib" / "linked").symlink_to(other.parent, target_is_directory=True)
    itrex_pip.tidy(place)
    assert [path.exists() for path in half] == [True, False]


def test_what_cannot_be_deleted_is_told(python: Path, pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (python.parents[1] / "tmp").mkdir()
    monkeypatch.setattr(itrex_pip, "delete", lambda folder: None)  # as where another program holds it open
    with pytest.raises(OutputError, match="tmp cannot be deleted"):
        itrex_pip.fill(python, pins, silent)


def test_an_interrupted_pip_is_ended_with_its_child(tmp_path: Path) -> None:
    script = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        "print('Collecting', os.getpid(), child.pid, flush=True); time.sleep(300)"
    )
    numbers: list[int] = []

    def interrupt(told: str) -> None:
        numbers.extend(map(int, told.split()))
        assert len(numbers) == 2 and all(map(alive, numbers))
        raise KeyboardInterrupt

    pip = itrex_pip._Pip(Path(sys.executable), tmp_path)
    pip._words = [sys.executable, "-c", script]
    try:
        with pytest.raises(KeyboardInterrupt):
            pip.install([], None, at=interrupt)
        assert not any(map(alive, numbers))
    finally:
        for number in filter(alive, numbers):
            psutil.Process(number).kill()


def test_a_download_is_told_by_what_came(tmp_path: Path) -> None:
    script = (
        "import os, time; print('Collecting torch', flush=True)\n"
        "print('  Downloading torch-2.0.whl (1.0 MB)', flush=True)\n"
        "open(os.path.join(os.environ['TMPDIR'], 'torch'), 'wb').write(bytes(600_000)); time.sleep(2)\n"
        "print('Installing collected packages: torch'); raise SystemExit('ERROR: the disk is full')"
    )
    told: list[tuple[int, int]] = []
    pip = itrex_pip._Pip(Path(sys.executable), tmp_path)
    pip._words = [sys.executable, "-c", script]
    with pytest.raises(DownloadError, match="install ITREX: the disk is full"):
        pip.install([], lambda done, whole: told.append((done, whole)))
    assert told[-1] == (600_000, 1_000_000)


@pytest.mark.heavy
def test_without_a_pip_the_environments_own_is_made(
    wheels: Path, python: Path, pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(itrex_pip, "_version", lambda: (21, 2))
    itrex_pip.fill(python, pins, silent)
    assert there(python) == {"torch", "nvidia-a", "small", "tiny"}


def test_without_any_pip_it_says_how_to_get_one(tmp_path: Path, pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(itrex_pip, "_version", lambda: ())
    monkeypatch.setattr(subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, 1, "", "no ensurepip"))
    (tmp_path / "place").mkdir()
    with pytest.raises(DownloadError, match="neither this Python") as failed:
        itrex_pip.fill(tmp_path / "place" / "bin" / "python", pins, silent)
    assert "ensurepip" in str(failed.value.hint)
