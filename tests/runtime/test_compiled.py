"""Compiled models: one for each exported model and device, and nothing left of what it replaces."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge import files
from edge.runtime import choices
from edge.runtime.compiled import compiled_before, compiled_folder, forget
from edge.runtime.settings import Settings
from tests.runtime.test_devices import LAPTOP, laptop, write_model

GPU, NPU = Settings("GPU"), Settings("NPU", context=2048)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(files.HOME_VARIABLE, str(tmp_path / "home"))
    return write_model(tmp_path / "model")


def made(folder: Path, settings: Settings) -> Path:
    """The folder, with a blob in it."""
    found = compiled_folder(folder, settings, laptop)
    assert found is not None and found.is_dir()
    (found / "blob").write_bytes(b"compiled")
    return found


def blobs(tmp_path: Path) -> int:
    return len(list((tmp_path / "home" / "compiled").rglob("blob")))


def test_the_next_start_finds_it(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(model, GPU)
    assert (made(model, GPU) / "blob").exists() and made(model, GPU) == first
    monkeypatch.chdir(tmp_path)
    assert made(Path("model"), GPU) == first, "however the folder is named"


def test_it_is_not_kept_where_it_saves_nothing(model: Path, tmp_path: Path) -> None:
    assert compiled_folder(model, Settings("CPU"), laptop) is None
    assert not (tmp_path / "home").exists()


def test_nor_where_there_is_no_room(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> shutil._ntuple_diskusage:
        return shutil._ntuple_diskusage(100, 94, 6)

    monkeypatch.setattr(shutil, "disk_usage", full)
    assert compiled_folder(model, GPU, laptop) is None
    assert not list((tmp_path / "home").rglob("GPU*"))


@pytest.mark.parametrize("change", ["driver", "version", "precision", "properties", "re-export", "lengths"])
def test_what_is_compiled_otherwise_replaces_it(
    model: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = NPU
    old, other = made(model, settings), made(model, GPU)
    if change == "driver":
        monkeypatch.setitem(LAPTOP, ("NPU", "NPU_DRIVER_VERSION"), "32002000")
    elif change == "version":
        monkeypatch.setattr(choices, "versions", lambda: {"openvino": "2027.1.0"})
    elif change == "precision":
        settings = dataclasses.replace(settings, precision="guilty nodes")
    elif change == "properties":
        settings = dataclasses.replace(settings, properties={"NPU_TURBO": "YES"})
    elif change == "lengths":
        settings = dataclasses.replace(settings, context=4096)
    else:
        write_model(model, b"other weights")
    new = made(model, settings)
    assert new != old and not old.exists()
    assert other.exists() is (change != "re-export"), "another device's is its own, unless the model is another"
    assert blobs(tmp_path) == (1 if change == "re-export" else 2)


def test_a_hundred_changes_take_no_more_disk_than_one(model: Path, tmp_path: Path) -> None:
    for context in range(100, 200):
        made(model, Settings("NPU", context=context))
    assert blobs(tmp_path) == 1


def test_what_another_process_is_using_is_left_to_it(model: Path, tmp_path: Path) -> None:
    """Two rehearsals at once with contexts of different lengths."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom edge.runtime.compiled import compiled_folder\n"
        "from edge.runtime.settings import Settings\nfrom tests.runtime.test_devices import laptop\n"
        "print(compiled_folder(Path(sys.argv[1]), Settings('NPU', context=100), laptop), flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        (theirs / "blob").write_bytes(b"compiled")
        made(model, Settings("NPU", context=200))
        assert theirs.is_dir() and blobs(tmp_path) == 2
        other.communicate(timeout=60)
    made(model, Settings("NPU", context=300))
    assert not theirs.exists() and blobs(tmp_path) == 1


def test_a_mark_of_use_is_nothing_compiled(model: Path) -> None:
    place = compiled_folder(model, GPU, laptop)
    assert place is not None and not compiled_before(model, GPU, laptop)
    made(model, GPU)
    assert compiled_before(model, GPU, laptop) and forget(model, GPU, laptop) and not place.exists()
    assert not compiled_before(model, Settings("CPU"), laptop)


def test_what_the_compiler_does_not_see_does_not_matter(model: Path) -> None:
    assert made(model, GPU) == made(model, dataclasses.replace(GPU, context=512, sparse="xattention", evict_beyond=900))


def test_the_first_gpu_has_one_under_both_of_its_names(model: Path) -> None:
    assert made(model, Settings("GPU.0")) == made(model, GPU) != made(model, Settings("GPU.1"))


def test_a_rehearsal_has_its_own(model: Path) -> None:
    real = made(model, NPU)
    assert made(model, dataclasses.replace(NPU, rehearse=True)) != real and real.exists()


def test_models_do_not_share_and_one_that_is_gone_leaves_nothing(model: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other")
    first, second = made(model, GPU), made(other, GPU)
    assert first != second and first.exists()
    shutil.rmtree(model)
    made(other, Settings("GPU", {"X": 1}))
    assert not first.exists() and blobs(tmp_path) == 1
