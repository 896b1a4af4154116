"""A Hugging Face Hub of our own: as much of its HTTP interface as a download uses, and ways to fail."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class FakeHub:
    """Serves `repositories`, name → {revision: folder}; counts what it is asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Path]] = {}
        self.gets: list[tuple[str, str | None, int]] = []
        """File, Range header and bytes sent, of each GET of a file."""
        self.break_after: dict[str, int] = {}
        """File → bytes after which the connection breaks, every time until the entry is taken out."""
        self.corrupt: set[str] = set()
        self.gated = False
        self.stall = threading.Event()
        """Set: a broken transfer does not end, it hangs."""
        self.url = ""

    def sent(self, file: str) -> int:
        return sum(count for name, _, count in self.gets if name == file)


@contextmanager
def serve() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.stall.clear()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        _, _, _, owner, repo, _, revision = self.path.split("/", 6)
        folder = self._folder(f"{owner}/{repo}", unquote(revision))
        if folder is None:
            return
        if self.headers.get("Content-Type", "").startswith("application/json"):
            wanted = set(json.loads(asked)["paths"])
        else:
            from urllib.parse import parse_qs

            wanted = set(parse_qs(asked.decode()).get("paths", []))
        self._json([entry for entry in _tree(folder) if entry["path"] in wanted])

    def _answer(self, *, body: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            revision = parts[5] if len(parts) > 5 else "main"
            folder = self._folder(name, revision)
            if folder is None:
                return
            if "tree" in parts[4:5]:
                self._json(_tree(folder))
            else:
                names = [{"rfilename": entry["path"]} for entry in _tree(folder)]
                self._json({"id": name, "sha": _commit(revision), "siblings": names})
            return
        name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        folder = self._folder(name, revision)
        if folder is None:
            return
        if not (folder / file).is_file():
            self._fault(404, "EntryNotFound")
            return
        self._file(folder / file, file, revision, body=body)

    def _file(self, path: Path, file: str, revision: str, *, body: bool) -> None:
        data = path.read_bytes()
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{_etag(path)}"')
        self.send_header("X-Repo-Commit", _commit(revision))
        if path.suffix == ".safetensors":
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Linked-ETag", f'"{_etag(path)}"')
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return
        if file in self.state.corrupt:
            data = bytes(len(data))
        stop = self.state.break_after.get(file, len(data))
        piece = data[start : max(start, stop)]
        self.wfile.write(piece)
        self.wfile.flush()
        self.state.gets.append((file, asked, len(piece)))
        if stop < len(data):
            while self.state.stall.is_set():
                time.sleep(0.05)
            self.close_connection = True
            self.connection.close()

    def _folder(self, name: str, revision: str) -> Path | None:
        revisions = self.state.repositories.get(name)
        if revisions is None:
            self._fault(401, "RepoNotFound")
            return None
        if self.state.gated:
            self._fault(403, "GatedRepo")
            return None
        names = {_commit(key): key for key in revisions} | {key: key for key in revisions}
        if revision not in names:
            self._fault(404, "RevisionNotFound")
            return None
        return revisions[names[revision]]

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fault(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _commit(revision: str) -> str:
    return COMMITS.get(revision, revision)


def _etag(path: Path) -> str:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return digest if path.suffix == ".safetensors" else digest[:40]


def _tree(folder: Path) -> list[dict[str, Any]]:
    entries = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            entry: dict[str, Any] = {
                "type": "file", "path": path.relative_to(folder).as_posix(), "size": path.stat().st_size,
                "oid": _etag(path)[:40],
            }  # fmt: skip
            if path.suffix == ".safetensors":
                entry["lfs"] = {"oid": _etag(path), "size": entry["size"], "pointerSize": 134}
            entries.append(entry)
    return entries
