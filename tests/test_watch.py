"""What the benchmarks measure with, on children whose needs are known."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click
import pytest

from benchmarks import export_peak, synthetic
from benchmarks.watch import drop_from_cache, size_on_disk, thinned, watch
from edge.model.checkpoint import Checkpoint

MB = 1_000_000
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the system does not say")


def run(script: str, folder: Path) -> dict:
    return watch([sys.executable, "-c", script], folders=[folder])


def test_memory_of_a_process_and_its_child(tmp_path: Path) -> None:
    """Each fills 150 MB; the sum is the tree's."""
    child = "import time; x = bytearray(b'x') * 150_000_000; time.sleep(1.5)"
    alone = run(child, tmp_path)
    both = run(
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}]); {child}; p.wait()", tmp_path
    )
    assert alone["returncode"] == both["returncode"] == 0
    assert 150 * MB < alone["peak_anonymous_bytes"] < 190 * MB
    assert 300 * MB < both["peak_anonymous_bytes"] < 360 * MB
    assert both["peak_rss_bytes"] >= both["peak_anonymous_bytes"]
    assert max(anonymous for _, anonymous, _ in both["memory_samples"]) == both["peak_anonymous_bytes"]
    assert 1.5 < alone["wall_seconds"] < 20


@LINUX
def test_mapped_pages_are_not_anonymous(tmp_path: Path) -> None:
    file = tmp_path / "big"
    file.write_bytes(b"x" * 100 * MB)
    seen = run(
        f"import mmap, time; f = open({str(file)!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); "
        "s = sum(m[i] for i in range(0, len(m), 4096)); time.sleep(0.5)",
        tmp_path,
    )
    assert seen["peak_rss_bytes"] > 100 * MB > 50 * MB > seen["peak_anonymous_bytes"]


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not say")
def test_cpu_time(tmp_path: Path) -> None:
    seen = run("import time\nwhile time.process_time() < 1: pass", tmp_path)
    assert 0.9 < seen["user_seconds"] + seen["system_seconds"] < 1.5


def test_temporary_disk(tmp_path: Path) -> None:
    seen = run(
        f"import os, time; f = open({str(tmp_path / 't')!r}, 'wb'); f.write(os.urandom(30_000_000)); f.flush(); "
        f"os.fsync(f.fileno()); time.sleep(2.5); f.close(); os.remove({str(tmp_path / 't')!r})",
        tmp_path,
    )
    assert 30 * MB <= seen["peak_disk_bytes"] < 31 * MB
    assert seen["left_on_disk_bytes"] == 0
    if sys.platform == "linux":
        assert 30 * MB <= seen["written_calls_bytes"] < 31 * MB


@LINUX
def test_a_cold_file_is_read_from_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(20 * MB))
    if drop_from_cache([file]):
        pytest.skip("this file system keeps its files in memory")
    script = f"x = open({str(file)!r}, 'rb').read()"
    cold, warm = run(script, tmp_path), run(script, tmp_path)
    assert cold["read_bytes"] >= 20 * MB > MB > warm["read_bytes"]
    assert warm["read_calls_bytes"] >= 20 * MB


def test_what_it_said_and_when(tmp_path: Path) -> None:
    seen = run(
        "import sys, time\nprint('a …', file=sys.stderr, flush=True); time.sleep(1); print('b …', file=sys.stderr)\n"
        "print('out'); sys.exit(3)",
        tmp_path,
    )
    assert seen["returncode"] == 3 and seen["stdout"] == ["out"]
    stages = export_peak.stages(seen["stderr"], seen["wall_seconds"])
    assert list(stages) == ["start", "a", "b"]
    assert 0.9 < stages["a"] < 2 and sum(stages.values()) == pytest.approx(seen["wall_seconds"], abs=0.1)
    assert export_peak.stage_peaks({"start": 1.0, "a": 2.0}, [[0.5, 7, 9], [1.5, 3, 9], [2.5, 5, 9]]) == {
        "start": 7, "a": 5,
    }  # fmt: skip


def test_thinned_samples_keep_the_peak() -> None:
    samples = [(i, i if i != 1234 else 99999) for i in range(10_001)]
    kept = thinned(samples)
    assert len(kept) <= 500 and (1234, 99999) in kept and kept == sorted(kept)


def test_size_on_disk(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_bytes(os.urandom(10_000))
    assert 10_000 <= size_on_disk(tmp_path) <= 10_000 + 65_536


@pytest.mark.parametrize("layout", synthetic.LAYOUTS)
def test_synthetic_checkpoints_are_checkpoints(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16,
            "eos_token_id": [1]}  # fmt: skip
    monkeypatch.setitem(synthetic.SHAPES, "tiny", tiny)
    monkeypatch.setattr(synthetic, "_TILE", 1 << 16)
    monkeypatch.setattr(synthetic, "_SHARD_BYTES", 100_000)
    synthetic.write(tmp_path / "c", 3, layout=layout, shape="tiny")
    checkpoint = Checkpoint(tmp_path / "c")
    assert checkpoint.spec.model_type == layout and checkpoint.spec.num_layers == 3
    assert len(checkpoint.shards) > 1
    assert 0.01 < checkpoint.weight("model.layers.2.self_attn.k_proj.weight").f32().std() < 0.03
    assert checkpoint.weight("model.norm.weight").f32().max() == 1
    index = json.loads((tmp_path / "c" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] < sum(path.stat().st_size for path in checkpoint.shards)


def test_a_folder_of_somebody_elses_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(click.UsageError, match="did not write"), export_peak._workplace(tmp_path, keep=False):
        pass
    assert (tmp_path / "thesis.docx").exists()
    with export_peak._workplace(tmp_path / "new", keep=True) as work:
        (work / "checkpoint").mkdir()
    with export_peak._workplace(tmp_path / "new", keep=False):
        assert (tmp_path / "new" / "checkpoint").is_dir()
    assert not (tmp_path / "new").exists()
