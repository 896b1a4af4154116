"""`glm4-edge quality` on the pocket model: its numbers held against other roads to the same ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.cli import _run
from edge.errors import ResourceError
from edge.manifest import Manifest
from edge.quality.record import Record

TEXT = (
    "The old bridge was built of grey stone, and nobody remembers who built it. Every spring the river rises to its "
    "second arch, and every summer children jump from it into the water. Last year the town put a small light on it."
)


def silent(stage: str, done: int, total: int) -> None:
    """Progress nobody looks at."""


@pytest.mark.model
def test_the_pocket_model_is_near_its_checkpoint(
    pocket_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    words = ["quality", str(pocket_dir), "--text", str(tmp_path / "text.txt"), "--window", "24", "--exact", "--out"]
    assert _run([*words, str(tmp_path / "near.json"), "--against", "pocket"]) == 0
    shown = capsys.readouterr().out
    (model,) = Record.read(tmp_path / "near.json").models
    assert model.distance is not None and list(model.distance.figures) == ["text.txt"]
    found = model.distance.figures["text.txt"]
    assert found.kl_mean is not None and 0.005 < found.kl_mean < 0.2
    assert found.top1 is not None and found.top1 > 0.7
    assert found.perplexity_reference is not None and 20 < found.perplexity_reference < 120  # windows are short
    assert abs(np.log(found.perplexity / found.perplexity_reference)) < 0.3
    assert f"{found.kl_mean:.4f}" in shown and "text.txt" in shown

    from edge.model import tokenizer
    from edge.quality import distance, texts

    # read alone, without a reference, the same tokens lose the same
    windows = texts.windows({"text.txt": TEXT}, tokenizer.load(pocket_dir), window=24, tokens=4096)
    alone = distance.from_text(pocket_dir, windows, "CPU", exact=True)
    assert alone.digest == model.distance.digest and alone.kl == []
    assert np.allclose(alone.losses, model.distance.losses, atol=2e-3)
    assert np.isclose(found.perplexity, np.exp(np.mean(model.distance.losses)), rtol=1e-4)  # of every token
    assert alone.figures["text.txt"].tokens == len(alone.losses) == found.tokens


@pytest.mark.model
def test_the_pocket_model_finds_a_needle(pocket_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "needles.json"
    (tmp_path / "hay.txt").write_text(TEXT, encoding="utf-8")
    words = ["--no-distance", "--needle", "--needle-lengths", "200", "--needle-depths", "0.5", "--needles", "3"]
    assert _run(["quality", str(pocket_dir), *words, "--haystack", str(tmp_path / "hay.txt"), "--out", str(out)]) == 0
    (model,) = Record.read(out).models
    assert model.needles is not None and model.distance is None and model.needles.share >= 2 / 3
    (cell,) = model.needles.cells
    assert all(160 < tokens <= 200 for tokens in cell.prompt_tokens) and len(set(cell.expected)) == 3


@pytest.mark.model
def test_what_tune_kept_is_left_out_and_said_or_taken_and_said(
    pocket_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge.errors import DeviceError
    from edge.runtime import guarding, tuned

    kept = tuned.Tuned("chat", "a cache in f16", {"KV_CACHE_PRECISION": "f16"})
    monkeypatch.setattr(tuned, "read", lambda folder, device: kept)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    words = ["quality", str(pocket_dir), "--text", str(tmp_path / "text.txt"), "--window", "24", "--out"]
    used = []
    for more in ([], ["--tuned"]):
        out = tmp_path / f"{len(more)}.json"
        assert _run([*words, str(out), *more]) == 0
        told = capsys.readouterr()
        (model,) = Record.read(out).models
        assert model.distance is not None
        used.append(model.distance.properties.get("KV_CACHE_PRECISION"))
        if more:
            assert f"{pocket_dir.name} on CPU, tuned" in told.out and "for chat: a cache in f16" in told.out
            assert model.settings == kept.said and "default settings" not in told.err
        else:
            assert "default settings" in told.err and "--tuned measures that" in told.err
            assert model.settings == "" and "tuned" not in told.out
    assert used[0] != "f16" and used[1] == "f16"

    asked = []

    def refused(folder: Path, settings: object, **_: object) -> None:
        asked.append(settings.tuned)  # type: ignore[attr-defined]
        raise DeviceError("that is enough", hint="")

    monkeypatch.setattr(guarding, "open_guarded", refused)
    for more in ([], ["--tuned"]):  # written answers are made with the same settings
        assert _run(["quality", str(pocket_dir), "--no-distance", "--needle", *more]) == 1
    assert asked == [False, True]
    assert _run(["quality", str(pocket_dir), "--tuned", "--exact"]) == 2


def test_models_of_one_name_are_told_apart_and_none_by_its_path(tmp_path: Path) -> None:
    from edge.commands.quality_run import names_of

    made = {str(tmp_path / name): tmp_path / name for name in ("a/int4", "b/int4", "b/int8")}
    checkpoint = tmp_path / "mine"  # whose export lies elsewhere
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}", encoding="utf-8")
    elsewhere = tmp_path / "models" / "int4"
    folders = made | {str(checkpoint): elsewhere, "pocket": elsewhere, "zai-org/glm-4-9b-chat-hf": elsewhere}
    assert list(names_of(folders).values()) == [
        "a-int4", "b-int4", "int8", "mine", "pocket", "zai-org/glm-4-9b-chat-hf",
    ]  # fmt: skip


def test_a_large_checkpoint_is_not_run_by_the_way(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.commands import quality_checkpoint
    from tests.runtime.test_devices import manifest

    described: Manifest = manifest()
    monkeypatch.setattr(quality_checkpoint, "SMALL", 1000)
    with pytest.raises(ResourceError, match="--reference"):
        quality_checkpoint.at_hand(described, str(tiny), silent)
    assert quality_checkpoint.at_hand(described, None, silent) is None


def test_a_reference_of_a_text_is_what_the_definition_says(tiny: Path) -> None:
    """Against the plain definition of the model, position by position."""
    from edge.commands.quality_checkpoint import reference_of
    from edge.model.checkpoint import Checkpoint
    from edge.model.forward import logits as defined
    from edge.model.hub import Located
    from edge.runtime.prompts import Prompt

    tokens = list(map(int, np.random.default_rng(3).integers(0, 320, 17)))
    made = reference_of(Located(tiny, "tiny"), [Prompt("a 1", "a", tokens)], silent)
    (positions,) = made.positions
    source = Checkpoint(tiny)
    logits = defined(source.spec, source.weight, tokens)
    order = np.argsort(-logits[:-1], axis=1)
    assert np.array_equal(positions.top_ids[:, :5], order[:, :5]) and positions.top_ids.shape == (16, 320)
    total = np.log(np.exp(logits[:-1].astype(float)).sum(1))
    assert np.allclose(positions.log_sum_exp, total, atol=1e-3)
    assert np.allclose(positions.next_log_probs, logits[np.arange(16), tokens[1:]] - total, atol=1e-3)
