"""Word and PowerPoint files → text, tables and notes included. The only importer of docx and pptx."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edge.documents.document import Document, assemble
from edge.documents.read import damaged
from edge.errors import EdgeError

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_NOTES = (("footnotes", "footnote"), ("endnotes", "endnote"))
_CELLS = " | "


def read_docx(path: Path, name: str) -> Document:
    """Paragraphs and tables in their order, then foot- and endnotes; changes that are tracked count as made.

    Headers, footers and comments are not read.

    Raises:
        DocumentError: it is damaged.
    """

    def blocks() -> list[str]:
        import docx

        document = docx.Document(str(path))
        body = document.element.body
        found = [] if body is None else list(_blocks(body))
        for ending, tag in _NOTES:
            for part in (rel.target_part for rel in document.part.rels.values() if rel.reltype.endswith("/" + ending)):
                for note in docx.oxml.parse_xml(part.blob).iter(f"{_W}{tag}"):
                    found += [f"[{tag} {note.get(f'{_W}id')}] {text}" for text in _blocks(note)]
        return found

    return assemble(name, "paragraph", _guarded(path, blocks))


def read_pptx(path: Path, name: str) -> Document:
    """The texts and tables of each slide, then its notes; pictures and diagrams are not read.

    Raises:
        DocumentError: it is damaged.
    """

    def slides() -> list[str]:
        import pptx

        return ["\n".join(_slide(slide)) for slide in pptx.Presentation(str(path)).slides]

    return assemble(name, "slide", _guarded(path, slides))


def _guarded(path: Path, take: Callable[[], list[str]]) -> list[str]:
    try:
        return take()
    except (EdgeError, OSError, MemoryError):
        raise
    except zipfile.BadZipFile as error:
        raise damaged(path, str(error)) from error
    except Exception as error:  # what the readers and lxml meet a damaged file with
        raise damaged(path, str(error).strip("'\"") or type(error).__name__) from error


def _blocks(parent: Any) -> Iterator[str]:
    """Each paragraph and table below `parent` that has text, whatever it is wrapped in (forms, tracked changes)."""
    for child in parent:
        if child.tag == f"{_W}p":
            text = _text(child).strip()
            if text:
                yield text
        elif child.tag == f"{_W}tbl":
            rows = [
                _CELLS.join(_cell(cell) for cell in row.iter(f"{_W}tc") if _row_of(cell) is row) for row in _rows(child)
            ]
            text = "\n".join(row for row in rows if row.strip(" |"))
            if text:
                yield text
        elif child.tag != _FALLBACK:
            yield from _blocks(child)


def _rows(table: Any) -> list[Any]:
    return [row for row in table.iter(f"{_W}tr") if next(row.iterancestors(f"{_W}tbl")) is table]


def _row_of(cell: Any) -> Any:
    return next(cell.iterancestors(f"{_W}tr"))


def _cell(cell: Any) -> str:
    return " ".join(" ".join(_blocks(cell)).split())


def _text(paragraph: Any) -> str:
    """What a paragraph says, text boxes in it included. Deleted text has a tag of its own and is not met."""
    said = []
    for item in _walk(paragraph):
        if item.tag == f"{_W}t":
            said.append(item.text or "")
        elif item.tag == f"{_W}tab":
            said.append("\t")
        elif item.tag in (f"{_W}br", f"{_W}cr", f"{_W}p"):
            said.append("\n")
    return "".join(said)


def _walk(item: Any) -> Iterator[Any]:
    for child in item:
        if child.tag not in (_FALLBACK, f"{_W}pPr"):  # the one says the same again, the other has tab stops
            yield child
            yield from _walk(child)


def _slide(slide: Any) -> Iterator[str]:
    yield from _shapes(slide.shapes)
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        notes = slide.notes_slide.notes_text_frame.text.strip()
        if notes:
            yield f"[Notes] {notes}"


def _shapes(shapes: Any) -> Iterator[str]:
    for shape in shapes:
        if hasattr(shape, "shapes"):  # a group
            yield from _shapes(shape.shapes)
        elif getattr(shape, "has_table", False):
            for row in shape.table.rows:
                cells = [" ".join(cell.text.split()) for cell in row.cells if not cell.is_spanned]
                if any(cells):
                    yield _CELLS.join(cells)
        elif shape.has_text_frame and shape.text_frame.text.strip():
            yield shape.text_frame.text.replace("\v", "\n").strip()
