"""Opening an exported model on a device that computes it rightly, to be minded by `guarded.Guarded`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from edge import golden as goldens
from edge.files import home
from edge.lora.asked import Loras
from edge.messages import Progress
from edge.runtime import canary
from edge.runtime.canary import Finding
from edge.runtime.choices import Choices, Kept
from edge.runtime.context import Policy
from edge.runtime.guarded import Guarded
from edge.runtime.interface import LoadedEngine
from edge.runtime.ladder import label
from edge.runtime.minding import Judge
from edge.runtime.opening import Load, open_model
from edge.runtime.plan import BLOCK
from edge.runtime.remote import RemoteEngine
from edge.runtime.settings import Settings


def open_guarded(
    folder: Path,
    wanted: Settings,
    *,
    fallback: bool = True,
    policy: Policy = "trim",
    loras: Loras | None = None,
    load: Load | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda stage, done, total: None,
) -> Guarded:
    """Open an exported model on a device that computes it rightly, and mind it.

    It is loaded in a process of its own, so that neither its long steps nor a crash are this process's.
    On the CPU numbers that were right at the last start are looked at later (`Guarded.warm_up`), else before anything.

    Args:
        loras: adapters that answers may have. What is checked is the model without them.

    Raises:
        EdgeError: see `open_model`.
    """
    golden = goldens.read(folder)
    if load is None:
        load = RemoteEngine.load if loras is None else functools.partial(RemoteEngine.load, loras=loras)
    if loras is not None and not loras.per_request and golden is not None:
        golden = golden.beyond(BLOCK["CPU"])  # see `Engine.probe`
    # With adapters the graph is another: what is found of it says nothing of the plain model, nor the other way round.
    choices = Choices() if loras is None else Choices(home() / "choices-lora")
    late: Judge | None = None
    first = True

    def judge(engine: LoadedEngine) -> Finding | None:
        return None if golden is None else canary.quick(engine, golden, golden.lengths)

    def check(engine: LoadedEngine) -> Finding:
        nonlocal late
        assert golden is not None
        if not first:  # something has failed: more is looked at, and at once
            return canary.quick(engine, golden, golden.lengths)
        kept = choices.get(folder, engine.settings)
        if engine.settings.device == "CPU" and kept is not None and kept.ok and kept.checked:
            late = lambda engine: canary.quick(engine, golden)  # noqa: E731
            return Finding(True, None, kept.figures)
        progress(f"checking the numbers of {label(engine.settings)}", 0, 0)
        return canary.quick(engine, golden)

    def opened() -> LoadedEngine:
        return open_model(
            folder, wanted, fallback=fallback, check=None if golden is None else check, load=load, say=say,
            progress=progress, choices=choices,
        )  # fmt: skip

    def blame(settings: Settings, finding: Finding, wrong: bool) -> None:
        kept = Kept(False, finding.reason, loaded=wrong, checked=wrong, figures=finding.figures, lasting=wrong)
        choices.keep(folder, settings, kept)

    engine = opened()
    first = False
    return Guarded(engine, opened, judge, blame, policy=policy, fallback=fallback, late_check=late, aside=loras is None)
