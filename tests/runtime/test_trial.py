"""Real child processes that end in every way there is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from edge.errors import ContextError, DeviceError, EdgeError, MissingExtraError, ModelError
from edge.runtime import trial
from edge.runtime.canary import Finding
from edge.runtime.settings import Settings

GPU = Settings("GPU")


def child(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def run(code: str, timeout: float = 60, folder: Path = Path("model")) -> trial.Outcome:
    return trial.run(folder, GPU, timeout, command=child(code))


def around(load: str) -> str:
    """The real child, with `load(folder, settings)` for the loading."""
    return f"import os, sys\nfrom edge.runtime import trial\n{load}\ntrial._load = load\ntrial.main()\n"


def test_a_model_that_loads() -> None:
    outcome = run(around("def load(folder, settings): print('a library talks on standard output')"))
    assert outcome.ok and outcome.error is None and outcome.sentence == "GPU loaded the model and gave a token"
    assert 0 < outcome.seconds < 60


def test_the_child_gets_what_was_asked(tmp_path: Path) -> None:
    settings = Settings("GPU.1", {"KV_CACHE_PRECISION": "u8"}, precision="f32", context=2048)
    code = around(f"def load(*asked): open({str(tmp_path / 'asked')!r}, 'w').write(repr(asked))")
    assert trial.run(tmp_path / "a model", settings, 60, command=child(code)).ok
    assert (tmp_path / "asked").read_text() == repr((tmp_path / "a model", settings))


def test_an_abort_is_a_sentence() -> None:
    outcome = run(around("def load(*asked): print('LLVM ERROR: bad', file=sys.stderr, flush=True); os.abort()"))
    assert not outcome.ok and isinstance(outcome.error, DeviceError) and outcome.lasting
    assert outcome.sentence == outcome.error.message
    assert outcome.sentence.startswith("loading the model on GPU ended in")
    assert "its last words: " in outcome.sentence and "LLVM ERROR: bad" in outcome.sentence
    if sys.platform != "win32":
        assert "a crash (SIGABRT)" in outcome.sentence


def test_a_kill_is_taken_for_a_want_of_memory() -> None:
    if sys.platform == "win32":
        pytest.skip("Windows has no SIGKILL")
    outcome = run(around("import signal\ndef load(*asked): os.kill(os.getpid(), signal.SIGKILL)"))
    assert "was killed, most likely for want of memory" in outcome.sentence
    assert not outcome.ok and not outcome.lasting


def test_garbage_is_no_answer() -> None:
    outcome = run("import sys; sys.stdout.buffer.write(b'\\xff\\x00 {ok}\\nglm4-edge trial: {\\n'); sys.exit(0)")
    assert not outcome.ok and "ended without an answer (exit code 0)" in outcome.sentence
    assert "ended without an answer" in run("print('glm4-edge trial: [1]')").sentence


def test_a_child_that_never_reads_is_no_harm() -> None:
    assert "(exit code 7)" in run("import os; os._exit(7)").sentence


def test_a_hang_ends_at_the_limit() -> None:
    started = time.monotonic()
    outcome = run(around("import time\ndef load(*asked): time.sleep(600)"), timeout=1)
    assert not outcome.ok and not outcome.lasting and "was not done in 1 seconds" in outcome.sentence
    assert time.monotonic() - started < 30


def test_what_holds_the_pipes_after_the_kill_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver's helper that the child started, or a child that the system cannot end."""
    monkeypatch.setattr(trial, "_KILLED_SECONDS", 0.5)
    helper = (
        "import subprocess, sys, time\ndef load(*asked):\n"
        "    helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    )
    code = around(f"{helper}    open({str(tmp_path / 'pid')!r}, 'w').write(str(helper.pid))\n    time.sleep(600)")
    started = time.monotonic()
    outcome = run(code, timeout=5)
    assert "was not done in 5 seconds" in outcome.sentence and time.monotonic() - started < 30
    psutil.Process(int((tmp_path / "pid").read_text())).kill()


def test_the_canary_crashes_in_a_child_too(tiny_npu: Path) -> None:
    outcome = trial.run(tiny_npu, Settings("CPU"), 300, task="canary")
    assert outcome.ok and outcome.told is not None and outcome.told["ok"], outcome
    assert Finding(**outcome.told).figures["device"] == "CPU"
    crash = "import os\nfrom edge.runtime import trial\ntrial._canary = lambda *asked: os.abort()\ntrial.main()\n"
    outcome = trial.run(tiny_npu, GPU, 300, task="canary", command=child(crash))
    assert not outcome.ok and isinstance(outcome.error, DeviceError) and outcome.lasting


def test_a_fault_of_the_familys_own_comes_back_whole() -> None:
    code = around("from edge.errors import ContextError\n"
                  "def load(*asked): raise ContextError('too long: 9 > 8', hint='Shorten it.')")  # fmt: skip
    outcome = run(code)
    assert type(outcome.error) is ContextError
    assert (outcome.error.message, outcome.error.hint) == ("too long: 9 > 8", "Shorten it.")
    assert outcome.sentence == "too long: 9 > 8" and not outcome.lasting
    code = around("from edge.errors import MissingExtraError\ndef load(*asked): raise MissingExtraError('x', 'ui')")
    again, meant = run(code).error, MissingExtraError("x", "ui")
    assert isinstance(again, EdgeError) and (again.message, again.hint) == (meant.message, meant.hint)


def test_another_exception_leaves_its_last_words() -> None:
    outcome = run(around("def load(*asked): raise RuntimeError('no such kernel')"))
    assert "exit code 1" in outcome.sentence and "RuntimeError: no such kernel" in outcome.sentence


def test_a_fault_of_ours_is_not_the_devices() -> None:
    with pytest.raises(RuntimeError, match=r"in a process of its own, AttributeError at .*: no encoding"):
        run(around("def load(*asked): raise AttributeError('no encoding')"))


@pytest.mark.parametrize("settings", [Settings("CPU"), Settings("NPU", rehearse=True)])
def test_of_a_crash_on_the_cpu_no_driver_is_blamed(settings: Settings) -> None:
    outcome = trial.run(Path("m"), settings, 60, command=child(around("def load(*asked): os.abort()")))
    assert outcome.error is not None and "driver" not in outcome.error.hint and "verify" in outcome.error.hint
    assert not outcome.sentence.startswith("loading the model on NPU ended")
    assert "driver" in run(around("def load(*asked): os.abort()")).error.hint  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("code", "words", "lasting"),
    [
        (0xC0000005, "ended in an access violation (0xC0000005)", True), (0xC0000409, "an abort (0xC0000409)", True),
        (0xC0000017, "want of memory", False), (137, "want of memory", False), (-9, "want of memory", False),
        (5, "ended without an answer (exit code 5)", False),
    ],
)  # fmt: skip
def test_what_an_exit_code_says(code: int, words: str, lasting: bool) -> None:
    """Those of Windows, too, which no child can be made to end with elsewhere."""
    said, last = trial.ending(code)
    assert words in said and last is lasting


