"""The knobs of one conversation: system prompt, presets, sampling, tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio
from pydantic import ValidationError

from edge.errors import UsageError
from edge.ui.web.talk import Settings

PRESETS: dict[str, tuple[float | None, float | None]] = {
    "model": (None, None),
    "exact": (0.0, None),
    "balanced": (0.6, 0.8),
    "free": (1.0, 0.95),
}
"""Name → temperature and top-p; None leaves it to the model."""
_NAMES = ("system", "preset", "tools", "max_new_tokens", "temperature", "top_p", "seed")


@dataclass(frozen=True)
class Knobs:
    """The components, in the order of `_NAMES`."""

    all: list[Any]


def build(say: Any) -> Knobs:
    """Put them here."""
    with gradio.Column(elem_id="edge-knobs"):
        gradio.Markdown(say("settings"), elem_id="edge-settings-title")
        system = gradio.Textbox(label=say("system"), info=say("system info"), lines=2, max_lines=10)
        preset = gradio.Radio(
            [(say(f"preset {name}"), name) for name in PRESETS],
            label=say("style"),
            value="model",
            elem_id="edge-preset",
        )
        tools = gradio.Checkbox(label=say("use tools"))
        longest = gradio.Number(label=say("max tokens"), info=say("max tokens info"), value=0, precision=0, minimum=0)
        with gradio.Accordion(label=say("finer"), open=False):
            temperature = gradio.Number(
                label=say("temperature"), info=say("temperature info"), value=None, minimum=0, maximum=2, step=0.1
            )
            top_p = gradio.Number(label=say("top p"), value=None, minimum=0.05, maximum=1, step=0.05)
            seed = gradio.Number(label=say("seed"), info=say("seed info"), value=None, precision=0, minimum=0)
    return Knobs([system, preset, tools, longest, temperature, top_p, seed])


def updates(settings: Settings) -> list[Any]:
    """What the knobs show for these settings."""
    values = {**settings.model_dump(), "preset": _preset(settings), "system": settings.system or "",
              "max_new_tokens": settings.max_new_tokens or 0}  # fmt: skip
    return [values[name] for name in _NAMES]


def settings(before: Settings, values: Sequence[Any]) -> Settings:
    """What the knobs say. A preset that was chosen just now decides over the numbers.

    Raises:
        UsageError: a number out of its range.
    """
    given = dict(zip(_NAMES, values, strict=True))
    preset = given.pop("preset")
    if preset in PRESETS and preset != _preset(before):
        given["temperature"], given["top_p"] = PRESETS[preset]
    given["system"] = given["system"] or None
    given["max_new_tokens"] = given["max_new_tokens"] or None
    try:
        return Settings.model_validate({**before.model_dump(), **given})
    except ValidationError as error:
        fault = error.errors()[0]
        raise UsageError(
            f"{' '.join(str(part) for part in fault['loc'])} {fault['input']} cannot be", hint=fault["msg"] + "."
        ) from error


def after(settings: Settings, values: Sequence[Any]) -> list[Any]:
    """What has to change in the knobs that said `values`; what is being typed in is left alone."""
    return [
        gradio.skip() if now == shown or (now in ("", None) and shown in ("", None)) else now
        for now, shown in zip(updates(settings), values, strict=True)
    ]


def _preset(settings: Settings) -> str | None:
    here = settings.temperature, settings.top_p
    return next((name for name, values in PRESETS.items() if values == here), None)
