"""Tasks run by lm-eval (EleutherAI's lm-evaluation-harness) on our models."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import EdgeError, MissingExtraError, UsageError
from edge.quality.protocols import Protocol, runs_code
from edge.quality.record import Task

if TYPE_CHECKING:
    from edge.quality.adapter import EdgeLM

_SEED = 1234  # of the choice of examples: lm-eval's own


def require(protocols: Sequence[Protocol] = ()) -> None:
    """Find out early whether what the tasks need is there; and keep its progress bars away, which ours replaces.

    Raises:
        MissingExtraError: it is not.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for module in ("lm_eval", *(name for each in protocols for name in each.needs)):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(module, "eval")


def run(
    lm: EdgeLM,
    protocols: Mapping[str, Protocol],
    *,
    limit: int | None = None,
    folder: Path | None = None,
    run_code: bool = False,
    cache: Path | None = None,
    keep: Callable[[str, list[dict[str, Any]]], None] = lambda part, samples: None,
) -> list[Task]:
    """Run tasks one after the other.

    Args:
        limit: questions of each part at most.
        folder: of further tasks' YAML files.
        run_code: programs that the model writes may be run here.
        cache: where answers are kept as they come, for a run that goes on after this one was interrupted: a file's
            name, to which lm-eval adds an ending. It has to be of this model on this device alone.
        keep: told each part's questions and answers.

    Raises:
        UsageError: lm-eval knows no such task, or it cannot be loaded.
        EdgeError: the engine's own.
    """
    with _quiet(run_code):
        from lm_eval import simple_evaluate

        manager = _manager([each.task for each in protocols.values()], folder)
        found = []
        for name, each in protocols.items():
            if not manager.match_tasks([each.task]):
                raise UsageError(
                    f"lm-eval has no task '{each.task}'", hint="`lm-eval ls tasks` lists them; --tasks-from adds yours."
                )
            begin = time.monotonic()
            try:
                told = simple_evaluate(
                    model=lm, tasks=[each.task], num_fewshot=each.few_shot, limit=limit, task_manager=manager,
                    apply_chat_template=each.chat, fewshot_as_multiturn=each.chat, log_samples=True,
                    bootstrap_iters=1000, confirm_run_unsafe_code=run_code, fewshot_random_seed=_SEED,
                    use_cache=None if cache is None else str(cache),
                )  # fmt: skip
            except EdgeError:
                raise
            except Exception as error:  # of data that are not to be had, a YAML, a metric: the task's own
                words = " ".join(str(error).split())[:300] or type(error).__name__
                if not run_code and "confirm_run_unsafe_code" in words:  # what lm-eval says of a task so marked
                    raise runs_code(each) from error
                raise UsageError(
                    f"the task {each.task} cannot be run: {words}",
                    hint="Its questions come from the Hugging Face Hub once and are kept in HF_HOME; see "
                    "docs/quality.md for what each task needs.",
                ) from error
            assert told is not None  # it is of other processes only
            found += tasks_of(name, each, told, limit, time.monotonic() - begin)
            for part, samples in told["samples"].items():
                keep(part, samples)
    return found


def _manager(tasks: Sequence[str], folder: Path | None) -> Any:
    """What knows the tasks. Reading the thousands that lm-eval has takes a while: not where all are in the folder."""
    from lm_eval.tasks import TaskManager

    if folder is not None:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if all(own.match_tasks([task]) for task in tasks):
            return own
    return TaskManager(include_path=None if folder is None else str(folder))


def tasks_of(name: str, protocol: Protocol, told: Mapping[str, Any], limit: int | None, seconds: float) -> list[Task]:
    """Scores out of lm-eval's result: the task's own first, then those of its parts."""
    found = []
    whole = protocol.task
    for part in sorted(told["results"], key=lambda part: part != whole):
        scores = told["results"][part]
        metrics = {
            key: value
            for key, value in scores.items()
            if isinstance(value, (int, float)) and "," in key and "_stderr," not in key
        }
        shown = [key for key in protocol.metrics if key in metrics] or list(metrics)
        members = _members(part, told)
        counted = sum(told["n-samples"][each]["effective"] for each in members)
        few = [told["n-shot"].get(each) for each in members]
        for key in shown:
            metric, _, which = key.partition(",")
            stderr = scores.get(f"{metric}_stderr,{which}")
            found.append(
                Task(
                    task=name, part=part, metric=metric if which == "none" else f"{metric}, {which}",
                    value=float(metrics[key]), stderr=stderr if isinstance(stderr, float) else None, samples=counted,
                    few_shot=few[0] if len(set(few)) == 1 else None, chat=protocol.chat, limit=limit,
                    seconds=round(seconds, 1),
                )
            )  # fmt: skip
    return found


def _members(part: str, told: Mapping[str, Any]) -> list[str]:
    """The tasks with questions of their own that a part is made of."""
    below = told.get("group_subtasks", {}).get(part) or []
    return [each for child in below for each in _members(child, told)] or [part]


@contextmanager
def _quiet(run_code: bool) -> Iterator[None]:
    """Errors alone; and the second switch that running code has."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    before = [logger.level for logger in loggers]
    switch = "HF_ALLOW_CODE_EVAL"
    kept = os.environ.get(switch)
    if run_code:
        os.environ[switch] = "1"
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        if kept is None:
            os.environ.pop(switch, None)
        else:
            os.environ[switch] = kept
