"""The rooms and their one-way arrows, and what a start costs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edge
from edge.cli import cli

PACKAGE = Path(edge.__file__).parent
CORE = {"errors", "manifest", "messages", "grammar", "files", "npu", "infer", "golden", "precise"}
# room → rooms it may import, besides core and itself
ARROWS = {
    "core": set(),
    "model": set(),
    "lora": {"model"},
    "export": {"model", "lora"},
    "tools": set(),
    "runtime": {"tools", "lora"},
    "bench": {"runtime", "lora"},
    "quality": {"runtime", "bench"},
    "documents": set(),
    "server": {"runtime", "tools", "documents"},
    "batch": {"server", "runtime"},
    "ui": {"runtime", "documents", "tools"},
    "report": set(),
    "cli": {
        "model",
        "lora",
        "export",
        "runtime",
        "tools",
        "ui",
        "report",
        "documents",
        "server",
        "batch",
        "bench",
        "quality",
    },
}
# heavy package → the only files that may import it
ONLY = {
    "openvino_genai": {"runtime/pipelines.py", "bench/worker.py"},
    "nncf": {"export/compress.py"},
    "openvino_tokenizers": {"export/tokenize.py", "export/whole_pieces.py"},
    "openvino_telemetry": set(),
    "torch": {"runtime/reference.py", "runtime/greedy.py", "export/tracing.py", "runtime/itrex_worker.py"},
    "optimum": {"export/tracing.py"},
    "gradio": {f"ui/web/{name}.py" for name in ("serving", "page", "controls", "compare")},
    "matplotlib": {"bench/plot.py", "quality/plot.py"},
    "lm_eval": {"quality/adapter.py", "quality/harness.py"},  # the extra "eval"
    "pypdf": {"documents/pdf.py"},
    "docx": {"documents/office.py"},
    "pptx": {"documents/office.py"},
    "fastapi": {"server/app.py"},  # the extra "serve", as are the next
    "starlette": {"ui/web/serving.py", "server/app.py", "server/desk.py", "server/doors.py", "server/sending.py"},
    "uvicorn": {"server/run.py"},
    "prometheus_client": {"server/numbers.py"},
}


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def room(name: str) -> str:
    """The room of `edge.x.y`, or of a file's path relative to the package."""
    return "cli" if name == "commands" else "core" if name in CORE or name == "__init__" else name


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")


def wrong_arrows(path: Path, place: str) -> list[str]:
    """What the source at `path` imports and must not, if it stands at `place` in the package."""
    here = room(place.split("/")[0].removesuffix(".py"))
    allowed = ARROWS[here] | {"core", here}
    wrong = []
    for name in imports(path):
        parts = name.split(".")
        inside = parts[0] == "edge" and len(parts) > 1 and parts[1] != "__version__"
        only = ONLY.get(parts[0])
        if (inside and room(parts[1]) not in allowed) or (only is not None and place not in only):
            wrong.append(name)
        if parts[0] == "openvino" and here == "model":
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_arrows_run_one_way(path: Path) -> None:
    assert wrong_arrows(path, path.relative_to(PACKAGE).as_posix()) == []


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        ("runtime/x.py", ["edge.export.graph", "nncf"]),
        ("model/x.py", ["edge.export.graph", "edge.runtime.engine", "openvino", "nncf"]),
        ("export/compress.py", ["edge.runtime.engine"]),
        ("errors.py", ["edge.export.graph", "edge.runtime.engine", "nncf"]),
        ("cli.py", ["nncf"]),
    ],
)
def test_a_wrong_arrow_is_seen(place: str, wrong: list[str], tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text("from edge.export import graph\nimport edge.runtime.engine\nimport openvino\nimport nncf\n")
    assert wrong_arrows(source, place) == wrong


def test_nothing_reports_to_anybody() -> None:
    """OpenVINO and NNCF would open a connection to their makers' statistics."""
    script = (
        "import socket, sys\nseen = []\nsocket.getaddrinfo = lambda *where, **how: seen.append(where) or []\n"
        "import edge, openvino, nncf, time\nfrom openvino.tools.ovc import convert_model\ntime.sleep(0.5)\n"
        "assert sys.modules['openvino_telemetry'] is None\nsys.exit(len(seen))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120).returncode == 0


HELPS: list[list[str]] = [[], *([name] for name in sorted(cli.commands))]
LIGHT = {"edge", "click", "colorama", "openvino_telemetry"}  # the last is only kept away


@pytest.mark.parametrize("command", HELPS, ids=lambda command: " ".join(command) or "glm4-edge")
def test_help_loads_nothing_heavier_than_click(command: list[str]) -> None:
    script = (
        "import sys, json\nbefore = set(sys.modules)\nfrom edge.cli import _run\n"
        f"code = _run({[*command, '--help']!r})\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "print(json.dumps([code, sorted(new)]), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    code, new = json.loads(done.stderr)
    assert code == 0 and "Usage" in done.stdout
    assert {name for name in new if not name.startswith("_")} <= LIGHT


@pytest.mark.parametrize("command", HELPS, ids=lambda command: " ".join(command) or "glm4-edge")
def test_help_answers_within_half_a_second(command: list[str]) -> None:
    """The best of five, in processor time, which others on the machine do not take (Windows tells 0 of a child)."""
    times, waited = [], []
    for _ in range(5):
        start, begun = os.times(), time.monotonic()
        subprocess.run([sys.executable, "-m", "edge", *command, "--help"], capture_output=True, check=True, timeout=60)
        end = os.times()
        times.append(end.children_user + end.children_system - start.children_user - start.children_system)
        waited.append(time.monotonic() - begun)
    assert min(times) < 0.5 and min(waited) < 5, (times, waited)


def test_every_command_is_in_the_help_tests() -> None:
    from edge.cli import cli

    assert set(cli.commands) == {command[0] for command in HELPS if command}
