"""`glm4-edge reference`: what the checkpoint itself says, to hold exported models against."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.report import progress_lines, say

if TYPE_CHECKING:
    from edge.runtime.refstore import Reference


@click.command(short_help="Keep what the checkpoint itself says.")
@click.argument("checkpoint")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--prompts", type=click.Path(dir_okay=False, exists=True, path_type=Path), metavar="FILE",
              help='Prompts of yours: lines like {"id": "q1", "language": "en", "text": "Why?", "chat": true} in a '
              ".jsonl, or a plain text, which is read in pieces of 1,024 tokens. Left out: those shipped.")  # fmt: skip
@click.option("--device", default=None, help="cpu, cuda or cuda:n; left out, cuda where there is one.")
@click.option("--dtype", type=click.Choice(("bf16", "f32")), help="Left out: bf16 on CUDA, f32 on the CPU.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=64, show_default=True, help="Longest answer.")
@click.option("--top-k", type=click.IntRange(5), default=64, show_default=True, help="Logits kept of each position.")
@click.option("--revision", help="Branch, tag or commit of a Hugging Face repository.")
@click.option("--json", "as_json", is_flag=True, help="Print what the file says of itself as JSON.")
def reference(
    checkpoint: str,
    file: Path,
    prompts: Path | None,
    device: str | None,
    dtype: str | None,
    max_new_tokens: int,
    top_k: int,
    revision: str | None,
    as_json: bool,
) -> None:
    """Run CHECKPOINT with PyTorch and transformers, greedily, and keep its tokens, logits and timings in FILE.

    CHECKPOINT is 'pocket', a folder or a Hugging Face repository, in any layout that can be exported. FILE is one
    safetensors file of a few megabytes: made once on a machine that can run the checkpoint, it is read by
    `glm4-edge parity` on any other, without PyTorch. Needs the extra 'reference'.

    \b
    Examples:
      glm4-edge reference pocket pocket.ref
      glm4-edge reference zai-org/glm-4-9b-chat-hf glm4.ref --device cuda
      glm4-edge reference ./checkpoint glm4.ref --prompts mine.jsonl --max-new-tokens 128
    """
    with progress_lines() as progress:
        made = _make(checkpoint, revision, prompts, device, dtype, max_new_tokens, top_k, progress)
        made.write(file.expanduser())
    about = made.about
    if as_json:
        click.echo(json.dumps({"file": str(file), **about.model_dump(mode="json")}, indent=2, allow_nan=False))
        return
    new = sum(entry.answer_tokens - 1 for entry in about.entries)
    spent = sum(entry.decode_s for entry in about.entries)
    unlike, answered = sum(entry.unlike_forced for entry in about.entries), new + len(about.entries)
    positions = sum(len(numbers.log_sum_exp) for numbers in made.positions)
    click.echo(f"{file}: {len(about.entries)} prompts, {positions:,} positions, {file.stat().st_size / 1e6:.1f} MB")
    say(
        f"{about.checkpoint.model} in {about.dtype} on {(about.machine['gpu'] or {}).get('name', about.machine['cpu'])}"
    )
    if new:
        say(f"decode {new / spent:.1f} tokens/s")
    if about.decoding["fallback"]:
        say(f"Decoded without a compiler, which does not run here: {about.decoding['fallback']}")
    say(f"{unlike} of {answered} answer tokens are not the likeliest ones when the text is read at once")


def _make(
    model: str,
    revision: str | None,
    prompts: Path | None,
    device: str | None,
    dtype: Any,
    max_new_tokens: int,
    top_k: int,
    progress: Any,
) -> Reference:
    """The rooms meet here: the model's facts and digests go in, the runtime's numbers come out."""
    from edge.errors import MissingExtraError

    # One that was built for another PyTorch, as PyPI's beside a CPU PyTorch, would keep transformers from loading.
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]  # Python's way to say "not importable"
    try:
        from edge.runtime import reference as runs  # first: transformers looks for PyTorch once
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("torch", "reference") from error
    import datetime

    from edge import __version__
    from edge.export.digests import Digests
    from edge.model import hub, tokenizer
    from edge.model.checkpoint import Checkpoint
    from edge.model.spec import GlmSpec
    from edge.runtime import prompts as sets
    from edge.runtime import refstore

    texts = sets.shipped() if prompts is None else sets.read(prompts)

    def known(folder: Path) -> None:
        GlmSpec.from_folder(folder)

    located = hub.locate(model, revision=revision, progress=progress, check=known)
    tokenizer.require(located.folder)
    checkpoint = Checkpoint(located.folder)
    spec = checkpoint.spec
    chosen, number = runs.choose(device, dtype)
    progress("reading the tokenizer", 0, 0)
    prompt_set = sets.encode(texts, tokenizer.load(located.folder))
    stop_ids = tokenizer.stop_ids(located.folder, spec)
    weights = runs.Weights(
        spec.transformers_config(), checkpoint.tensors(), len(spec.tensor_shapes()), spec.parameter_count()
    )
    with Digests(checkpoint.files(), ahead=sys.maxsize) as digests:
        loaded = runs.load(weights, chosen, number, progress)
        answers = runs.answer(
            loaded, prompt_set, max_new_tokens=max_new_tokens, top_k=top_k, stop_ids=stop_ids, progress=progress
        )
        progress("hashing the checkpoint", 0, 0)
        sha256 = digests.result()
    about = refstore.About(
        format=refstore.FORMAT,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        checkpoint=refstore.Checkpoint(
            model=located.name, revision=located.revision, sha256=sha256, vocab_size=spec.vocab_size,
            num_layers=spec.num_layers,
        ),
        dtype=number, device=chosen, top_k=answers.positions[0].top_ids.shape[1], decoding=answers.decoding,
        machine=runs.machine(chosen), versions={"glm4-edge": __version__, **runs.versions()}, entries=answers.entries,
    )  # fmt: skip
    return refstore.Reference(about, answers.positions)
