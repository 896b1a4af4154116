"""`glm4-edge itrex`: the place where intel-extension-for-transformers is kept; and opening a model with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.errors import DeviceError, UsageError
from edge.report import progress_lines, say

if TYPE_CHECKING:
    from edge.messages import Progress
    from edge.runtime.context import Policy
    from edge.runtime.guarded import Guarded
    from edge.runtime.settings import Runtime, Settings

RUNTIME_OPTION = click.option(
    "--runtime",
    type=click.Choice(["openvino", "itrex"]),
    default="openvino",
    show_default=True,
    help="What runs the model. itrex: intel-extension-for-transformers, on the CPU, after `glm4-edge itrex setup`.",
)


@click.group(short_help="Set up Intel's older runtime, to compare with.")
def itrex() -> None:
    """Set up intel-extension-for-transformers (ITREX): --runtime itrex of chat, bench and parity.

    It is archived upstream, and is here to compare with: the same weights, run by Intel's other kernels. It needs a
    Python 3.11 (or 3.10), an older PyTorch and an older transformers, and so gets a virtual environment of its own in
    the cache folder: about 3 GB to download, 6.7 GB of disk while it is made and 6.2 GB after.

    \b
    Examples:
      glm4-edge itrex setup
      glm4-edge chat pocket --runtime itrex
      glm4-edge itrex remove
    """


@itrex.command()
@click.option(
    "--python",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A Python 3.11 or 3.10; left out, one is looked for.",
)
@click.option("--yes", is_flag=True, help="Without asking.")
def setup(python: Path | None, yes: bool) -> None:
    """Make the virtual environment, or go on with what was interrupted.

    The wheels come from PyPI by pip, whose own settings (PIP_INDEX_URL and others) hold.
    """
    from edge.runtime import itrex as runtime
    from edge.runtime import itrex_home

    found = itrex_home.status()
    if found.state == "ready":
        say(f"ITREX is set up in {found.folder}.")
        return
    base = itrex_home.find_python(python)
    say(runtime.ARCHIVED)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"setting up ITREX takes {itrex_home.COST}", hint="Say that it may, with --yes.")
        if not click.confirm(f"Set it up in {found.folder} with {base} ({itrex_home.COST})?", default=True, err=True):
            say("Nothing was done.")
            return
    try:
        with progress_lines() as progress:
            made = itrex_home.setup(progress, base)
    except KeyboardInterrupt:
        say("What was installed is kept; the same command goes on with the rest.")
        raise
    say(f"ITREX is set up in {made.folder} ({made.bytes / 1e9:.1f} GB). Try: glm4-edge chat pocket --runtime itrex")


@itrex.command()
@click.option("--json", "as_json", is_flag=True, help="For a program.")
def status(as_json: bool) -> None:
    """Say what is there."""
    from edge.runtime import itrex_home

    found = itrex_home.status()
    if as_json:
        told = {"state": found.state, "folder": str(found.folder), "versions": found.versions, "bytes": found.bytes}
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(
        {
            "absent": f"ITREX is not set up. Run: glm4-edge itrex setup (it would go to {found.folder})",
            "unfinished": f"A setup in {found.folder} was interrupted. Go on with: glm4-edge itrex setup",
            "outdated": f"ITREX in {found.folder} was set up by another version. Run: glm4-edge itrex setup",
            "ready": f"ITREX is set up in {found.folder}",
        }[found.state]
    )
    for name, version in found.versions.items():
        click.echo(f"  {name} {version}")
    if found.bytes:
        click.echo(f"  {found.bytes / 1e9:.1f} GB")


@itrex.command()
def remove() -> None:
    """Delete the virtual environment."""
    from edge.runtime import itrex_home

    place = itrex_home.folder()
    say(f"{place} was deleted." if itrex_home.remove() else f"There is none: {place} does not exist.")


def settings_for(device: str, context: int | None, **refused: Any) -> Settings:
    """How a model is loaded by ITREX.

    Args:
        refused: options that it does not have, by their names; what is set among them is an error.

    Raises:
        UsageError: an option that ITREX does not have.
        DeviceError: it is not set up.
    """
    from edge.runtime import itrex_home
    from edge.runtime.settings import Settings

    if device.upper() not in ("CPU", "AUTO"):
        raise UsageError(f"ITREX runs on the CPU, not on {device}", hint="Leave --device out.")
    given = next((name for name, value in refused.items() if value), None)
    if given is not None:
        raise UsageError(f"ITREX has no --{given.replace('_', '-')}", hint="Leave it out, or use --runtime openvino.")
    itrex_home.python()
    return Settings("CPU", context=context, runtime="itrex")


def opened(folder: Path, settings: Settings, policy: Policy, progress: Progress) -> Guarded:
    """The model in `folder`, loaded by ITREX and held against its golden logits.

    Raises:
        EdgeError: it cannot be loaded, or computes wrongly.
    """
    from edge import golden
    from edge.manifest import Manifest
    from edge.runtime import canary
    from edge.runtime.engine import Engine
    from edge.runtime.guarded import Guarded
    from edge.runtime.pipelines import open_itrex

    manifest = Manifest.read(folder)
    engine = Engine(open_itrex(folder, settings, manifest, progress), manifest, settings)
    try:
        kept = golden.read(folder)
        if kept is not None:
            progress("checking its numbers", 0, 0)
            found = canary.quick(engine, kept)
            if not found.ok:
                raise DeviceError(f"ITREX computes wrongly here: {found.reason}", hint="Use --runtime openvino.")
    except BaseException:
        engine.close()
        raise

    def again() -> Engine:
        return Engine.load(folder, settings)

    return Guarded(engine, again, lambda _: None, lambda *_: None, policy=policy, fallback=False)


def told(runtime: Runtime) -> None:
    """Warn of what ITREX is, where it is asked for."""
    if runtime == "itrex":
        from edge.runtime.itrex import ARCHIVED

        say(f"Warning: {ARCHIVED}")
