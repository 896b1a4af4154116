"""What was found out is kept for the very thing it was found out about."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge import golden
from edge.runtime import choices as keeping
from edge.runtime.choices import Choices, Kept
from edge.runtime.settings import Settings
from tests.runtime.test_devices import LAPTOP, laptop, manifest, write_model

GPU = Settings("GPU", {"KV_CACHE_PRECISION": "u8"})
WRONG = Kept(False, "GPU computes wrongly: at 17 tokens")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def choices(tmp_path: Path) -> Choices:
    return Choices(tmp_path / "choices", laptop)


def test_what_is_kept_comes_back(choices: Choices, model: Path, tmp_path: Path) -> None:
    assert choices.get(model, GPU) is None
    kept = Kept(True, checked=True, figures={"by_length": [{"length": 17, "mean_error": 0.01}]})
    choices.keep(model, GPU, kept)
    found = Choices(tmp_path / "choices", laptop).get(model, GPU)
    assert found == kept
    content = json.loads(next((tmp_path / "choices").glob("*.json")).read_text())
    assert content["key"]["device"] == "GPU" and content["folder"] == str(model)
    assert content["key"]["identity"] == "Intel(R) Arc(TM) 140V GPU (iGPU), driver 32.0.101.6987"
    assert set(content["key"]["versions"]) == {"openvino", "openvino-genai"}


@pytest.mark.parametrize("change", ["driver", "version", "weights", "tokenizer", "edge.json", "settings"])
def test_it_holds_for_nothing_else(choices: Choices, model: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choices.keep(model, GPU, WRONG)
    asked = GPU
    if change == "driver":
        monkeypatch.setitem(LAPTOP, ("GPU", "GPU_DRIVER_VERSION"), "32.0.101.7000")
    elif change == "version":
        monkeypatch.setattr(keeping, "versions", lambda: {"openvino": "2027.1.0"})
    elif change == "weights":  # of the same size, written later
        known = (model / "openvino_model.bin").stat()
        (model / "openvino_model.bin").write_bytes(b"WEIGHTS")
        os.utime(model / "openvino_model.bin", ns=(known.st_atime_ns, known.st_mtime_ns + 1_000_000_000))
    elif change == "tokenizer":  # a crash may have been its fault, and it may have been mended
        (model / "openvino_detokenizer.bin").write_bytes(b"another")
    elif change == "edge.json":
        manifest(created="2026-02-02T00:00:00+00:00").write(model)
    else:
        asked = dataclasses.replace(GPU, context=2048)
    assert choices.get(model, asked) is None
    assert choices.about(model, "GPU") == [] or change == "settings"


def test_a_rehearsal_holds_for_the_cpu_it_ran_on(model: Path) -> None:
    rehearsed = keeping.key(model, Settings("NPU", rehearse=True), laptop)
    assert rehearsed.identity == "Intel(R) Core(TM) Ultra 7 258V" and rehearsed.device == "NPU"


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "null", '{"format": 1}', "\x00\xff", {"format": 2}, {"key": None},
     {"key": {}}, {"kept": {"ok": False, "when": "yesterday"}}, {"kept": {"ok": False, "when": "2026-01-01T00:00:00"}},
     {"kept": {"ok": False, "figures": []}}],
)  # fmt: skip
def test_a_damaged_file_counts_as_none(
    choices: Choices, model: Path, tmp_path: Path, damage: str | dict[str, Any]
) -> None:
    choices.keep(model, GPU, WRONG)
    path = next((tmp_path / "choices").glob("*.json"))
    whole = json.loads(path.read_text())
    text = json.dumps({**whole, **damage}) if isinstance(damage, dict) else damage
    path.write_bytes(text.encode("latin-1"))
    assert choices.get(model, GPU) is None and choices.about(model, "GPU") == []
    choices.keep(model, GPU, WRONG)
    assert choices.get(model, GPU) is not None


def test_a_passing_failure_is_forgotten_after_a_day(model: Path, tmp_path: Path) -> None:
    later = Choices(tmp_path / "choices", laptop, lambda: datetime.now(timezone.utc) + timedelta(days=1, minutes=1))
    now = Choices(tmp_path / "choices", laptop)
    now.keep(model, GPU, Kept(False, "no memory", lasting=False))
    assert now.get(model, GPU) is not None and later.get(model, GPU) is None
    now.keep(model, GPU, WRONG)
    assert later.get(model, GPU) is not None
    ahead = datetime.now(timezone.utc) + timedelta(days=400)
    now.keep(model, GPU, Kept(False, "no memory", lasting=False, when=ahead))
    assert now.get(model, GPU) is None, "a clock that went wrong once must not count for ever"


def test_what_can_never_count_again_is_deleted(choices: Choices, model: Path, tmp_path: Path) -> None:
    gone = write_model(tmp_path / "gone")
    for folder in (gone, model):
        choices.keep(folder, GPU, WRONG)
    (tmp_path / "choices" / "damaged.json").write_text("{")
    shutil.rmtree(gone)
    (model / golden.FILE_NAME).write_bytes(b"golden logits")
    assert choices.get(model, GPU) is None, "the golden logits are a part of what was found out"
    choices.keep(model, GPU, WRONG)
    assert len(list((tmp_path / "choices").glob("*.json"))) == 1 and choices.get(model, GPU) is not None


def test_a_cache_that_cannot_be_written_does_no_harm(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    choices = Choices(tmp_path / "file" / "choices", laptop)
    choices.keep(model, GPU, WRONG)
    with choices.trying(model, GPU):
        assert not choices.crashed(model, GPU)
    assert choices.get(model, GPU) is None and choices.about(model, "GPU") == []


def test_what_is_known_of_a_device(choices: Choices, model: Path) -> None:
    choices.keep(model, GPU, WRONG)
    assert choices.failed(model, ["CPU", "GPU"]) == {"GPU": WRONG.reason}
    choices.keep(model, dataclasses.replace(GPU, precision="f32"), Kept(True, checked=True))
    assert choices.failed(model, ["CPU", "GPU"]) == {}
    assert len(choices.about(model, "GPU")) == 2 and choices.about(model, "CPU") == []
    choices.keep(model, Settings("NPU", rehearse=True), WRONG)
    assert choices.about(model, "NPU") == [] == choices.about(model, "CPU"), "a rehearsal says nothing of a device"


@pytest.mark.parametrize(
    ("target", "failed", "asked", "expected"),
    [("cpu", [], "AUTO", "GPU"), ("cpu", ["GPU"], "auto", "CPU"), ("npu", [], "AUTO", "NPU"),
     ("npu", ["NPU", "GPU"], "AUTO", "CPU"), ("cpu", ["GPU"], "gpu", "GPU")],
)  # fmt: skip
def test_auto_is_the_device_that_a_chat_begins_with(
    choices: Choices, tmp_path: Path, target: str, failed: list[str], asked: str, expected: str
) -> None:
    notes = {"mode": "int4_sym", "group_size": "128", "ratio": "1"}
    folder = write_model(tmp_path / "other", notes=notes, target=target)
    for device in failed:
        choices.keep(folder, Settings(device), WRONG)
    assert choices.resolved(asked, folder, ["CPU", "GPU", "NPU"]) == expected


def test_a_load_that_ends_leaves_no_mark(choices: Choices, model: Path, tmp_path: Path) -> None:
    for fault in (None, RuntimeError, KeyboardInterrupt):
        try:
            with choices.trying(model, GPU):
                assert list((tmp_path / "choices").glob("*.trying"))
                assert not choices.crashed(model, GPU), "it is still at it"
                if fault:
                    raise fault
        except (RuntimeError, KeyboardInterrupt):
            pass
        assert not list((tmp_path / "choices").glob("*.trying"))


CRASH = """
import os, sys
from pathlib import Path
from edge.runtime.choices import Choices
from edge.runtime.settings import Settings
with Choices(Path(sys.argv[1]), lambda *_: None).trying(Path(sys.argv[2]), Settings("CPU")):
    os._exit(9) if sys.argv[3] == "exit" else os.abort()
