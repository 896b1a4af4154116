"""Text files → text: their encoding found out, json and csv looked through."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from pathlib import Path

from edge.documents.document import Document, Unit, assemble
from edge.errors import DocumentError

# UTF-32's mark for the little end begins as UTF-16's does
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_RUN = re.compile(r"[A-Za-z]?[^\x00-\x7f]+[A-Za-z]?")


def read(path: Path, name: str) -> Document:
    """The text as it stands in the file.

    Raises:
        DocumentError: it is no text.
    """
    found = decode(path.read_bytes())
    if found is None:
        raise DocumentError(
            f"{path} is no text (it is binary)",
            hint="What is read: pdf, docx, pptx and text in UTF-8, UTF-16 or GB 18030.",
        )
    text, encoding = found
    remarks = [] if encoding.startswith("utf") else [f"{name} is not UTF-8: read as {encoding}"]
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    suffix = path.suffix.lower()
    unit: Unit = "line"
    parts = _lines(text)
    if suffix == ".json":
        fault = _json_fault(text)
        if fault:
            remarks.append(f"{name} is no valid JSON ({fault}): read as plain text")
    elif suffix == ".csv":
        records = _records(text)
        if records is None:
            remarks.append(f"{name} is no valid CSV: read as plain text")
        else:
            unit, parts = "row", records
    return assemble(name, unit, parts, remarks)


def decode(data: bytes) -> tuple[str, str] | None:
    """Text and the encoding it was in; None where it is none.

    A byte-order mark decides; then UTF-8, which hardly anything else passes for; UTF-16 without a mark; GB 18030; and
    Windows' Western code page, where what GB 18030 gives are single characters inside of Latin words.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decoded(data, encoding)
    found = _decoded(data, "utf-8")
    if found is None and _may_be_utf_16(data[:4096]):
        even, odd = data[:4096:2].count(0), data[1:4096:2].count(0)
        found = _decoded(data, "utf-16-le" if odd > even else "utf-16-be")
    if found is None:
        found = _decoded(data, "gb18030")
        if found is None or _looks_western(found[0]):
            found = _decoded(data, "cp1252") or found
    return found


def _decoded(data: bytes, encoding: str) -> tuple[str, str] | None:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return None
    return None if _is_binary(text) else (text, encoding)


def _may_be_utf_16(begin: bytes) -> bool:
    """Whether zeros are half of what is ASCII, or stand in what is no other text; a few are a fault of the file."""
    if b"\0" not in begin or 4 * begin.count(0) >= len(begin):
        return b"\0" in begin
    rest = begin.replace(b"\0", b"")
    try:  # it may end inside of a character
        return _is_binary(codecs.getincrementaldecoder("utf-8")().decode(rest))
    except UnicodeDecodeError:
        return _is_binary(rest.decode("latin-1"))


def _is_binary(text: str) -> bool:
    return "\0" in text or len(_CONTROL.findall(text[:100_000])) > len(text[:100_000]) // 100


def _looks_western(text: str) -> bool:
    """Whether what is not ASCII stands in ones and twos inside of Latin words; Chinese stands in longer runs."""
    runs = _RUN.findall(text)
    inside = sum(run[0].isascii() or run[-1].isascii() for run in runs)
    return sum(not character.isascii() for character in text) < 2 * len(runs) and inside > len(runs) / 2


def _json_fault(text: str) -> str | None:
    try:
        json.loads(text, parse_int=len)  # Python refuses to make a number of 4,301 digits; JSON does not
    except json.JSONDecodeError as error:
        return f"line {error.lineno}: {error.msg[:1].lower()}{error.msg[1:]}"
    except RecursionError:
        return "nested too deeply"
    return None


def _records(text: str) -> list[str] | None:
    """Each record with its line end, as it stands there: one in quotes may have several lines."""
    try:
        dialect: type[csv.Dialect] = csv.Sniffer().sniff(text[:8192], ",;\t|")
    except csv.Error:
        dialect = csv.excel
    lines, found, at = _lines(text), [], 0
    reader = csv.reader(lines, dialect)
    before = csv.field_size_limit(max(len(text), 1))  # Python's own limit is no rule of the format
    try:
        for _ in reader:
            found.append("".join(lines[at : reader.line_num]))
            at = reader.line_num
    except csv.Error:
        return None
    finally:
        csv.field_size_limit(before)
    return found


def _lines(text: str) -> list[str]:
    return list(io.StringIO(text, newline="\n"))  # str.splitlines ends lines at form feeds and others, too
