"""How far an exported model on a device is from the checkpoint, by a reference's store.

Prompt and answer of the reference are fed to the model: the prompt in pieces, the answer a token at a time as in a
chat. What the model says after each token is compared with what the checkpoint said there. Until the model's likeliest
token is another than the checkpoint's, this is the model's own greedy answer; from there on the checkpoint's is fed,
so that all positions can be compared.

The model is compiled with the properties that chat runs it with, and read through OpenVINO's own (stateful) attention.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import DeviceError, ModelError, VerificationError
from edge.infer import EXACT, infer
from edge.manifest import Manifest
from edge.messages import Progress
from edge.runtime import devices, itrex, readout
from edge.runtime import trial as trials
from edge.runtime.choices import Choices
from edge.runtime.likeness import lumped_kl, next_log_probs, perplexity
from edge.runtime.refstore import Entry, Positions, Reference
from edge.runtime.settings import Runtime, Settings

_PIECE = 128  # tokens of a prompt read at once: 155 MB of probabilities, with GLM-4's vocabulary
_TOP = 5
_LENGTHS = (64, 256, 768)  # prompts up to as many tokens are looked at together
_OF_NO_WEIGHT = ("generation_config.json", "tokenizer_config.json", "chat_template.jinja")  # tokens are in the store


@dataclass(frozen=True)
class Compared:
    """One prompt's numbers; each array has one value for each token of prompt and answer but the last."""

    id: str
    language: str
    prompt_tokens: int
    answer_tokens: int
    kl: NDArray[np.float64]
    """KL(checkpoint ‖ model) in nats; see `lumped_kl`."""
    top1: NDArray[np.bool_]
    """Whether the likeliest token is the same."""
    top5: NDArray[np.float64]
    """Share of the checkpoint's five likeliest tokens among the model's five."""
    logit_error: NDArray[np.float64]
    """Mean absolute difference of the logits that the reference kept."""
    worst_logit_error: NDArray[np.float64]
    reference_log_probs: NDArray[np.float64]
    """Of the token that follows, in nats, by the checkpoint."""
    log_probs: NDArray[np.float64]
    """The same by the model."""
    first_divergence: int | None
    """First token of the greedy answer, counted from 0, that is not the checkpoint's; None: all are."""


@dataclass(frozen=True)
class Figures:
    """Some prompts' numbers together."""

    prompts: int
    positions: int
    kl_mean: float
    kl_p99: float
    kl_worst: float
    top1: float
    top5: float
    logit_error_mean: float
    logit_error_worst: float
    perplexity_reference: float
    """The checkpoint's, of the prompts: answers that it made itself would flatter it."""
    perplexity: float
    """The model's, of the same tokens."""
    same_answers: int
    """Prompts whose whole greedy answer is the checkpoint's."""
    first_divergence: float | None
    """Median over the other prompts, in tokens."""

    @property
    def perplexity_ratio(self) -> float:
        """The model's over the checkpoint's."""
        return self.perplexity / self.perplexity_reference


@dataclass(frozen=True)
class Parity:
    """What was found: by group ("all", "prompts to 64", …, "en", …), and of each prompt."""

    device: str
    properties: dict[str, Any]
    groups: dict[str, Figures]
    prompts: list[Compared]

    def as_json(self) -> dict[str, Any]:
        """For a program: groups in full, of each prompt its means."""
        of_each = [
            {
                "id": one.id, "language": one.language, "prompt_tokens": one.prompt_tokens,
                "answer_tokens": one.answer_tokens, "first_divergence": one.first_divergence,
                "kl_mean": float(one.kl.mean()), "kl_worst": float(one.kl.max()), "top1": float(one.top1.mean()),
            }
            for one in self.prompts
        ]  # fmt: skip
        groups = {
            name: asdict(figures) | {"perplexity_ratio": figures.perplexity_ratio}
            for name, figures in self.groups.items()
        }
        return {"device": self.device, "properties": self.properties, "groups": groups, "prompts": of_each}


