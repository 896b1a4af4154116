"""What a server is told when it starts: limits, keys, names. Pure."""

from __future__ import annotations

import ipaddress
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from edge.errors import UsageError

SHORTEST_KEY = 16
_HOW = f"Make one: python -c \"import secrets; print(secrets.token_urlsafe({2 * SHORTEST_KEY}))\""  # fmt: skip


@dataclass(frozen=True)
class Options:
    """How a server behaves."""

    host: str = "127.0.0.1"
    keys: tuple[bytes, ...] = ()
    """One of them must come with each request; none: anybody on this machine may ask."""
    name: str | None = None
    """By which the model is asked for; None: the one it was exported by."""
    queue: int = 16
    """Requests that may wait for their turn."""
    timeout_seconds: float = 600.0
    """That a request may take, the waiting included."""
    drain_seconds: float = 30.0
    """That running answers have left when the server is told to end."""
    body_bytes: int = 8 << 20
    body_seconds: float = 60.0
    """In which a request's body must have come."""
    first_seconds: float = 1.0
    """For so long a stream waits for the first token, so that a fault still has a status of its own."""
    beat_seconds: float = 5.0
    """After so much silence a stream says that it is alive."""
    cors_origins: tuple[str, ...] = ()
    log_prompts: bool = False

    def lets_in(self, key: bytes) -> bool:
        """Whether a key is one of ours; takes the same time for every wrong one."""
        return sum([secrets.compare_digest(key, each) for each in self.keys]) > 0


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_host(host: str, keys: tuple[bytes, ...]) -> None:
    """Refuse an address that others can reach without a key.

    Raises:
        UsageError: see there.
    """
    if not is_loopback(host) and not keys:
        raise UsageError(
            f"{host} can be reached by others, and there is no key",
            hint="Add --api-key-file FILE with a key in it, or leave out --host.",
        )


def read_keys(path: Path) -> tuple[bytes, ...]:
    """The keys in a file, one on each line; empty lines and those that begin with # are passed over.

    Raises:
        UsageError: it cannot be read, holds none, or one that is easily guessed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path} of keys", hint=f"Write one, with a key on a line. {_HOW}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the keys in {path} are no text in UTF-8", hint="Save the file as UTF-8.") from error
    except OSError as error:
        raise UsageError(
            f"the keys in {path} cannot be read ({error.strerror or error})", hint="Mend its permissions."
        ) from error
    keys = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise UsageError(f"there is no key in {path}", hint=f"Write one on a line. {_HOW}")
    for number, key in enumerate(keys, 1):
        if len(key) < SHORTEST_KEY or any(sign.isspace() for sign in key):
            raise UsageError(
                f"key {number} in {path} has {len(key)} characters or a blank in it, and is no key",
                hint=f"Take {SHORTEST_KEY} characters or more, without blanks. {_HOW}",
            )
    return tuple(key.encode() for key in keys)


def readable_by_others(path: Path) -> bool:
    """Whether other accounts of this machine may read it; not known on Windows."""
    return os.name != "nt" and bool(path.stat().st_mode & 0o077)
