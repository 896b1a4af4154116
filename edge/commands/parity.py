"""`glm4-edge parity`: how far is an exported model on this device from its checkpoint?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.commands import itrex
from edge.commands.itrex import RUNTIME_OPTION
from edge.report import progress_lines, say

if TYPE_CHECKING:
    from edge.runtime.settings import Runtime

_GATES = {
    "--max-kl": "Fail if the mean KL divergence to the checkpoint, in nats, is above.",
    "--max-kl-p99": "Fail if its 99th percentile is above.",
    "--max-kl-worst": "Fail if its largest value is above.",
    "--min-top1": "Fail if the likeliest token is the checkpoint's less often, 0 to 1.",
    "--min-top5": "Fail if less of the checkpoint's five likeliest tokens are the model's, 0 to 1.",
    "--max-ppl-ratio": "Fail if the perplexity of the prompts is above this many times the checkpoint's.",
}


class _Bound(click.FloatRange):
    """A bound that can be kept: also none that is no number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See `click.ParamType.convert`."""
        found = float(super().convert(value, param, ctx))
        if math.isnan(found):
            self.fail(f"{value!r} is no number.", param, ctx)
        return found


def _gates(command: Callable[..., Any]) -> Callable[..., Any]:
    for option, text in reversed(_GATES.items()):
        most = 1.0 if option.startswith("--min") else None  # those are shares
        command = click.option(option, type=_Bound(min=0, max=most), metavar="X", help=text)(command)
    return command


@click.command(short_help="Compare an exported model with its checkpoint.")
@click.argument("model")
@click.argument("reference", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--device", default="CPU", show_default=True, help="CPU, GPU, GPU.n, HETERO:A,B or AUTO.")
@RUNTIME_OPTION
@_gates
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, those of each prompt too.")
def parity(
    model: str, reference: Path, device: str, runtime: Runtime, as_json: bool, **bounds: float | None
) -> None:  # fmt: skip
    """Run the exported MODEL over the prompts and answers of REFERENCE, and say how far it is from them.

    REFERENCE is what `glm4-edge reference` made of the same checkpoint, on whatever machine. Shown are, by length of
    prompt and by language: the KL divergence to the checkpoint, how often the likeliest token is the same, the
    logits' error, the perplexity of the prompts by both, and where greedy answers part. With a --max or --min option
    the command ends with 1 if all prompts together do not keep it.

    The KL divergence counts the tokens outside the reference's top k as one: it is a lower bound.

    \b
    Examples:
      glm4-edge parity ./glm4-int4 glm4.ref
      glm4-edge parity ./glm4-int4 glm4.ref --device GPU --max-kl 0.1 --min-top1 0.85
      glm4-edge parity ./glm4-int4 glm4.ref --json
    """
    from edge.commands.named import exported
    from edge.errors import VerificationError
    from edge.manifest import Manifest
    from edge.runtime import parity as runs
    from edge.runtime.refstore import Reference

    folder = exported(model, device)
    if runtime == "itrex":
        itrex.settings_for(device, None)
    stored = Reference.read(reference.expanduser())
    itrex.told(runtime)
    merged = Manifest.read(folder).source.merged
    if merged:
        say(f"{' and '.join(merged)} was merged into {folder}, and not into the reference's checkpoint: the figures "
            "say how far both lead away from it, adapters and rounding.")  # fmt: skip
    with progress_lines() as progress:
        found = runs.compare(folder, stored, device, progress, runtime=runtime)
    failed = runs.failures(found.groups["all"], {_option(name): value for name, value in bounds.items()})
    if as_json:
        about = stored.about.model_dump(mode="json", exclude={"entries"})
        facts = {"folder": str(folder), **found.as_json(), "reference": about, "failed": failed}
        click.echo(json.dumps(facts, indent=2, allow_nan=False))
    else:
        click.echo(runs.table(found))
    if failed:
        raise VerificationError(
            f"{folder} on {found.device} does not keep {'a bound' if len(failed) == 1 else f'{len(failed)} bounds'}: "
            + "; ".join(failed),
            hint="Choose more bits, --calibrate or another device; or a looser bound.",
        )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
