"""A model's name → files on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.errors import CheckpointError, DownloadError, UsageError
from edge.model import hub


def quiet(stage: str, done: int, total: int) -> None:
    """Progress nobody looks at."""


def test_a_local_folder_is_itself(tmp_path: Path) -> None:
    located = hub.locate(str(tmp_path), revision=None, progress=quiet)
    assert located.folder == tmp_path and located.revision is None


@pytest.mark.parametrize("name", ["./missing", "missing", "/no/such/folder", "a/b/c"])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        hub.locate(name, revision=None, progress=quiet)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        hub.locate(str(tmp_path / "model.gguf"), revision=None, progress=quiet)


def test_a_revision_of_something_local(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no revision 'main'"):
        hub.locate(str(tmp_path), revision="main", progress=quiet)


def test_the_hub_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="zai-org/no-such-model-in-any-cache") as caught:
        hub.locate("zai-org/no-such-model-in-any-cache", revision=None, progress=quiet)
    assert "run the same command again" in caught.value.hint


def test_what_reads_as_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zai-org" / "here").mkdir(parents=True)
    assert hub.is_repository("zai-org/glm-4-9b-chat-hf")
    assert not hub.is_repository("zai-org/here")
    assert not any(map(hub.is_repository, ["pocket", "./a", "../b", "~/c", "a/b/c", ""]))
