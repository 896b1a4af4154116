"""Fetching from a Hub: what comes, what is kept of what came, and a sentence for everything that fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.errors import CheckpointError, DownloadError, EdgeError, OutputError
from edge.files import HOME_VARIABLE
from edge.model import download, hub
from edge.model.checkpoint import Checkpoint
from edge.model.spec import GlmSpec
from tests.conftest import split_into_shards, write_checkpoint
from tests.hub import COMMITS, FakeHub, serve

NAME = "zai-org/glm-4-9b-chat-hf"
SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with more in it than an export needs."""
    folder = write_checkpoint(tmp_path_factory.mktemp("published") / "c", vocab_size=320)
    split_into_shards(folder, 3)
    for name in ("pytorch_model.bin", "onnx/model.safetensors", "original/config.json", "README.md", "m.gguf"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not needed")
    return folder


@pytest.fixture
def fake(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    with serve() as server:
        server.repositories[NAME] = {"main": published}
        monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(download, "_PAUSE", 0.01)
        yield server


def quiet(stage: str, done: int, total: int) -> None:
    """Progress nobody looks at."""


def fetch(name: str = NAME, revision: str | None = None) -> Path:
    return hub.locate(name, revision=revision, progress=quiet, check=GlmSpec.from_folder).folder  # type: ignore[arg-type]


def test_what_is_needed_comes_and_nothing_else(fake: FakeHub, published: Path) -> None:
    folder = fetch()
    assert folder.name == COMMITS["main"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in published.iterdir() if path.suffix in (".json", ".safetensors")
    )
    assert {file for file, _, _ in fake.gets} == {path.name for path in folder.iterdir()}
    for name in ("model.norm.weight", "lm_head.weight"):
        assert (Checkpoint(folder).weight(name).raw == Checkpoint(published).weight(name).raw).all()
    fake.gets.clear()
    assert fetch() == folder and fake.gets == []


def test_the_progress_counts_the_bytes_of_the_whole(fake: FakeHub, published: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    hub.locate(NAME, revision=None, progress=lambda *told: seen.append(told))
    total = sum(path.stat().st_size for path in published.glob("*.safetensors"))
    counts = [done for stage, done, of in seen if stage.startswith(f"fetching {NAME}") and of == total]
    assert counts[0] == 0 and counts[-1] == total and counts == sorted(counts)
    assert len(set(counts)) >= 4  # three shards
    assert seen[0] == (f"looking up {NAME}", 0, 0)


def test_a_second_run_fetches_only_the_rest(fake: FakeHub, published: Path) -> None:
    """A connection that breaks in the middle of a shard, and does not come back."""
    size = (published / SHARD).stat().st_size
    fake.break_after[SHARD] = size // 3
    with pytest.raises(DownloadError, match="could not be fetched") as caught:
        fetch()
    assert "run the same command again; what has arrived is kept" in caught.value.hint
    assert fake.sent(SHARD) == size // 3
    fake.gets.clear()
    del fake.break_after[SHARD]
    folder = fetch()
    assert [(file, asked) for file, asked, _ in fake.gets if file.endswith("safetensors")] == [
        (SHARD, f"bytes={size // 3}-"),
        ("model-00003-of-00003.safetensors", None),
    ]
    assert fake.sent(SHARD) == size - size // 3
    assert (folder / SHARD).read_bytes() == (published / SHARD).read_bytes()
    assert list(folder.parents[1].rglob("*.incomplete")) == []


def test_a_connection_that_breaks_again_and_again_is_taken_up(fake: FakeHub, published: Path) -> None:
    """As long as each brings something, the same run goes on."""
    size = (published / SHARD).stat().st_size
    breaks = iter(range(size // 8, size, size // 8))
    append = download._append

    def append_and_heal(url: str, partial: Path, report: object) -> None:
        if url.endswith(SHARD):
            fake.break_after[SHARD] = next(breaks, size)
        append(url, partial, report)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "_append", append_and_heal)
        folder = fetch()
    assert (folder / SHARD).read_bytes() == (published / SHARD).read_bytes()
    assert fake.sent(SHARD) == size and sum(file == SHARD for file, _, _ in fake.gets) >= 8


@pytest.mark.skipif(sys.platform == "win32", reason="a console's Ctrl-C cannot be sent to one process there")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_keeps_what_has_arrived(
    fake: FakeHub, published: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    size = (published / SHARD).stat().st_size
    fake.break_after[SHARD] = size // 2
    fake.stall.set()
    environment = os.environ | {"HF_ENDPOINT": fake.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "edge", "export", NAME, str(tmp_path / "out")]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert child.stderr is not None
    deadline = time.monotonic() + 60
    while not fake.sent(SHARD) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    child.send_signal(sent)
    said = child.communicate(timeout=30)[1]
    assert child.returncode == code, said
    assert "Traceback" not in said and f"fetching {NAME}" in said
    assert "it/s" not in said and "%|" not in said  # no bar of another's
    (piece,) = (tmp_path / "hf").rglob("*.incomplete")
    assert piece.stat().st_size == size // 2
    assert not (tmp_path / "out").exists()


def test_a_branch_a_tag_and_a_commit(fake: FakeHub, published: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(published, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    fake.repositories[NAME]["v1"] = other
    assert GlmSpec.from_folder(fetch(revision="v1")).rms_norm_eps == 1e-5
    assert GlmSpec.from_folder(fetch(revision=COMMITS["v1"])).rms_norm_eps == 1e-5
    assert GlmSpec.from_folder(fetch()).rms_norm_eps == 1.5625e-07
    assert sum(file == SHARD for file, _, _ in fake.gets) == 1  # the same bytes are not fetched for each


def refused(said: str, hint: str, name: str = NAME, revision: str | None = None) -> EdgeError:
    with pytest.raises(EdgeError) as caught:
        fetch(name, revision)
    assert said in caught.value.message and hint in caught.value.hint
    return caught.value


def test_names_the_hub_does_not_have(fake: FakeHub) -> None:
    refused("has no zai-org/no-such, or it is private", "hf auth login", name="zai-org/no-such")
    refused(f"has no revision 'v9' of {NAME}", "Check the spelling", revision="v9")
    refused("is no name of a repository", "zai-org/", name="zai-org/--")


def test_a_repository_behind_terms(fake: FakeHub) -> None:
    fake.gated = True
    refused("only given to those who accepted its terms", f"https://huggingface.co/{NAME}")


def test_a_model_of_another_kind_costs_no_download(fake: FakeHub, published: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(published, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "glm4_moe"}))
    fake.repositories["zai-org/GLM-4.5-Air"] = {"main": other}
    refused("of type 'glm4_moe'", "Supported", name="zai-org/GLM-4.5-Air")
    assert {file for file, _, _ in fake.gets} <= set(download.CONFIGS)


@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
def test_a_repository_without_safetensors(fake: FakeHub, published: Path, tmp_path: Path, index: bool) -> None:
    other = tmp_path / "other"
    shutil.copytree(published, other)
    if index:
        (other / SHARD).unlink()
    else:
        (other / "model.safetensors.index.json").unlink()
    fake.repositories["o/bin"] = {"main": other}
    refused("o/bin has no model", ".bin and GGUF are not read", name="o/bin")
    assert not any(file.endswith("safetensors") for file, _, _ in fake.gets)


def test_a_repository_without_config(fake: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "glm-4-9b-chat.Q4_K_M.gguf").write_bytes(b"GGUF")
    fake.repositories["o/glm-GGUF"] = {"main": tmp_path / "gguf"}
    refused("o/glm-GGUF is no checkpoint: it has no config.json", "GGUF is not read", name="o/glm-GGUF")


def test_a_file_that_came_damaged(fake: FakeHub) -> None:
    fake.corrupt.add(SHARD)
    refused(f"{SHARD} of {NAME} came damaged", "Run the same command again")
    fake.corrupt.clear()
    assert Checkpoint(fetch())


def test_no_room_is_said_before_the_first_gigabyte(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.files.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    assert isinstance(refused("GB are free", "HF_HOME"), OutputError)
    assert not any(file.endswith("safetensors") for file, _, _ in fake.gets)


@pytest.mark.parametrize("how", ["unplugged", "HF_HUB_OFFLINE", "no list of files"])
def test_what_is_here_needs_no_network(fake: FakeHub, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch()
    if how == "no list of files":  # as older versions of huggingface_hub leave their cache
        for path in folder.parents[1].glob("trees/*.json"):
            path.unlink()
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    fake.gets.clear()
    assert fetch() == folder and fake.gets == []
    (folder / SHARD).unlink()
    refused("cannot be reached", "A folder downloaded by other means works too")


def test_two_at_once_do_not_write_one_file(fake: FakeHub, published: Path, tmp_path: Path) -> None:
    from edge.files import alone

    fake.break_after[SHARD] = 10
    with pytest.raises(DownloadError):
        fetch()
    (piece,) = (tmp_path / "cache").rglob("*.incomplete")
    with alone(piece.with_suffix("")):
        refused("another process is writing", "Wait until it is done")


def test_a_piece_longer_than_the_file_is_thrown_away(fake: FakeHub, published: Path, tmp_path: Path) -> None:
    fake.break_after[SHARD] = 10
    with pytest.raises(DownloadError):
        fetch()
    (piece,) = (tmp_path / "cache").rglob("*.incomplete")
    piece.write_bytes(bytes((published / SHARD).stat().st_size + 1))
    fake.break_after.clear()
    assert (fetch() / SHARD).read_bytes() == (published / SHARD).read_bytes()


def test_the_name_of_a_repository_is_checked_before_the_network() -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        hub.locate("zai-org/a/b", revision=None, progress=quiet)


def test_no_room_for_the_export_is_said_before_the_download(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge.cli import _run

    monkeypatch.setattr("edge.files.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    assert _run(["export", NAME, str(tmp_path / "out"), "--weights", "bf16"]) == 1
    assert f"the export to {tmp_path / 'out'} needs" in capsys.readouterr().err
    assert not any(file.endswith("safetensors") for file, _, _ in fake.gets)
