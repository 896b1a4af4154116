"""A conversation as a file for other programs: Markdown to read, JSON that `glm4-edge chat` loads again. Pure."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone

from edge.documents.wrap import wrap
from edge.runtime.context import FORMAT
from edge.ui.web.talk import Talk, Turn

_BAD_IN_NAMES = re.compile(r'[\x00-\x1f<>:"/\\|?*]+')


def file_name(talk: Talk, ending: str) -> str:
    """A name for the file that Windows takes, too."""
    stem = _BAD_IN_NAMES.sub(" ", talk.title.removesuffix(" …"))
    return f"{' '.join(stem.split()).strip('. ')[:80] or talk.id}.{ending}"


def markdown(talk: Talk, model: str) -> str:
    """The conversation to be read."""
    when = datetime.fromtimestamp(talk.created, timezone.utc)
    parts = [f"# {talk.title or talk.id}", f"*{model}, {when:%Y-%m-%d %H:%M} UTC*"]
    if talk.settings.system:
        parts += ["## System", talk.settings.system]
    for turn in talk.turns:
        parts += ["## " + ("You" if turn.role == "user" else "Answer"), *_parts(turn)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _parts(turn: Turn) -> list[str]:
    parts = [f"*{document.name}, {document.tokens:,} tokens*" for document in turn.documents]
    for step in turn.steps:
        fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", f"{step.arguments}{step.result}")), 3)
        parts += [step.before, f"{fence}\n{step.name} {step.arguments}\n→ {step.result or ''}\n{fence}"]
    parts.append(turn.content)
    if turn.ending in ("cancelled", "partial"):
        parts.append("*(stopped)*")
    return parts


def as_json(talk: Talk, model: str) -> str:
    """What `/load` of `glm4-edge chat` reads; steps of tools are turns of their own there."""
    messages: list[dict[str, str]] = []
    for turn in talk.turns:
        if turn.role == "user":
            messages.append({"role": "user", "content": _question(turn)})
            continue
        for step in turn.steps:
            said = "\n".join(part for part in (step.before, f"{step.name}\n{step.arguments}") if part)
            messages += [{"role": "assistant", "content": said}, {"role": "observation", "content": step.result or ""}]
        ending = "cancelled" if turn.ending == "partial" else turn.ending or "stop"
        messages.append({"role": "assistant", "content": turn.content, "finish_reason": ending})
    content = {"format": FORMAT, "model": model, "system": talk.settings.system, "messages": messages}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _question(turn: Turn) -> str:
    """As the model reads it, the files with it."""
    return turn.asked or (wrap([(each.name, each.text) for each in turn.documents], turn.content)
                          if turn.documents else turn.content)  # fmt: skip
