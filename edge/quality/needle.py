"""Needles in haystacks: a sentence hidden in a long text, asked for at its end, at many lengths and depths.

GLM-4's own chart was made so, with LWM's protocol: a random number for a city, which no model can know from anywhere
else. The sentences here are ours. Answers are greedy, and each prompt is asked alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge.errors import ContextError, UsageError
from edge.messages import Message, Progress, Sampling
from edge.quality.record import Cell, Needles
from edge.runtime.interface import ChatEngine

NEW_TOKENS = 48
"""Room for an answer: seven digits, and some words around them."""
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SHORTEST, _LONGEST = 512, 8192  # of the lengths looked at unless others are named
_SENTENCE = re.compile(
    r"[^.!?。！？\n]{0,400}(?:[.!?。！？]+[”’」\"')]*\s*|\n+|$)"
    r"|[^.!?。！？\n]{1,400}"  # a text without full stops is cut anywhere
)
_LEAST = 0.5  # of a length that is asked for: a shorter prompt would be another test


@dataclass(frozen=True)
class Words:
    """What is said in one language, around the haystack."""

    before: str
    needle: str
    question: str
    cities: tuple[str, ...]


WORDS = {
    "en": Words(
        "Read this text. Somewhere in it stands the secret number of a city.\n\n", "The secret number of {} is {}. ",
        "\n\nWhat is the secret number of {}? Answer with the number.",
        ("Lisbon", "Oslo", "Nairobi", "Toronto", "Hanoi", "Lima", "Dublin", "Perth"),
    ),
    "zh": Words(
        "请阅读下面的文字，其中藏着一座城市的秘密数字。\n\n", "{}的秘密数字是{}。",
        "\n\n{}的秘密数字是多少？只回答这个数字。",
        ("成都", "青岛", "昆明", "西安", "厦门", "长沙", "大连", "桂林"),
    ),
}  # fmt: skip


def language(text: str) -> str:
    """ "zh" where a good part of it is Chinese characters, else "en": what the question is asked in."""
    chinese = sum("\u4e00" <= letter <= "\u9fff" for letter in text)
    return "zh" if chinese > 0.2 * len(text) else "en"


def lengths(context: int) -> tuple[int, ...]:
    """Prompts of so many tokens for a context of so many: doubled each time, and the longest that it takes."""
    most = min(context - NEW_TOKENS, _LONGEST)
    found = []
    length = _SHORTEST
    while length <= most:
        found.append(length)
        length *= 2
    return (*found, most) if not found or most > 1.5 * found[-1] else tuple(found)


def sentences(text: str) -> list[str]:
    """A text in sentences, whose ends stay with them: joined, they are the text."""
    return [each for each in _SENTENCE.findall(text) if each]


def found_in(answer: str, number: str) -> bool:
    """Whether an answer has the number, written with commas or spaces or without."""
    return number in re.sub(r"(?<=\d)[,，\s](?=\d)", "", answer)


def hide(text: Sequence[tuple[str, int]], needle: str, room: int, depth: float) -> str:
    """A haystack with the needle in it.

    Args:
        text: sentences and their tokens; it begins again where it is too short.
        room: tokens of the haystack.
        depth: 0 to 1, how much of the haystack comes before the needle.
    """
    taken: list[tuple[str, int]] = []
    left = room
    place = 0
    while left >= text[place % len(text)][1]:
        taken.append(text[place % len(text)])
        left -= taken[-1][1]
        place += 1
    before, at, total = 0, 0, room - left
    while at < len(taken) and before + taken[at][1] / 2 <= depth * total:
        before += taken[at][1]
        at += 1
    parts = [each for each, _ in taken]
    return "".join([*parts[:at], needle, *parts[at:]])


def run(
    engine: ChatEngine,
    haystacks: Sequence[tuple[str, str]],
    *,
    lengths: Sequence[int],
    depths: Sequence[float] = DEPTHS,
    needles: int = 1,
    progress: Progress = lambda stage, done, total: None,
) -> Needles:
    """Hide needles in haystacks, ask for them, and look for them in the answers.

    Args:
        haystacks: names and texts.
        lengths: of the prompts, template and question included, in tokens.
        needles: in each place, one prompt each.

    Raises:
        UsageError: a length is longer than the context with its answer, or too short for a question.
        EdgeError: the engine's own.
    """
    longest = max(lengths) + NEW_TOKENS
    most = engine.max_prompt if engine.max_prompt is not None else engine.context_length - NEW_TOKENS
    if max(lengths) > most:
        raise ContextError(
            f"a haystack of {max(lengths):,} tokens and its answer do not fit: here a prompt may have {most:,}",
            hint=f"Ask for shorter ones, or for more with --context {longest}.",
        )
    asked = [(name, text, length, depth) for name, text in haystacks for length in lengths for depth in depths]
    cells = []
    counted: dict[str, list[tuple[str, int]]] = {}
    for done, (name, text, length, depth) in enumerate(asked):
        if name not in counted:
            parts = sentences(text)
            counted[name] = [(each, engine.count_tokens(each)) for each in parts]
        cell = Cell(
            length=length, depth=depth, language=language(text), prompt_tokens=[], expected=[], answers=[], found=[]
        )
        for number in range(needles):
            progress(f"needles in {length:,} tokens", done * needles + number, len(asked) * needles)
            _ask(engine, cell, counted[name], random.Random(f"{length} {depth} {number}"))
        cells.append(cell)
    return Needles(haystack=", ".join(name for name, _ in haystacks), cells=cells)


def _ask(engine: ChatEngine, cell: Cell, text: Sequence[tuple[str, int]], draw: random.Random) -> None:
    words = WORDS[cell.language]
    city, number = draw.choice(words.cities), str(draw.randrange(10**6, 10**7))
    needle = words.needle.format(city, number)

    def prompt(room: int) -> list[Message]:
        hidden = hide(text, needle, room, cell.depth)
        return [Message("user", words.before + hidden + words.question.format(city))]

    prompt_tokens = _fit(lambda room: engine.count_tokens(prompt(room)), cell.length)
    if prompt_tokens is None:
        raise UsageError(
            f"a prompt of {cell.length} tokens has no room for a haystack", hint=f"Ask for {_SHORTEST} or more."
        )
    room, count = prompt_tokens
    if count < _LEAST * cell.length:
        raise UsageError(
            f"the haystack's sentences are too long for a prompt of {cell.length:,} tokens: it would have {count:,}",
            hint="Ask for longer ones, or name a text with shorter sentences by --haystack.",
        )
    sampling = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=NEW_TOKENS)
    answer = "".join(chunk.text for chunk in engine.stream(prompt(room), sampling))
    cell.prompt_tokens.append(count)
    cell.expected.append(number)
    cell.answers.append(answer)
    cell.found.append(found_in(answer, number))


def _fit(count: Callable[[int], int], length: int) -> tuple[int, int] | None:
    """Tokens of a haystack whose prompt has at most `length`, and how many it has.

    Sentences counted alone have more tokens or fewer than together: what is over is taken off.
    """
    room = length
    while room > 0:
        tokens = count(room)
        if tokens <= length:
            return room, tokens
        room -= max(tokens - length, 1)
    return None
