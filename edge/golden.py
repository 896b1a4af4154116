"""Golden logits: what an exported model has to say of a known text, kept beside it to hold a device against.

The export computes them from the IR's own bits, in plain f32 arithmetic, not through OpenVINO. So what differs on a
device is the device, its driver or a damaged file, and not the compression.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge import manifest
from edge.errors import ModelError
from edge.files import as_others, check_readable

if TYPE_CHECKING:
    from numpy.typing import NDArray

FILE_NAME = "golden.safetensors"
FORMAT = "1"

# On both sides of the sizes in which plugins work: vectors, tiles, blocks of the cache, groups. Some faults show at
# single lengths only. The last is read in several steps on a CPU, in several chunks on an NPU. All are far below the
# NPU's default limit of a prompt.
LENGTHS = (1, 2, 9, 15, 16, 17, 32, 33, 64, 65, 128, 129, 321)


@dataclass(frozen=True, eq=False)
class Golden:
    """One text, and what the model says behind several of its beginnings: prompts of different lengths."""

    token_ids: NDArray[np.int64]
    """[S]: the whole text; a prompt is its first tokens."""
    log_probs: NDArray[np.float32]
    """[S - 1]: of each token but the first, given those before it, in nats."""
    lengths: tuple[int, ...]
    """Of the prompts, ascending; the last is S."""
    logits: NDArray[np.float32]
    """[prompts, vocabulary]: after the last token of each."""

    def prompt(self, length: int) -> NDArray[np.int64]:
        """The first `length` token ids."""
        return self.token_ids[:length]

    def last(self, length: int) -> NDArray[np.float32]:
        """Logits [vocabulary] after the prompt of this length, one of `lengths`."""
        found: NDArray[np.float32] = self.logits[self.lengths.index(length)]
        return found

    def upto(self, tokens: int) -> Golden:
        """Without the prompts that are longer."""
        lengths = tuple(length for length in self.lengths if length <= tokens)
        end = max(lengths)
        return Golden(self.token_ids[:end], self.log_probs[: end - 1], lengths, self.logits[: len(lengths)])

    def beyond(self, tokens: int) -> Golden | None:
        """Without the prompts of at most so many; None where there are no longer ones."""
        first = sum(length <= tokens for length in self.lengths)
        if first == len(self.lengths):
            return None
        return Golden(self.token_ids, self.log_probs, self.lengths[first:], self.logits[first:])

    @classmethod
    def of(cls, token_ids: NDArray[np.int64], logits: NDArray[np.float32], lengths: tuple[int, ...]) -> Golden:
        """From the logits [S, vocabulary] of every position."""
        picked = logits[np.array(lengths) - 1]
        return cls(token_ids, known_log_probs(logits[:-1], token_ids[1:]), lengths, picked)


def known_log_probs(logits: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Log-probabilities [N], in nats, that logits [N, vocabulary] give to N known tokens."""
    shifted = logits - logits.max(-1, keepdims=True)
    total = np.log(np.exp(shifted).sum(-1, dtype=np.float64))
    found: NDArray[np.float32] = (shifted[np.arange(len(tokens)), tokens] - total).astype(np.float32)
    return found


def write(golden: Golden, folder: Path) -> str:
    """Put the golden logits into the exported model's folder; returns the file's SHA-256.

    The export keeps that in edge.json, among the figures of its check.
    """
    from safetensors.numpy import save_file

    tensors = {
        "token_ids": golden.token_ids, "log_probs": golden.log_probs, "logits": golden.logits,
        "lengths": np.array(golden.lengths, np.int64),
    }  # fmt: skip
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(whole, folder / FILE_NAME, {"format": FORMAT})
    as_others(folder / FILE_NAME)
    return hashlib.sha256((folder / FILE_NAME).read_bytes()).hexdigest()


def read(folder: Path) -> Golden | None:
    """The golden logits of an exported model; None where it has none: older exports, and those of other programs.

    Raises:
        ModelError: the file is gone that edge.json names, or it is damaged, another model's, or of a newer version.
            Whoever holds a device against it can rely on finite numbers, on lengths that begin with those of `LENGTHS`,
            and on ids in the vocabulary.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE_NAME
    if not path.is_file():
        if _written_digest(folder) is not None:  # else nobody would hear that devices are no longer checked
            raise ModelError(f"{folder} is damaged: {FILE_NAME} is missing", hint="Export the model again.")
        return None
    check_readable(path)
    try:
        with safe_open(path, "numpy") as file:
            told = (file.metadata() or {}).get("format")
            names = ("token_ids", "log_probs", "lengths", "logits") if told == FORMAT else ()
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is damaged ({error})", hint="Export the model again.") from error
    if not tensors:
        raise ModelError(
            f"{path} has format {told}; this version reads format {FORMAT}",
            hint="Export the model again, or update glm4-edge.",
        )
    ids, lengths = tensors["token_ids"], tuple(int(length) for length in tensors["lengths"])
    shapes = (tensors["log_probs"].shape, tensors["logits"].shape[:1], lengths[-1:])
    if shapes != ((len(ids) - 1,), (len(lengths),), (len(ids),)):
        raise ModelError(f"{path} is damaged (its parts do not fit each other)", hint="Export the model again.")
    damage = _damage(path, Golden(ids, tensors["log_probs"], lengths, tensors["logits"]))
    if damage is not None:
        raise ModelError(f"{path} is damaged ({damage})", hint="Export the model again.")
    return Golden(ids, tensors["log_probs"], lengths, tensors["logits"])


def _damage(path: Path, found: Golden) -> str | None:
    """What cannot be, of a file whose parts fit each other."""
    if found.lengths != LENGTHS[: len(found.lengths)]:
        return f"its prompts have {', '.join(map(str, found.lengths))} tokens"
    if not (np.isfinite(found.logits).all() and np.isfinite(found.log_probs).all()):
        return "some of its numbers are none"
    vocabulary = found.logits.shape[1]
    if found.token_ids.min() < 0 or found.token_ids.max() >= vocabulary:
        return f"a token's id is outside the vocabulary of {vocabulary:,}"
    behind = np.array(found.lengths[:-1], np.int64)  # what comes after each prompt but the whole text is known
    expected = found.log_probs[behind - 1]
    if not np.allclose(known_log_probs(found.logits[:-1], found.token_ids[behind]), expected, rtol=1e-3, atol=1e-3):
        return "its logits and log-probabilities do not fit each other"
    if not (path.parent / manifest.FILE_NAME).is_file():
        return None
    made = manifest.Manifest.read(path.parent)
    if made.architecture.vocab_size != vocabulary:
        return f"it is another model's: of {vocabulary:,} entries, not {made.architecture.vocab_size:,}"
    told = _written_digest(path.parent)
    if told is not None and hashlib.sha256(path.read_bytes()).hexdigest() != told:
        return "it is not what the export wrote"
    return None


def _written_digest(folder: Path) -> str | None:
    """What edge.json says that the export wrote; None where it says nothing."""
    if not (folder / manifest.FILE_NAME).is_file():
        return None
    checks = manifest.Manifest.read(folder).checks
    return next((check.figures.get("sha256") for check in checks if check.name == "golden"), None)
