"""What `/metrics` tells. The only importer of prometheus_client."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from edge.messages import Usage

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)


class Numbers:
    """Counters of one server.

    Args:
        waiting: requests in the queue.
        running: requests being answered.
        cache_share: how much of the KV cache is taken, 0 to 1; None where that is not told.
        ready: whether the server can answer.
    """

    def __init__(
        self, *, waiting: Callable[[], int], running: Callable[[], int], cache_share: Callable[[], float | None],
        ready: Callable[[], bool],
    ) -> None:  # fmt: skip
        disable_created_metrics()  # type: ignore[no-untyped-call]  # when each counter was made is of no use here, and doubles the page
        self._registry = own = CollectorRegistry()
        ProcessCollector(registry=own)  # memory and processor time, where the system tells them
        self._requests = Counter("glm4_edge_requests", "Requests", ["path", "status"], registry=own)
        self._seconds = Histogram(
            "glm4_edge_request_seconds", "From a request to the end of its answer", ["path"], buckets=_SECONDS,
            registry=own,
        )  # fmt: skip
        self._ttft = Histogram(
            "glm4_edge_time_to_first_token_seconds", "From a request to its first token, the waiting included",
            buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self._tpot = Histogram(
            "glm4_edge_time_per_output_token_seconds", "Mean of an answer's tokens after the first",
            buckets=_TOKEN_SECONDS, registry=own,
        )  # fmt: skip
        self._queued = Histogram(
            "glm4_edge_queue_seconds", "From a request to its turn", buckets=_SECONDS, registry=own
        )  # fmt: skip
        self._prompt = Counter("glm4_edge_prompt_tokens", "Tokens of prompts", registry=own)
        self._cached = Counter(
            "glm4_edge_prefix_cache_hit_tokens", "Tokens of prompts that came from the prefix cache", registry=own
        )  # fmt: skip
        self._hits = Counter(
            "glm4_edge_prefix_cache_hits", "Prompts that came from the prefix cache in part", registry=own
        )  # fmt: skip
        self._made = Counter("glm4_edge_completion_tokens", "Tokens of answers", registry=own)
        self._answers = Counter("glm4_edge_answers", "Answers by how they ended", ["finish_reason"], registry=own)
        self._cancelled = Counter(
            "glm4_edge_cancellations", "Requests ended before their answer was there", ["reason"], registry=own
        )  # fmt: skip
        for name, told, read in (
            ("glm4_edge_queue_length", "Requests that wait", waiting),
            ("glm4_edge_running_requests", "Requests being answered", running),
            ("glm4_edge_ready", "1 if the server can answer", lambda: int(ready())),
            ("glm4_edge_kv_cache_used_ratio", "Share of the KV cache that is taken; NaN where that is not told",
             lambda: float("nan") if (share := cache_share()) is None else share),
        ):  # fmt: skip
            Gauge(name, told, registry=own).set_function(read)
        for reason in ("client", "timeout", "shutdown"):  # so that the first one is seen as a rise
            self._cancelled.labels(reason)

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request has been answered; `path` is one of few."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def first_token(self, seconds: float) -> None:
        """The first token of a request's answer is there."""
        self._ttft.observe(seconds)

    def queued(self, seconds: float) -> None:
        """A request's turn has come."""
        self._queued.observe(seconds)

    def answer(self, usage: Usage, reason: str | None, *, first: bool) -> None:
        """An answer is there, or was ended before its end.

        Args:
            reason: why it ended; None: it was ended.
            first: of the answers to its prompt, which is counted once.
        """
        if reason is not None:
            self._answers.labels(reason).inc()
        self._made.inc(usage.completion_tokens)
        if first:
            self._prompt.inc(usage.prompt_tokens)
        if first and usage.cached_tokens:
            self._cached.inc(usage.cached_tokens)
            self._hits.inc()
        if usage.tpot_seconds is not None:
            self._tpot.observe(usage.tpot_seconds)

    def cancelled(self, reason: str) -> None:
        """A request was ended: client, timeout or shutdown."""
        self._cancelled.labels(reason).inc()

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)
