"""The reference's file: whole, readable without PyTorch, and refused when it is not what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge.errors import ModelError, OutputError
from edge.runtime import refstore


def make(top_k: int = 8, lengths: tuple[tuple[int, int], ...] = ((5, 3), (2, 1))) -> refstore.Reference:
    rng = np.random.default_rng(0)
    entries, positions = [], []
    for i, (prompt, answer) in enumerate(lengths):
        rows = prompt + answer - 1
        entries.append(
            refstore.Entry(
                id=f"p{i}",
                language="en",
                prompt_tokens=prompt,
                answer_tokens=answer,
                ttft_s=0.5,
                decode_s=0.25,
                unlike_forced=0,
            )
        )
        positions.append(
            refstore.Positions(
                rng.integers(0, 160, prompt + answer),
                rng.integers(0, 160, (rows, top_k)),
                rng.standard_normal((rows, top_k)).astype(np.float32),
                rng.standard_normal(rows),
                -rng.random(rows),
            )
        )
    checkpoint = refstore.Checkpoint(model="tiny", revision=None, sha256={"model.safetensors": "00"}, vocab_size=160,
                                     num_layers=2)  # fmt: skip
    about = refstore.About(
        format=refstore.FORMAT, created="2026-01-01T00:00:00+00:00", checkpoint=checkpoint, dtype="f32", device="cpu",
        top_k=top_k, decoding={"fallback": None}, machine={"gpu": None}, versions={"torch": "2"}, entries=entries,
    )  # fmt: skip
    return refstore.Reference(about, positions)


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    made = make()
    path = tmp_path / "new" / "tiny.ref"
    made.write(path)
    found = refstore.Reference.read(path)
    assert found.about == made.about
    for before, after in zip(made.positions, found.positions, strict=True):
        for name in ("tokens", "top_ids", "top_logits", "log_sum_exp", "next_log_probs"):
            assert np.array_equal(getattr(before, name), getattr(after, name)), name
    assert [path.name for path in path.parent.iterdir()] == ["tiny.ref"]


def test_is_read_without_torch(tmp_path: Path) -> None:
    make().write(tmp_path / "tiny.ref")
    script = (
        "import sys\nsys.modules['torch'] = None\nfrom pathlib import Path\n"
        "from edge.runtime.refstore import Reference\n"
        f"assert len(Reference.read(Path({str(tmp_path / 'tiny.ref')!r})).positions) == 2\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.ref"
    make().write(path)
    before = path.read_bytes()

    write_bytes = Path.write_bytes

    def cut_short(target: Path, data: bytes) -> int:
        write_bytes(target, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", cut_short)
    with pytest.raises(OutputError, match="No space left"):
        make(top_k=9).write(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_what_is_no_reference_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.ref"
    with pytest.raises(ModelError, match="there is no reference"):
        refstore.Reference.read(path)
    path.write_bytes(b"something else")
    with pytest.raises(ModelError, match="damaged, or no reference"):
        refstore.Reference.read(path)
    make().write(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelError, match="damaged"):
        refstore.Reference.read(path)
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(1, np.float32)}, path)
    with pytest.raises(ModelError, match="no reference of glm4-edge"):
        refstore.Reference.read(path)


def refused(made: refstore.Reference, path: Path) -> str:
    made.write(path)
    with pytest.raises(ModelError) as caught:
        refstore.Reference.read(path)
    assert str(path) in caught.value.message and "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 99}, "has format 99; this version reads format 1"),
        ({"top_k": 7}, "top_ids has the shape [9, 8], and its prompts need [9, 7]"),
        ({"top_k": 0}, "top_k: Input should be greater than 0"),
        ({"entries": []}, "entries: List should have at least 1 item"),
        ({"decoding": {"x": float("nan")}}, None),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else "",
)
def test_what_does_not_fit_together_is_refused(change: dict[str, object], said: str | None, tmp_path: Path) -> None:
    made = make()
    other = refstore.Reference(made.about.model_copy(update=change), made.positions)
    if said is None:  # is written as null, and so never read as anything but JSON
        other.write(tmp_path / "tiny.ref")
        found = refstore.Reference.read(tmp_path / "tiny.ref")
        assert json.dumps(found.about.model_dump(mode="json"), allow_nan=False)
    else:
        assert said in refused(other, tmp_path / "tiny.ref")


def test_a_newer_version_is_the_way_out_of_a_newer_format(tmp_path: Path) -> None:
    made = make()
    for number, hint in ((refstore.FORMAT + 1, "Update glm4-edge"), (0, "Make it again")):
        refstore.Reference(made.about.model_copy(update={"format": number}), made.positions).write(tmp_path / "a.ref")
        with pytest.raises(ModelError) as caught:
            refstore.Reference.read(tmp_path / "a.ref")
        assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("prompt_tokens", -2, "entries.0.prompt_tokens: Input should be greater than or equal to 2"),
        ("prompt_tokens", 1, "entries.0.prompt_tokens: Input should be greater than or equal to 2"),
        ("answer_tokens", -1, "entries.0.answer_tokens: Input should be greater than or equal to 0"),
        ("prompt_tokens", 6, "tokens has the shape [11], and its prompts need [12]"),
        ("ttft_s", -1.0, "entries.0.ttft_s: Input should be greater than or equal to 0"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(name: str, value: float, said: str, tmp_path: Path) -> None:
    made = make()
    entries = [made.about.entries[0].model_copy(update={name: value}), *made.about.entries[1:]]
    about = made.about.model_copy(update={"entries": entries})
    assert said in refused(refstore.Reference(about, made.positions), tmp_path / "tiny.ref")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("tokens", 160, "in the prompt 'p1' a token is 160, outside the vocabulary of 160"),
        ("tokens", -7, "a token is -7, outside"),
        ("top_ids", 10**6, "one of the likeliest tokens is 1000000, outside the vocabulary of 160"),
        ("top_ids", -1, "one of the likeliest tokens is -1, outside"),
        ("log_sum_exp", np.nan, "a log-sum-exp is nan"),
        ("top_logits", np.inf, "a logit is inf"),
        ("next_log_probs", np.nan, "a log-probability is nan"),
    ],
)
def test_numbers_that_cannot_be_are_refused(name: str, value: float, said: str, tmp_path: Path) -> None:
    made = make()
    getattr(made.positions[1], name)[-1] = value
    assert said in refused(made, tmp_path / "tiny.ref")


def test_a_header_with_what_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.ref"
    make().write(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'\\"ttft_s\\":0.5', b'\\"ttft_s\\":NaN', 1))
    assert path.read_bytes() != data
    with pytest.raises(ModelError, match="its header is no JSON"):
        refstore.Reference.read(path)
