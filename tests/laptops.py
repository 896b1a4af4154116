"""Made-up machines: a tree of /proc, /sys, /dev and /etc below a folder, and what the system would answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edge.manifest import FORMAT, Architecture, Check, Manifest, Source
from edge.runtime.machine import Machine, Memory, Package, Sight
from edge.runtime.plan import Shape

FLAGS = "fpu sse4_2 avx2 avx_vnni"
CPU_SEEN = {"CPU": {"name": "Intel(R) Core(TM) Ultra 7 155H"}}
PACKAGES = {
    "glm4-edge": Package("0.1.0", ("numpy<3,>=1.26", "openvino==2026.4.*", 'gradio<7; extra == "ui"')),
    "numpy": Package("2.4.6"),
    "openvino": Package("2026.4.1", ("numpy<2.6.0,>=1.16.6",)),
    "openvino-genai": Package("2026.4.1.0", ("openvino_tokenizers~=2026.4.1.0.dev",)),
    "openvino-tokenizers": Package("2026.4.1.0", ("openvino~=2026.4.1.dev",)),
}


def write(root: Path, **files: str) -> None:
    """Files by their path below `root`: write(root, **{"etc/os-release": "ID=arch"})."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def machine(
    root: Path, *, packages: dict[str, Package] | None = None, seen: Sight | None = None, **facts: Any
) -> Machine:
    """A quiet Ubuntu laptop with 32 GB, no GPU, no NPU, and one logical processor for each core."""
    known = PACKAGES if packages is None else packages
    write(
        root,
        **{
            "etc/os-release": 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="26.04"\nPRETTY_NAME="Ubuntu 26.04 LTS"\n',
            "proc/cpuinfo": f"model name\t: Intel(R) Core(TM) Ultra 7 155H\nflags\t\t: {FLAGS}\n",
            "proc/sys/kernel/osrelease": "6.17.0-8-generic\n",
            "sys/devices/system/cpu/online": "0-3\n",
        },
    )
    values: dict[str, Any] = {
        "root": root, "system": "Linux", "architecture": "x86_64", "environ": {}, "encoding": "utf-8",
        "home": root / "home", "look": lambda: seen or Sight(CPU_SEEN),
        "memory": lambda: Memory(32_000_000_000, 24_000_000_000, 0), "affinity": lambda: 4,
        "package": known.get, "may_open": lambda path: True, "group_of": lambda path: "render",
        "my_groups": lambda: frozenset({"me"}), "my_lasting_groups": lambda: frozenset({"me"}),
        "other_features": lambda: None,
    }  # fmt: skip
    return Machine(**{**values, **facts})


def add_card(root: Path, kind: str, *, driver: str | None, address: str | None = None, node: bool = True) -> None:
    """An Intel GPU or NPU on the PCI bus, with its module's link and, if it has a module, its node in /dev."""
    gpu = kind == "GPU"
    address = address or ("0000:00:02.0" if gpu else "0000:00:0b.0")
    folder = root / "sys/bus/pci/devices" / address
    write(
        folder,
        vendor="0x8086\n",
        device="0x7d55\n" if gpu else "0x7d1d\n",
        **{"class": "0x030000" if gpu else "0x120000"},
    )
    if driver is None:
        return
    (root / "sys/bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
    (folder / "driver").symlink_to(root / "sys/bus/pci/drivers" / driver)
    sub, place, name = ("drm", "dev/dri", "renderD128") if gpu else ("accel", "dev/accel", "accel0")
    (folder / sub / name).mkdir(parents=True)
    if node:
        write(root, **{f"{place}/{name}": ""})
        (root / place / name).chmod(0o660)


def add_libraries(root: Path, *names: str) -> None:
    write(root, **{f"usr/lib/x86_64-linux-gnu/{name}": "" for name in names})


def manifest(**changes: Any) -> Manifest:
    """Of a model with GLM-4-9B's sizes; its files are not there."""
    values: dict[str, Any] = {
        "format": FORMAT,
        "created": "2026-01-01T00:00:00+00:00",
        "source": Source(model="glm-4-9b", description=None, revision=None, sha256={}),
        "architecture": Architecture(
            model_type="glm", parameters=9_400_000_000, num_layers=40, num_kv_heads=2, head_dim=128,
            vocab_size=151552, context_length=131072,
        ),
        "target": "cpu", "recipe": {"weights": "int4"}, "stop_ids": [2], "stop_tokens": ["x"],
        "versions": {"glm4-edge": "0.1.0", "openvino": "2026.4.1", "openvino-tokenizers": "2026.4.1.0"},
        "bytes": {"openvino_model.bin": 5_400_000_000, "openvino_model.xml": 4_000_000},
        "checks": [Check(name="weights", passed=True, figures={})],
    }  # fmt: skip
    return Manifest(**{**values, **changes})


CONFIG = {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 13696}


def shape() -> Shape:
    """Of the same model."""
    return Shape.of(manifest(), CONFIG)


def write_model(folder: Path) -> None:
    """A folder that looks whole: `edge.json`, `config.json`, and files of the sizes that it names."""
    manifest(bytes={"openvino_model.bin": 10, "openvino_model.xml": 5}).write(folder)
    write(
        folder, **{"openvino_model.bin": "1234567890", "openvino_model.xml": "12345", "config.json": json.dumps(CONFIG)}
    )
