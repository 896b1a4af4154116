"""The tasks of GLM-4's own table, and how each is asked in lm-eval. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from edge.errors import UsageError


@dataclass(frozen=True)
class Protocol:
    """One task, and how it is asked."""

    task: str
    """In lm-eval."""
    few_shot: int | None = None
    """Examples before each question; None: the task's own number."""
    chat: bool = False
    """Asked in the chat template, examples as earlier turns; else as a text that is gone on with."""
    runs_code: bool = False
    """What the model has written is executed."""
    metrics: tuple[str, ...] = ()
    """Those that are shown, the first of them beside the published figure; none named: all."""
    needs: tuple[str, ...] = ()
    """Modules beyond lm-eval's own."""


BY_NAME = {
    "gsm8k": Protocol("gsm8k", 5, chat=True, metrics=("exact_match,flexible-extract", "exact_match,strict-match")),
    "mmlu": Protocol("mmlu", 5, metrics=("acc,none",)),
    "ceval": Protocol("ceval-valid", 5, metrics=("acc,none",)),
    "cmmlu": Protocol("cmmlu", 5, metrics=("acc,none",)),
    "humaneval": Protocol("humaneval_instruct", 0, chat=True, runs_code=True),
    "ifeval": Protocol(
        "ifeval", 0, chat=True, needs=("langdetect", "immutabledict"),
        metrics=("prompt_level_strict_acc,none", "inst_level_strict_acc,none", "prompt_level_loose_acc,none",
                 "inst_level_loose_acc,none"),
    ),
}  # fmt: skip
"""Our names → how they are asked."""


def protocol(name: str, *, few_shot: int | None = None, chat: bool | None = None) -> Protocol:
    """How a task is asked: one of ours, or any of lm-eval's by its name there.

    Args:
        few_shot, chat: instead of the protocol's own; None leaves those.
    """
    found = BY_NAME.get(name, Protocol(name))
    return Protocol(
        found.task, found.few_shot if few_shot is None else few_shot, found.chat if chat is None else chat,
        found.runs_code, found.metrics, found.needs,
    )  # fmt: skip


def check(found: Protocol, *, run_code: bool) -> None:
    """Refuse what runs a model's code unless that was asked for.

    Raises:
        UsageError: it does.
    """
    if found.runs_code and not run_code:
        raise runs_code(found)


def runs_code(found: Protocol) -> UsageError:
    """That a task does, and was not let."""
    return UsageError(
        f"{found.task} runs programs that the model has written, on this machine",
        hint="Do that in a container or a virtual machine, and add --run-code.",
    )
