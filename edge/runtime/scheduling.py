"""How long a conversation may be here, and the cache that holds it: the plan, made with what this machine has now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil

from edge.errors import ContextError, ResourceError
from edge.runtime import plan as plans
from edge.runtime.settings import Settings


def schedule(folder: Path, settings: Settings) -> tuple[int, dict[str, Any]]:
    """Tokens of context to run with, and `SchedulerConfig` as plain values.

    Raises:
        ContextError: the model reads less than was asked for.
        ResourceError: what was asked for does not fit into memory.
    """
    shape = plans.Shape.read(folder)
    memory = psutil.virtual_memory()
    threads = psutil.cpu_count(logical=False) or 1
    asked = str(settings.properties.get("KV_CACHE_PRECISION", ""))
    precision = next(
        (each for each in plans.KV_PRECISIONS if each == asked), plans.kv_default(settings.device)
    )  # a plugin may know others; they are planned for as its default
    context = settings.context or plans.choose_context(
        shape, settings.device, memory.available, kv_precision=precision, threads=threads
    )
    made = plans.plan(
        shape, context, device=settings.device, kv_precision=precision, available=memory.available,
        total=memory.total, threads=threads,
    )  # fmt: skip
    if settings.context is not None and context > made.model_context:
        raise ContextError(
            f"a context of {context:,} tokens was asked for, and the model reads at most {made.model_context:,}",
            hint=f"Ask for at most --context {made.model_context}.",
        )
    if settings.context is not None and not made.fits:
        raise ResourceError(
            made.verdict.removeprefix("no: "),
            hint=f"glm4-edge plan {folder} --context {context} says what would have to change.",
        )
    blocks = plans.cache_for(made, shape)
    return context, plans.scheduler(
        settings.device, blocks, sparse=settings.sparse, evict_beyond=settings.evict_beyond,
        prefix_cache=settings.prefix_cache,
    )  # fmt: skip
