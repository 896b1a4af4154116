"""Conversations on disk: nothing is lost, whoever writes, and whatever a file holds."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from edge.errors import OutputError, UsageError
from edge.files import HOME_VARIABLE
from edge.runtime.context import Conversation
from edge.ui.web import kept_as
from edge.ui.web.store import ChangedError, Store, default_folder
from edge.ui.web.talk import Document, Settings, Step, Talk, Turn, title_from


def begun(store: Store, text: str = "Why is the sky blue?") -> Talk:
    new = store.new()
    talk, _ = store.change(new.id, lambda talk: talk.ask(text), new=new)
    return talk


def answered(store: Store, name: str, text: str) -> Talk:
    def end(talk: Talk) -> None:
        talk.turns[-1].content, talk.turns[-1].ending = text, "stop"

    return store.change(name, end)[0]


def test_a_conversation_is_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "kept")
    assert store.entries() == []
    talk = begun(store)
    answered(store, talk.id, "Because of 瑞利散射.")
    again = Store(tmp_path / "kept").get(talk.id)
    assert [turn.content for turn in again.turns] == ["Why is the sky blue?", "Because of 瑞利散射."]
    (entry,) = Store(tmp_path / "kept").entries()
    assert (entry.id, entry.title, entry.turns) == (talk.id, "Why is the sky blue?", 2)


def test_it_is_the_users_data_not_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    assert default_folder() == tmp_path / "conversations"
    monkeypatch.delenv(HOME_VARIABLE)
    from platformdirs import user_cache_path

    assert not default_folder().is_relative_to(user_cache_path())


def test_settings_are_kept_with_the_conversation(tmp_path: Path) -> None:
    store = Store(tmp_path)
    talk = begun(store)
    settings = Settings(system="Be brief.", temperature=0.3, max_new_tokens=64, stop=["END"], tools=True)
    store.change(talk.id, lambda talk: setattr(talk, "settings", settings))
    kept = Store(tmp_path).get(talk.id).settings
    assert kept == settings
    sampling = kept.sampling()
    assert (sampling.temperature, sampling.max_new_tokens, sampling.stop) == (0.3, 64, ("END",))
    assert store.new(kept).settings is not kept


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("\n\n  ## Tell me about tides  \nand more", "Tell me about tides"),
        ("word " * 30, "word " * 11 + "word …"),
        ("天" * 90, "天" * 60 + " …"),
        ("", ""),
    ],
)
def test_the_title_is_the_first_message(text: str, title: str) -> None:
    assert title_from(text) == title


def test_a_given_title_stays_and_an_empty_one_gives_the_first_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    talk = begun(store, "one")
    store.change(talk.id, lambda talk: talk.rename("  My\n talk "))
    store.change(talk.id, lambda talk: talk.ask("two"))
    assert store.get(talk.id).title == "My talk"
    store.change(talk.id, lambda talk: talk.rename(" "))
    assert store.get(talk.id).title == "one"


def test_search_needs_every_word_anywhere(tmp_path: Path) -> None:
    store = Store(tmp_path)
    sky = begun(store, "Why is the Sky blue?")
    answered(store, sky.id, "Rayleigh scattering")
    begun(store, "为什么天空是蓝色的")
    assert [entry.id for entry in store.entries("rayleigh SKY")] == [sky.id]
    assert len(store.entries("天空")) == 1 and len(store.entries()) == 2 and store.entries("sky 天空") == []


def test_the_last_changed_stands_first_and_a_quiet_change_moves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = begun(store, "first"), begun(store, "second")
    assert [entry.id for entry in store.entries()] == [second.id, first.id]
    store.change(first.id, lambda talk: talk.rename("quiet"), touch=False)
    assert store.entries()[0].id == second.id
    store.change(first.id, lambda talk: talk.ask("again"))
    assert store.entries()[0].id == first.id


def test_a_change_decided_on_an_old_state_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    talk = begun(store)
    store.change(talk.id, lambda talk: talk.ask("from the other tab"), seen=talk.revision)
    with pytest.raises(ChangedError, match="another tab"):
        store.change(talk.id, lambda talk: talk.cut(0), seen=talk.revision)
    assert len(store.get(talk.id).turns) == 4


def test_a_fault_in_the_change_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path)
    talk = begun(store)

    def fails(talk: Talk) -> None:
        talk.turns.clear()
        raise UsageError("no", hint="No.")

    with pytest.raises(UsageError):
        store.change(talk.id, fails)
    assert store.get(talk.id) == talk == Store(tmp_path).get(talk.id)


def test_many_threads_of_two_stores_lose_nothing(tmp_path: Path) -> None:
    stores = [Store(tmp_path), Store(tmp_path)]
    talk = begun(stores[0])

    def add(turn: Turn, talk: Talk) -> None:
        talk.turns.append(turn)

    def work(number: int) -> None:
        for i in range(10):
            turn = Turn(role="user", content=f"{number}.{i}")
            stores[number % 2].change(talk.id, partial(add, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    said = [turn.content for turn in Store(tmp_path).get(talk.id).turns[2:]]
    assert sorted(said) == sorted(f"{number}.{i}" for number in range(4) for i in range(10))
    assert stores[0].get(talk.id).revision == stores[1].get(talk.id).revision == 41


def test_two_programs_lose_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    talk = begun(store)
    script = (
        "import sys\nfrom pathlib import Path\nfrom edge.ui.web.store import Store\n"
        "from edge.ui.web.talk import Turn\nstore = Store(Path(sys.argv[1]))\n"
        "for i in range(25):\n"
        "    store.change(sys.argv[2], lambda talk: talk.turns.append(Turn(role='user', content=str(i))))\n"
    )
    programs = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), talk.id]) for _ in range(2)]
    assert [program.wait(120) for program in programs] == [0, 0]
    assert len(store.get(talk.id).turns) == 2 + 50


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": 3}', '{"turns": [{"role": "user", "content": "half'])
def test_a_damaged_file_is_put_aside_whole_and_told_of(content: str, tmp_path: Path) -> None:
    said: list[str] = []
    store = Store(tmp_path, said.append)
    bad, good = begun(store, "bad"), begun(store, "good")
    (tmp_path / f"{bad.id}.json").write_text(content, encoding="utf-8")
    assert [entry.id for entry in store.entries()] == [good.id]
    (aside,) = tmp_path.glob("*.damaged-*")
    assert aside.read_text(encoding="utf-8") == content
    assert len(said) == 1 and str(aside) in said[0]
    with pytest.raises(UsageError, match="no conversation"):
        store.get(bad.id)
    store.entries()
    assert len(said) == 1


def test_a_killed_writer_leaves_the_old_state(tmp_path: Path) -> None:
    store = Store(tmp_path)
    talk = begun(store)
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom edge.ui.web.store import Store\n"
        "Path.replace = lambda self, target: os._exit(9)\n"
        "Store(Path(sys.argv[1])).change(sys.argv[2], lambda talk: talk.rename('half'))\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path), talk.id], timeout=60).returncode == 9
    again = Store(tmp_path)
    assert again.get(talk.id) == talk
    again.change(talk.id, lambda talk: talk.rename("whole"))  # its lock is gone with it
    assert again.get(talk.id).title == "whole"


def test_a_deleted_one_is_gone_for_everybody(tmp_path: Path) -> None:
    store, other = Store(tmp_path), Store(tmp_path)
    talk = begun(store)
    assert other.get(talk.id)
    store.delete(talk.id)
    store.delete(talk.id)
    for action in (lambda: other.get(talk.id), lambda: other.change(talk.id, lambda talk: talk.ask("x"))):
        with pytest.raises(UsageError, match="any more"):
            action()
    assert other.entries() == []


@pytest.mark.parametrize("name", ["../secret", "x", "", "20260101-000000-0123456z", "20260101-000000-01234567/../.."])
def test_what_a_browser_sends_names_no_other_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}", encoding="utf-8")
    store = Store(tmp_path / "kept")
    with pytest.raises(UsageError):
        store.get(name)
    with pytest.raises(UsageError):
        store.delete(name)
    assert (tmp_path / "secret.json").exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot be written"):
        begun(Store(tmp_path / "file" / "kept"))


def test_cutting_gives_the_question_back(tmp_path: Path) -> None:
    talk = begun(Store(tmp_path), "one")
    talk.ask("two")
    assert talk.cut(3).content == "two" and len(talk.turns) == 2
    assert talk.cut(0).content == "one" and talk.turns == [] and talk.title == ""
    with pytest.raises(UsageError):
        talk.cut(0)


@pytest.fixture
def talk() -> Talk:
    talk = Talk(id="20260101-000000-01234567", title="Sums: 2 + 2?", created=1767225600)
    talk.settings.system = "Be exact."
    talk.turns = [
        Turn(role="user", content="What is 2 + 2?", documents=[Document(name="a.txt", text="two", tokens=1)]),
        Turn(role="assistant", content="It is 4.", ending="stop",
             steps=[Step(name="calculate", arguments='{"expression": "2+2"}', result="4", before="Let me see.")]),
        Turn(role="user", content="Sure?"),
        Turn(role="assistant", content="Ye", ending="partial"),
    ]  # fmt: skip
    return talk


def test_as_markdown_it_can_be_read(talk: Talk) -> None:
    text = kept_as.markdown(talk, "pocket")
    assert text.startswith("# Sums: 2 + 2?\n\n*pocket, 2026-01-01 00:00 UTC*\n\n## System\n\nBe exact.\n\n## You")
    assert 'calculate {"expression": "2+2"}\n→ 4' in text and text.endswith("## Answer\n\nYe\n\n*(stopped)*\n")
    assert "*a.txt, 1 tokens*" in text


def test_as_json_the_terminal_loads_it(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(kept_as.as_json(talk, "pocket"), encoding="utf-8")
    loaded = Conversation.load(path)
    assert loaded.system == "Be exact."
    assert [turn.message.role for turn in loaded.turns] == [
        "user", "assistant", "observation", "assistant", "user", "assistant"
    ]  # fmt: skip
    assert "two" in loaded.turns[0].message.content and loaded.turns[-1].finish_reason == "cancelled"
    assert json.loads(path.read_text(encoding="utf-8"))["model"] == "pocket"


def test_the_exported_files_name_is_fit_for_windows(talk: Talk) -> None:
    assert kept_as.file_name(talk, "md") == "Sums 2 + 2.md"
    talk.title = '???"'
    assert kept_as.file_name(talk, "json") == f"{talk.id}.json"
