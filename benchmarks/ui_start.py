"""How long it takes until a message can be written to a model in the browser.

    python -m benchmarks.ui_start MODEL --out benchmarks/results/ui_start.json

Each start is `glm4-edge ui MODEL`, as a user writes it, in a process of its own; a Chromium that is open already goes
to the page as soon as its address is printed, as --open does. Taken are the seconds from the command to the address, to
the loaded engine and to a field that takes a message, and from a message to the first text of its answer that is seen.
The first start has a new home, in which nothing is known of the machine yet; the others find what it kept.

Needs playwright, and Chromium on the path.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.machine import machine, versions
from edge.files import HOME_VARIABLE

_FIELD = "#edge-field textarea"
_SECONDS = 600.0  # a 9B model from a slow disk takes its time
_STEPS = {
    "address": "command → address printed",
    "loaded": "command → engine loaded",
    "usable": "command → a message can be sent",
    "after_loaded": "engine loaded → a message can be sent",
    "first_text": "message → first text seen",
}


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(2), help="The first one has a new home.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(model: Path, rounds: int, out: Path) -> None:
    """Measure, and write the JSON and a table beside it."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        raise click.ClickException("there is no Chromium on the path")
    samples: list[dict[str, float]] = []
    busy = [_load()]
    with tempfile.TemporaryDirectory() as home, sync_playwright() as play:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"] if sys.platform == "linux" else []
        chrome = play.chromium.launch(executable_path=browser, args=arguments)
        for number in range(rounds):
            click.echo(f"start {number + 1} of {rounds} …", err=True)
            samples.append(_start(model, chrome, Path(home)))
            busy.append(_load())
        used = versions("glm4-edge", "openvino", "openvino-genai", "gradio", "playwright") | {
            "chromium": chrome.version
        }
        chrome.close()
    result = {
        "machine": machine(), "load_average": busy, "versions": used,
        "model": {"name": json.loads((model / "edge.json").read_text(encoding="utf-8"))["source"]["model"],
                  "weight_bytes": (model / "openvino_model.bin").stat().st_size},
        "samples": samples,
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8", newline="\n")
    out.with_suffix(".md").write_text(table(result), encoding="utf-8", newline="\n")
    click.echo(table(result))


def _load() -> float | None:
    """Processes that wanted to run in the last minute: above the number of cores, others were at work, too."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _start(model: Path, chrome: Any, home: Path) -> dict[str, float]:
    """Seconds of one start, from the command on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    page = chrome.new_page()
    page.set_default_timeout(1000 * _SECONDS)
    began = time.perf_counter()
    program = subprocess.Popen(
        [sys.executable, "-m", "edge", "ui", str(model), "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, HOME_VARIABLE: str(home)},
    )  # fmt: skip
    try:
        assert program.stdout is not None
        address = program.stdout.readline().strip()
        taken = {"address": time.perf_counter() - began}
        if not address:
            raise click.ClickException(f"the page was not served (exit code {program.wait(20)})")
        page.goto(address)
        page.locator("#edge-field .submit-button").wait_for()
        page.locator(f"{_FIELD}:enabled").wait_for()
        taken["usable"] = time.perf_counter() - began
        asked = time.perf_counter()
        since = page.evaluate(
            "window.edge.server().pulse({}).then((now) => now.host.stage === 'ready' && now.host.seconds)"
        )
        if since is False:
            raise click.ClickException("the page took a message before the engine was loaded")
        taken["loaded"] = (asked + time.perf_counter()) / 2 - began - since
        taken["after_loaded"] = taken["usable"] - taken["loaded"]
        page.fill(_FIELD, "Say hello.")
        sent = time.perf_counter()
        page.press(_FIELD, "Enter")
        page.wait_for_function(
            "() => /tokens?/.test(document.querySelector('.edge-bar .doing').innerText)"
            " || [...document.querySelectorAll('#edge-chat .bot .message-content')].some("
            "(each) => each.innerText && !each.querySelector('em'))"
        )
        taken["first_text"] = time.perf_counter() - sent
        return taken
    finally:
        page.close()
        program.send_signal(signal.SIGINT if os.name != "nt" else signal.SIGTERM)
        try:
            program.wait(60)
        except subprocess.TimeoutExpired:
            program.kill()


def table(result: dict[str, Any]) -> str:
    """The figures for a reader."""
    first, *later = result["samples"]
    rows = [
        f"Starts of `glm4-edge ui` with {result['model']['name']} "
        f"({result['model']['weight_bytes'] / 1e6:,.0f} MB of weights), {result['machine']['cores']} cores of "
        f"{result['machine']['cpu']}, gradio {result['versions']['gradio']}, "
        f"Chromium {result['versions']['chromium']}: seconds; of the later starts median, "
        f"smallest and largest of {len(later)}.",
        "", "| | first start | later starts |", "| --- | --- | --- |",
    ]  # fmt: skip
    for step, told in _STEPS.items():
        seconds = [sample[step] for sample in later]
        spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        rows.append(f"| {told} | {first[step]:.2f} | {spread} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