@pytest.mark.skipif(sys.platform == "win32", reason="signals have no names in Windows' exit codes")
def test_signals_have_names() -> None:
    assert trial.ending(-signal.SIGSEGV) == ("ended in a crash (SIGSEGV)", True)
    assert trial.ending(-signal.SIGTERM)[1] is False
    assert trial.ending(-200) == ("ended in a crash (signal 200)", True)


HANGING = """
import os, sys, time
from edge.runtime import trial
def load(*asked):
    with open(sys.argv[1] + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(600)
trial._load = load
trial.main()
"""
PARENT = """
import sys
from pathlib import Path
from edge.runtime import trial
from edge.runtime.settings import Settings
trial.run(Path("model"), Settings("GPU"), 600, command=[sys.executable, "-c", {child!r}, sys.argv[1]])
"""


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_no_orphan_is_left(how: str, tmp_path: Path) -> None:
    """Ctrl-C in the parent ends the child, and so does the parent's own death."""
    if how == "interrupted" and sys.platform == "win32":
        pytest.skip("Ctrl-C cannot be sent to one process on Windows")
    written = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(child=HANGING), str(written)],
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    deadline = time.monotonic() + 60
    while not written.exists():
        assert parent.poll() is None and time.monotonic() < deadline, parent.communicate()
        time.sleep(0.05)
    orphan = psutil.Process(int(written.read_text()))
    if how == "interrupted":
        os.kill(parent.pid, signal.SIGINT)
    else:
        parent.kill()
    said = parent.communicate(timeout=30)[1].decode()
    psutil.wait_procs([orphan], timeout=30)
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    assert ("KeyboardInterrupt" in said) is (how == "interrupted")


def test_waiting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    code = around("import time\ndef load(*asked): time.sleep(0.3)")
    assert trial.run(Path("m"), GPU, 60, command=child(code), progress=lambda *told_: told.append(told_)).ok
    assert set(told) == {("trying GPU in a process of its own", 0, 0)}


def test_a_folder_called_edge_where_one_stands_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "edge").mkdir()
    (tmp_path / "edge" / "__init__.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(tmp_path)
    outcome = trial.run(Path("nothing"), Settings("CPU"), 60)
    assert type(outcome.error) is ModelError
    assert str(tmp_path / "nothing") in outcome.error.message, "the folder is the one that was meant"


@pytest.mark.model
def test_the_pocket_model_in_a_child(pocket_dir: Path) -> None:
    outcome = trial.run(pocket_dir, Settings("CPU"), 300)
    assert outcome.ok, outcome.sentence


@pytest.mark.model
def test_a_property_the_plugin_does_not_know_comes_back_as_wrong_usage(pocket_dir: Path) -> None:
    outcome = trial.run(pocket_dir, Settings("CPU", {"NO_SUCH_PROPERTY": "1"}), 300)
    assert outcome.error is not None and outcome.error.exit_code == 2 and "NO_SUCH_PROPERTY" in outcome.sentence
