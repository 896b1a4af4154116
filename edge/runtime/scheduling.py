"""How long a conversation may be here, and the cache that holds it: the plan, made with what this machine has now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge.errors import ContextError, ResourceError
from edge.lora.cost import Sizes
from edge.npu import npu_lengths
from edge.runtime import devices
from edge.runtime import plan as plans
from edge.runtime.cores import usable_threads
from edge.runtime.machine import Machine
from edge.runtime.settings import Settings


def schedule(
    folder: Path, settings: Settings, *, adapters: Sizes | None = None, machine: Machine | None = None,
    ask: devices.Ask = devices.ask,
) -> tuple[int, dict[str, Any]]:  # fmt: skip
    """Tokens of context to run with, and `SchedulerConfig` as plain values.

    Args:
        adapters: of the LoRA adapters that it is loaded with; their files are in memory already.
        machine: where memory and cores are; None: this one.
        ask: a device's properties.

    Raises:
        ContextError: the model reads less than was asked for.
        ResourceError: what was asked for does not fit into memory.
        UsageError: the device keeps no cache in the precision that was asked for.
    """
    shape = plans.Shape.read(folder)
    made = _weighed(folder, shape, settings, machine or Machine(), ask, adapters)
    values = plans.scheduler(
        settings.device, plans.cache_for(made, shape), sparse=settings.sparse, evict_beyond=settings.evict_beyond,
        prefix_cache=settings.prefix_cache, step_tokens=settings.step_tokens,
    )  # fmt: skip
    return made.context, values


def npu_schedule(
    folder: Path, settings: Settings, *, machine: Machine | None = None, ask: devices.Ask = devices.ask
) -> tuple[int, int]:
    """MAX_PROMPT_LEN and MIN_RESPONSE_LEN to compile the NPU's shapes for; see `npu_lengths`.

    Raises:
        ContextError, ResourceError, UsageError: as `schedule`; the last also for a context without room for a prompt.
    """
    made = _weighed(folder, plans.Shape.read(folder), settings, machine or Machine(), ask)
    return npu_lengths(made.context)


def _weighed(
    folder: Path, shape: plans.Shape, settings: Settings, machine: Machine, ask: devices.Ask,
    adapters: Sizes | None = None,
) -> plans.Plan:  # fmt: skip
    """The plan of the context that was asked for, or else of the one that is chosen."""
    device, threads = settings.device, usable_threads(machine)
    asked = str(settings.properties.get("KV_CACHE_PRECISION", ""))
    precision = plans.kv_default(device)
    for each in plans.KV_PRECISIONS:  # a plugin may know others; they are planned for as its default
        if each == asked:
            plans.check_kv(device, asked)
            precision = each
    room = devices.room("CPU" if settings.rehearse else device, machine, ask)
    more = 0
    if adapters is not None:
        step = settings.step_tokens or plans.STEP_TOKENS.get(device.partition(".")[0], 1024)
        more = adapters.bytes(step) - adapters.files_bytes
    context = settings.context or plans.choose_context(
        shape, device, room.available, kv_precision=precision, threads=threads, adapter_bytes=more
    )
    made = plans.plan(
        shape, context, device=device, kv_precision=precision, available=room.available, total=room.total,
        threads=threads, adapter_bytes=more,
    )  # fmt: skip
    if settings.context is not None and context > made.model_context:
        raise ContextError(
            f"a context of {context:,} tokens was asked for, and the model reads at most {made.model_context:,}",
            hint=f"Ask for at most --context {made.model_context}.",
        )
    if settings.context is not None and not made.fits:
        on = "" if device == "CPU" else f" --device {device}"
        same = ", with the same --lora," if more else ""
        raise ResourceError(
            made.verdict.removeprefix("no: "),
            hint=f"glm4-edge plan {folder} --context {context}{on}{same} says what would have to change.",
        )
    return made
