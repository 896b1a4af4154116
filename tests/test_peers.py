"""Side by side: the same weights as GGUF, processes from outside, rounds in turn."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import gguf_file, peer_arms, peer_child, peers, peers_report, recipes
from benchmarks.peer_arms import Arm, Place
from benchmarks.peer_process import _Memory, started
from edge import golden
from edge.bench.case import Case, Prompts, Sample
from edge.errors import EdgeError
from edge.files import HOME_VARIABLE
from edge.model import pocket
from edge.model.checkpoint import Checkpoint
from edge.model.spec import GlmSpec
from edge.runtime import itrex, itrex_home
from tests.conftest import write_chatglm, write_checkpoint

SILENT = """
import json, sys, time
held = bytearray(b"x") * 100_000_000
print(json.dumps({"loaded": True}), flush=True)
for line in sys.stdin:
    question = json.loads(line)
    if question["prompt"] == [0]:
        print("it broke", file=sys.stderr)
        sys.exit(3)
    time.sleep(0.2)
    print(json.dumps({"first": True}), flush=True)
    tokens = list(range(min(question["new"], 4)))
    print(json.dumps({"tokens": tokens, "token_seconds": [0.2 + 0.1 * t for t in tokens]}), flush=True)
"""
"""Answers in `peer_child`'s words; never more than four tokens."""
SPEAKING = [sys.executable, "-c", SILENT, "a model"]


