"""Random prompts put to an engine, some at once, and when their tokens came."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from edge.bench.case import Case, Prompts, Sample
from edge.bench.sensors import Elsewhere
from edge.errors import DeviceError
from edge.messages import Sampling, Tokens, Usage
from edge.runtime.interface import ChatEngine

Answer = tuple[tuple[int, ...], Usage]


def ask(
    engine: ChatEngine, prompts: Prompts, case: Case, number: int, *, later: bool = False
) -> list[tuple[Case, Sample]]:
    """Measure a case in the round `number`; its prompts are those of this case in this round, in every run.

    Greedy, past the stop tokens, and with the checkpoint's own repetition penalty.

    Args:
        later: ask a further question behind each answer, and measure that, too.

    Raises:
        EdgeError: the engine's own.
    """
    # of the case, too: a longer prompt that begins as a shorter one did would be in the cache to that part
    of_case = f"{case.prompt_tokens}-{case.new_tokens}-{case.together}"
    seeds = [f"{of_case} {number}-{place}" for place in range(case.together)]
    first = [prompts.first(case.prompt_tokens, seed) for seed in seeds]
    found, answers = _round(engine, case, first, number)
    if later:
        further = Case(case.prompt_tokens, case.new_tokens, case.together, later=True)
        behind = [
            prompts.later([*prompt, *answer], f"{seed} later")
            for prompt, answer, seed in zip(first, answers, seeds, strict=True)
        ]
        found += _round(engine, further, behind, number)[0]
    return found


def _round(
    engine: ChatEngine, case: Case, prompts: Sequence[tuple[int, ...]], number: int
) -> tuple[list[tuple[Case, Sample]], list[tuple[int, ...]]]:
    sampling = Sampling(temperature=0, max_new_tokens=case.new_tokens, ignore_eos=True)
    begin = threading.Barrier(len(prompts))

    def one(prompt: tuple[int, ...]) -> Answer:
        begin.wait()
        ids: list[int] = []
        usage = None
        for chunk in engine.stream(Tokens(prompt), sampling):
            ids += chunk.token_ids
            usage = chunk.usage or usage
        if usage is None or len(usage.token_seconds) != case.new_tokens:
            came = 0 if usage is None else len(usage.token_seconds)
            raise DeviceError(
                f"{engine.device} gave {came} of {case.new_tokens} tokens",
                hint="Ask for shorter prompts, or for fewer at once: the cache may be full.",
            )
        return tuple(ids), usage

    elsewhere, start = Elsewhere(), time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(one, prompts))
    seconds, busy = time.perf_counter() - start, elsewhere.share()
    samples = []
    for prompt, (_, usage) in zip(prompts, answers, strict=True):
        # Of a random prompt nothing is cached. How much of a later turn is, is not told where others share its steps.
        read = len(prompt) - usage.cached_tokens if usage.cached_tokens is not None else None
        read = len(prompt) if read is None and not case.later else read
        samples.append((case, Sample(number, len(prompt), read, usage.token_seconds, seconds, busy)))
    return samples, [ids for ids, _ in answers]
