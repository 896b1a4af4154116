"""A file → its text. What kind of file it is, its first bytes say; its name is only held against them."""

from __future__ import annotations

import copy
import zipfile
import zlib
from pathlib import Path

from edge.documents.document import Document
from edge.errors import DocumentError
from edge.messages import Progress

LARGEST_FILE = 200_000_000
"""Bytes; also what a packed file may unpack to."""
LARGEST_TEXT = 10_000_000
"""Characters: far beyond any context, and what is cut into passages within seconds."""
_PIECE = 1 << 16
FORMATS = "pdf, docx, pptx, and any text: txt, md, py, cpp, json, csv …"
_OFFICE = {"word/document.xml": "docx", "ppt/presentation.xml": "pptx", "xl/workbook.xml": "xlsx"}
_OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def read(path: Path, name: str | None = None, progress: Progress = lambda stage, done, total: None) -> Document:
    """The text of a file.

    Args:
        name: what the model is told the file is called; left out, the path's own.

    Raises:
        DocumentError: it is not there, damaged, protected, too large, of a kind that is not read, or without text.
    """
    name = " ".join((name or path.name).split()) or "unnamed"
    try:
        if path.is_dir():
            raise DocumentError(f"{path} is a folder", hint="Name the files in it, each with --file.")
        if not path.exists():
            raise DocumentError(f"there is no file {path}", hint="Look at its name and folder.")
        if not path.is_file():
            raise DocumentError(f"{path} is no regular file", hint="Save what it gives to a file first.")
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise too_large(path, f"{size / 1e6:,.0f} MB", f"{LARGEST_FILE / 1e6:,.0f} MB")
        with path.open("rb") as file:
            first = file.read(1024)
        if not first:
            raise DocumentError(f"{path} is empty", hint="Name a file with something in it.")
        document = _read_as(_kind(path, first), path, name, progress)
    except OSError as error:
        raise DocumentError(
            f"{path} cannot be read ({error.strerror or error})", hint="Look at its permissions, or copy it elsewhere."
        ) from error
    if len(document.text) > LARGEST_TEXT:
        raise too_large(path, f"{len(document.text):,} characters of text", f"{LARGEST_TEXT:,}")
    if not document.text.strip():
        raise DocumentError(f"there is no text in {path}", hint="Name a file with something in it.")
    return document


def _read_as(kind: str, path: Path, name: str, progress: Progress) -> Document:
    if kind == "pdf":
        from edge.documents import pdf

        return pdf.read(path, name, progress)
    if kind in ("docx", "pptx"):
        from edge.documents import office

        return office.read_docx(path, name) if kind == "docx" else office.read_pptx(path, name)
    from edge.documents import text

    if path.stat().st_size > 4 * LARGEST_TEXT:
        raise too_large(path, f"{path.stat().st_size / 1e6:,.0f} MB of text", f"{4 * LARGEST_TEXT / 1e6:,.0f} MB")
    return text.read(path, name)


def _kind(path: Path, first: bytes) -> str:
    """pdf, docx, pptx or text.

    Raises:
        DocumentError: it is of another kind, or not what its name says.
    """
    suffix = path.suffix.lower().lstrip(".")
    if first.startswith(_OLD_OFFICE):
        raise DocumentError(
            f"{path} is protected by a password, or in the format of Office before 2007",
            hint="Save it without a password as docx, pptx or pdf.",
        )
    # behind a mark or blanks; or anywhere in the first kilobyte, where the name says so: texts may speak of it
    begins = first.lstrip(b"\xef\xbb\xbf\0 \t\r\n\f").startswith(b"%PDF-") or (suffix == "pdf" and b"%PDF-" in first)
    found = "pdf" if begins else _office(path) if first.startswith(b"PK\x03\x04") else "text"
    if suffix in ("pdf", "docx", "pptx") and found == "text":
        raise DocumentError(f"{path} is no {suffix} file, or a damaged one", hint="Get it again, or save it anew.")
    if found not in ("pdf", "docx", "pptx", "text"):
        instead = "Save the sheet as csv." if found == "xlsx" else f"What is read: {FORMATS}"
        raise DocumentError(f"{path} is {'a workbook' if found == 'xlsx' else 'an archive'}", hint=instead)
    return found


def _office(path: Path) -> str:
    limit = f"{LARGEST_FILE / 1e6:,.0f} MB"
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
            if unpacked > LARGEST_FILE:
                raise too_large(path, f"{unpacked / 1e6:,.0f} MB when unpacked", limit)
            names = set(archive.namelist())
            kind = next((kind for part, kind in _OFFICE.items() if part in names), "archive")
            if kind in ("docx", "pptx") and _unpacks_to(archive) > LARGEST_FILE:
                raise too_large(path, f"more than {limit} when unpacked, whatever it says of itself", limit)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, zlib.error, RuntimeError) as error:
        raise damaged(path, str(error)) from error
    return kind


def _unpacks_to(archive: zipfile.ZipFile) -> int:
    """Bytes that an archive's parts really have, up to a little more than are read.

    What an archive says of its sizes may be forged, and its readers unpack a part as a whole before they look.

    Raises:
        BadZipFile: a part is damaged, or has not the size that is told of it.
    """
    whole = 0
    for item in archive.infolist():
        honest = copy.copy(item)
        honest.file_size = 1 << 40  # else it is unpacked as far only as it says
        size = 0
        with archive.open(honest) as part:
            while piece := part.read(_PIECE):
                size += len(piece)
                if whole + size > LARGEST_FILE:
                    return whole + size
        if size != item.file_size:
            raise zipfile.BadZipFile(f"{item.filename} has {size:,} bytes, not {item.file_size:,} as told")
        whole += size
    return whole


def damaged(path: Path, why: str) -> DocumentError:
    """What is said of a file that its reader gives up on; `why` in the reader's words."""
    why = " ".join(why.split()).rstrip(".")[:160]
    return DocumentError(f"{path} is damaged ({why or 'it ends early'})", hint="Get it again, or save it anew.")


def too_large(path: Path, size: str, limit: str) -> DocumentError:
    """What is said of a file with more in it than is read: how much of what, and how much of it is read."""
    return DocumentError(f"{path} is too large: {size}, and {limit} are read", hint="Cut out the part you ask about.")
