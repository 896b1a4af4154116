"""How many requests were answered, and how fast.."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edge.batch.run import fault_of

FAULTS_SHOWN = 3
"""Reasons that are told of lines without an answer; all are in the output."""


@dataclass
class Counts:
    """What came of a batch."""

    lines: int
    before: int = 0
    """Answered by an earlier run."""
    failed: int = 0
    """Of all lines."""
    answers: int = 0
    """Lines of this run that were answered."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    """The first ones, for a person."""

    def add(self, record: dict[str, Any], *, before: bool = False) -> None:
        """Count a line; one that was answered before has no part in the throughput."""
        fault = fault_of(record)
        failed = fault is not None
        if fault is not None and self.failed < FAULTS_SHOWN:
            self.faults.append(f"{record['custom_id']}: {fault}")
        self.failed += failed
        self.before += before
        if not (before or failed):
            used = record["response"]["body"]["usage"]
            self.answers += 1
            self.prompt_tokens += used["prompt_tokens"]
            self.completion_tokens += used["completion_tokens"]

    def sentence(self) -> str:
        """For a person."""
        told = [f"{self.lines:,} request{'s' * (self.lines != 1)}, {self.failed:,} failed"]
        if self.before:
            told.append(f"{self.before:,} answered before")
        facts = self.facts()
        if facts["tokens_per_second"] is not None:
            told.append(f"{self.completion_tokens:,} tokens in {self.seconds:.1f} s")
            told.append(f"{facts['tokens_per_second']:.1f} tokens/s, {facts['requests_per_second']:.2f} requests/s")
        return ", ".join(told)

    def facts(self) -> dict[str, Any]:
        """For a program; throughput is that of this run, from the first request to the last answer."""
        measured = self.answers and self.seconds
        return {
            "requests": self.lines, "failed": self.failed, "answered_before": self.before,
            "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.completion_tokens / self.seconds if measured else None,
            "requests_per_second": self.answers / self.seconds if measured else None,
        }  # fmt: skip
