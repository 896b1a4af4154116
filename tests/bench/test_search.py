"""Looking for settings: on engines that are none and whose speeds are known, with noise."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.bench.case import Case, Load, Sample
from edge.bench.search import Aim, Change, Found, changes, search
from edge.bench.worker import Worker
from edge.errors import DeviceError
from edge.runtime.settings import Settings

DEFAULTS = Settings("CPU", tuned=False)
Cost = Callable[[dict[str, Any], int | None], float]


class Clock:
    """Seconds that only the fake workers spend."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def maker(
    cost: Cost, clock: Clock, *, noise: float = 0.0, error: Cost = lambda properties, step: 0.2, load: float = 1.0,
    memory: Cost = lambda properties, step: 1e9, running: list[int] | None = None, seed: int = 0,
    reading: float = 0.0, writing: float = 0.0,
) -> Any:  # fmt: skip
    """Workers whose answers take `cost` seconds, or so long for each token that they read or write."""
    draw = random.Random(seed)

    class Fake(Worker):
        def __init__(self, folder: Path, settings: Settings) -> None:
            self.folder, self.settings = folder, settings
            self._ended = False
            if running is not None:
                running[0] += 1

        def load(self) -> Load:
            clock.now += load
            if self.settings.properties.get("broken"):
                raise DeviceError("it does not take that", hint="Leave it out.")
            return Load(1.0, 1.0, 0.1)

        def facts(self) -> dict[str, Any]:
            return {"context": 4096, "shortest": 8}

        def error(self) -> float | None:
            return error(dict(self.settings.properties), self.settings.step_tokens)

        def memory(self) -> dict[str, int | None]:
            return {"anonymous": int(memory(dict(self.settings.properties), self.settings.step_tokens)), "resident": 1}

        def run(self, case: Case, number: int, *, later: bool = False) -> list[tuple[Case, Sample]]:
            each = cost(dict(self.settings.properties), self.settings.step_tokens) * draw.lognormvariate(0, noise)
            times = tuple(each * (1 + place / 10) for place in range(case.new_tokens))
            if reading:
                times = tuple(case.prompt_tokens * reading + place * writing for place in range(case.new_tokens))
            clock.now += times[-1] * (1 + later)
            sample = Sample(number, case.prompt_tokens, case.prompt_tokens, times, times[-1])
            return [(case, sample)] * (1 + later if reading else 1)

        def close(self) -> None:
            if running is not None and not self._ended:
                running[0] -= 1
            self._ended = True

    return Fake


def found(cost: Cost, groups: list[list[Change]], aim: Aim = "chat", seconds: float = 1e6, **how: Any) -> Found:
    clock = Clock()
    return search(
        Path("model"), DEFAULTS, groups, aim, seconds=seconds, make=maker(cost, clock, **how), clock=clock
    )  # fmt: skip


FAST = Change("fast", {"fast": 1})
SLOW = Change("slow", {"slow": 1})
STEP = Change("long steps", step_tokens=512)


def speeds(properties: dict[str, Any], step: int | None) -> float:
    return 0.1 * (0.8 if properties.get("fast") else 1) * (1.3 if properties.get("slow") else 1) * (0.9 if step else 1)


def test_what_is_faster_is_kept_and_what_is_slower_is_not() -> None:
    running = [0]
    made = found(speeds, [[SLOW], [FAST], [STEP]], noise=0.02, running=running)
    assert made.words == ("fast", "long steps")
    assert made.settings.properties == {"fast": 1} and made.settings.step_tokens == 512
    assert [each.verdict for each in made.tried] == ["worse", "better", "better"]
    assert made.final is not None and made.final.verdict == "faster"
    assert made.final.ratio == pytest.approx(0.72, rel=0.05)
    assert running == [0], "every process is ended"


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_changes_nothing(seed: int) -> None:
    """Ten changes that change nothing; twenty machines that are never quiet."""
    groups = [[Change(f"change {number}", {f"p{number}": 1})] for number in range(10)]
    made = found(lambda properties, step: 0.1, groups, noise=0.15, seed=seed)
    assert made.words == () and made.final is None and made.settings == DEFAULTS


@pytest.mark.parametrize("seed", range(10))
def test_nothing_slower_than_the_defaults_is_ever_kept(seed: int) -> None:
    groups = [[Change(f"change {number}", {"slow": number + 1})] for number in range(5)]
    made = found(lambda properties, step: 0.1 * (1 + 0.02 * properties.get("slow", 0)), groups, noise=0.1, seed=seed)
    assert made.words == ()


def test_of_a_group_one_is_kept_the_best() -> None:
    group = [Change(f"size {size}", {"size": size}) for size in (1, 2, 3)]
    cost = {None: 1.0, 1: 0.9, 2: 0.7, 3: 0.8}
    made = found(lambda properties, step: 0.1 * cost[properties.get("size")], [group])
    assert made.words == ("size 2",)