@pytest.mark.parametrize("layout", ["glm", "chatglm"])
def test_a_gguf_holds_the_checkpoints_bits(layout: str, tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFReader

    folder = write_checkpoint(tmp_path / "glm")
    if layout == "chatglm":
        folder = write_chatglm(tmp_path / "chatglm", folder)
    checkpoint = Checkpoint(folder)
    gguf_file.write(checkpoint, tmp_path / "it.gguf")
    assert sorted(path.name for path in tmp_path.glob("it*")) == ["it.gguf"]
    reader = GGUFReader(tmp_path / "it.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    names = list(checkpoint.spec.tensor_shapes())
    assert {gguf_file.gguf_name(name) for name in names} == set(found)
    for name in names:
        tensor, weight = found[gguf_file.gguf_name(name)], checkpoint.weight(name)
        if "norm" in name or name.endswith("bias"):
            assert tensor.tensor_type == GGMLQuantizationType.F32
            np.testing.assert_array_equal(tensor.data, weight.f32())
        else:
            assert tensor.tensor_type == GGMLQuantizationType.BF16
            assert tensor.data.tobytes() == weight.raw.tobytes()
    facts = {name: field.contents() for name, field in reader.fields.items()}
    assert facts["general.architecture"] == "chatglm"
    assert (facts["chatglm.attention.head_count_kv"], facts["chatglm.rope.dimension_count"]) == (2, 4)
    assert (facts["tokenizer.ggml.model"], facts["chatglm.vocab_size"]) == ("none", checkpoint.spec.vocab_size)
    assert "blk.1.ffn_up.weight" in found and "output.weight" in found


def test_a_gguf_has_the_vocabulary(tmp_path: Path) -> None:
    from gguf import GGUFReader

    folder = write_checkpoint(tmp_path / "it", vocab_size=160)
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    first, second, *_ = letters = sorted(told["model"]["vocab"], key=told["model"]["vocab"].__getitem__)
    told["model"]["merges"] = [[first, second]]
    path.write_text(json.dumps(told), encoding="utf-8")
    gguf_file.write(Checkpoint(folder), tmp_path / "it.gguf")
    facts = {name: field.contents() for name, field in GGUFReader(tmp_path / "it.gguf").fields.items()}
    tokens = facts["tokenizer.ggml.tokens"]
    added = {each["id"] for each in told["added_tokens"]}
    assert len(tokens) == 160 and facts["tokenizer.ggml.merges"] == [f"{first} {second}"]
    assert [tokens[i] for i in range(len(letters)) if i not in added] == [
        letter for i, letter in enumerate(letters) if i not in added
    ]
    assert {facts["tokenizer.ggml.token_type"][i] for i in added} == {3}


def test_another_architecture_is_not_written_as_this_one(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "it", model_type="glm4", architectures=["Glm4ForCausalLM"]))
    with pytest.raises(click.ClickException, match="glm-4-9b-chat"):
        gguf_file.write(checkpoint, tmp_path / "it.gguf")
    assert not list(tmp_path.glob("it.gguf*"))


def test_a_process_is_watched_from_its_start() -> None:
    begin = time.perf_counter()
    with started(SPEAKING, {}) as (child, loaded):
        first, answer = child.ask([5, 6], 3)
        assert 0 < loaded < first < time.perf_counter() - begin
        assert first - loaded >= 0.2
        assert answer["tokens"] == [0, 1, 2] and answer["token_seconds"] == pytest.approx([0.2, 0.3, 0.4])
        assert answer["busy_elsewhere"] is None or 0 <= answer["busy_elsewhere"] <= 1
        time.sleep(0.3)
        assert child.memory["resident"] >= 100_000_000


def test_fewer_tokens_than_asked_for_are_a_fault() -> None:
    with pytest.raises(click.ClickException, match="a model: 4 of 5 tokens came"), started(SPEAKING, {}) as (child, _):
        child.ask([5], 5)


def test_a_process_that_ends_says_its_last_words() -> None:
    with (
        pytest.raises(click.ClickException, match=r"(?s)its process ended.*it broke"),
        started(SPEAKING, {}) as (one, _),
    ):
        one.ask([0], 2)


def test_a_runtime_that_does_not_load_says_why(tmp_path: Path) -> None:
    child = str(Path(peer_arms.__file__).with_name("peer_child.py"))
    with pytest.raises(click.ClickException, match="nothing"):  # noqa: SIM117 - the first is of the second
        with started([sys.executable, child, "genai", str(tmp_path / "nothing"), "{}"], {}):
            pass


class Fake(Arm):
    runtime = "none"

    def __init__(self, name: str) -> None:
        self.name, self.what = name, "nothing"

    def prepare(self, place: Place) -> None:
        pass

    def model(self, place: Place) -> Path:
        return place.work

    def versions(self, place: Place) -> dict[str, str]:
        return {}


def test_none_is_always_the_first_and_the_first_round_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    order: list[tuple[int, str]] = []

    def turn(
        arm: Arm, place: Place, case: Case, number: int, asks: int, prompts: Prompts
    ) -> tuple[dict[str, Any], list[Sample]]:
        order.append((number, arm.name))
        slow = 3.0 if arm.name == "peer" else 1.0
        times = tuple(slow * (1 + place) for place in range(case.new_tokens))
        start = {
            "round": number, "loaded_seconds": slow, "first_token_seconds": 2 * slow, "first_answer_seconds": slow,
            "busy_elsewhere": 0.0, "memory": {"anonymous": 10 * number, "resident": 20 * number},
        }  # fmt: skip
        return start, [Sample(number, case.prompt_tokens, case.prompt_tokens, times, times[-1], 0.0)] * asks

    monkeypatch.setattr(peers, "_turn", turn)
    folder = write_checkpoint(tmp_path / "it")
    place = Place(tmp_path, "tiny", folder, GlmSpec.from_folder(folder), 1, 64)
    found = peers._speed(place, [Fake("ours"), Fake("peer")], peers._Size(8, 5), 7, 2)
    assert order[:6] == [(0, "ours"), (0, "peer"), (1, "peer"), (1, "ours"), (2, "ours"), (2, "peer")]
    assert len(found["measured"]["ours"]["samples"]) == 14 and found["starts"]["peer"][0]["round"] == 1
    ours, peer = found["figures"]["ours"], found["figures"]["peer"]
    assert (ours["loaded_seconds"], peer["first_token_seconds"]) == (1.0, 6.0)
    assert (ours["prefill_rate"], ours["decode_rate"], peer["decode_rate"]) == (8.0, 1.0, pytest.approx(1 / 3))
    assert (ours["anonymous_bytes"], ours["resident_bytes"]) == (70, 140)
    ratio = found["ours_to_peer"]["peer"]["TPOT"]
    assert ratio["ratio"] == pytest.approx(1 / 3) and (ratio["verdict"], ratio["pairs"]) == ("faster", 7)
    assert found["ours_to_peer"]["peer"]["start to first token"]["before"] == 6.0
    part = {"machine": {"cpu": "a", "cores": 2, "memory_bytes": 8e9}, "versions": {}, "what": {}, **found}
    part["model_bytes"] = {"ours": 5_000_000, "peer": 7_000_000}
    told = peers_report.table({"shape": {"name": "tiny", "parameters": 135_000_000}, "speed": part})
    assert "| decode, tokens/s | 1.0 | 0.3 |" in told and "| TPOT | 0.33 (0.33 to 0.33) |" in told
    assert "| model, MB | 5 | 7 |" in told


def test_agreement_with_oneself_and_with_another() -> None:
    windows = np.array([[0, 1, 2], [2, 1, 0]])
    sure = np.zeros((2, 3, 3), np.float32)
    for window, ids in enumerate(windows):
        sure[window, np.arange(2), ids[1:]] = 50.0  # the next token, surely
    same = recipes.agreement(windows, sure, sure)
    assert same == {"perplexity": 1.0, "kl_mean": 0.0, "kl_p99": 0.0, "top1_agreement": 1.0}
    level = recipes.agreement(windows, sure, np.zeros_like(sure))
    assert level["perplexity"] == pytest.approx(3.0)
    assert level["kl_mean"] == pytest.approx(np.log(3) * 2 / 3, abs=1e-4)  # the last place of each is level in both


def test_itrex_is_left_out_where_it_is_not_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "nowhere"))
    chosen, missing = peers._here(peers._chosen([]), [])
    assert [arm.name for arm in chosen] == ["glm4-edge", "OpenVINO GenAI", "llama.cpp Q4_0", "llama.cpp Q4_K_M"]
    assert missing == {"ITREX": "its environment is absent; glm4-edge itrex setup makes it"}
    assert "ITREX is left out: its environment is absent" in capsys.readouterr().err
    with pytest.raises(click.UsageError, match="ITREX cannot be measured: its environment is absent"):
        peers._here(peers._chosen(["ITREX"]), ["ITREX"])
    part = {"settings": {"prompt_tokens": 8, "new_tokens": 5, "rounds": 1, "asks": 1, "threads": 1}, "figures": {},
            "machine": {"cpu": "a", "cores": 2, "memory_bytes": 8e9}, "versions": {}, "what": {}, "model_bytes": {},
            "missing": missing, "ours_to_peer": {}}  # fmt: skip
    told = peers_report.table({"shape": {"name": "tiny", "parameters": 135_000_000}, "speed": part})
    assert "\nITREX was not measured: its environment is absent; glm4-edge itrex setup makes it.\n" in told


