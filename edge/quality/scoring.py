"""How likely a model finds a continuation of a context: what tasks with several choices are answered by.

Questions of a task begin alike: with the same examples, or with the same question before each choice. So they are put
in an order in which neighbours share a beginning, which is read once, and their ends are read side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import ContextError, VerificationError
from edge.infer import infer_rows
from edge.manifest import Manifest
from edge.messages import Progress
from edge.runtime import parity, readout
from edge.runtime.likeness import next_log_probs

_TOKENS = 512
"""Read in one call, of all rows together: 310 MB of logits, with GLM-4's vocabulary."""
_BEGINNING = 128
"""Of a beginning that several share; its logits are thrown away."""
_ROWS = 16


@dataclass(frozen=True)
class Asked:
    """Tokens, and those that may follow them: one of either at least."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Scored:
    """What the model thinks of a continuation."""

    log_probs: tuple[float, ...]
    """Of each of its tokens given all before it, in nats."""
    greedy: bool
    """Whether it is what the model would have said."""

    @property
    def total(self) -> float:
        """Of the whole continuation."""
        return sum(self.log_probs)


@dataclass(frozen=True)
class Row:
    """A text that is read once for all who ask about it."""

    tokens: tuple[int, ...]
    first: int
    """The earliest place whose logits are asked for."""
    asked: tuple[int, ...]
    """Who asks, by their places."""


@dataclass(frozen=True)
class Group:
    """Rows read side by side after a beginning that they share."""

    shared: int
    rows: tuple[Row, ...]


Run = Callable[[NDArray[np.int64], int, "NDArray[np.int32] | None"], NDArray[np.float32]]


class Scorer:
    """An exported model whose logits are all read, through OpenVINO's own (stateful) attention.

    Args:
        device: by its name, as `parity.place` gives it.
        exact: in full precision, rather than as chat runs it.
        extra: properties of the plugin that go before those of chat.

    Raises:
        ModelError: the folder holds no model.
        DeviceError: the device does not take it.
    """

    def __init__(
        self, folder: Path, device: str, *, exact: bool = False, extra: Mapping[str, Any] | None = None
    ) -> None:
        manifest = Manifest.read(folder)
        self.properties = parity.properties(device, manifest, exact=exact, extra=extra)
        self.context_length = manifest.architecture.context_length
        self._request: Any = readout.request(folder, device, self.properties)

    def score(
        self,
        asked: Sequence[Asked],
        progress: Progress = lambda stage, done, total: None,
        stage: str = "reading",
        keep: Callable[[int, Scored], None] = lambda place, scored: None,
    ) -> list[Scored]:
        """Score continuations, in the order in which they are asked for.

        Args:
            keep: told each, by its place, as soon as it is known.

        Raises:
            ContextError: one is longer than the model reads.
            VerificationError: the model's numbers are not finite.
        """
        for each in asked:
            length = len(each.context) + len(each.continuation)
            if length - 1 > self.context_length:
                raise ContextError(
                    f"a text of {length:,} tokens is longer than the {self.context_length:,} that the model reads",
                    hint="Shorten it, or ask with fewer examples.",
                )
        found: dict[int, Scored] = {}
        for group in groups(rows_of(asked)):
            progress(stage, len(found), len(asked))
            self._request.reset_state()
            scored = score_group(group, asked, self._run)
            for place, one in scored.items():
                keep(place, one)
            found |= scored
        return [found[place] for place in range(len(asked))]

    def _run(self, tokens: NDArray[np.int64], past: int, rows: NDArray[np.int32] | None) -> NDArray[np.float32]:
        return infer_rows(self._request, tokens, past, rows)


def rows_of(asked: Sequence[Asked]) -> list[Row]:
    """The different texts among what is asked, in an order in which neighbours share a beginning.

    A continuation's last token need not be read: choices of one token are all told after the context.
    """
    found: dict[tuple[int, ...], list[int]] = {}
    for place, each in enumerate(asked):
        found.setdefault((*each.context, *each.continuation[:-1]), []).append(place)
    return [
        Row(tokens, min(len(asked[place].context) - 1 for place in places), tuple(places))
        for tokens, places in sorted(found.items())
    ]


def groups(rows: Sequence[Row]) -> list[Group]:
    """Neighbours together, as long as reading them so takes fewer tokens than reading the next one alone."""
    found: list[Group] = []
    members: list[Row] = []
    for row in rows:
        more = [*members, row]
        if members and (len(more) > _ROWS or _cost(more) >= _cost(members) + len(row.tokens)):
            found.append(Group(_shared(members), tuple(members)))
            more = [row]
        members = more
    return [*found, Group(_shared(members), tuple(members))] if members else found


def _shared(rows: Sequence[Row]) -> int:
    """Tokens with which all begin, short of the first whose logits are asked for."""
    if len(rows) == 1:
        return rows[0].first
    one, other = rows[0].tokens, rows[-1].tokens  # in order: what these share all do
    most = min(len(one), len(other), *(row.first for row in rows))
    return next((place for place in range(most) if one[place] != other[place]), most)


def _cost(rows: Sequence[Row]) -> int:
    """Tokens read: the shared beginning once, then each row as long as the longest."""
    shared = _shared(rows)
    return shared + len(rows) * (max(len(row.tokens) for row in rows) - shared)


def score_group(group: Group, asked: Sequence[Asked], run: Run) -> dict[int, Scored]:
    """Read a group, and score what is asked about it, by place.

    Args:
        run: logits [B, S, vocab] of S tokens of B rows after so many earlier ones; the last argument says which of
            the rows before each goes on, None: each itself. Nothing was read yet.

    Raises:
        VerificationError: the model's numbers are not finite.
    """
    rows, shared = group.rows, group.shared
    for start in range(0, shared, _BEGINNING):
        run(np.array([rows[0].tokens[start : min(start + _BEGINNING, shared)]], np.int64), start, None)
    longest = max(len(row.tokens) for row in rows)
    step = max(_TOKENS // len(rows), 1)
    log_probs: dict[int, list[NDArray[np.float64]]] = {place: [] for row in rows for place in row.asked}
    greedy = dict.fromkeys(log_probs, True)
    for start in range(shared, longest, step):
        end = min(start + step, longest)
        tokens = np.array([_padded(row.tokens[start:end], end - start) for row in rows], np.int64)
        logits = run(tokens, start, np.zeros(len(rows), np.int32) if start == shared and shared else None)
        for row, own in zip(rows, logits, strict=True):
            for place in row.asked:
                first = len(asked[place].context) - 1  # whose logits tell the continuation's first token
                low, high = max(first, start), min(len(row.tokens), end)
                if low >= high:
                    continue
                following = np.array(asked[place].continuation[low - first : high - first], np.int64)
                seen = own[low - start : high - start]
                if not np.isfinite(seen).all():
                    raise VerificationError(
                        f"the model's logits of {high - low} tokens are not finite",
                        hint="The device overflows or the model is damaged: see `glm4-edge canary`.",
                    )
                log_probs[place].append(next_log_probs(seen, following))
                greedy[place] &= bool((seen.argmax(1) == following).all())
    return {
        place: Scored(tuple(float(each) for part in parts for each in part), greedy[place])
        for place, parts in log_probs.items()
    }


def _padded(tokens: Sequence[int], length: int) -> list[int]:
    """What comes behind the end of a row is seen by nothing that is asked for."""
    return [*tokens, *[0] * (length - len(tokens))]
