"""PDF → text, page by page. The only importer of pypdf."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge.documents.document import Document, assemble
from edge.documents.read import damaged
from edge.errors import DocumentError, EdgeError
from edge.messages import Progress


def read(path: Path, name: str, progress: Progress) -> Document:
    """The text of each page; what is a picture is not read.

    Raises:
        DocumentError: it is protected by a password, damaged, or has pictures of text only.
    """
    from pypdf.errors import DependencyError

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
    total, texts = len(reader.pages), []
    if not total:
        raise damaged(path, "it has no pages")
    for number in range(total):
        progress(f"Reading {name}", number, total)
        texts.append(reader.pages[number].extract_text())
    progress(f"Reading {name}", total, total)
    return texts


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
