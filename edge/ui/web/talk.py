"""One conversation as it is kept: its turns, its settings, and what may be done to it. Pure."""

from __future__ import annotations

import time
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edge.documents import document as documents
from edge.documents.document import Unit
from edge.errors import UsageError
from edge.messages import Sampling

TITLE_LENGTH = 60
Ending = Literal["stop", "length", "cancelled", "partial"]
"""Why an answer ended; "partial": it is being written, or the program ended on the way."""


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Step(_Kept):
    """A call of a tool inside an answer, and what the tool gave."""

    name: str
    arguments: str
    """JSON, or whatever the model wrote for it."""
    result: str | None = None
    """None: it has not given anything yet."""
    failed: bool = False
    before: str = ""
    """What the model said before it called."""


class Figures(_Kept):
    """Numbers of one answer; None is what could not be measured."""

    prompt_tokens: int
    completion_tokens: int
    ttft_seconds: float | None = None
    tokens_per_second: float | None = None
    device: str = ""


class Document(_Kept):
    """A file that questions are asked about: its text, and what `edge.documents` knows of it."""

    name: str
    text: str
    tokens: int
    unit: Unit = "line"
    marks: list[int] = Field(default_factory=lambda: [0])

    def read(self) -> documents.Document:
        """As it was read from the file."""
        return documents.Document(self.name, self.text, self.unit, tuple(self.marks))


class Turn(_Kept):
    """What one side said."""

    role: Literal["user", "assistant"]
    content: str = ""
    thought: str = ""
    steps: list[Step] = Field(default_factory=list)
    ending: Ending | None = None
    """Of an answer."""
    notices: list[str] = Field(default_factory=list)
    failed: bool = False
    """The last notice says why there is no answer, or why it ends."""
    figures: Figures | None = None
    documents: list[Document] = Field(default_factory=list)
    """Of a question: what was dropped with it."""
    asked: str = ""
    """Of such a question: what the model reads, with the files or what of them fits."""


class Settings(_Kept):
    """How this conversation is answered; None leaves a value to the model."""

    system: str | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2)
    seed: int | None = Field(default=None, ge=0)
    max_new_tokens: int | None = Field(default=None, ge=1)
    stop: list[str] = Field(default_factory=list)
    tools: bool = False

    def sampling(self) -> Sampling:
        """What the engine is asked with."""
        values = self.model_dump(exclude={"system", "tools", "stop"})
        return Sampling(**values, stop=tuple(self.stop))


class Talk(_Kept):
    """A conversation; its file holds just this."""

    format: Literal["glm4-edge conversation 2"] = "glm4-edge conversation 2"
    id: str
    title: str = ""
    named: bool = False
    """The title was given by the user, not taken from the first message."""
    created: float = Field(default_factory=time.time)
    changed: float = Field(default_factory=time.time)
    """Seconds since 1970."""
    revision: int = 0
    """Grows with every change; who shows an older one shows what is no longer so."""
    settings: Settings = Field(default_factory=Settings)
    turns: list[Turn] = Field(default_factory=list)

    @property
    def answering(self) -> bool:
        """Whether the last turn is an answer that was begun and not ended."""
        return bool(self.turns) and self.turns[-1].ending == "partial"

    def ask(self, text: str, files: list[Document] | None = None) -> None:
        """Add a question, and the answer that begins."""
        self.turns.append(Turn(role="user", content=text, documents=files or []))
        self.turns.append(Turn(role="assistant", ending="partial"))
        if not self.named and not self.title:
            self.title = title_from(text) or (files[0].name if files else "")

    def cut(self, index: int) -> Turn:
        """Take away the question that turn `index` is or answers, and all that follows; the question comes back.

        Raises:
            UsageError: there is no such turn.
        """
        while 0 <= index < len(self.turns) and self.turns[index].role != "user":
            index -= 1
        if not 0 <= index < len(self.turns):
            raise UsageError(
                f"turn {index} is not in this conversation", hint="Reload the page: it shows an old state."
            )
        question = self.turns[index]
        del self.turns[index:]
        if not self.turns and not self.named:
            self.title = ""
        return question

    def rename(self, title: str) -> None:
        """Give it a title; an empty one is taken from the first message again."""
        title = " ".join(title.split())[:200]
        self.named = bool(title)
        self.title = title or (title_from(self.turns[0].content) if self.turns else "")

    def holds(self, words: str) -> bool:
        """Whether every one of the words, by spaces, stands somewhere in it."""
        said = [turn.content for turn in self.turns]
        said += [document.name for turn in self.turns for document in turn.documents]
        text = "\n".join([self.title, *said]).casefold()
        return all(word in text for word in words.casefold().split())


def title_from(text: str) -> str:
    """The first line of a message, cut after a word where there is one."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "").lstrip("#>*- ")
    if len(line) <= TITLE_LENGTH:
        return line
    short = line[:TITLE_LENGTH]
    head, space, _ = short.rpartition(" ")
    return (head if space and len(head) > TITLE_LENGTH // 2 else short).rstrip(" ,;:.") + " …"
