"""lm-eval on our models, with little tasks of our own: its own come from a network."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edge.cli import _run
from edge.errors import ContextError, MissingExtraError, UsageError
from edge.messages import Chunk, Conversation, Sampling, Tokens
from edge.quality import harness, protocols
from edge.quality.record import Record
from edge.quality.scoring import Asked, Scored
from edge.runtime.echo import EchoEngine

HERE = Path(__file__).parent / "tasks"
DATA = {
    "edge_choices": {"test": "choices.jsonl", "train": "examples.jsonl"},
    "edge_answers": {"test": "answers.jsonl"},
    "edge_rolling": {"test": "answers.jsonl"},
}
lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval, the extra 'eval', is not installed"
)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The task files, with the places of their data; and no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, files in DATA.items():
        places = "".join(f"    {split}: {(HERE / file).as_posix()}\n" for split, file in files.items())
        text = (HERE / f"{name}.yaml").read_text(encoding="utf-8")
        (folder / f"{name}.yaml").write_text(f"{text}dataset_kwargs:\n  data_files:\n{places}", encoding="utf-8")
    return folder


class Letters:
    """A tokenizer of letters; "^" begins a text, as GLM-4's [gMASK]<sop> does."""

    bos_token_id = None
    chat_template = "made up"

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [*([94] if add_special_tokens else []), *map(ord, text)]

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(map(chr, ids))

    def apply_chat_template(
        self, turns: Sequence[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool, **_: Any
    ) -> str:
        assert not tokenize
        return "^" + "".join(f"<{turn['role'][0]}>{turn['content']}" for turn in turns) + "<a>" * add_generation_prompt


class Likes:
    """Scores: a continuation that holds one of the words is likely."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.asked: list[Asked] = []

    def score(
        self, asked: Sequence[Asked], progress: Any, stage: str = "", keep: Any = lambda place, scored: None
    ) -> list[Scored]:
        self.asked += asked
        said = ["".join(map(chr, each.continuation)) for each in asked]
        found = [
            Scored((-1.0 if any(word in each for word in self.words) else -100.0,) * len(each), False) for each in said
        ]
        for place, each in enumerate(found):
            keep(place, each)
        return found


class Says(EchoEngine):
    """Answers the same, whatever it is asked, and keeps what that was."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.together = 4
        self.asked: list[tuple[str, Sampling]] = []

    def stream(self, conversation: Conversation, sampling: Sampling, *_: Any) -> Generator[Chunk, None, None]:
        assert isinstance(conversation, Tokens)
        self.asked.append(("".join(map(chr, conversation.ids)), sampling))
        yield Chunk(self.text, token_ids=tuple(map(ord, self.text)))
        yield Chunk("", token_ids=(0,))


def adapted(scorer: Any = None, engine: Any = None, length: int = 4096) -> Any:
    from edge.quality.adapter import EdgeLM

    return EdgeLM("fake", Letters(), (0,), length, scorer=lambda: scorer, engine=lambda: engine)


@lm_eval
def test_choices_are_answered_by_what_is_likelier(tasks: Path) -> None:
    scorer = Likes("Paris", "four", "honey", "square", "smoke", "winter")
    lm = adapted(scorer)
    kept: dict[str, list[dict[str, Any]]] = {}
    (found,) = harness.run(
        lm, {"mine": protocols.protocol("edge_choices", few_shot=2)}, folder=tasks, keep=kept.__setitem__
    )
    assert (found.task, found.part, found.metric, found.value) == ("mine", "edge_choices", "acc", 0.5)
    assert (found.samples, found.few_shot, found.chat, found.limit) == (6, 2, False, None)
    assert len(kept["edge_choices"]) == 6 and kept["edge_choices"][0]["doc"]["question"].startswith("What is the cap")
    contexts = {"".join(map(chr, each.context)) for each in scorer.asked}
    assert all(text.startswith("^Question: What do cows drink") and text.count("^") == 1 for text in contexts)
    assert all("".join(map(chr, each.continuation)).startswith(" ") for each in scorer.asked)


@lm_eval
def test_answers_end_at_the_tasks_own_words_in_the_template(tasks: Path) -> None:
    engine = Says("It is Rome. Or Paris.")
    lm = adapted(engine=engine)
    (found,) = harness.run(
        lm, {"edge_answers": protocols.protocol("edge_answers", chat=True)}, folder=tasks, limit=2
    )  # fmt: skip
    assert (found.metric, found.value, found.samples, found.limit) == ("exact_match, capital", 0.5, 2, 2)
    question, sampling = sorted(engine.asked, key=lambda each: each[0])[0]
    assert question == "^<u>What is the capital of France? Answer with one sentence.<a>"
    assert (sampling.temperature, sampling.repetition_penalty, sampling.max_new_tokens) == (0, 1.0, 24)
    assert sampling.stop == (".",)


@lm_eval
def test_whole_texts_are_scored_once_each(tasks: Path) -> None:
    scorer = Likes("")
    found = harness.run(adapted(scorer, length=20), {"edge_rolling": protocols.protocol("edge_rolling")}, folder=tasks)
    assert {each.metric for each in found} == {"byte_perplexity", "bits_per_byte"}
    texts = [json.loads(line) for line in (HERE / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    letters = sum(len(f"{each['question']} {each['answer']}") for each in texts)
    assert sum(len(each.continuation) for each in scorer.asked) == letters
    assert all(len(each.context) + len(each.continuation) <= 21 for each in scorer.asked)


@lm_eval
def test_a_text_without_a_context_begins_as_the_tokenizer_begins_one() -> None:
    from lm_eval.api.instance import Instance

    class Two(Letters):
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [*([93, 94] if add_special_tokens else []), *map(ord, text)]

    from edge.quality.adapter import EdgeLM

    scorer = Likes("")
    lm = EdgeLM("fake", Two(), (0,), 12, scorer=lambda: scorer, engine=lambda: Says(""))
    lm.loglikelihood([Instance("loglikelihood", {}, (context, " b"), 0) for context in ("", "a")])
    lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("x" * 25,), 0)])
    told = [("".join(map(chr, each.context)), "".join(map(chr, each.continuation))) for each in scorer.asked]
    assert told[:3] == [("]^", " b"), ("]^a", " b"), ("]^", "x" * 11)]
    assert sum(len(end) for _, end in told[2:]) == 25 and all(len(begin + end) <= 13 for begin, end in told)


