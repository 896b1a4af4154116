"""`glm4-edge chat`: talk to a model in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from edge.commands import loading
from edge.commands.itrex import RUNTIME_OPTION
from edge.commands.loading import DEVICE_OPTIONS

if TYPE_CHECKING:
    from edge.runtime.context import Policy
    from edge.runtime.guarded import Guarded


def _sampling_options(command: Callable[..., Any], *, turns: bool = True) -> Callable[..., Any]:
    """The options that say how tokens are drawn; the same for every way to talk to a model.

    Without `turns`, there is no conversation that could outgrow the context, and no option for that.
    """
    overflow = click.option(
        "--overflow",
        type=click.Choice(["trim", "refuse"]),
        default="trim",
        show_default=True,
        help="Of a conversation that outgrows the context: drop the oldest turns, or refuse the question.",
    )
    options = (
        click.option("--temperature", type=float, help="0 always takes the likeliest token; higher is more varied."),
        click.option("--top-p", type=float, help="Draw from the likeliest tokens with this share of probability."),
        click.option("--top-k", type=int, help="Draw from this many likeliest tokens."),
        click.option("--repetition-penalty", type=float, help="Above 1: the model repeats itself less."),
        click.option("--seed", type=int, help="The same seed and question give the same answer."),
        click.option("--max-new-tokens", type=int, help="Longest answer; left out, what the context has room for."),
        click.option("--stop", multiple=True, help="A text that ends the answer; may be given several times."),
        click.option("--system", help="System prompt; left out, the model's chat template decides."),
        *DEVICE_OPTIONS,
        *([overflow] if turns else []),
        click.option("--yes", is_flag=True, help="Export a model that is not exported yet without asking."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("model", default="pocket")
@_sampling_options
@RUNTIME_OPTION
def chat(model: str, system: str | None, stop: tuple[str, ...], **options: Any) -> None:
    """Talk to MODEL in the terminal, or answer once what is piped in.

    MODEL is a folder that `glm4-edge export` made, or a name it was exported by ('pocket' if left out). A
    model that is not exported yet is exported first, after a question.

    Sampling options that are left out follow the model's generation_config.json. The answer goes to
    standard output; a line with the time to the first token and the speed goes to standard error.

    Where the device cannot run the model, or computes it wrongly, the next safer way is taken and one line
    says why. A conversation that outgrows the context loses its oldest turns, and one line says so.

    \b
    Examples:
      glm4-edge chat pocket
      glm4-edge chat ./glm4-npu --device NPU --no-fallback
      glm4-edge chat ./glm4-int4 --device GPU --temperature 0.6 --seed 1
      echo "What is the capital of France?" | glm4-edge chat pocket
      glm4-edge chat ./glm4-int4 --system "Answer in one sentence." < question.txt
    """
    from edge.messages import Sampling
    from edge.runtime import sampling as samplings
    from edge.ui import terminal

    asked = Sampling(stop=stop, **_taken(options, Sampling))
    samplings.check(asked)
    with _loaded(model, read=lambda: None if sys.stdin.isatty() else terminal.read_prompt(), **options) as (
        engine,
        prompt,
    ):
        if prompt is None:
            terminal.run_chat(engine, sampling=asked, system=system)
        else:
            engine.warm_up()  # its check beside the answer would make a token round otherwise
            terminal.answer_once(engine, prompt, sampling=asked, system=system)


def _taken(options: dict[str, Any], kind: type) -> dict[str, Any]:
    """Those of the options that are fields of a dataclass, taken out of them."""
    return {field.name: options.pop(field.name) for field in fields(kind) if field.name in options}


@contextmanager
def _loaded(
    model: str, *, read: Callable[[], str | None], overflow: Policy, **options: Any
) -> Iterator[tuple[Guarded, str | None]]:
    """The model on the device, and the piped prompt if there is one: bad input is met before the loading."""
    wanted = loading.look(model, read=read, **options)
    with loading.load(wanted, overflow=overflow) as engine:
        yield engine, wanted.prompt
