"""Who is answered, who waits, who is sent away; and what a server is told when it starts."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge.errors import UsageError
from edge.server import queueing
from edge.server.faults import RefusedError
from edge.server.options import Options, check_host, is_loopback, read_keys, readable_by_others
from edge.server.queueing import Gate, Ticket

KEY = "k" * 20


class Room:
    """A gate, and who has begun."""

    def __init__(self, places: int, longest: int) -> None:
        self.places = places
        self.begun: list[str] = []
        self.gate = Gate(lambda: self.places, longest)

    def take(self, name: str, count: int = 1) -> Ticket:
        return self.gate.take(count, lambda: self.begun.append(name))


def test_they_are_let_in_in_the_order_of_their_coming() -> None:
    room = Room(2, 3)
    tickets = {name: room.take(name) for name in "abcde"}
    assert room.begun == ["a", "b"] and (room.gate.running, room.gate.waiting) == (2, 3)
    room.gate.leave(tickets["c"])  # it does not wait any longer
    room.gate.leave(tickets["b"])
    assert room.begun == ["a", "b", "d"]
    room.gate.leave(tickets["a"])
    room.gate.leave(tickets["d"])
    room.gate.leave(tickets["e"])
    assert room.begun == ["a", "b", "d", "e"] and (room.gate.running, room.gate.waiting) == (0, 0)
    room.gate.leave(tickets["e"])  # twice does no harm
    assert room.gate.running == 0


def test_one_more_than_may_wait_is_sent_away() -> None:
    room = Room(1, 1)
    first, second = room.take("a"), room.take("b")
    with pytest.raises(RefusedError) as caught:
        room.take("c")
    assert caught.value.status == 429 and 1 <= (caught.value.retry_seconds or 0) <= 60
    with pytest.raises(RefusedError):
        room.gate.check()
    room.gate.leave(first)
    room.gate.check()
    room.take("c")
    room.gate.leave(second)
    assert room.begun == ["a", "b", "c"]


def test_when_to_come_again_follows_those_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(queueing, "time", SimpleNamespace(monotonic=lambda: now))
    gate = Gate(lambda: 2, longest=1)

    def retry() -> int:
        with pytest.raises(RefusedError) as caught:
            gate.check()
        assert caught.value.retry_seconds is not None
        return caught.value.retry_seconds

    short = gate.take(1, lambda: None)
    gate.leave(short)  # of no length
    first, *_ = [gate.take(1, lambda: None) for _ in range(3)]
    assert retry() == 1
    now += 10
    assert retry() == 20  # two run, each for 20 s in all; two are to come to an end before a place is free
    now += 100
    assert retry() == 60
    gate.leave(first)


def test_without_a_queue_nobody_waits() -> None:
    room = Room(1, 0)
    room.take("a")
    with pytest.raises(RefusedError):
        room.take("b")


def test_many_answers_take_many_places_but_never_more_than_there_are() -> None:
    room = Room(4, 9)
    three = room.take("three", 3)
    two = room.take("two", 2)
    room.take("one", 1)  # it would fit, and waits behind those who came before
    assert room.begun == ["three"]
    room.gate.leave(three)
    assert room.begun == ["three", "two", "one"]
    nine = room.take("nine", 9)
    room.gate.leave(two)
    assert "nine" not in room.begun
    room.places = 1  # another device
    room.gate.leave(nine)
    assert room.gate.waiting == 0


@pytest.mark.parametrize(
    ("host", "only_here"),
    [("127.0.0.1", True), ("localhost", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("0.0.0.0", False),
     ("::", False), ("192.168.1.5", False), ("example.org", False), ("", False), ("127.0.0.1.example.org", False)],
)  # fmt: skip
def test_others_need_a_key(host: str, only_here: bool) -> None:
    assert is_loopback(host) is only_here
    check_host(host, (b"key",))
    if only_here:
        check_host(host, ())
    else:
        with pytest.raises(UsageError, match="there is no key"):
            check_host(host, ())


def test_keys_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"\ufeff# mine\n\n  {KEY}  \nschlüssel-schlüssel\n", encoding="utf-8")
    keys = read_keys(file)
    assert keys == (KEY.encode(), "schlüssel-schlüssel".encode())
    options = Options(keys=keys)
    assert options.lets_in(KEY.encode()) and options.lets_in("schlüssel-schlüssel".encode())
    assert not options.lets_in(KEY.encode()[:-1]) and not options.lets_in(b"") and not options.lets_in(b"\xff\x00")
    assert not Options().lets_in(b"")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "there is no key"), (b"# none\n", "there is no key"), (b"short\n", "key 1 in"),
     (b"\xff\xfe\x00", "no text in UTF-8"),
     (f"{KEY}\n{KEY} {KEY}\n".encode(), "key 2 in")],
)  # fmt: skip
def test_keys_that_are_none(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        read_keys(file)
    with pytest.raises(UsageError, match=r"there is no file .*Write one"):
        read_keys(tmp_path / "none")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such bits")
def test_a_key_file_that_others_can_read(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.touch()
    file.chmod(0o600)
    assert not readable_by_others(file)
    file.chmod(0o640)
    assert readable_by_others(file)