@lm_eval
def test_only_one_of_scorer_and_engine_is_open(tasks: Path) -> None:
    engine = Says("Paris")
    closed: list[bool] = []
    engine.close = lambda: closed.append(True)  # type: ignore[method-assign]
    lm = adapted(Likes("Paris"), engine)
    chosen = {name: protocols.protocol(name) for name in ("edge_choices", "edge_answers", "edge_rolling")}
    harness.run(lm, chosen, folder=tasks, limit=1)
    assert closed == [True]
    lm.close()
    assert closed == [True]


@lm_eval
def test_what_was_answered_before_an_interruption_is_not_asked_again(tasks: Path, tmp_path: Path) -> None:
    chosen = {name: protocols.protocol(name) for name in ("edge_choices", "edge_answers")}
    scorer, engine = Likes("Paris"), Says("It is Rome.")
    first = harness.run(adapted(scorer, engine), chosen, folder=tasks, limit=2, cache=tmp_path / "kept")
    assert len(scorer.asked) == 6 and len(engine.asked) == 2
    again = harness.run(adapted(scorer, engine), chosen, folder=tasks, cache=tmp_path / "kept")
    assert len(scorer.asked) == 18 and len(engine.asked) == 3  # the others only
    assert [each.samples for each in first] == [2, 2] and [each.samples for each in again] == [6, 3]


