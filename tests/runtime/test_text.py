"""Text comes out whole: the fake vocabulary has one token for each byte, the worst a real one can do."""

from __future__ import annotations

import random

import pytest

from edge.runtime.text import TextBuffer


def decode(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def decode_per_byte(ids: list[int]) -> str:
    """One replacement character for each bad byte, as some decoders do."""
    data, text = bytes(ids), ""
    while data:
        for length in (1, 2, 3, 4):
            try:
                text += data[:length].decode("utf-8")
            except UnicodeDecodeError:
                continue
            data = data[length:]
            break
        else:
            text, data = text + "\ufffd", data[1:]
    return text


def pieces(data: bytes, stop: tuple[str, ...] = (), step: int = 1, decoder: object = decode) -> list[str]:
    buffer = TextBuffer(decoder, stop)  # type: ignore[arg-type]
    got = [buffer.push(data[at : at + step]) for at in range(0, len(data), step)]
    return [piece for piece in [*got, buffer.finish()] if piece]


FAMILY = "👩‍👩‍👧"
EMOJI = ["👩‍👩‍👧", "👍🏽", "🇫🇷", "❤️", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "😀", "☎️", "©️", "👨🏿‍🚀"]
TEXTS = [
    "plain", "你好，世界。", "naïve café", f"a{FAMILY}b", "".join(EMOJI), "🇫🇷🇩🇪🇨🇳!", "技术🚀技术", "12 #3 *4*",
    "x\n\n  y\t",
]  # fmt: skip


@pytest.mark.parametrize("decoder", [decode, decode_per_byte])
@pytest.mark.parametrize("step", [1, 2, 3, 5])
@pytest.mark.parametrize("text", TEXTS)
def test_nothing_is_lost_or_broken(text: str, step: int, decoder: object) -> None:
    got = pieces(text.encode(), step=step, decoder=decoder)
    assert "".join(got) == text
    assert not any("\ufffd" in piece for piece in got)


@pytest.mark.parametrize("emoji", EMOJI)
def test_an_emoji_comes_in_one_piece(emoji: str) -> None:
    assert any(emoji in piece for piece in pieces(f"ab{emoji}cd".encode()))
    assert pieces(emoji.encode()) == [emoji]


def test_emoji_in_a_row_come_one_by_one() -> None:
    assert pieces("".join(EMOJI).encode()) == EMOJI
    assert pieces("🇫🇷🇩🇪".encode()) == ["🇫🇷", "🇩🇪"]


def test_ordinary_text_is_not_held_back() -> None:
    buffer = TextBuffer(decode)
    assert [buffer.push(c.encode()) for c in "a 你。"] == ["a", " ", "你", "。"]


def test_tokens_may_straddle_characters() -> None:
    data = ("你好世界" * 20).encode()
    cuts = [data[:2], *(data[at : at + 3] for at in range(2, len(data), 3))]  # every token ends inside one
    buffer = TextBuffer(decode)
    got = [buffer.push(cut) for cut in cuts] + [buffer.finish()]
    assert "".join(got) == "你好世界" * 20
    assert not any("\ufffd" in piece for piece in got)


def test_invalid_bytes_are_shown_as_such_and_do_not_stop_the_stream() -> None:
    got = pieces(b"a\xe4b" + b"\xff" * 100 + "你ok".encode())
    assert "".join(got) == "a\ufffdb" + "\ufffd" * 100 + "你ok"


def test_half_a_character_at_the_end_is_left_out() -> None:
    assert "".join(pieces("好你".encode()[:-1])) == "好"
    assert "".join(pieces("ok👩".encode()[:-1], decoder=decode_per_byte)) == "ok"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("\nHi", "Hi"), ("\n\nHi", "\nHi"), ("Hi\n", "Hi\n"), (" \nHi", " \nHi"), ("\n", ""), ("", "")],
)
def test_one_leading_newline_is_left_out(text: str, expected: str) -> None:
    assert "".join(pieces(text.encode())) == expected
    assert "".join(pieces(text.encode(), step=100)) == expected


@pytest.mark.parametrize("step", [1, 2, 7])
@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("four",), "one two three"),
        ("one two three", ("three", "two"), "one "),
        ("aaab", ("aab",), "a"),
        ("ababac", ("abac",), "ab"),
        ("end\nUser: x", ("\nUser:",), "end"),
        ("好的停止吧", ("停止",), "好的"),
        ("two", ("two",), ""),
        ("one tw", ("two",), "one tw"),
    ],
)
def test_stop_strings(text: str, stop: tuple[str, ...], expected: str, step: int) -> None:
    assert "".join(pieces(text.encode(), stop, step)) == expected


def test_after_a_stop_string_nothing_comes() -> None:
    buffer = TextBuffer(decode, ("END",))
    assert buffer.push(b"yes END more") == "yes "
    assert buffer.stopped
    assert (buffer.push(b"more"), buffer.finish()) == ("", "")


def test_what_may_become_a_stop_string_is_held_back() -> None:
    buffer = TextBuffer(decode, ("STOP",))
    assert [buffer.push(c.encode()) for c in "aSTxSTO"] == ["a", "", "", "STx", "", "", ""]
    assert buffer.finish() == "STO"


def test_random_cuts() -> None:
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choice(["你", "a", "\n", " ", "1", *EMOJI]) for _ in range(30)).lstrip("\n")
        data, at, got, buffer = text.encode(), 0, [], TextBuffer(decode)
        while at < len(data):
            size = rng.randint(1, 5)
            got.append(buffer.push(data[at : at + size]))
            at += size
        assert "".join([*got, buffer.finish()]) == text


def test_a_runaway_cluster_is_not_held_for_ever() -> None:
    got = pieces(("👩" + "\u200d" * 500).encode())
    assert len(got) > 1
    assert len("".join(got)) == 501