def test_itrex_is_ours_by_another_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "mine"))
    place_ = itrex_home.folder().parents[1] / "theirs" / "itrex"
    itrex_home._python(place_).parent.mkdir(parents=True)
    itrex_home._python(place_).touch()
    told = {"pins": itrex_home._digest(), "versions": {"torch": "2.3.1"}}
    (place_ / "glm4-edge.json").write_text(json.dumps(told), encoding="utf-8")
    place = Place(tmp_path / "work", "tiny", tmp_path, GlmSpec.from_folder(write_checkpoint(tmp_path / "it")), 1, 64)
    *_, arm = peers._chosen([], place_.parent)
    assert arm.missing() is None and arm.versions(place)["torch"] == "2.3.1"
    assert arm.model(place) == peer_arms.Ours().model(place)
    env = peer_arms.environment(arm)
    assert env[HOME_VARIABLE] == str(place_.parent) and (Path(env["PYTHONPATH"]) / "edge").is_dir()
    assert peer_arms.environment(peer_arms.Ours())[HOME_VARIABLE] == str(tmp_path / "mine")
    assert "PYTHONPATH" not in peer_arms.environment(peer_arms.LlamaCpp("Q4_0"))


def test_itrex_answers_and_gives_its_logits(tiny_npu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a process that stands for it: the next token is one more."""
    script = Path(__file__).parent / "runtime" / "fake_itrex.py"
    monkeypatch.setattr(itrex, "command", lambda: [sys.executable, str(script)])
    monkeypatch.setattr(golden, "read", lambda folder: None)  # these are not the model's numbers
    child = peer_child.Itrex(tiny_npu, {})
    seen: list[int] = []
    try:
        times = child.ask([5, 40], 4, seen.append)
        assert seen == [41, 42, 43, 44] and len(times) == 4 and 0 < times[0] <= times[-1]
        windows = np.array([[3, 4, 5], [9, 8, 7]])
        assert [rows.argmax(-1).tolist() for rows in child.logits(windows, exact=False)] == [[4, 5, 6], [10, 9, 8]]
        with pytest.raises(RuntimeError, match="one way only"):
            next(child.logits(windows, exact=True))
    finally:
        child.close()


def test_a_look_for_children_that_ends_late_does_not_count() -> None:
    begun, go = threading.Event(), threading.Event()

    class Process:
        def children(self, *, recursive: bool) -> list[str]:
            if begun.is_set():
                return ["the one that stays"]
            begun.set()
            assert go.wait(60)
            return ["one that is gone"]

    process: Any = Process()
    memory = _Memory(process)
    late = threading.Thread(target=memory.find_children)
    late.start()
    assert begun.wait(60)
    memory.loaded.set()
    memory.find_children()
    go.set()
    late.join()
    assert memory.processes == [process, "the one that stays"]


def test_children_count_while_a_process_loads() -> None:
    script = """
import json, subprocess, sys, time
hold = "held = bytearray(b'x') * 150_000_000; print(1, flush=True); import time; time.sleep(3)"
child = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
child.wait()
print(json.dumps({"loaded": True}), flush=True)
sys.stdin.read()
"""
    with started([sys.executable, "-c", script, "a model"], {}) as (child, _):
        assert child.memory["anonymous"] >= 150_000_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "nobody"], "no nobody; there are glm4-edge"),
        ([], "needs a --text"),
        (["--new", "1"], "1 is not in the range"),
    ],
)
def test_bad_words_are_refused_before_anything_is_made(words: Sequence[str], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        peers.main, ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.json"), *words]
    )
    assert done.exit_code == 2 and said in done.output
    assert not list(tmp_path.iterdir())


def test_another_shapes_results_are_not_mixed_in(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert peers._earlier(out, "9b") == {}
    out.write_text('{"shape": {"name": "pocket"}, "speed": 1}', encoding="utf-8")
    assert peers._earlier(out, "pocket")["speed"] == 1
    with pytest.raises((click.UsageError, EdgeError), match="shape pocket"):
        peers._earlier(out, "9b")


@pytest.mark.model
def test_ours_and_genai_agree_on_one_model(pocket_dir: Path, tmp_path: Path) -> None:
    """In full precision they compute the same; and both answer greedily, with as many tokens as asked for."""
    place = Place(tmp_path, "pocket", pocket_dir, pocket.SPEC, 2, 64)
    windows = np.arange(2000, 2032).reshape(2, 16)
    np.save(tmp_path / "windows.npy", windows)
    logits, tokens = {}, {}
    for arm in (peer_arms.Ours(), peer_arms.GenAi()):
        words = [str(pocket_dir) if "pocket-" in word else word for word in peer_arms.command(arm, place)]
        with started(words, peer_arms.environment(arm)) as (child, _):
            answer = child.ask(list(range(2000, 2016)), 3)[1]
            tokens[arm.name] = answer["tokens"]
            assert 0 < answer["token_seconds"][0] < answer["token_seconds"][1] < answer["token_seconds"][2]
            child.logits(tmp_path / "windows.npy", tmp_path / f"{arm.runtime}.npy", exact=True)
        logits[arm.name] = np.load(tmp_path / f"{arm.runtime}.npy")
    ours, theirs = logits.values()
    assert ours.shape == (2, 16, 49152)
    np.testing.assert_array_equal(ours, theirs)
    ours_tokens, their_tokens = tokens.values()
    assert ours_tokens[0] == their_tokens[0] and len(ours_tokens) == len(their_tokens) == 3
