"""Golden logits on disk: what was written is read, and what is damaged is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edge import golden
from edge.errors import ModelError
from edge.manifest import Check
from tests.runtime.test_devices import manifest

LENGTHS = (1, 2, 9)


@pytest.fixture
def kept() -> golden.Golden:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((9, 50)).astype(np.float32)
    return golden.Golden.of(rng.integers(0, 50, 9), logits, LENGTHS)


def test_what_was_written_is_read(kept: golden.Golden, tmp_path: Path) -> None:
    assert golden.read(tmp_path) is None
    golden.write(kept, tmp_path)
    again = golden.read(tmp_path)
    assert again is not None and again.lengths == LENGTHS
    for name in ("token_ids", "log_probs", "logits"):
        assert np.array_equal(getattr(again, name), getattr(kept, name))
    assert again.prompt(2).tolist() == kept.token_ids[:2].tolist()
    assert np.array_equal(again.last(9), kept.logits[2])


def test_log_probs_are_those_of_the_tokens_that_come(kept: golden.Golden) -> None:
    logits = np.log(np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], np.float32))
    made = golden.Golden.of(np.array([0, 1, 2]), logits + 5, (1, 3))  # a constant changes no probability
    np.testing.assert_allclose(np.exp(made.log_probs), [0.7, 0.25], rtol=1e-5)
    assert np.array_equal(made.logits, (logits + 5)[[0, 2]])
    assert len(kept.log_probs) == len(kept.token_ids) - 1


def test_lengths_lie_on_both_sides_of_the_borders_and_below_the_npus_limit() -> None:
    from edge.npu import MAX_PROMPT_LEN

    assert all({border, border + 1} <= set(golden.LENGTHS) for border in (16, 32, 64, 128))
    assert max(golden.LENGTHS) < MAX_PROMPT_LEN


def test_damage_is_told(kept: golden.Golden, tmp_path: Path) -> None:
    golden.write(kept, tmp_path)
    path = tmp_path / golden.FILE_NAME
    whole, tensors = path.read_bytes(), load_file(path)
    path.write_bytes(whole[:-10])
    with pytest.raises(ModelError, match="damaged"):
        golden.read(tmp_path)
    save_file(tensors, path, {"format": "2"})
    with pytest.raises(ModelError, match="format 2"):
        golden.read(tmp_path)
    save_file({**tensors, "log_probs": tensors["log_probs"][:-1]}, path, {"format": golden.FORMAT})
    with pytest.raises(ModelError, match="do not fit"):
        golden.read(tmp_path)


def changed(tensor: np.ndarray, place: int, value: float) -> np.ndarray:
    tensor = tensor.copy()
    tensor.reshape(-1)[place] = value
    return tensor


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("logits", lambda tensor: changed(tensor, 7, np.nan), "numbers are none"),
        ("log_probs", lambda tensor: changed(tensor, 0, np.inf), "numbers are none"),
        ("logits", lambda tensor: changed(tensor, 7, 1e30), "do not fit each other"),
        ("log_probs", lambda tensor: tensor - 1, "do not fit each other"),
        ("token_ids", lambda tensor: changed(tensor, 3, 10**7), "outside the vocabulary of 50"),
        ("token_ids", lambda tensor: changed(tensor, 0, -5), "outside the vocabulary of 50"),
        ("lengths", lambda tensor: np.array([0, 2, 9]), "prompts have 0, 2, 9 tokens"),
        ("lengths", lambda tensor: np.array([2, 1, 9]), "prompts have 2, 1, 9 tokens"),
        ("lengths", lambda tensor: np.array([2, 7, 9]), "prompts have 2, 7, 9 tokens"),
    ],
)
def test_what_no_export_writes_is_damage(
    name: str, change: Callable[[np.ndarray], np.ndarray], said: str, kept: golden.Golden, tmp_path: Path
) -> None:
    """Held against a device, it would be taken for the device's fault."""
    golden.write(kept, tmp_path)
    path = tmp_path / golden.FILE_NAME
    tensors = load_file(path)
    save_file({**tensors, name: change(tensors[name])}, path, {"format": golden.FORMAT})
    with pytest.raises(ModelError, match=said) as caught:
        golden.read(tmp_path)
    assert caught.value.hint == "Export the model again."


def test_it_is_what_the_export_wrote_and_this_models(kept: golden.Golden, tmp_path: Path) -> None:
    digest = golden.write(kept, tmp_path)
    check = Check(name="golden", passed=True, figures={"sha256": digest})
    made = manifest(checks=[check])
    made.model_copy(update={"architecture": made.architecture.model_copy(update={"vocab_size": 50})}).write(tmp_path)
    assert golden.read(tmp_path) is not None
    path = tmp_path / golden.FILE_NAME
    kept_aside = path.rename(tmp_path / "aside")
    with pytest.raises(ModelError, match=r"golden\.safetensors is missing"):
        golden.read(tmp_path)
    kept_aside.rename(path)
    flipped = bytearray(path.read_bytes())
    flipped[-5] ^= 0x40
    path.write_bytes(flipped)
    with pytest.raises(ModelError, match="not what the export wrote"):
        golden.read(tmp_path)
    made.model_copy(update={"architecture": made.architecture.model_copy(update={"vocab_size": 51})}).write(tmp_path)
    with pytest.raises(ModelError, match="another model's: of 50 entries, not 51"):
        golden.read(tmp_path)
