"""The pictures in docs/ui, made anew by the browser tests: python -m tests.ui.pictures

Run from the repository's root, with what the browser tests need and the pocket model's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.ui.browser import SHOTS_VARIABLE

FOLDER = Path(__file__).parents[2] / "docs" / "ui"
COLOURS = 96
"""Enough for a page, and a third of the size."""
TESTS = {
    "test_browser.py": ("test_markdown_code", "test_in_chinese", "test_on_a_phone"),
    "test_browser_first.py": ("test_choose_see_the_cost",),
    "test_browser_pocket.py": ("test_an_answer_through_a_crash",),
}
"""File → tests that make the pictures."""


def main() -> None:
    """Make them."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as shots:
        for file, tests in TESTS.items():
            subprocess.run(
                [sys.executable, "-m", "pytest", "-q", str(Path(__file__).with_name(file)), "-k", " or ".join(tests)],
                env={**os.environ, SHOTS_VARIABLE: shots}, check=True,
            )  # fmt: skip
        for picture in sorted(FOLDER.glob("*.png")):
            with Image.open(Path(shots) / picture.name) as whole:
                whole.convert("RGB").quantize(COLOURS).save(picture, optimize=True)
            print(f"{picture.name}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
