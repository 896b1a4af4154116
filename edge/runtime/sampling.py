"""What may stand in a `Sampling`, checked in our words before a library complains in its own. Pure."""

from __future__ import annotations

from collections.abc import Callable

from edge.errors import UsageError
from edge.messages import Sampling


def check(sampling: Sampling) -> None:
    """Refuse values outside their range.

    Raises:
        UsageError: names the option, the value and the range.
    """
    _require("temperature", sampling.temperature, lambda v: 0 <= v <= 5, "from 0 (greedy) to 5, and 2 is already wild")
    _require("top_p", sampling.top_p, lambda v: 0 < v <= 1, "above 0 and at most 1")
    _require("top_k", sampling.top_k, lambda v: 0 <= v < 2**31, "0 (off) or above")
    _require("repetition_penalty", sampling.repetition_penalty, lambda v: 0 < v <= 100, "above 0; 1 means none")
    _require("presence_penalty", sampling.presence_penalty, lambda v: -2 <= v <= 2, "from -2 to 2; 0 means none")
    _require("frequency_penalty", sampling.frequency_penalty, lambda v: -2 <= v <= 2, "from -2 to 2; 0 means none")
    _require("seed", sampling.seed, lambda v: 0 <= v < 2**32, "from 0 to 4,294,967,295")
    _require("max_new_tokens", sampling.max_new_tokens, lambda v: v >= 1, "1 or above")
    if "" in sampling.stop:
        raise UsageError("a stop string is empty", hint="Leave it out, or give the text to stop at.")


def draws(sampling: Sampling, model_draws: bool) -> bool:
    """Whether tokens are drawn at random; greedy otherwise.

    A temperature decides. Without one, asking for a narrower draw asks for a draw; else the model's
    `generation_config.json` decides.
    """
    if sampling.temperature is not None:
        return sampling.temperature > 0
    return model_draws or sampling.top_p is not None or sampling.top_k is not None


def _require(name: str, value: float | None, holds: Callable[[float], bool], allowed: str) -> None:
    if value is not None and not holds(value):
        raise UsageError(f"{name} cannot be {value}", hint=f"It must be {allowed}.")
