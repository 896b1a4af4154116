"""Small real files to read. A PDF is written by hand: the program has a reader only."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path


def write_pdf(path: Path, pages: Sequence[str], *, picture_only: bool = False, shown: bytes = b"Tj") -> Path:
    """A valid PDF with a line of text on each page, Chinese included; or with a filled square instead.

    Args:
        shown: how the text is shown, in PDF's operators; what stands for another text in it is in the same font.
    """
    objects: list[bytes] = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"",
        b"<< /Type /Font /Subtype /Type0 /BaseFont /Song /Encoding /Identity-H /DescendantFonts [4 0 R] "
        b"/ToUnicode 5 0 R >>",
        b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /Song /CIDSystemInfo << /Registry (Adobe) "
        b"/Ordering (Identity) /Supplement 0 >> /FontDescriptor 6 0 R /DW 1000 >>",
        _stream(
            b"/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def 1 begincodespacerange "
            b"<0000> <FFFF> endcodespacerange 1 beginbfrange <0000> <FFFF> <0000> endbfrange endcmap end end"
        ),
        b"<< /Type /FontDescriptor /FontName /Song /Flags 4 /FontBBox [0 0 1000 1000] /ItalicAngle 0 /Ascent 800 "
        b"/Descent -200 /CapHeight 700 /StemV 80 >>",
    ]
    kids = []
    for text in pages:
        drawn = b"0 0 50 50 re f" if picture_only else b"BT /F1 12 Tf 20 100 Td <" + _hex(text) + b"> " + shown + b" ET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 200] /Contents {len(objects) + 2} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>".encode(),
            _stream(drawn),
        ]
        kids.append(f"{len(objects) - 1} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>".encode()
    data, offsets = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n" % number + content + b"\nendobj\n"
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    count = len(objects) + 1
    data += b"xref\n0 %d\n0000000000 65535 f \n" % count + table + b"trailer << /Size %d /Root 1 0 R >>\n" % count
    path.write_bytes(data + b"startxref\n%d\n%%%%EOF\n" % data.index(b"xref\n0"))
    return path


def _hex(text: str) -> bytes:
    return text.encode("utf-16-be").hex().encode()


def _stream(content: bytes) -> bytes:
    packed = zlib.compress(content)
    return b"<< /Length %d /Filter /FlateDecode >>\nstream\n" % len(packed) + packed + b"\nendstream"
