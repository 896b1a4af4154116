"""Several models measured one after the other, and earlier records read: the rooms meet here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge import __version__
from edge.commands.named import exported, is_name
from edge.commands.quality_checkpoint import at_hand, reference_of
from edge.errors import UsageError
from edge.files import home, write_text
from edge.manifest import Manifest
from edge.messages import Progress
from edge.model import tokenizer
from edge.quality import distance, harness, needle, protocols, texts
from edge.quality.record import Model, Record
from edge.report import say
from edge.runtime import tuned
from edge.runtime.choices import Choices, ir_digest, versions
from edge.runtime.refstore import Reference

if TYPE_CHECKING:
    from edge.quality.protocols import Protocol
    from edge.runtime.guarded import Guarded


@dataclass(frozen=True)
class Wanted:
    """What to measure: the options of the command, by their names there."""

    device: str
    text: Path | None
    tokens: int
    window: int
    against: str | None
    reference: Path | None
    exact: bool
    tuned: bool
    distance: bool
    tasks: tuple[str, ...] | None
    limit: int | None
    few_shot: int | None
    chat: bool | None
    tasks_from: Path | None
    run_code: bool
    samples: Path | None
    resume: bool
    needle: bool
    needle_lengths: tuple[int, ...] | None
    needle_depths: tuple[float, ...]
    needles: int
    haystack: Path | None
    context: int | None


def run(models: Sequence[str], wanted: Wanted, bench: Path | None, progress: Progress) -> Record:
    """Measure folders, read files, and put them into one record.

    Raises:
        EdgeError: an option, a model, a file or the device.
    """
    protocols_of = _checked(wanted)
    speeds = {} if bench is None else _speeds(bench)
    earlier = {name: Record.read(Path(name).expanduser()) for name in models if _is_record(name)}
    folders = {name: exported(name, wanted.device) for name in models if name not in earlier}
    for folder in folders.values():
        Manifest.read(folder)  # all are there before the first is measured
    if not folders and (wanted.needle or wanted.tasks):
        raise UsageError("there is no model to measure, only files", hint="Name a model, too.")
    measuring, called = _Measuring(wanted, protocols_of, progress), names_of(folders)
    found: list[Model] = []
    for name in models:
        if name in earlier:
            found += earlier[name].models
        else:
            found.append(measuring.measured(name, called[name], folders[name]))
    for each in found:
        each.decode_rate = speeds.get((each.name, each.device), each.decode_rate)
    if bench is not None and not any((each.name, each.device) in speeds for each in found):
        say(f"{bench} has speeds of {', '.join(f'{name} on {device}' for name, device in speeds)}: none of these.")
    if not folders and len(earlier) == 1:
        return next(iter(earlier.values()))
    return Record.now(found)


def _checked(wanted: Wanted) -> dict[str, Protocol]:
    if wanted.reference is not None and (wanted.against is not None or wanted.text is not None):
        other = "--against" if wanted.against is not None else "--text"
        raise UsageError(f"--reference has texts and a checkpoint of its own, and {other} names another",
                         hint="Leave one of them out.")  # fmt: skip
    if wanted.exact and wanted.tuned:
        raise UsageError("--exact and --tuned each say how to run the model", hint="Leave one of them out.")
    if not (wanted.distance or wanted.tasks or wanted.needle):
        raise UsageError("nothing is left to be measured", hint="Add --tasks or --needle, or leave out --no-distance.")
    found = {name: protocols.protocol(name, few_shot=wanted.few_shot, chat=wanted.chat) for name in wanted.tasks or ()}
    for each in found.values():
        protocols.check(each, run_code=wanted.run_code)
    if found:
        harness.require(tuple(found.values()))
    return found


def names_of(folders: Mapping[str, Path]) -> dict[str, str]:
    """What to call models: a folder by its last part, and by the one above it, too, where others are called so.

    The whole path would tell whose machine it was.
    """
    last = {name: folder.resolve().name for name, folder in _given(folders).items()}
    called = {name: last.get(name, name) for name in folders}
    twice = {each for each in called.values() if list(called.values()).count(each) > 1}
    return {
        name: f"{_given(folders)[name].resolve().parent.name}-{each}" if each in twice and name in last else each
        for name, each in called.items()
    }


def _given(folders: Mapping[str, Path]) -> dict[str, Path]:
    """Those that were given as folders, of an exported model or of a checkpoint, rather than by a name."""
    given = {name: folder if not is_name(name) else Path(name).expanduser() for name, folder in folders.items()}
    return {name: folder for name, folder in given.items() if not is_name(name) or folder.is_dir()}


def _is_record(name: str) -> bool:
    return Path(name).suffix == ".json" and not Path(name).expanduser().is_dir()


def _speeds(path: Path) -> dict[tuple[str, str], float]:
    """Tokens a second of one answer, by name and device: of the first prompt that was measured alone."""
    from edge.bench.record import Record as Bench
    from edge.bench.summary import figures

    found: dict[tuple[str, str], float] = {}
    for each in Bench.read(path.expanduser()).measured:
        for case in figures(each):
            if case.case.together == 1 and not case.case.later and case.decode_rate is not None:
                found.setdefault((each.name, each.device), case.decode_rate)
    return found


class _Measuring:
    """What is measured of each model; references that several share are made once."""

    def __init__(self, wanted: Wanted, protocols_of: dict[str, Protocol], progress: Progress) -> None:
        self._wanted, self._protocols, self._progress = wanted, protocols_of, progress
        self._texts = texts.read(wanted.text) if wanted.distance and wanted.reference is None else {}
        self._stored = None if wanted.reference is None else Reference.read(wanted.reference.expanduser())
        self._made: dict[Path, Reference] = {}
        self._kept: tuned.Tuned | None = None

    def measured(self, name: str, called: str, folder: Path) -> Model:
        """Everything wanted of one model, which tables and files call so."""
        wanted, manifest = self._wanted, Manifest.read(folder)
        place = Choices().resolved(wanted.device, folder)
        self._kept = tuned.read(folder, place)
        settings = self._kept.said if self._kept is not None else ""
        if settings and not (wanted.tuned or wanted.exact):
            say(f"{called} is measured with the default settings, which are the same on every machine, not as chat "
                f"runs it here ({settings}): --tuned measures that.")  # fmt: skip
        if wanted.tuned and not settings:
            say(f"Nothing was tuned for {called} on {place} here: it is measured with the default settings.")
        found = Model(
            name=called,
            device=place,
            model={
                "name": Path(manifest.source.model).name if _given({name: folder}) else manifest.source.model,
                "revision": manifest.source.revision, "target": manifest.target, "recipe": manifest.recipe,
                "parameters": manifest.architecture.parameters, "bytes": manifest.bytes,
            },
            settings=settings if wanted.tuned else "",
            exact=wanted.exact,
        )  # fmt: skip
        if wanted.distance:
            found.distance = self._distance(folder, manifest, place)
        if wanted.needle:
            with closing(self._engine(folder, place)) as engine:
                chosen = wanted.needle_lengths or needle.lengths(engine.max_prompt or engine.context_length)
                haystacks = list(texts.read(wanted.haystack).items())
                found.needles = needle.run(
                    engine, haystacks, lengths=chosen, depths=wanted.needle_depths, needles=wanted.needles,
                    progress=self._progress,
                )  # fmt: skip
        if self._protocols:
            found.tasks = self._tasks(found.name, folder, manifest, place)
        return found

    def _distance(self, folder: Path, manifest: Manifest, place: str) -> Any:
        wanted = self._wanted
        reference = self._stored
        if reference is None:
            checkpoint = at_hand(manifest, wanted.against, self._progress)
            if checkpoint is None:
                windows = texts.windows(self._texts, tokenizer.load(folder), window=wanted.window, tokens=wanted.tokens)
                return distance.from_text(
                    folder, windows, place, exact=wanted.exact, extra=self._extra(), progress=self._progress
                )
            if checkpoint.folder not in self._made:
                windows = texts.windows(
                    self._texts, tokenizer.load(checkpoint.folder), window=wanted.window, tokens=wanted.tokens
                )
                self._made[checkpoint.folder] = reference_of(checkpoint, windows, self._progress)
            reference = self._made[checkpoint.folder]
        return distance.from_reference(
            folder, reference, place, exact=wanted.exact, extra=self._extra(), progress=self._progress
        )

    def _extra(self) -> dict[str, Any]:
        """What tune kept of this model, where that is asked for."""
        return dict(self._kept.properties) if self._kept is not None and self._wanted.tuned else {}

    def _tasks(self, name: str, folder: Path, manifest: Manifest, place: str) -> Any:
        from edge.quality.adapter import EdgeLM
        from edge.quality.scoring import Scorer
        from edge.runtime import parity

        wanted = self._wanted
        lm = EdgeLM(
            name, tokenizer.load(folder), manifest.stop_ids,
            min(manifest.architecture.context_length, wanted.context or manifest.architecture.context_length),
            scorer=lambda: Scorer(
                folder, parity.place(folder, place, self._progress), exact=wanted.exact, extra=self._extra()
            ),
            engine=lambda: self._engine(folder, place), progress=self._progress,
        )  # fmt: skip

        def keep(part: str, samples: list[dict[str, Any]]) -> None:
            if wanted.samples is not None:
                lines = [json.dumps(each, ensure_ascii=False, default=str) for each in samples]
                write_text(
                    wanted.samples.expanduser() / f"{name.replace('/', '--')}-{part}.jsonl", "\n".join(lines) + "\n"
                )

        cache = None
        if wanted.resume:
            cache = home() / "answers" / self._key(folder, place)
            cache.parent.mkdir(parents=True, exist_ok=True)
        with closing(lm):
            return harness.run(
                lm, self._protocols, limit=wanted.limit, folder=wanted.tasks_from, run_code=wanted.run_code,
                cache=cache, keep=keep,
            )  # fmt: skip

    def _key(self, folder: Path, place: str) -> str:
        """Of this model's answers as they are made here: another model, device, setting or version makes others."""
        found = self._kept if self._wanted.tuned else None
        settings = None if found is None else (sorted(found.properties.items()), found.step_tokens)
        wanted = self._wanted
        told = repr((ir_digest(folder), place, wanted.exact, wanted.context, settings, __version__, versions()))
        return hashlib.sha256(told.encode()).hexdigest()[:24]

    def _engine(self, folder: Path, place: str) -> Guarded:
        """The model as chat runs it, on this device or not at all."""
        from edge.infer import EXACT
        from edge.runtime.guarding import open_guarded
        from edge.runtime.settings import Settings

        wanted = self._wanted
        settings = Settings(place, EXACT if wanted.exact else {}, context=wanted.context, tuned=wanted.tuned)
        return open_guarded(folder, settings, fallback=False, policy="refuse", say=say, progress=self._progress)
