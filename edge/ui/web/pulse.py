"""What every tab asks for each second: the list, the machine's numbers, what is being loaded. Pure but for psutil."""

from __future__ import annotations

import contextlib
import time
import uuid
from typing import Any

from edge.errors import EdgeError, UsageError
from edge.ui.web import kept_as, words
from edge.ui.web.answering import Answers, sentence
from edge.ui.web.host import Host
from edge.ui.web.store import Store

_MODELS = "edge.runtime.hosting"
"""Is in the command of a process that runs a model."""
_MOST_ENTRIES = 300
_BORN = uuid.uuid4().hex
"""Of this program: a tab that has known another begins anew, and finds everything as it was."""


def pulse(host: Host, store: Store, answers: Answers, asked: dict[str, Any], remarks: list[str]) -> dict[str, Any]:
    """The state of everything.

    Args:
        asked: `words` to search for, `open`: the conversation that the tab shows.
        remarks: what has to be told to the user since the program began.
    """
    running = {job.talk.id for job in answers.running()}
    try:
        found = store.entries(str(asked.get("words") or ""))
        entries = [
            {"id": entry.id, "title": entry.title, "changed": entry.changed, "busy": entry.id in running}
            for entry in found[:_MOST_ENTRIES]
        ]
    except EdgeError as error:
        entries, remarks = [], [*remarks, sentence(error)]
    shown = str(asked.get("open") or "")
    revision = None
    if shown:
        try:
            revision = store.get(shown).revision
        except EdgeError:
            revision = None
    said = words.named(asked)
    state, facts = host.state(), machine(host, answers)
    if state["error"]:
        state["error"] = words.told(state["error"], said)
    if "why" in facts:
        facts["why"] = [words.told(line, said) for line in facts["why"]]
    return {
        "born": _BORN,
        "entries": entries,
        "open": {"id": shown, "revision": revision, "busy": shown in running},
        "host": state,
        "machine": facts,
        "remarks": [words.told(line, said) for line in remarks],
    }


def machine(host: Host, answers: Answers) -> dict[str, Any]:
    """Device, speed, context and memory, as they are now. A number that is not known is None."""
    import psutil

    memory, engine = psutil.virtual_memory(), host.engine
    facts: dict[str, Any] = {
        "memory_bytes": _memory_bytes(),
        "memory_free_bytes": memory.available,
        "memory_total_bytes": memory.total,
        "session": [
            {"ttft": figures.ttft_seconds, "speed": figures.tokens_per_second, "tokens": figures.completion_tokens}
            for figures in list(answers.session)
        ],
    }
    if engine is None:
        return facts
    facts |= {
        "model": engine.name, "adapters": list(engine.always_on), "device": engine.device,
        "context_length": engine.context_length, "why": host.remarks,
        "doing": "idle", "ttft": None, "speed": None, "context_used": None,
    }  # fmt: skip
    job = answers.latest
    if job is None:
        return facts
    if not job.ended.is_set():
        ttft, speed = job.ttft_seconds, job.tokens_per_second()
        facts["doing"] = "writes" if job.tokens else "reads"
        if ttft is None:
            ttft = time.perf_counter() - job.started
    else:
        figures = job.turn.figures
        ttft = figures.ttft_seconds if figures else None
        speed = figures.tokens_per_second if figures else None
    used = None if job.prompt_tokens is None else job.prompt_tokens + job.tokens
    return facts | {"ttft": ttft, "speed": speed, "context_used": used}


def _memory_bytes() -> int:
    """Of this program, and of the processes in which its models are; a browser that it has opened is none of it."""
    import psutil

    total, own = 0, psutil.Process()
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if process == own or any(_MODELS in part for part in process.cmdline()):
                total += process.memory_info().rss
    return total


def act(host: Host, store: Store, answers: Answers, wanted: dict[str, Any]) -> dict[str, Any]:
    """Do what a button of the page's own script says; `error` is a sentence where it could not be done."""
    try:
        return _act(host, store, answers, wanted)
    except EdgeError as error:
        return {"error": words.told(sentence(error), words.named(wanted))}


def _act(host: Host, store: Store, answers: Answers, wanted: dict[str, Any]) -> dict[str, Any]:
    verb, name = str(wanted.get("do")), str(wanted.get("id") or "")
    if verb == "rename":
        store.change(name, lambda talk: talk.rename(str(wanted.get("title") or "")), touch=False)
    elif verb == "delete":
        if (job := answers.job(name)) is not None:
            job.stop()
            job.over.wait(10)
        store.delete(name)
    elif verb in ("markdown", "json"):
        talk = store.get(name)
        model = host.engine.name if host.engine is not None else "glm4-edge"
        make, ending = (kept_as.markdown, "md") if verb == "markdown" else (kept_as.as_json, "json")
        return {"name": kept_as.file_name(talk, ending), "text": make(talk, model)}
    elif verb == "choose":
        host.choose(str(wanted.get("model") or ""))
    elif verb == "export":
        host.export(str(wanted.get("model") or ""))
    elif verb == "stop":
        host.stop()
    elif verb == "back":
        host.back()
    elif verb == "made":
        return {"made": [{"model": model, "folder": str(folder)} for model, folder in host.backend.made()]}
    else:
        raise UsageError(f"{verb!r} is no action", hint="Reload the page: it is of another version.")
    return {}
