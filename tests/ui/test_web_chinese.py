"""The program's sentences in Chinese."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import edge
from edge.ui.web import chinese, words

HERE = Path(chinese.__file__)


def said_in_the_program() -> str:
    """All texts of the source, what is put into them left open."""
    texts: list[str] = []
    for path in Path(edge.__file__).parent.rglob("*.py"):
        if path == HERE:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(str(part.value) if isinstance(part, ast.Constant) else "{}"
                                     for part in node.values))  # fmt: skip
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_every_sentence_is_one_that_the_program_says() -> None:
    said, stale = said_in_the_program().lower(), []
    for english in chinese.SENTENCES:
        for part in english.split("|"):
            pieces = [piece.strip().lower() for piece in part.split("{}")]
            stale += [(english, piece) for piece in pieces if len(piece) > 3 and piece not in said]
    assert not stale


def test_what_changes_has_a_place_in_both() -> None:
    for english, translated in chinese.SENTENCES.items():
        places = {int(place) for place in re.findall(r"\{(\d+)\}", translated)}
        assert places == set(range(english.count("{}"))), english


@pytest.mark.parametrize(
    ("english", "translated"),
    [
        ("This conversation is being answered already. Wait for the answer, or stop it.",
         "此对话正在回答中。请等待回答完成，或将其停止。"),
        ("There is no folder /a.b c/d. Export the model again.", "没有文件夹 /a.b c/d。请重新导出模型。"),
        ("bad.pdf is damaged (Stream has ended). Get it again, or save it anew.",
         "bad.pdf 已损坏（Stream has ended）。请重新获取或另存一次。"),
        ("The process that runs the model on CPU was killed, most likely for want of memory. From the beginning, on "
         "CPU:", "在 CPU 上运行模型的进程被终止，很可能是内存不足。在 CPU 上重新开始："),
        ("The conversation has outgrown the context of 8,192 tokens: its oldest 3 turns are no longer read.",
         "对话已超出 8,192 个词元的上下文：最早的 3 轮不再读取。"),
        ("There is no folder x. Do as you like.", "没有文件夹 x。Do as you like."),
        ("Something else. Do this.", "程序报告（英文）：Something else. Do this."),
        ("", ""),
    ],
)  # fmt: skip
def test_sentences_are_told_in_chinese(english: str, translated: str) -> None:
    assert chinese.told(english) == translated
    assert words.told(english, words.EN) == english and words.told(english, words.ZH) == translated


def test_the_pages_script_says_which_language_it_has() -> None:
    assert words.named({"language": "zh"}) is words.ZH
    for asked in ({"language": "de"}, {}, None, "zh", {"language": ["zh"]}):
        assert words.named(asked) is words.EN
