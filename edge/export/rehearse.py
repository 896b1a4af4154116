"""A model for the NPU, run through the NPU's road of fixed shapes: on the CPU, for want of an NPU.

It shows that the shapes compile, that prompts up to the limit are answered as the CPU's own road answers them,
that longer ones are refused, and that a second turn is understood. It shows nothing of the NPU's compiler or of its
arithmetic; wherever the result is told, that is told, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import ContextError, VerificationError
from edge.infer import EXACT, core, infer
from edge.manifest import Check
from edge.npu import REHEARSED, check_prompt, recipe_notes, refusal, rehearsal_properties

_MAX_PROMPT, _MIN_RESPONSE = 64, 16  # small, for the time it takes; the road is the same
_ANSWER = 6  # tokens
_TOLERANCE = 0.01  # of the largest logit; the pocket model reaches 0.001, another model 1


def rehearse(model_file: Path, token_ids: Sequence[int]) -> Check:
    """Hold the fixed-shape road against the CPU's own, on at least 128 `token_ids` of real text.

    Three conversations: a prompt below the limit, one at it, and a second turn after the first. NPU and CPU are
    given the same tokens, the CPU's greedy ones; the figures say how often the NPU would have chosen the same.

    Raises:
        VerificationError: the IR does not say that it is legal for the NPU, does not compile, answers otherwise,
            or takes a prompt above the limit.
    """
    model = core().read_model(model_file)
    notes = recipe_notes(model)
    if (why := refusal(notes)) is not None:
        raise _wrong(why)
    here = core().compile_model(model, "CPU", EXACT).create_infer_request()
    try:
        compiled = core().compile_model(model, "NPU", rehearsal_properties(_MAX_PROMPT, _MIN_RESPONSE) | EXACT)
        there = compiled.create_infer_request()
    except RuntimeError as error:
        raise _wrong(f"the model does not compile for the NPU's fixed shapes ({_last_line(error)})") from error
    text = np.asarray(token_ids)
    short = text[: _MAX_PROMPT // 2]
    answer, *distances = _compare(here, there, short)
    second = np.concatenate([short, answer, text[_MAX_PROMPT // 2 : _MAX_PROMPT - len(answer)]])
    turns = [(len(short), *distances)]
    for prompt in (text[:_MAX_PROMPT], second):
        turns.append((len(prompt), *_compare(here, there, prompt)[1:]))
    scale = max(turn[3] for turn in turns)
    distance = max(turn[1] for turn in turns)
    if not distance <= _TOLERANCE * scale:
        raise _wrong(
            f"through the NPU's fixed shapes the logits lie {distance:.3g} away from the CPU's, at scale {scale:.3g}"
        )
    _check_limit(there, text[: _MAX_PROMPT + 1])
    figures = {
        "ran": REHEARSED, "mode": notes["mode"], "group_size": int(notes["group_size"]),
        "ratio": float(notes["ratio"]), "max_prompt": _MAX_PROMPT, "prompts": [turn[0] for turn in turns],
        "tokens": len(turns) * (_ANSWER + 1), "same_tokens": sum(turn[2] for turn in turns),
        "logit_distance": distance, "logit_scale": scale,
    }  # fmt: skip
    return Check(name="npu rehearsal", passed=True, figures=figures)


def _compare(here: Any, there: Any, prompt: NDArray[np.int64]) -> tuple[NDArray[np.int64], float, int, float]:
    """The CPU's greedy answer; how far the NPU's logits are, how many tokens it would choose alike, the scale."""
    for request in (here, there):
        request.reset_state()
    answer: list[int] = []
    distance, same, scale = 0.0, 0, 0.0
    new = prompt
    for i in range(_ANSWER + 1):
        past = len(prompt) + i - 1 if i else 0
        ours, theirs = infer(here, new, past)[-1], infer(there, new, past)[-1]
        step = float(np.abs(ours - theirs).max())
        distance = max(distance, step if np.isfinite(step) else np.inf)
        scale = max(scale, float(np.abs(ours).max()))
        same += int(ours.argmax() == theirs.argmax())
        new = np.array([ours.argmax()])
        answer.append(int(new[0]))
    return np.array(answer[:_ANSWER]), distance, same, scale


def _check_limit(there: Any, prompt: NDArray[np.int64]) -> None:
    """A prompt above the limit is refused by our own rule, and the compiled model agrees that it is one."""
    try:
        check_prompt(len(prompt), _MAX_PROMPT)
    except ContextError:
        there.reset_state()
        try:
            infer(there, prompt, 0)
        except RuntimeError as error:
            if "MAX_PROMPT_LEN" in str(error):
                return
            raise _wrong(f"a prompt above the NPU's limit failed in another way ({_last_line(error)})") from error
    raise _wrong(f"a prompt of {len(prompt)} tokens was taken, where the NPU's limit is {_MAX_PROMPT}")


def _wrong(message: str) -> VerificationError:
    return VerificationError(
        message, hint=f"Nothing was kept. This was a rehearsal {REHEARSED}: report it, or export for cpu or igpu."
    )


def _last_line(error: RuntimeError) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "no reason given")
