"""An environment filled by the real pip from wheels of nothing, without a network."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import pytest

from edge.errors import DownloadError
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


def test_what_was_broken_off_is_gone_on_with(wheels: Path, python: Path, pins: Path) -> None:
    stages: dict[str, set[str]] = {}

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage not in stages:
            stages[stage] = there(python)
        if stage == itrex_pip._REST and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        itrex_pip.fill(python, pins, interrupt)
    assert [each.cmdline() for each in psutil.Process().children(recursive=True) if "pip" in each.cmdline()] == []
    assert stages[itrex_pip._PARTS] == {"torch"} and stages[itrex_pip._REST] == {"torch", "nvidia-a"}
    assert there(python) == {"torch", "nvidia-a"} and not (python.parents[1] / "tmp").exists()
    for path in wheels.glob("[tn][ov]*.whl"):  # torch and nvidia-a: they are not asked for again
        path.unlink()
    itrex_pip.fill(python, pins, silent)
    assert there(python) == {"torch", "nvidia-a", "small", "tiny"}  # nvidia-b is for other machines
    assert not (python.parents[1] / "tmp").exists()


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
