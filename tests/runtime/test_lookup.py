"""Prompt lookup: guessed tokens are checked, so that the answers are the model's own, in fewer steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from edge.errors import UsageError
from edge.grammar import Amid, Grammar, InTurn, JsonOf, Literally, Matching, OneOf
from edge.infer import EXACT
from edge.messages import Message, Sampling, Usage
from edge.runtime.engine import Engine
from edge.runtime.settings import Settings

PARAGRAPH = (
    "The lighthouse at Skerry Point was built in 1847 by a Scottish engineer named Alan Reid. It stands forty metres "
    "above the sea, and its lamp can be seen from a distance of thirty kilometres. For more than a century three "
    "keepers lived in the tower, until the light was made automatic in 1971."
)
LIST = "\n".join(f"{i}. Item number {i} costs {i * 7 % 90} dollars and weighs {i * 13 % 50} kg." for i in range(1, 40))
COPY = f"Copy the following text, but write 1850 instead of 1847:\n\n{PARAGRAPH}"
QUOTE = f"{PARAGRAPH}\n\nQuote the sentence above that says who built the lighthouse, word for word."
CODE = "Repeat this code exactly:\n\ndef add(first, second):\n    return first + second\n\ndef sub(first, second):\n"
LINES = f"{LIST}\n\nCopy the lines from number 12 to number 16."
CAPITAL = "What is the capital of France?"
STORY = "Write a long story about a lighthouse."
ASKED = {"copy": COPY, "quote": QUOTE, "code": CODE, "lines": LINES, "capital": CAPITAL, "story": STORY}
GREEDY = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=60)
SAMPLINGS = {
    "greedy": GREEDY,
    "the checkpoint's penalty": replace(GREEDY, repetition_penalty=None),
    "other penalties": replace(GREEDY, frequency_penalty=0.5, presence_penalty=0.3),
    "drawn": replace(GREEDY, temperature=0.8, top_p=0.9, seed=7),
    "one token": replace(GREEDY, max_new_tokens=1),
    "a few tokens": replace(GREEDY, max_new_tokens=4),
}
GRAMMARS: dict[str, Grammar] = {
    "json": JsonOf(
        '{"type": "object", "properties": {"builder": {"type": "string", "maxLength": 40}, "year": '
        '{"type": "integer"}}, "required": ["builder", "year"], "additionalProperties": false}'
    ),
    "pattern": Matching("[A-Z][a-z]{2,8} Reid, 18[0-9]{2}"),
    "choice": OneOf((Literally("the keepers"), Literally("Alan Reid"), Literally("nobody"))),
    "amid": Amid((("The ", InTurn((Literally("lighthouse at "), Matching("[A-Z][a-z]+ Point")))),)),
}


@pytest.fixture(scope="module")
def own(pocket_dir: Path) -> Iterator[Engine]:
    with Engine.load(pocket_dir, Settings("CPU", EXACT, context=4096)) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def guessing(pocket_dir: Path) -> Iterator[Engine]:
    with Engine.load(pocket_dir, Settings("CPU", EXACT, context=4096, prompt_lookup=True)) as loaded:
        yield loaded


def said(engine: Engine, asked: str | Sequence[Message], sampling: Sampling) -> tuple[tuple[int, ...], str, Usage]:
    messages = [Message("user", asked)] if isinstance(asked, str) else asked
    chunks = list(engine.stream(messages, sampling))
    usage = chunks[-1].usage
    assert usage is not None
    ids = tuple(token for chunk in chunks for token in chunk.token_ids)
    return ids, "".join(chunk.text for chunk in chunks), usage


@pytest.mark.model
class TestAnswersAreTheModelsOwn:
    @pytest.mark.parametrize("question", ASKED)
    def test_greedy(self, own: Engine, guessing: Engine, question: str) -> None:
        self.compare(own, guessing, question, "greedy")

    @pytest.mark.heavy
    @pytest.mark.parametrize("how", SAMPLINGS)
    def test_otherwise(self, own: Engine, guessing: Engine, how: str) -> None:
        """The penalty is the checkpoint's own, which GenAI forgets where it guesses."""
        self.compare(own, guessing, "lines", how)

    def compare(self, own: Engine, guessing: Engine, question: str, how: str) -> None:
        ids, _, usage = said(own, ASKED[question], SAMPLINGS[how])
        got, _, guessed = said(guessing, ASKED[question], SAMPLINGS[how])
        assert got == ids
        assert (guessed.finish_reason, guessed.completion_tokens) == (usage.finish_reason, usage.completion_tokens)

    @pytest.mark.heavy
    @pytest.mark.parametrize("kind", GRAMMARS)
    @pytest.mark.parametrize("question", ["copy", "story"])
    def test_in_a_form_that_is_prescribed(self, own: Engine, guessing: Engine, question: str, kind: str) -> None:
        sampling = replace(GREEDY, grammar=GRAMMARS[kind])
        assert said(guessing, ASKED[question], sampling)[1] == said(own, ASKED[question], sampling)[1] != ""

    def test_log_probabilities(self, own: Engine, guessing: Engine) -> None:
        def told(engine: Engine) -> list[float]:
            chunks = engine.stream([Message("user", COPY)], replace(GREEDY, log_probs=True))
            return [value for chunk in chunks for value in chunk.log_probs]

        assert told(guessing) == pytest.approx(told(own), abs=1e-3)

    def test_a_stop_string_in_the_middle_of_what_was_guessed(self, own: Engine, guessing: Engine) -> None:
        sampling = replace(GREEDY, stop=("Scottish engineer",))
        assert said(guessing, COPY, sampling)[1] == said(own, COPY, sampling)[1] != ""

    def test_over_several_turns_that_begin_in_the_cache(self, own: Engine, guessing: Engine) -> None:
        talk: list[Message] = []
        for question in (COPY, "Once more, please.", "Who built it?", "Now repeat your first answer."):
            talk.append(Message("user", question))
            ids, text, _ = said(own, talk, GREEDY)
            got, _, guessed = said(guessing, talk, GREEDY)
            assert got == ids
            assert guessed.cached_tokens is None, "which part of an answer is kept is not foreseen here"
            talk.append(Message("assistant", text))

    def test_at_once_and_with_some_that_are_given_up(self, own: Engine, guessing: Engine) -> None:
        questions = [*ASKED.values()] * 2
        expected = [said(own, question, GREEDY)[0] for question in questions[: len(ASKED)]] * 2

        def leave(number: int) -> None:
            stream = guessing.stream([Message("user", STORY)], replace(GREEDY, max_new_tokens=500))
            for _ in range(number):
                next(stream)
            stream.close()

        with ThreadPoolExecutor(12) as pool:
            gone = [pool.submit(leave, number) for number in range(1, 9)]
            got = list(pool.map(lambda question: said(guessing, question, GREEDY)[0], questions))
            assert [each.result() for each in gone] == [None] * 8
        assert got == expected


