from __future__ import annotations

import dataclasses
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.synthetic import config_of
from edge.errors import ModelError
from edge.manifest import Architecture, Manifest, Source
from edge.runtime import plan as plans
from edge.runtime.plan import Shape

GB = 1_000_000_000
NINE = Shape(
    layers=40, heads=32, kv_heads=2, head_dim=128, hidden=4096, intermediate=13696, vocab=151552, context_length=131072,
    weight_bytes=5_455_000_000, table_bytes=151552 * 4096, graph_bytes=4_000_000,
)  # fmt: skip
POCKET = Shape(
    layers=30, heads=9, kv_heads=3, head_dim=64, hidden=576, intermediate=1536, vocab=49152, context_length=8192,
    weight_bytes=102_989_376, table_bytes=0, graph_bytes=2_395_039,
)  # fmt: skip


def weigh(context: int, shape: Shape = NINE, **asked: Any) -> plans.Plan:
    given = {"available": 13 * GB, "total": 16 * GB, "threads": 8}
    return plans.plan(shape, context, **{**given, **asked})


@pytest.mark.parametrize(
    ("shape", "precision", "device", "size"),
    [
        # as GenAI's pipeline reported them for one block, divided by its tokens
        (POCKET, "u8", "CPU", 437_760 / 32), (POCKET, "f16", "CPU", 48_660_480 / 66 / 32),
        (POCKET, "f32", "CPU", 97_320_960 / 66 / 32),
        (POCKET, "u4", "CPU", 33_454_080 / 66 / 32 / 2),  # it takes a u4 value for a byte
        (dataclasses.replace(NINE, layers=4), "u8", "CPU", 19_701_760 / 260 / 32),
        (NINE, "f16", "CPU", 40 * 1024), (NINE, "u8", "CPU", 23_680), (NINE, "f16", "NPU", 40 * 1024),
    ],
)  # fmt: skip
def test_bytes_of_a_token(shape: Shape, precision: plans.KvPrecision, device: str, size: float) -> None:
    assert plans.kv_token_bytes(shape, precision, device) == size


def test_the_cache_is_in_whole_blocks() -> None:
    assert [plans.kv_blocks(n) for n in (1, 32, 33)] == [1, 1, 2]
    assert [plans.kv_blocks(n, "GPU.1") for n in (16, 17)] == [1, 2]
    assert plans.cache_bytes(POCKET, 33) == 2 * 437_760


def test_weights_are_held_once_and_looked_up_ones_in_the_file() -> None:
    made = weigh(2048)
    assert made.repacked_bytes == NINE.weight_bytes - NINE.table_bytes
    assert made.needed_bytes == made.program_bytes + made.repacked_bytes + made.kv_bytes + made.working_bytes
    # 9.9 GB resident were seen, the file's pages (without the table's) included
    resident = made.needed_bytes + made.weight_bytes - NINE.table_bytes
    assert resident == pytest.approx(9.9 * GB, rel=0.05)
    assert weigh(2048, device="GPU").repacked_bytes == NINE.weight_bytes


def test_the_longest_context_is_the_longest_that_fits() -> None:
    rng = random.Random(0)
    for _ in range(300):
        asked: dict[str, Any] = {
            "available": rng.randint(5, 40) * GB, "threads": rng.randint(1, 32),
            "kv_precision": rng.choice(plans.KV_PRECISIONS),
        }  # fmt: skip
        longest = weigh(2048, **asked).longest_context
        if longest:
            assert weigh(longest, **asked).fits
        if longest < NINE.context_length:
            assert not weigh(longest + 64, **asked).fits


def test_verdicts() -> None:
    assert weigh(32768).verdict.startswith("yes: 32,768 tokens need")
    assert weigh(131072, kv_precision="f16", available=16 * GB).fits
    assert "13.0 GB are available" in weigh(131072, kv_precision="f32").verdict
    assert "other programs closed" in weigh(32768, available=5 * GB).verdict
    small = weigh(32768, available=5 * GB, total=5 * GB)
    assert small.longest_context == 0 and not small.fits and "other programs" not in small.verdict
    beyond = weigh(200_000, available=99 * GB)
    assert not beyond.fits and "at most 131,072" in beyond.verdict
    assert weigh(2048).assumed == () and weigh(2048, device="NPU", kv_precision="f16").assumed


def test_less_is_needed_with_a_smaller_cache() -> None:
    needs = [weigh(131072, kv_precision=kv).needed_bytes for kv in plans.KV_PRECISIONS]
    assert needs == sorted(needs, reverse=True)
    assert weigh(131072, kv_precision="u8").kv_bytes == pytest.approx(3.1 * GB, rel=0.01)


def test_a_context_is_chosen() -> None:
    assert plans.choose_context(NINE, "CPU", 11 * GB) == 32768  # a laptop with 16 GB
    assert plans.choose_context(NINE, "CPU", 100 * GB) == 32768
    assert 2048 <= plans.choose_context(NINE, "CPU", 8 * GB) < 32768
    assert plans.choose_context(NINE, "CPU", GB) == 2048
    assert plans.choose_context(POCKET, "CPU", 11 * GB) == 8192
    assert plans.choose_context(dataclasses.replace(POCKET, context_length=512), "CPU", 11 * GB) == 512
    chosen = [plans.choose_context(NINE, "CPU", int(n * GB)) for n in (7, 7.5, 8, 9, 10, 12)]
    assert chosen == sorted(chosen)
    for free in (8 * GB, 9 * GB, 10 * GB):  # two conversations of that length fit
        made = weigh(plans.choose_context(NINE, "CPU", free), available=free)
        assert made.needed_bytes + made.kv_bytes < free


