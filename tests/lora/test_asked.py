"""PATH[:SCALE]."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.errors import UsageError
from edge.lora.asked import Asked, Loras, parse, parse_all


@pytest.mark.parametrize(
    ("text", "name", "scale"),
    [
        ("lora", "lora", 1.0), ("lora:0.5", "lora", 0.5), ("some/lora:-1e-1", "lora", -0.1), ("lora:.5", "lora", 0.5),
        ("lora:x", "lora:x", 1.0), (r"C:\adapters\lora", r"C:\adapters\lora", 1.0),
        (r"C:\adapters\lora:2", r"C:\adapters\lora", 2.0), ("run/adapter_model.safetensors:2", "run", 2.0),
        ("a:1:2", "a:1", 2.0),
    ],
)  # fmt: skip
def test_only_a_number_behind_the_last_colon_is_a_scale(text: str, name: str, scale: float) -> None:
    asked = parse(text)
    assert (asked.name.rpartition("/")[2], asked.scale) == (name, scale) and asked.folder.is_absolute()


def test_a_folder_that_is_there_is_taken_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "lora:3").mkdir()
    assert parse(str(tmp_path / "lora:3")) == Asked(tmp_path / "lora:3")


def test_a_name_is_never_two_dots(tmp_path: Path) -> None:
    (tmp_path / "mine" / "inner").mkdir(parents=True)
    assert parse(str(tmp_path / "mine" / "inner" / "..")).name == "mine"


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf", "1e999"])
def test_a_scale_is_a_number(scale: str) -> None:
    with pytest.raises(UsageError, match=f"the scale {scale} of x is no number"):
        parse(f"x:{scale}")


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two adapters are called 'a'"):
        parse_all(["x/a", "y/a:0.5"])


def test_what_may_be_on_together() -> None:
    asked = parse_all(["a", "b:2"])
    assert Loras(asked).choices == ((), ("a", "b")) and Loras(asked).usual == ("a", "b")
    assert Loras(asked, per_request=True).choices == ((), ("a",), ("b",)) and Loras(asked, True).usual == ()
    assert Loras().choices == () and Loras().usual == ()
