"""What adapters take of memory: computed from their ranks, in a plan, and really."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge.cli import _run
from edge.lora.adapter import Adapter
from edge.lora.asked import Asked, Loras
from edge.lora.cost import Sizes
from edge.lora.fitted import Fitted
from edge.model.spec import GlmSpec
from edge.runtime.scheduling import schedule
from edge.runtime.settings import Settings
from tests.conftest import TINY_CONFIG
from tests.laptops import machine, write
from tests.lora.made import write_adapter

SPEC = GlmSpec.from_config(TINY_CONFIG)
DOWN = "mlp.down_proj"
GB = 10**9


def sizes(*folders: Path, per_request: bool = False, spec: GlmSpec = SPEC) -> Sizes:
    loras = Loras(tuple(map(Asked, folders)), per_request)
    return Sizes.of([Adapter.read(asked, spec) for asked in loras.asked], loras, spec)


def test_ranks_add_up_where_all_are_on_and_the_largest_counts_where_one_is(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one", SPEC, modules=[DOWN], rank=3)
    two = write_adapter(tmp_path / "two", SPEC, modules=[DOWN], rank=5)
    rows, columns = SPEC.tensor_shapes()[f"model.layers.0.{DOWN}.weight"]
    layers = SPEC.num_layers
    both = layers * (rows + columns)
    assert sizes(one) == Sizes(3 * 4 * both, 1, layers, both)
    assert sizes(one, two) == Sizes(8 * 4 * both, 1, layers, both)
    assert sizes(one, two, per_request=True) == Sizes(5 * 4 * both, 2, layers, both)


def test_q_k_and_v_read_the_same(tmp_path: Path) -> None:
    found = sizes(write_adapter(tmp_path / "a", SPEC, modules=["self_attn.q_proj", "self_attn.v_proj"]))
    layers, hidden = SPEC.num_layers, SPEC.hidden_size
    assert (found.matrices, found.numbers) == (2 * layers, layers * (hidden + SPEC.q_size + SPEC.kv_size))


def test_files_are_as_large_as_they_are_said_to_be(plain_export: Path, tmp_path: Path) -> None:
    """Those of zeros, too, which are what safetensors would have written."""
    from safetensors.numpy import load

    spec = GlmSpec.from_folder(plain_export)
    loras = Loras((Asked(write_adapter(tmp_path / "a", spec)), Asked(write_adapter(tmp_path / "b", spec, rank=9))))
    fitted = Fitted(plain_export, loras)
    for choice in loras.choices:
        read = load(fitted.file(choice).tobytes())
        expected = fitted.tensors(choice)
        assert read.keys() == expected.keys() and all((read[name] == expected[name]).all() for name in read)
        assert sum(each.nbytes for each in read.values()) == fitted.sizes.choice_bytes
        assert any(each.any() for each in read.values()) == bool(choice)


def test_a_plan_counts_them(
    plain_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SimpleNamespace(total=16_000_000_000, available=11_000_000_000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    monkeypatch.setattr("edge.runtime.machine.Machine.memory_limit", lambda self: None)
    spec = GlmSpec.from_folder(plain_export)
    folder = write_adapter(tmp_path / "a", spec, rank=48)

    def planned(*more: str) -> dict[str, Any]:
        capsys.readouterr()
        _run(["plan", str(plain_export), "--json", *more])
        facts: dict[str, Any] = json.loads(capsys.readouterr().out)
        return facts

    without, made = planned(), planned("--lora", str(folder))
    assert without["adapter_bytes"] == 0
    assert made["adapter_bytes"] == sizes(folder, spec=spec).bytes(256) > 1e6
    assert made["needed_bytes"] == without["needed_bytes"] + made["adapter_bytes"]
    tight = ["--memory", f"{without['needed_bytes'] + 1_000_000}B"]
    assert planned(*tight)["fits"] and not planned(*tight, "--lora", str(folder))["fits"]
    assert _run(["plan", str(plain_export), "--lora", str(folder)]) == 0
    assert "adapters   " in capsys.readouterr().out
    assert _run(["plan", str(plain_export), "--lora", str(tmp_path / "nowhere")]) == 1
    assert "nowhere is not there" in capsys.readouterr().err


def test_they_leave_less_for_the_cache(plain_export: Path, tmp_path: Path) -> None:
    """The files are in memory already when the cache is planned; the rest has still to come."""
    spec = GlmSpec.from_folder(plain_export)
    needed = sizes(write_adapter(tmp_path / "a", spec, rank=40), spec=spec)
    more = needed.bytes(256) - needed.files_bytes

    def blocks(limit: float, adapters: Sizes | None) -> int:
        write(tmp_path, **{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": str(int(limit))})
        values = schedule(plain_export, Settings("CPU"), adapters=adapters, machine=machine(tmp_path))[1]
        return int(values["num_kv_blocks"])

    most = blocks(GB, None)
    assert blocks(GB, needed) == most
    fewest, enough = GB // 10, GB
    while enough - fewest > 1000:  # the least memory in which a second conversation fits, too
        middle = (fewest + enough) // 2
        fewest, enough = (fewest, middle) if blocks(middle, None) == most else (middle, enough)
    assert blocks(enough, needed) < most == blocks(enough + more / 0.75 + 1000, needed)


_HELD = """
import sys
from pathlib import Path
from edge.lora.asked import Asked, Loras
from edge.messages import Sampling, Tokens
from edge.runtime.engine import Engine
from edge.runtime.settings import Settings

loras = Loras(tuple(Asked(Path(each)) for each in sys.argv[2:]), per_request=True)
with Engine.load(Path(sys.argv[1]), Settings("CPU", context=2048), loras) as engine:
    engine.warm_up()
    for choice in loras.choices or ((),):
        list(engine.stream(Tokens(tuple(range(1000, 1600))), Sampling(max_new_tokens=4, adapters=choice)))
    rolled = Path("/proc/self/smaps_rollup").read_text().splitlines()
    print(next(int(line.split()[1]) * 1024 for line in rolled if line.startswith("Anonymous:")))
"""


def _held(folder: Path, adapters: Sequence[Path]) -> int:
    command = [sys.executable, "-c", _HELD, str(folder), *map(str, adapters)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.model
@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is told apart on Linux alone")
def test_the_sizes_are_what_is_held(pocket_dir: Path, tmp_path: Path) -> None:
    """Of nothing but activations almost, and of large ones to choose from."""
    spec = GlmSpec.from_folder(pocket_dir)
    small = write_adapter(tmp_path / "small", spec, rank=4, size=0.02)
    large = [write_adapter(tmp_path / f"large{n}", spec, rank=96, size=0.02, seed=n) for n in (0, 1)]
    without = _held(pocket_dir, [])
    for folders in ([small], large):
        said = sizes(*folders, per_request=True, spec=spec).bytes(256)
        assert said == pytest.approx(_held(pocket_dir, folders) - without, rel=0.15), folders
