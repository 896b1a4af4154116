"""Two models side by side: what a second question does to the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from edge.ui.web.desk import Desk

gradio = pytest.importorskip("gradio")
MakeDesk = Callable[..., Desk]


def test_a_question_ends_the_one_before_it_and_can_itself_be_stopped(make_desk: MakeDesk) -> None:
    from edge.ui.web import compare

    with gradio.Blocks() as page:
        compare.build(make_desk(), lambda key: key)
    functions = {each.fn.__name__: each.fn for each in page.fns.values() if each.fn is not None}
    tab = SimpleNamespace(headers={}, session_hash="a tab")

    def ask() -> Iterator[list[Any]]:
        return iter(functions["run"]("Say it", "models/one", "CPU", "models/other", "CPU", tab))

    first = ask()
    assert next(first)[:4] == [""] * 4 and next(first)[:4] == [""] * 4  # it holds the models from here on
    second = ask()
    assert next(second)[5].visible is True
    rest = list(first)
    assert any("stopped" in str(each[0]).lower() for each in rest)
    assert not any(isinstance(each[5], gradio.Button) for each in rest)  # the one that stops the second stays
    functions["end"](tab)
    *_, last = list(second)
    assert last[5].visible is False and last[4].interactive is True
    whole = list(ask())
    assert any("Say it" in str(each[1]) for each in whole) and whole[-1][5].visible is False