@dataclass(frozen=True)
class Gate:
    """A bound on a figure of all prompts together."""

    option: str
    """As on the command line: what a failure is called by."""
    words: str
    figure: Callable[[Figures], float]
    at_most: bool = True


GATES = (
    Gate("--max-kl", "the mean KL divergence", lambda f: f.kl_mean),
    Gate("--max-kl-p99", "the 99th percentile of the KL divergence", lambda f: f.kl_p99),
    Gate("--max-kl-worst", "the largest KL divergence", lambda f: f.kl_worst),
    Gate("--min-top1", "the top-1 agreement", lambda f: f.top1, at_most=False),
    Gate("--min-top5", "the top-5 agreement", lambda f: f.top5, at_most=False),
    Gate("--max-ppl-ratio", "the perplexity against the checkpoint's", lambda f: f.perplexity_ratio),
)


def compare(
    folder: Path,
    reference: Reference,
    device: str,
    progress: Progress = lambda stage, done, total: None,
    trial: Callable[..., trials.Outcome] = trials.run,
    runtime: Runtime = "openvino",
    *,
    exact: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> Parity:
    """Run an exported model over a reference's prompts and answers.

    Args:
        device: CPU, GPU, GPU.n, HETERO:GPU,CPU or AUTO.
        trial: see `trial.run`.
        runtime: see `Settings`; ITREX runs on the CPU whatever the device.
        exact: in full precision, rather than as chat runs it.
        extra: properties of the plugin that go before those of chat.

    Raises:
        ModelError: the folder holds no model, or the reference is another model's.
        DeviceError: the device is not here, does not take the model, or is the NPU.
        VerificationError: the model's numbers are not finite.
    """
    manifest = Manifest.read(folder)
    check_same_model(manifest, reference, folder)
    resolved = "CPU" if runtime == "itrex" else place(folder, device, progress, trial)
    total = sum(len(positions.log_sum_exp) for positions in reference.positions)
    compared: list[Compared] = []
    done = 0

    with contextlib.ExitStack() as ending:
        read: readout.Read
        if runtime == "itrex":
            reader = ending.enter_context(itrex.Reader(itrex.load(folder, manifest, progress)))
            read, resolved, used = reader.read, "CPU by ITREX", {}
        else:
            progress(f"loading on {resolved}", 0, 0)
            used = properties(resolved, manifest, exact=exact, extra=extra)
            read = readout.reader(readout.request(folder, resolved, used))

        def run(tokens: NDArray[np.int64], past: int) -> NDArray[np.float32]:
            nonlocal done
            progress(f"comparing on {resolved}", done, total)
            found = read(tokens, past)
            done += len(tokens)
            return found

        for entry, positions in zip(reference.about.entries, reference.positions, strict=True):
            compared.append(compare_prompt(entry, positions, run))
    return Parity(resolved, used, _grouped(compared), compared)


def place(
    folder: Path,
    device: str,
    progress: Progress = lambda stage, done, total: None,
    trial: Callable[..., trials.Outcome] = trials.run,
) -> str:
    """The device by its name, on which all logits of a model can be had: tried in a process of its own.

    Raises:
        DeviceError: it is not here, does not take the model, or is the NPU.
    """
    resolved = Choices().resolved(device, folder)
    if "NPU" in devices.members(resolved):
        raise DeviceError(
            "the NPU gives the logits of a prompt's last token only, and this comparison needs all of them",
            hint="Compare on the CPU; `glm4-edge canary` looks at what the NPU answers.",
        )
    if resolved != "CPU":
        outcome = trial(folder, Settings(resolved), task="parity", progress=progress)
        if outcome.error is not None:
            raise outcome.error
    return resolved


def try_out(folder: Path, device: str) -> None:
    """Load the model as `compare` does, and read one token: in a process of its own, which a driver may crash.

    Raises:
        ModelError: the folder holds no model.
        DeviceError: the device does not take the model.
    """
    request = readout.request(folder, device, properties(device, Manifest.read(folder)))
    infer(request, np.zeros(1, np.int64), 0)


def properties(
    device: str, manifest: Manifest, *, exact: bool = False, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What chat runs the model with, where nothing was tuned, and `extra`; or, `exact`, full precision everywhere."""
    if exact:
        return dict(EXACT)
    wanted = {**devices.default_properties(device, manifest), **(extra or {})}
    return {name: value for name, value in wanted.items() if value is not None}


def check_same_model(manifest: Manifest, reference: Reference, folder: Path) -> None:
    """Raise for a reference of another checkpoint, or one read with another tokenizer.

    Raises:
        ModelError: it is.
    """
    theirs, ours = reference.about.checkpoint, manifest.source
    hint = f"Make one of {ours.model} with: glm4-edge reference {ours.model} FILE"
    sizes = (
        (theirs.vocab_size, manifest.architecture.vocab_size),
        (theirs.num_layers, manifest.architecture.num_layers),
    )
    for (there, here), what in zip(sizes, ("entries in the vocabulary", "layers"), strict=True):
        if there != here:
            raise ModelError(
                f"the reference is of {theirs.model} with {there:,} {what}, and {folder} has {here:,}", hint=hint
            )
    names = {name for name in {*theirs.sha256, *ours.sha256} if name not in _OF_NO_WEIGHT and _made_of(name)}
    unlike = sorted(name for name in names if theirs.sha256.get(name) != ours.sha256.get(name))
    if unlike:
        raise ModelError(
            f"the reference is of {theirs.model}, whose {unlike[0]} is not the one that {folder} was made from",
            hint=hint,
        )


def compare_prompt(
    entry: Entry, positions: Positions, run: Callable[[NDArray[np.int64], int], NDArray[np.float32]]
) -> Compared:
    """Compare one prompt and its answer.

    Args:
        run: logits [S, vocab] of S tokens after so many earlier ones of the same sequence.

    Raises:
        VerificationError: the model's numbers are not finite.
    """
    parts: list[tuple[NDArray[Any], ...]] = []
    count = len(positions.tokens) - 1  # after the last token nothing is compared
    start = 0
    while start < count:
        end = min(start + _PIECE, entry.prompt_tokens) if start < entry.prompt_tokens else start + 1
        end = min(end, count)
        logits = run(positions.tokens[start:end], start)
        if not np.isfinite(logits).all():
            raise VerificationError(
                f"the model's logits within tokens {start:,} to {end:,} of the prompt '{entry.id}' are not finite",
                hint="The device overflows or the model is damaged: see `glm4-edge canary` and `glm4-edge verify`.",
            )
        parts.append(_compare_rows(positions, start, end, logits))
        start = end
    kl, top1, top5, error, worst, log_probs, likeliest = (np.concatenate(column) for column in zip(*parts, strict=True))
    answer = positions.tokens[entry.prompt_tokens :]
    unlike = np.flatnonzero(likeliest[entry.prompt_tokens - 1 :] != answer)
    return Compared(
        entry.id, entry.language, entry.prompt_tokens, entry.answer_tokens, kl, top1, top5, error, worst,
        positions.next_log_probs, log_probs, int(unlike[0]) if len(unlike) else None,
    )  # fmt: skip


def failures(figures: Figures, bounds: Mapping[str, float | None]) -> list[str]:
    """A sentence, without a full stop, for each gate that `figures` do not pass; `bounds` by option."""
    out = []
    for gate in GATES:
        bound, value = bounds.get(gate.option), gate.figure(figures)
        if bound is not None and not (value <= bound if gate.at_most else value >= bound):
            side = "above" if gate.at_most else "below"
            out.append(f"{gate.words} is {value:.4g}, {side} {gate.option} {bound:g}")
    return out


def table(parity: Parity) -> str:
    """The groups for a person, one a line."""
    head = ("", "prompts", "tokens", "KL mean", "p99", "worst", "top-1", "top-5", "logits", "worst", "ppl ref", "ppl",
            "same", "first")  # fmt: skip
    rows = [head]
    for name, f in parity.groups.items():
        first = "-" if f.first_divergence is None else f"{f.first_divergence:.0f}"
        rows.append(
            (name, f"{f.prompts}", f"{f.positions}", f"{f.kl_mean:.4f}", f"{f.kl_p99:.3f}", f"{f.kl_worst:.3f}",
             f"{f.top1:.1%}", f"{f.top5:.1%}", f"{f.logit_error_mean:.3f}", f"{f.logit_error_worst:.2f}",
             f"{f.perplexity_reference:.2f}", f"{f.perplexity:.2f}", f"{f.same_answers}/{f.prompts}", first)
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.append(
        "KL to the checkpoint in nats, a lower bound: its unlikely tokens count as one; logits: mean and largest "
        "difference; ppl: perplexity of the prompts; "
        "same: whole greedy answers alike; first: where the others part, median, in tokens"
    )
    return "\n".join(lines)


def _made_of(name: str) -> bool:
    return name.endswith(".safetensors") or name in ("config.json", "tokenizer.json", "tokenizer.model")


def _compare_rows(positions: Positions, start: int, end: int, logits: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
    """KL, top-1, top-5, logit errors, log-probabilities and likeliest tokens of the positions from start to end."""
    rows = slice(start, end)
    ids = positions.top_ids[rows]
    kl = lumped_kl(ids, positions.top_logits[rows], positions.log_sum_exp[rows], logits)
    likeliest = logits.argmax(1)
    top = min(_TOP, ids.shape[1])
    ours = np.argpartition(logits, -top, axis=1)[:, -top:]
    top5 = (ids[:, :top, None] == ours[:, None]).any(2).mean(1)
    errors = np.abs(np.take_along_axis(logits, ids, 1) - positions.top_logits[rows])
    following = positions.tokens[start + 1 : end + 1]
    log_probs = next_log_probs(logits, following)
    return kl, likeliest == ids[:, 0], top5, errors.mean(1), errors.max(1), log_probs, likeliest


def _grouped(compared: Sequence[Compared]) -> dict[str, Figures]:
    groups: dict[str, list[Compared]] = {"all": list(compared)}
    for low, high in zip((0, *_LENGTHS), (*_LENGTHS, None), strict=True):
        name = f"prompts above {low}" if high is None else f"prompts to {high}"
        groups[name] = [
            one for one in compared if low < one.prompt_tokens and (high is None or one.prompt_tokens <= high)
        ]
    for language in dict.fromkeys(one.language for one in compared):
        groups[language] = [one for one in compared if one.language == language]
    return {name: _figures(members) for name, members in groups.items() if members}


def _figures(members: Sequence[Compared]) -> Figures:
    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(one, name) for one in members])

    def of_prompts(name: str) -> float:
        return perplexity(np.concatenate([getattr(one, name)[: one.prompt_tokens - 1] for one in members]))

    kl = joined("kl")
    parted = [one.first_divergence for one in members if one.first_divergence is not None]
    return Figures(
        prompts=len(members), positions=len(kl), kl_mean=float(kl.mean()), kl_p99=float(np.percentile(kl, 99)),
        kl_worst=float(kl.max()), top1=float(joined("top1").mean()), top5=float(joined("top5").mean()),
        logit_error_mean=float(joined("logit_error").mean()),
        logit_error_worst=float(joined("worst_logit_error").max()),
        perplexity_reference=of_prompts("reference_log_probs"), perplexity=of_prompts("log_probs"),
        same_answers=len(members) - len(parted), first_divergence=float(np.median(parted)) if parted else None,
    )  # fmt: skip
