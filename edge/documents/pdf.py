"""PDF → text, page by page. The only importer of pypdf."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge.documents import read as read_
from edge.documents.document import Document, assemble
from edge.documents.read import damaged, too_large
from edge.errors import DocumentError, EdgeError
from edge.messages import Progress

_SHOW = (b"Tj", b"TJ", b"'", b'"', b"Do")
"""What shows text in a page's drawing, or a form that may."""
_MOST_PIECES = 100_000
"""Of text on one page: a full page of single letters has a tenth of it. Their time grows with their square."""
_LARGEST_PAGE = 20_000_000
"""Bytes of the drawing of a page with text, which is looked through for it at about a megabyte a second."""


def read(path: Path, name: str, progress: Progress) -> Document:
    """The text of each page; what is a picture is not read.

    Raises:
        DocumentError: it is protected by a password, damaged, or has pictures of text only.
    """
    from pypdf.errors import DependencyError, LimitReachedError

    with _quiet(), path.open("rb") as file:
        try:
            pages = _pages(path, file, progress, name)
        except (EdgeError, OSError, MemoryError):
            raise
        except DependencyError as error:
            raise DocumentError(
                f"{path} is encrypted with AES, which needs the package 'cryptography'",
                hint="Install it with: pip install cryptography",
            ) from error
        except LimitReachedError as error:
            why = " ".join(str(error).split()).rstrip(".")
            raise DocumentError(
                f"{path} is too large: a part of it is beyond what its reader takes ({why})",
                hint="Cut out the part you ask about.",
            ) from error
        except RecursionError as error:
            raise damaged(path, "its parts hold each other") from error
        except Exception as error:  # pypdf meets a damaged file with whatever its code stumbled on
            raise damaged(path, str(error) or type(error).__name__) from error
    empty = [number for number, page in enumerate(pages, 1) if not page.strip()]
    if len(empty) == len(pages):
        many = f"{len(pages):,} page{'s' * (len(pages) != 1)}"
        raise DocumentError(
            f"{path} has no text, only {many} of pictures: it seems to be scanned",
            hint="Let a program for text recognition (OCR) put the text into it first.",
        )
    return assemble(name, "page", pages, [_pictures(name, empty)] if empty else [])


def _pages(path: Path, file: Any, progress: Progress, name: str) -> list[str]:
    from pypdf import PasswordType, PdfReader

    reader = PdfReader(file)
    # Many a PDF is encrypted with no password to open it, only one to change it.
    if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
        raise DocumentError(f"{path} is protected by a password", hint="Save it without one first.")
    total, texts, characters = len(reader.pages), [], 0
    if not total:
        raise damaged(path, "it has no pages")
    for number in range(total):
        progress(f"Reading {name}", number, total)
        texts.append(_page(path, reader.pages[number], number + 1))
        characters += len(texts[-1])
        if characters > read_.LARGEST_TEXT:
            raise too_large(
                path, f"{characters:,} characters of text on the first {number + 1:,} pages", f"{read_.LARGEST_TEXT:,}"
            )
    progress(f"Reading {name}", total, total)
    return texts


def _page(path: Path, page: Any, number: int) -> str:
    contents = page.get_contents()
    drawn = b"" if contents is None else contents.get_data()
    if not any(sign in drawn for sign in _SHOW):
        return ""
    if len(drawn) > _LARGEST_PAGE:
        raise too_large(path, f"page {number} has {len(drawn):,} bytes of drawing", f"{_LARGEST_PAGE:,} a page")
    many = too_large(path, f"page {number} has more than {_MOST_PIECES:,} pieces of text", "as many a page")
    pieces = 0

    def count(operator: bytes, operands: Any, *_: Any) -> None:
        nonlocal pieces
        if operator == b"TJ" and operands and isinstance(operands[0], list):
            pieces += len(operands[0])
        elif operator in _SHOW:
            pieces += 1
        if pieces > _MOST_PIECES:
            raise many

    text = str(page.extract_text(visitor_operand_before=count))
    if pieces > _MOST_PIECES:  # pypdf passes over what is raised in a form
        raise many
    return text


def _pictures(name: str, empty: list[int]) -> str:
    shown = ", ".join(map(str, empty[:6])) + (f" and {len(empty) - 6:,} more" if len(empty) > 6 else "")
    one = len(empty) == 1
    return f"{name}: page{'' if one else 's'} {shown} {'has' if one else 'have'} no text; pictures are not read"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep pypdf's warnings about what it mended from the terminal."""
    logger = logging.getLogger("pypdf")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
