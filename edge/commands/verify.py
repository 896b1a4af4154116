"""`glm4-edge verify`: is this exported model right?"""

from __future__ import annotations

import json
from pathlib import Path

import click

from edge.commands.export import without_torch
from edge.report import check_table, progress_lines


@click.command(short_help="Prove an exported model right.")
@click.argument("model")
@click.option(
    "--against",
    metavar="CHECKPOINT",
    help="What the model was made from: 'pocket', a folder or a Hugging Face repository. Its numbers are compared.",
)
@click.option("--revision", help="Branch, tag or commit of a Hugging Face repository.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks and their figures as JSON.")
def verify(model: str, against: str | None, revision: str | None, as_json: bool) -> None:
    """Prove the exported MODEL right, and end with 0 if it is.

    Bits and group size of every weight, fusions in both of OpenVINO's attention backends, tokenizer, chat template
    and stop ids, and finite numbers after prompts of many lengths. With --against also some rows of every matrix,
    and the answers of the whole model or, of a large one, the outputs of sampled layers.

    A model made by optimum-intel is checked, too. What makes a model slow, not wrong, is a warning.

    \b
    Examples:
      glm4-edge verify ./glm4-int4
      glm4-edge verify ./glm4-int4 --against zai-org/glm-4-9b-chat-hf
      glm4-edge verify ./glm4-int4 --json
    """
    from edge.commands.named import exported
    from edge.errors import VerificationError
    from edge.export.verify_folder import require_model, verify_folder
    from edge.model import hub
    from edge.model.spec import GlmSpec

    def known(checkpoint: Path) -> None:
        GlmSpec.from_folder(checkpoint)

    folder = exported(model)
    with without_torch(), progress_lines() as progress:
        source = None
        if against is not None:
            require_model(folder)  # before gigabytes are fetched to compare it with
            located = hub.locate(against, revision=revision, progress=progress, check=known)
            source = located.folder
        found = verify_folder(folder, source, progress)
    failed = [check for check in found.checks if not check.passed]
    if as_json:
        checks = [check.model_dump(mode="json") for check in found.checks]
        answer = {"folder": str(folder), "passed": not failed, "checks": checks, "left_out": found.left_out}
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo(check_table(found.checks, found.left_out))
    if failed:
        raise VerificationError(
            f"{len(failed)} of {len(found.checks)} checks of {folder} failed: "
            + ", ".join(check.name for check in failed),
            hint="What to do stands with each of them above.",
        )