def test_what_spoils_the_answers_is_refused_however_fast() -> None:
    made = found(speeds, [[FAST]], error=lambda properties, step: 0.5 if properties.get("fast") else 0.2)
    assert made.words == ()
    assert made.tried[0].verdict == "refused" and "0.30 nats" in str(made.tried[0].reason)


def test_what_does_not_load_is_refused_and_the_search_goes_on() -> None:
    made = found(speeds, [[Change("broken", {"broken": 1})], [FAST]])
    assert [each.verdict for each in made.tried] == ["refused", "better"]
    assert made.tried[0].reason == "it does not take that"


def test_the_time_is_kept() -> None:
    made = found(speeds, [[FAST], [STEP], [SLOW]], seconds=60, load=10.0)
    assert made.seconds <= 60 + 10
    assert made.tried[-1].verdict == "not tried" and made.left_out >= 1
    again = found(speeds, [[FAST], [STEP], [SLOW]], seconds=made.enough_seconds, load=10.0)
    assert again.left_out == 0 and again.seconds <= made.enough_seconds + 10


@pytest.mark.parametrize(
    ("load", "reading", "writing", "seconds"),
    [
        pytest.param(8.0, 0.004, 0.045, 120, id="a small model on a busy machine"),
        pytest.param(20.0, 0.01, 0.1, 180, id="a 9B model on a laptop"),
        pytest.param(2.0, 0.001, 0.015, 180, id="a small model on a quiet machine"),
    ],
)
def test_several_changes_are_tried_whatever_the_machine(
    load: float, reading: float, writing: float, seconds: float
) -> None:
    groups = [[Change(f"change {number}", {f"p{number}": 1})] for number in range(6)]
    made = found(speeds, groups, seconds=seconds, load=load, reading=reading, writing=writing)
    assert sum(each.verdict != "not tried" for each in made.tried) >= 3
    assert made.seconds <= seconds


def test_memory_is_saved_at_no_more_than_a_tenth_of_the_speed() -> None:
    def memory(properties: dict[str, Any], step: int | None) -> float:
        return 1e9 * (0.5 if properties else 1)

    def cost(properties: dict[str, Any], step: int | None) -> float:
        return 0.1 * (1.05 if properties.get("small") else 1.4 if properties.get("tiny") else 1)

    tiny, small = Change("tiny", {"tiny": 1}), Change("small", {"small": 1})
    made = found(cost, [[tiny], [small]], aim="memory", memory=memory)
    assert made.words == ("small",)
    assert made.final is not None and made.final.ratio == pytest.approx(0.5)


def test_what_is_tried_depends_on_the_machine() -> None:
    plain = changes("CPU", lambda device, name: ["FP32"], 4, 8, 1)
    words = [change.words for group in plain for change in group]
    assert "8 threads" in words and "2 threads" in words and "precision bf16" not in words
    hybrid = changes("CPU", lambda device, name: ["FP32", "BF16"], 4, 4, 2)
    words = [change.words for group in hybrid for change in group]
    assert "precision bf16" in words and "performance cores only" in words and "4 threads" not in words
    assert all(
        not change.properties or "KV" in str(change.properties)
        for group in changes("GPU", lambda d, n: None, 4, 8, 1)
        for change in group
    )


def test_a_search_without_time_keeps_what_an_earlier_one_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge.bench import search as searching
    from edge.cli import _run
    from edge.commands import named
    from edge.manifest import Manifest
    from edge.runtime import devices, tuned

    earlier = tuned.Tuned("chat", "fast", {"fast": 1}, None, 0.8)
    monkeypatch.setattr(tuned, "_key", lambda folder, device: "this machine")
    monkeypatch.setattr(named, "exported", lambda model, device: tmp_path)
    monkeypatch.setattr(Manifest, "read", lambda folder: None)
    monkeypatch.setattr(devices, "resolve", lambda device, manifest: "CPU")
    monkeypatch.setattr("edge.commands.tune._changes", lambda place: [[SLOW], [STEP]])
    tuned.keep(tmp_path, "CPU", earlier)

    def tune(seconds: float) -> str:
        made = found(speeds, [[SLOW], [STEP]], seconds=seconds, load=10.0)
        monkeypatch.setattr(searching, "search", lambda *_, **__: made)
        assert _run(["tune", "m"]) == 0
        return capsys.readouterr().out

    told = tune(12)
    assert "2 of 2 were not tried: --minutes gives it more time" in told and "Nothing is kept" in told
    assert tuned.read(tmp_path, "CPU") == earlier
    told = tune(1000)
    assert "Kept: long steps" in told and "not tried" not in told
    assert tuned.read(tmp_path, "CPU") != earlier