"""


@pytest.mark.parametrize("how", ["exit", "abort"])
def test_a_crash_in_this_process_is_known_at_the_next_start(model: Path, tmp_path: Path, how: str) -> None:
    folder = tmp_path / "choices"
    subprocess.run([sys.executable, "-c", CRASH, str(folder), str(model), how], capture_output=True, timeout=60)
    choices = Choices(folder, lambda *_: None)
    assert choices.crashed(model, Settings("CPU"))
    assert not choices.crashed(model, Settings("CPU", context=64)), "other settings have their own"
    assert choices.get(model, Settings("CPU")) is None
    choices.forget_crash(model, Settings("CPU"))
    assert not choices.crashed(model, Settings("CPU")) and not list(folder.glob("*.trying"))


@pytest.mark.parametrize("change", ["gone", "weights", "none"])
def test_a_mark_that_can_never_count_again_is_deleted(model: Path, tmp_path: Path, change: str) -> None:
    folder, other = tmp_path / "choices", write_model(tmp_path / "other")
    subprocess.run([sys.executable, "-c", CRASH, str(folder), str(model), "exit"], capture_output=True, timeout=60)
    choices = Choices(folder, lambda *_: None)
    if change == "gone":
        shutil.rmtree(model)
    elif change == "weights":
        (model / "openvino_model.bin").write_bytes(b"others")
        manifest(bytes={"openvino_model.bin": 6}).write(model)
    choices.keep(model if change == "weights" else other, Settings("CPU"), WRONG)
    assert bool(list(folder.glob("*.trying"))) is (change == "none")
    with choices.trying(other, Settings("CPU")):
        choices.keep(other, Settings("CPU"), WRONG)
        assert len(list(folder.glob("*.trying"))) == 1 + (change == "none"), "of one that is still at it"


def test_a_process_number_that_is_anothers_by_now(choices: Choices, model: Path, tmp_path: Path) -> None:
    with choices.trying(model, GPU):
        mark = next((tmp_path / "choices").glob("*.trying"))
        mark.write_text(json.dumps({"started": psutil.Process().create_time() - 1000}))
        assert choices.crashed(model, GPU)
        mark.write_text("{")
        assert choices.crashed(model, GPU)


def test_the_first_gpu_has_one_record_under_both_of_its_names(choices: Choices, model: Path) -> None:
    choices.keep(model, dataclasses.replace(GPU, device="GPU.0"), WRONG)
    assert choices.get(model, GPU) == WRONG
    assert choices.get(model, dataclasses.replace(GPU, device="GPU.1")) is None
