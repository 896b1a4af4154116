"""Measuring in turn: with an engine that is none, and on the real pocket model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.bench import run as running
from edge.bench.ask import ask
from edge.bench.case import Case, Load, Prompts, Sample
from edge.bench.counts import count
from edge.bench.roofline import Limits
from edge.bench.run import Arm, Wanted, run
from edge.bench.summary import figures
from edge.bench.worker import Worker
from edge.errors import DeviceError, ModelError, UsageError
from edge.lora.asked import Asked, Loras
from edge.model.spec import GlmSpec
from edge.runtime.echo import EchoEngine
from edge.runtime.settings import Settings
from tests.lora.made import write_adapter

CPU = Settings("CPU")


class Fake(Worker):
    """Works in this process, on an echo."""

    log: list[tuple[str, str, int]]

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self._engine = EchoEngine(context_length=2048, seconds_per_token=0.0001)
        self._prompts = Prompts(lambda messages: [1, 2, ord(messages[0].content), 3], 5000)

    def load(self) -> Load:
        if self.folder.name == "broken":
            raise ModelError("it is broken", hint="Mend it.")
        return Load(1.0, 2.0, 0.5)

    def facts(self) -> dict[str, Any]:
        return {"model": {"name": self.folder.name}, "settings": {}, "context": 2048, "shortest": 4}

    def run(self, case: Case, number: int, *, later: bool = False) -> list[tuple[Case, Sample]]:
        self.log.append((self.folder.name, case.name, number))
        return ask(self._engine, self._prompts, case, number, later=later)

    def limits(self) -> Limits:
        return Limits(1e10, (1e10,), 1e11, {"f32": 1e11}, (1, 2, 3))

    def memory(self) -> dict[str, int | None]:
        return {"anonymous": None, "resident": 1}

    def close(self) -> None:
        self.log.append((self.folder.name, "closed", 0))

    kill = close


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str, int]]]:
    made: list[tuple[str, str, int]] = []
    monkeypatch.setattr(Fake, "log", made, raising=False)
    yield made


def arms(*names: str) -> list[Arm]:
    return [Arm(name, Path(name), CPU) for name in names]


def test_arms_are_measured_in_turn_after_a_round_that_does_not_count(log: list[tuple[str, str, int]]) -> None:
    wanted = Wanted([32, 64], [4], rounds=3, loads=2, limits=False)
    made = run(arms("a", "b"), wanted, make=Fake)
    assert [len(each.loads) for each in made.measured] == [2, 2]
    assert made.rounds == 3
    measured = [(name, number) for name, what, number in log if what == "32 in, 4 out"]
    assert [number for _, number in measured] == [-1, -1, 1, 1, 2, 2, 3, 3]
    assert {name for name, _ in measured[2:4]} == {"a", "b"}
    assert measured[2][0] != measured[4][0], "none is always the first"
    for each in made.measured:
        assert [case.name for case in each.cases()] == [
            "32 in, 4 out", "32 in, 4 out, later turn", "64 in, 4 out", "64 in, 4 out, later turn",
        ]  # fmt: skip
        assert {sample.round for _, sample in each.samples} == {1, 2, 3}
        (later,) = {sample.prompt_tokens for sample in each.of(each.cases()[1])}
        assert later == 32 + 4 + 32
    assert [name for name, what, _ in log if what == "closed"] == ["a", "b", "b", "a"]


def test_a_model_that_does_not_load_ends_the_others(log: list[tuple[str, str, int]]) -> None:
    with pytest.raises(ModelError):
        run(arms("a", "broken"), Wanted([32], [4]), make=Fake)
    assert [name for name, what, _ in log if what == "closed"] == ["broken", "a"]


def test_when_the_time_is_up_no_further_round_begins(log: list[tuple[str, str, int]]) -> None:
    made = run(arms("a"), Wanted([32], [4], rounds=50, seconds=0.0, limits=False), make=Fake)
    assert made.rounds == running.ENOUGH
    assert made.left_out == ["rounds 4 to 50: the time was up"]


def test_a_prompt_without_room_for_the_template_is_refused(log: list[tuple[str, str, int]]) -> None:
    with pytest.raises(UsageError, match="no room"):
        run(arms("a"), Wanted([3], [4]), make=Fake)


def test_a_cut_answer_is_no_figure() -> None:
    engine, prompts = EchoEngine(context_length=40), Prompts(lambda messages: [1, ord(messages[0].content), 3], 5000)
    with pytest.raises(DeviceError, match="8 of 16"):
        ask(engine, prompts, Case(32, 16), 1)


def test_no_prompt_begins_as_one_of_another_case_does() -> None:
    """A cache would know it."""
    asked: list[tuple[int, ...]] = []

    class Heard(EchoEngine):
        def stream(self, conversation: Any, *more: Any) -> Any:
            asked.append(conversation.ids)
            return super().stream(conversation, *more)

    engine, prompts = Heard(context_length=4096), Prompts(lambda messages: [1, ord(messages[0].content), 3], 5000)
    for number in (1, 2):
        for case in (Case(32, 4), Case(256, 4), Case(256, 8), Case(256, 4, together=3), Case(1024, 4)):
            ask(engine, prompts, case, number)
    begun = [prompt[1:9] for prompt in asked]
    assert len(begun) == len(set(begun)) == 14
    again: list[tuple[int, ...]] = []
    asked, heard = again, asked
    ask(engine, prompts, Case(32, 4), 1)
    assert again[0] == heard[0], "two models and two runs are asked the same"


@pytest.mark.model
class TestPocket:
    def test_two_arms_in_processes_of_their_own(self, pocket_dir: Path) -> None:
        slow = Settings("CPU", {"INFERENCE_NUM_THREADS": 1})
        wanted = Wanted([32, 300], [8], [1, 2], rounds=1)
        made = run([Arm("all", pocket_dir, CPU), Arm("one", pocket_dir, slow)], wanted)
        assert [each.settings["properties"] for each in made.measured] == [{}, {"INFERENCE_NUM_THREADS": 1}]
        for each in made.measured:
            assert each.loads[0].load_seconds > 0 and each.memory["resident"]
            assert each.limits is not None and each.limits["bandwidth"] > 1e8
            for found in figures(each):
                assert found.samples == found.case.together
                assert 0 < found.ttft < 60 and found.tpot is not None and 0 < found.tpot < 10
                assert found.tpot_share is not None and found.tpot_share > 0.001
                if found.case.later:
                    assert found.read_tokens is not None or found.case.together > 1
                    assert (found.read_tokens or 0) < found.prompt_tokens, "what was read before is not read again"
                else:
                    assert found.read_tokens == found.prompt_tokens, "no cache knows a random prompt"

    def test_adapters_are_on(self, pocket_dir: Path, tmp_path: Path) -> None:
        folder = write_adapter(tmp_path / "mine", GlmSpec.from_folder(pocket_dir), rank=4, size=0.1)
        case = Case(64, 4)
        with Worker(pocket_dir, CPU, Loras((Asked(folder, 0.5),))) as worker:
            worker.load()
            assert worker.facts()["settings"]["adapters"] == ["mine at 0.5"]
            ((found, sample),) = worker.run(case, 1)
            assert found == case and sample.seconds > 0

    def test_what_a_token_costs_is_in_the_ir(self, pocket_dir: Path) -> None:
        counts = count(pocket_dir)
        # 30 layers of 576: attention 576·(576 + 2·192) + 576·576, three matrices of 576·1536; tied head 49152·576.
        layer = 576 * (576 + 2 * 192) + 576 * 576 + 3 * 576 * 1536
        assert counts.weight_flop == 2 * 30 * layer
        assert counts.head_flop == 2 * 49152 * 576
        size = (pocket_dir / "openvino_model.bin").stat().st_size
        assert 0.98 * size < counts.weight_bytes <= size

    def test_a_process_that_dies_is_a_sentence(self, pocket_dir: Path) -> None:
        with Worker(pocket_dir, CPU) as worker:
            worker.load()
            assert worker._process.pid is not None
            os.kill(worker._process.pid, 9)
            with pytest.raises(DeviceError, match="the process that measured CPU"):
                worker.run(Case(64, 8), 1)

    def test_a_folder_without_a_model_is_refused_from_the_process(self, tmp_path: Path) -> None:
        with Worker(tmp_path, CPU) as worker, pytest.raises(ModelError):
            worker.load()