@lm_eval
def test_what_we_do_not_have_is_refused(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    from edge.quality.adapter import sampling_of

    # those of lm-eval itself take a while to be read
    monkeypatch.setattr(harness, "_manager", lambda *_: TaskManager(include_path=str(tasks), include_defaults=False))

    with pytest.raises(UsageError, match="typical_p"):
        sampling_of({"until": ["x"], "typical_p": 0.9})
    drawn = sampling_of({"do_sample": True, "temperature": 0.5, "top_p": 0.9, "max_gen_toks": 7, "until": "x"})
    assert (drawn.temperature, drawn.top_p, drawn.max_new_tokens, drawn.stop) == (0.5, 0.9, 7, ("x",))
    with pytest.raises(UsageError, match="no task 'no_such'"):
        harness.run(adapted(), {"no_such": protocols.protocol("no_such")})
    with pytest.raises(ContextError, match="do not fit"):
        harness.run(adapted(engine=_short()), {"a": protocols.protocol("edge_answers")}, folder=tasks)
    unsafe = tasks / "edge_answers.yaml"  # one that only lm-eval knows to run code
    unsafe.write_text(unsafe.read_text(encoding="utf-8") + "\nunsafe_code: true\n", encoding="utf-8")
    with pytest.raises(UsageError, match="runs programs"):
        harness.run(adapted(engine=Says("Paris")), {"a": protocols.protocol("edge_answers")}, folder=tasks)
    broken = (tasks / "edge_choices.yaml").read_text(encoding="utf-8").replace("choices.jsonl", "gone.jsonl")
    (tasks / "edge_choices.yaml").write_text(broken, encoding="utf-8")
    with pytest.raises(UsageError, match="edge_choices cannot be run"):
        harness.run(adapted(Likes()), {"a": protocols.protocol("edge_choices")}, folder=tasks)


def _short() -> Says:
    engine = Says("Paris")
    engine.context_length = 30
    return engine


@lm_eval
def test_every_protocol_names_a_task_that_lm_eval_has() -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    for each in protocols.BY_NAME.values():
        assert manager.match_tasks([each.task]) == [each.task]


def test_code_is_run_only_where_that_was_asked_for() -> None:
    found = protocols.protocol("humaneval")
    with pytest.raises(UsageError, match="runs programs"):
        protocols.check(found, run_code=False)
    protocols.check(found, run_code=True)
    changed = protocols.protocol("gsm8k", few_shot=0, chat=False)
    assert (changed.task, changed.few_shot, changed.chat) == ("gsm8k", 0, False)
    assert protocols.protocol("arc_easy") == protocols.Protocol("arc_easy")


def test_what_is_not_installed_is_told() -> None:
    with pytest.raises(MissingExtraError, match="glm4-edge\\[eval\\]"):
        harness.require((protocols.Protocol("a", needs=("no_such_module",)),))


def test_scores_of_parts_come_behind_the_whole() -> None:
    told = {
        "results": {
            "math": {"acc,none": 0.25, "acc_stderr,none": 0.1, "alias": "math"},
            "all": {"acc,none": 0.5, "acc_stderr,none": "N/A", "alias": "all", "sample_len": 3},
            "law": {"acc,none": 0.75, "acc_stderr,none": 0.2},
        },
        "group_subtasks": {"all": ["law", "math"]},
        "n-samples": {"math": {"effective": 2}, "law": {"effective": 3}},
        "n-shot": {"math": 5, "law": 5},
    }
    found = harness.tasks_of("mine", protocols.Protocol("all"), told, None, 1.0)
    assert [(each.part, each.value, each.samples, each.stderr, each.few_shot) for each in found] == [
        ("all", 0.5, 5, None, 5), ("math", 0.25, 2, 0.1, 5), ("law", 0.75, 3, 0.2, 5),
    ]  # fmt: skip


@lm_eval
@pytest.mark.model
def test_the_pocket_model_answers_lm_eval(pocket_dir: Path, tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    words = ["quality", str(pocket_dir), "--no-distance", "--tasks", "edge_choices,edge_answers,edge_rolling", "--chat"]
    assert _run([*words, "--tasks-from", str(tasks), "--samples", str(tmp_path / "kept"), "--out", str(out)]) == 0
    (model,) = Record.read(out).models
    scores = {each.task: each for each in model.tasks}
    assert scores["edge_choices"].value >= 4 / 6 and scores["edge_answers"].value >= 2 / 3
    assert scores["edge_rolling"].metric == "bits_per_byte" and 0.3 < scores["edge_rolling"].value < 4
    assert scores["edge_answers"].chat and scores["edge_answers"].samples == 3
    name = pocket_dir.name
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        f"{name}-edge_answers.jsonl", f"{name}-edge_choices.jsonl", f"{name}-edge_rolling.jsonl",
    ]  # fmt: skip