def test_blocks_to_run_with() -> None:
    """Twice the conversation where there is room, never less than once."""
    assert plans.cache_for(weigh(32768), NINE) == 2 * 1024 + 1
    assert plans.cache_for(weigh(32768, available=5 * GB), NINE) == 1024 + 1
    between = weigh(32768, available=int(8.8 * GB))
    assert 1024 + 1 < plans.cache_for(between, NINE) < 2 * 1024 + 1
    assert plans.cache_for(weigh(32768, device="GPU"), NINE) == 2 * 2048 + 1


def test_what_the_scheduler_is_told() -> None:
    plain = plans.scheduler("CPU", 100)
    assert plain == {"num_kv_blocks": 100, "max_num_batched_tokens": 256, "enable_prefix_caching": True}
    tri = plans.scheduler("CPU", 100, sparse="trishape")
    assert tri["sparse_attention_config"]["mode"] == "TRISHAPE" and tri["enable_prefix_caching"]
    whole = plans.scheduler("CPU", 100, sparse="xattention")
    assert whole["max_num_batched_tokens"] == 3200 and not whole["enable_prefix_caching"]
    assert not plans.scheduler("CPU", 100, evict_beyond=2048)["enable_prefix_caching"]


@pytest.mark.parametrize("device", ["CPU", "GPU.0"])
def test_what_is_kept_is_what_genai_takes(device: str) -> None:
    rng, block = random.Random(0), plans.BLOCK[device[:3]]
    for keep in [1, block, *(rng.randint(1, 9000) for _ in range(200))]:
        made = plans.eviction(keep, device)
        sizes = [made[name] for name in ("start_size", "recent_size", "max_cache_size")]
        assert all(size > 0 and size % block == 0 for size in sizes)
        assert made["start_size"] + made["recent_size"] < made["max_cache_size"] <= max(keep, 4 * block)


def manifest(**changes: Any) -> Manifest:
    architecture = Architecture(
        model_type="glm", parameters=9_400_000_000, num_layers=40, num_kv_heads=2, head_dim=128, vocab_size=151552,
        context_length=131072,
    )  # fmt: skip
    return Manifest(
        format=1, created="", source=Source(model="x", description=None, revision=None, sha256={}), target="cpu",
        architecture=architecture, recipe={"weights": changes.pop("weights", "int4")}, stop_ids=[], stop_tokens=[],
        versions={}, bytes={"openvino_model.bin": 100, "openvino_model.xml": 200}, checks=[],
    )  # fmt: skip


def test_a_shape_is_read() -> None:
    shape = Shape.of(manifest(), config_of())
    assert (shape.heads, shape.hidden, shape.intermediate) == (32, 4096, 13696)
    assert shape.table_bytes == 151552 * 4096 and shape.weight_bytes == 100
    assert Shape.of(manifest(weights="bf16"), config_of()).table_bytes == 2 * 151552 * 4096
    assert Shape.of(manifest(), {**config_of(), "tie_word_embeddings": True}).table_bytes == 0


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"hidden_size": null}'])
def test_a_config_without_sizes(config: str, tmp_path: Path) -> None:
    manifest().write(tmp_path)
    (tmp_path / "openvino_model.bin").write_bytes(b"x" * 100)
    (tmp_path / "openvino_model.xml").write_bytes(b"x" * 200)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=re.escape("config.json")):
        Shape.read(tmp_path)


def test_an_edge_json_without_the_files_sizes(tmp_path: Path) -> None:
    manifest().model_copy(update={"bytes": {"openvino_model.xml": 1}}).write(tmp_path)
    (tmp_path / "openvino_model.xml").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"edge\.json does not give the size of openvino_model\.bin"):
        Shape.read(tmp_path)


def test_reading_twice_as_much_is_four_times_the_attention() -> None:
    weights, attention = plans.prefill_flop(NINE, 32768)
    twice = plans.prefill_flop(NINE, 65536)
    assert twice == (2 * weights, 4 * attention)
    assert weights == pytest.approx(2 * 32768 * 8.16e9, rel=0.01)  # parameters of the 40 layers


@pytest.mark.model
@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is told apart on Linux alone")
@pytest.mark.parametrize("tokens", [512, 3000])
def test_the_plan_is_what_is_held(pocket_dir: Path, tmp_path: Path, tokens: int) -> None:
    import psutil

    text = tmp_path / "text"
    rng = random.Random(0)
    text.write_text(" ".join("".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(8000)))
    spec = {
        "folder": str(pocket_dir), "text": str(text), "jobs": [{"start": 0, "tokens": tokens, "new": 1}],
        "scheduler": plans.scheduler("CPU", plans.kv_blocks(tokens) + 1),
        "properties": {"INFERENCE_PRECISION_HINT": "f32"},
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.long_run", json.dumps(spec)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=300, cwd=Path(__file__).parents[2]
    )
    ran = json.loads(done.stdout.splitlines()[-1])
    made = plans.plan(
        Shape.read(pocket_dir), tokens, available=GB, total=GB, threads=psutil.cpu_count(logical=False) or 1
    )
    assert made.needed_bytes == pytest.approx(ran["peak_anonymous"], rel=0.1)
    assert ran["jobs"][0]["kv_used_bytes"] == pytest.approx(made.kv_bytes, rel=0.01)
