"""Everything behind the page in one place: the model, the conversations, the answers and the files dropped on it."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.documents import read as documents
from edge.errors import EdgeError, UsageError
from edge.messages import Message
from edge.runtime.interface import ChatEngine
from edge.ui.web.answering import Answers, Job, sentence
from edge.ui.web.host import Backend, Host
from edge.ui.web.pulse import act, pulse
from edge.ui.web.store import Store
from edge.ui.web.talk import Document, Settings, Talk

_MOST_DRAFTS = 256
_MOST_FILES = 64  # that were dropped and not asked about yet


class Desk:
    """What all tabs share.

    Args:
        backend: finds, exports and loads models.
        folder: where conversations are kept.
        settings: of new conversations.
    """

    def __init__(self, backend: Backend, folder: Path, settings: Settings) -> None:
        self.remarks: list[str] = []
        self.host = Host(backend, self._warm_up)
        self.store = Store(folder, self.remarks.append)
        self.answers = Answers(self.store, self.host.need_engine)
        self.settings = settings
        self._files: OrderedDict[str, Document] = OrderedDict()
        self._drafts: OrderedDict[str, Talk] = OrderedDict()  # conversations in which nothing was said yet
        self._lock = threading.Lock()

    def pulse(self, asked: Any) -> dict[str, Any]:
        """See `pulse.pulse`."""
        return pulse(self.host, self.store, self.answers, asked if isinstance(asked, dict) else {}, self.remarks)

    def act(self, wanted: Any) -> dict[str, Any]:
        """See `pulse.act`."""
        return act(self.host, self.store, self.answers, wanted if isinstance(wanted, dict) else {})

    def read(self, path: Path, name: str) -> dict[str, Any]:
        """Read a dropped file and count it; `error` is a sentence where that cannot be."""
        try:
            engine = self.host.need_engine()
            document = documents.read(path, name)
            tokens = engine.count_tokens([Message("user", document.text)])
        except EdgeError as error:
            return {"error": sentence(error).replace(str(path), name)}
        key = secrets.token_hex(8)
        kept = Document(name=name, text=document.text, tokens=tokens, unit=document.unit, marks=list(document.marks))
        with self._lock:
            self._files[key] = kept
            while len(self._files) > _MOST_FILES:
                self._files.popitem(last=False)
        remarks = " ".join(f"{remark}." for remark in document.remarks)
        return {"key": key, "name": name, "tokens": tokens, "context": engine.context_length, "remarks": remarks}

    def settle(self, talk: Talk, put: Callable[[Talk], None]) -> Talk:
        """Change the settings of a conversation, whether it is on disk yet or not; several knobs may turn at once.

        Raises:
            EdgeError: see `Store.change`.
        """
        with self._lock:
            if not talk.turns:
                draft = self._drafts.setdefault(talk.id, talk)
                put(draft)
                while len(self._drafts) > _MOST_DRAFTS:
                    self._drafts.popitem(last=False)
                return draft.model_copy(deep=True)
        return self.store.change(talk.id, put, touch=False)[0]

    def begin(self, talk: Talk, text: str, files: list[Document]) -> Job:
        """See `Answers.begin`."""
        with self._lock:
            talk = self._drafts.get(talk.id, talk)
        return self.answers.begin(talk, text, files)

    def take(self, keys: list[str]) -> list[Document]:
        """The dropped files that a question is about.

        Raises:
            UsageError: one is no longer there.
        """
        with self._lock:
            missing = [key for key in keys if key not in self._files]
            if missing:
                raise UsageError("a file of this question is no longer there", hint="Drop it again.")
            return [self._files[key] for key in keys]

    def close(self) -> None:
        """End and keep what is under way, and give the model back."""
        self.answers.stop_all()
        self.host.close()

    def _warm_up(self, engine: ChatEngine) -> None:
        def work() -> None:
            with contextlib.suppress(EdgeError):  # the first answer meets the same fault, and says it
                engine.warm_up()

        threading.Thread(target=work, name="warm-up", daemon=True).start()  # while the visitor types
