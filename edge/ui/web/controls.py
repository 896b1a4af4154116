"""The knobs of one conversation: system prompt, presets, sampling, tools."""

from __future__ import annotations

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
_LIMITS = {"le": "Name a number up to {}.", "ge": "Name a number from {} on.", "gt": "Name a number above {}."}
NAMES = ("system", "preset", "tools", "max_new_tokens", "temperature", "top_p", "seed")


@dataclass(frozen=True)
class Knobs:
    """The components, in the order of `NAMES`."""

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
    return [values[name] for name in NAMES]


def settings(before: Settings, name: str, value: Any) -> Settings:
    """The settings after one knob was turned.

    Raises:
        UsageError: a number out of its range.
    """
    if name == "preset":
        temperature, top_p = PRESETS[value]
        given: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
    else:
        given = {name: None if value == "" or (name == "max_new_tokens" and value == 0) else value}
    try:
        return Settings.model_validate({**before.model_dump(), **given})
    except ValidationError as error:
        fault = error.errors()[0]
        limits = fault.get("ctx", {})
        ways = [way.format(limits[kind]) for kind, way in _LIMITS.items() if kind in limits]
        raise UsageError(f"{name} {fault['input']} cannot be", hint=ways[0] if ways else f"{fault['msg']}.") from error


def after(name: str, settings: Settings) -> list[Any]:
    """What has to change in the other knobs; the one that is being turned is left alone."""
    bound = {"preset": ("temperature", "top_p"), "temperature": ("preset",), "top_p": ("preset",)}.get(name, ())
    return [value if each in bound else gradio.skip() for each, value in zip(NAMES, updates(settings), strict=True)]


def _preset(settings: Settings) -> str | None:
    here = settings.temperature, settings.top_p
    return next((name for name, values in PRESETS.items() if values == here), None)
