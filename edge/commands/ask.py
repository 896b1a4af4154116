"""`glm4-edge ask`: a question about files."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.commands.chat import _loaded, _sampling_options, _taken
from edge.errors import ContextError, UsageError
from edge.report import progress_lines, say

if TYPE_CHECKING:
    from edge.documents.document import Document
    from edge.documents.window import Prompt, Read
    from edge.messages import Message, Sampling
    from edge.runtime.interface import ChatEngine


@click.command()
@click.argument("question", required=False)
@click.option(
    "--file",
    "files",
    multiple=True,
    required=True,
    metavar="FILE",
    help="What to ask about; may be given several times.",
)
@click.option(
    "--model",
    default="pocket",
    show_default=True,
    help="A folder that `glm4-edge export` made, or a name; as for chat.",
)
@click.option(
    "--window",
    is_flag=True,
    help="Of files that do not fit, read the passages nearest to the question; say what is left out.",
)
@click.option("--json", "as_json", is_flag=True, help="Print answer, usage, files and what was left out as JSON.")
@partial(_sampling_options, turns=False)
def ask(
    question: str | None, files: tuple[str, ...], model: str, window: bool, as_json: bool, system: str | None,
    stop: tuple[str, ...], **options: Any,
) -> None:  # fmt: skip
    """Ask QUESTION about files: pdf, docx, pptx, csv, json, md, txt and other text, such as programs.

    The question may also be piped in. How many tokens the files have is said first. Where they are more than the
    context has room for, nothing is answered, unless --window is given: then the first passage of each file and
    those that share the rarest words with the question are read, and it is said which pages, slides, paragraphs,
    rows or lines are not. To ask about all of a long file, give a longer --context.

    Text is read, and the tables and notes of documents; pictures are not, nor scanned pages, headers and comments.
    Text may be in UTF-8, UTF-16 or GB 18030.

    \b
    Examples:
      glm4-edge ask --file report.pdf "What did the year cost?"
      glm4-edge ask --model ./glm4-int4 --context 65536 --file a.docx --file b.pptx "Where do they differ?"
      glm4-edge ask --file long.pdf --window "Who signed the contract?" --json
      echo "What does this program do?" | glm4-edge ask --file main.py
    """
    from edge.messages import Sampling
    from edge.runtime import sampling as samplings
    from edge.ui import terminal

    asked = Sampling(stop=stop, **_taken(options, Sampling))
    samplings.check(asked)
    documents: list[Document] = []

    def read() -> str:
        said = _question(question)
        documents.extend(_read(files))
        return said

    with _loaded(model, read=read, overflow="refuse", **options) as (engine, said):
        assert said is not None
        way_out = partial(_way_out, model, engine.manifest.architecture.context_length)
        prompt = prepared(engine, documents, said, asked, system, windowed=window, way_out=way_out)
        engine.warm_up()
        if as_json:
            click.echo(json.dumps(_answered(engine, prompt, asked, system), indent=2, ensure_ascii=False))
        else:
            terminal.answer_once(engine, prompt.text, sampling=asked, system=system)


def _question(given: str | None) -> str:
    from edge.ui import terminal

    if given is None and not sys.stdin.isatty():
        return terminal.read_prompt(command="ask --file FILE")
    if given is None or not given.strip():
        raise UsageError(
            "there is no question", hint='Write it last: glm4-edge ask --file report.pdf "What is it about?"'
        )
    return given.strip()


def _read(files: Sequence[str]) -> list[Document]:
    """Each file once; those that are called the same, by the path that was given."""
    from edge.documents.read import read

    paths = {Path(file).expanduser().resolve(): Path(file).expanduser() for file in reversed(files)}
    given = list(reversed(paths.values()))
    names = [path.name for path in given]
    with progress_lines() as progress:
        return [
            read(path, path.name if names.count(path.name) == 1 else path.as_posix(), progress=progress)
            for path in given
        ]


def prepared(
    engine: ChatEngine, documents: Sequence[Document], question: str, sampling: Sampling, system: str | None, *,
    windowed: bool, way_out: Callable[[int], str],
) -> Prompt:  # fmt: skip
    """What the model is asked; says on standard error how long that is, and what of it is left out.

    Args:
        windowed: leave out what does not fit.
        way_out: what else to do where it does not fit, from the tokens of context that it would take.

    Raises:
        ContextError: it does not fit and `windowed` is false, or not even a part of it does.
    """
    from edge.documents import window
    from edge.runtime.context import answer_reserve, context_for
    from edge.runtime.fitting import prompt_room

    def count(text: str) -> int:
        return engine.count_tokens(_messages(text, system))

    for remark in (remark for document in documents for remark in document.remarks):
        say(f"{remark}.")
    prompt = window.whole(documents, question, count)
    room = prompt_room(engine, sampling.max_new_tokens)
    reserve = answer_reserve(engine.context_length, sampling.max_new_tokens)
    for file in prompt.files:
        say(f"{file.document.name}: {_extent(file)}, {_tokens(file, count):,} tokens")
    say(f"With the question {prompt.tokens:,} tokens; {room:,} fit.")
    if prompt.tokens <= room:
        return prompt
    if not windowed:
        needed = context_for(prompt.tokens, sampling.max_new_tokens)
        raise ContextError(
            f"the question and its {_many(len(documents), 'file')} have {prompt.tokens:,} tokens, and {room:,} fit "
            f"into a context of {engine.context_length:,} that keeps {reserve:,} for the answer",
            hint=f"--window reads the passages nearest to the question. {way_out(needed)}",
        )
    prompt = window.window(documents, question, count, room)
    for file in prompt.files:
        if file.left:
            say(f"{file.document.name}: {_percent(file.share)} is read. Left out: {file.left_places()}.")
    say(f"What is left has {prompt.tokens:,} tokens.")
    return prompt


def _way_out(model: str, longest: int, needed: int) -> str:
    """What to do about a prompt that is too long, besides leaving out some of it."""
    if needed > longest:
        return f"More context does not help: the model reads {longest:,} tokens at most."
    return (
        f"The model reads up to {longest:,}, so --context {needed} takes all of it, if memory does: "
        f"`glm4-edge plan {model} --context {needed}` says."
    )


def _answered(engine: ChatEngine, prompt: Prompt, sampling: Sampling, system: str | None) -> dict[str, Any]:
    """The answer with its numbers, for a program. What is to be told of it on the way goes to standard error."""
    pieces: list[str] = []
    usage = None
    with contextlib.closing(engine.stream(_messages(prompt.text, system), sampling)) as chunks:
        for chunk in chunks:
            if chunk.notice:
                say(chunk.notice)
            if chunk.restart:
                pieces.clear()
            pieces.append(chunk.text)
            usage = chunk.usage or usage
    assert usage is not None
    return {
        "model": engine.name,
        "device": engine.device,
        "answer": "".join(pieces),
        "finish_reason": usage.finish_reason,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "ttft_seconds": usage.ttft_seconds,
            "tokens_per_second": usage.tokens_per_second,
        },
        "files": [
            _file_facts(file, lambda text: engine.count_tokens(_messages(text, system))) for file in prompt.files
        ],
    }


def _file_facts(file: Read, count: Any) -> dict[str, Any]:
    document = file.document
    return {
        "name": document.name,
        f"{document.unit}s": len(document.marks),
        "characters": len(document.text),
        "tokens_read": _tokens(file, count),
        "share_read": round(file.share, 4),
        "left_out": {"where": file.left_places(), "characters": [list(span) for span in file.left]}
        if file.left
        else None,
        "remarks": list(document.remarks),
    }


def _messages(text: str, system: str | None) -> list[Message]:
    from edge.messages import Message

    return [*([Message("system", system)] if system else []), Message("user", text)]


def _tokens(file: Read, count: Any) -> int:
    return int(count(file.text) - count(""))


def _extent(file: Read) -> str:
    return _many(len(file.document.marks), file.document.unit)


def _many(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def _percent(share: float) -> str:
    return f"{share:.0%}" if 0.01 <= share <= 0.99 else f"{share:.2%}"