@pytest.mark.model
def test_a_step_takes_several_tokens(guessing: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[int] = []
    generate = guessing._generate
    monkeypatch.setattr(
        guessing,
        "_generate",
        lambda ids, config, write, reading, *on: generate(
            ids,
            config,
            lambda new, *more: (pieces.append(len(new)) if new else None, write(new, *more))[1],
            reading,
            *on,
        ),
    )
    _, _, usage = said(guessing, COPY, GREEDY)
    assert sum(pieces) == usage.completion_tokens == 60
    assert len(pieces) < usage.completion_tokens / 3


@pytest.mark.model
class TestAFullCache:
    """GenAI takes guesses for said where a step has no room for an answer: there always has to be."""

    QUESTIONS = (COPY, QUOTE, CODE, CAPITAL, STORY)

    @pytest.mark.heavy
    def test_answers_at_once_that_do_not_fit_together(self, own: Engine, pocket_dir: Path) -> None:
        sampling = replace(GREEDY, max_new_tokens=None)
        with Engine.load(pocket_dir, Settings("CPU", EXACT, context=400)) as engine:
            expected = [said(engine, question, sampling)[0] for question in self.QUESTIONS]
        with Engine.load(pocket_dir, Settings("CPU", EXACT, context=400, prompt_lookup=True)) as engine:
            with ThreadPoolExecutor(len(self.QUESTIONS)) as pool:
                got = list(pool.map(lambda question: said(engine, question, sampling)[0], self.QUESTIONS))
            assert got == expected
            assert max(map(len, got)) > 256, "the longest goes on to the context's end"

    @pytest.mark.heavy
    def test_many_that_give_up_make_room_before_the_next_begins(self, own: Engine, pocket_dir: Path) -> None:
        with Engine.load(pocket_dir, Settings("CPU", EXACT, context=256, prompt_lookup=True)) as engine:
            for number in range(1, 6):
                gone = engine.stream([Message("user", STORY)], replace(GREEDY, max_new_tokens=None))
                for _ in range(number):
                    next(gone)
                gone.close()
                assert said(engine, CODE, GREEDY)[0] == said(own, CODE, GREEDY)[0]


class TestRefused:
    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            ({"sparse": "trishape"}, "--sparse"),
            ({"evict_beyond": 256}, "--evict-beyond"),
            ({"properties": {"ATTENTION_BACKEND": "SDPA"}}, "SDPA"),
            ({"device": "HETERO:GPU,CPU"}, "HETERO:GPU,CPU"),
        ],
    )
    @pytest.mark.model
    def test_with_what_it_does_not_go(self, pocket_dir: Path, changed: dict[str, object], named: str) -> None:
        settings = replace(Settings("CPU", prompt_lookup=True), **changed)  # type: ignore[arg-type]
        with pytest.raises(UsageError) as caught:
            Engine.load(pocket_dir, settings)
        assert named in caught.value.message
