"""`glm4-edge ask` as a user runs it: on an engine without a model, and on the real pocket model."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge.cli import _run
from edge.runtime.context import context_for
from edge.runtime.echo import EchoEngine
from tests.documents.made import write_pdf


class Loaded(EchoEngine):
    """Says the whole prompt again; a token is a character."""

    def __init__(self, context_length: int) -> None:
        super().__init__(context_length=context_length)
        self.prompts: list[str] = []
        self.manifest = SimpleNamespace(architecture=SimpleNamespace(context_length=8192))

    def stream(self, conversation: Any, *asked: Any) -> Any:
        self.prompts.append(conversation[-1].content)
        return super().stream(conversation, *asked)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    def loading(context_length: int = 4096) -> list[str]:
        engine = Loaded(context_length)

        @contextlib.contextmanager
        def loaded(model: str, *, read: Any, **options: Any) -> Iterator[tuple[Loaded, str]]:
            said = read()
            yield engine, said

        monkeypatch.setattr("edge.commands.ask._loaded", loaded)
        return engine.prompts

    return loading


def report(folder: Path, paragraphs: int = 60) -> Path:
    lines = ["# Annals"] + [f"Paragraph {number} is about rivers and trade, at length." for number in range(paragraphs)]
    lines[40] += " Oskar found the compass."
    path = folder / "annals.md"
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_prompt_is_the_demos_and_its_tokens_are_told_first(
    load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load()
    (tmp_path / "a.py").write_text("x = 1\n", encoding="utf-8")
    pdf = write_pdf(tmp_path / "b.pdf", ["第一页。", "Page two."])
    assert _run(["ask", "--file", str(tmp_path / "a.py"), "--file", str(pdf), "Why?"]) == 0
    said = capsys.readouterr()
    expected = (
        "[File Name]\na.py\n[File Content]\nx = 1\n\n\n\n[File Name]\nb.pdf\n[File Content]\n第一页。\n\nPage two."
        "\n\n\n2 files uploaded.\nWhy?"
    )
    assert said.out == expected + "\n"
    told = [line for line in said.err.splitlines() if "token" in line and "TTFT" not in line]
    assert told == [
        "a.py: 1 line, 6 tokens",
        "b.pdf: 2 pages, 15 tokens",
        f"With the question {len(expected)} tokens; 3,072 fit.",
    ]


def test_beyond_the_context_it_is_refused_with_the_ways_out(
    load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(2048)
    path = report(tmp_path)
    assert _run(["ask", "--file", str(path), "Who found the compass?"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    tokens = len(path.read_text(encoding="utf-8")) + len(
        "[File Name]\nannals.md\n[File Content]\n\n\n\n1 files uploaded.\nWho found the compass?"
    )
    assert f"the question and its 1 file have {tokens:,} tokens, and 1,536 fit into a context of 2,048" in said.err
    assert "keeps 512 for the answer" in said.err and "--window reads the passages" in said.err
    assert f"--context {context_for(tokens)} takes all of it, if memory does" in said.err
    load(context_for(tokens))
    assert _run(["ask", "--file", str(path), "Who found the compass?"]) == 0
    load(context_for(tokens) - 1)
    assert _run(["ask", "--file", str(path), "Who found the compass?"]) == 1
    capsys.readouterr()
    assert _run(["ask", "--file", str(report(tmp_path, 400)), "Who found the compass?"]) == 1
    assert "More context does not help: the model reads 8,192 tokens at most." in capsys.readouterr().err


def test_a_shorter_answer_leaves_more_room(load: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 1700, encoding="utf-8")
    load(2048)
    assert _run(["ask", "--file", str(tmp_path / "a.txt"), "Why?"]) == 1
    assert _run(["ask", "--file", str(tmp_path / "a.txt"), "Why?", "--max-new-tokens", "100"]) == 0


def test_windowed_it_says_what_is_left_out(load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = load(2048)
    path = report(tmp_path)
    assert _run(["ask", "--file", str(path), "--window", "Who found the compass?"]) == 0
    said = capsys.readouterr()
    assert "Oskar found the compass." in prompts[0] and "# Annals" in prompts[0] and "[…]" in prompts[0]
    assert said.out == prompts[0][: len(said.out) - 1] + "\n"
    assert "is read. Left out: lines " in said.err
    assert _run(["ask", "--file", str(path), "--window", "Who found the compass?", "--json", "--system", "Brief."]) == 0
    facts = json.loads(capsys.readouterr().out)
    (file,) = facts["files"]
    text = path.read_text(encoding="utf-8")
    assert facts["usage"]["prompt_tokens"] <= 1536 and facts["usage"]["completion_tokens"] > 0
    left = sum(end - begin for begin, end in file["left_out"]["characters"])
    assert file["share_read"] == pytest.approx(1 - left / len(text), abs=1e-4)
    assert not any("Oskar" in text[begin:end] for begin, end in file["left_out"]["characters"])
    assert file["lines"] == 121 and file["left_out"]["where"].startswith("lines ")


def test_the_question_may_be_piped_in(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    prompts = load()
    path = str(report(tmp_path, 41))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("谁？\r\n".encode())))
    assert _run(["ask", "--file", path]) == 0
    assert prompts[0].endswith("1 files uploaded.\n谁？")
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert _run(["ask", "--file", path]) == 2
    assert 'echo "Why is the sky blue?" | glm4-edge ask --file FILE' in capsys.readouterr().err
    assert _run(["ask", "--file", path, " "]) == 2
    assert "there is no question" in capsys.readouterr().err


def test_files_of_one_name_are_told_apart_and_one_twice_is_one(
    load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load()
    paths = []
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "a.txt")
        paths[-1].write_text(name, encoding="utf-8")
    assert _run(["ask", *(part for path in [*paths, paths[0]] for part in ("--file", str(path))), "?"]) == 0
    out = capsys.readouterr().out
    assert [f"[File Name]\n{path.as_posix()}\n" in out for path in paths] == [True, True]
    assert "2 files uploaded." in out


def test_a_bad_file_is_a_sentence(load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load()
    (tmp_path / "scan.pdf").write_bytes(write_pdf(tmp_path / "p.pdf", [""], picture_only=True).read_bytes())
    assert _run(["ask", "--file", str(tmp_path / "scan.pdf"), "Why?"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "it seems to be scanned" in said.err and "Traceback" not in said.err


def test_without_a_file_it_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["ask", "Why?"]) == 2
    assert "--file" in capsys.readouterr().err


def test_a_remark_on_a_file_is_told(load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load()
    (tmp_path / "a.txt").write_bytes("中文报告：成本四百万。<|user|>".encode("gb18030"))
    assert _run(["ask", "--file", str(tmp_path / "a.txt"), "Why?", "--json"]) == 0
    said = capsys.readouterr()
    assert "a.txt is not UTF-8: read as gb18030." in said.err and "special token" in said.err
    assert len(json.loads(said.out)["files"][0]["remarks"]) == 2


# ---- the pocket model


def ask(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "edge", "ask", *argv]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, env=env, **options)


FACT = "The lighthouse of Wendelbury was built in 1874 by Agnes Thornquist. It is 43 metres tall."


@pytest.mark.model
def test_the_pocket_model_finds_the_fact(pocket_dir: Path, tmp_path: Path) -> None:
    pdf = write_pdf(tmp_path / "lighthouse.pdf", [FACT, "Its keeper today is called Morten Vale."])
    done = ask("--model", str(pocket_dir), "--file", str(pdf), "--temperature", "0", "Who built the lighthouse?")
    assert done.returncode == 0, done.stderr
    assert "Agnes Thornquist" in done.stdout
    assert done.stderr.index("lighthouse.pdf: 2 pages, ") < done.stderr.index("TTFT")


@pytest.mark.model
def test_the_pocket_model_finds_it_in_a_window(pocket_dir: Path, tmp_path: Path) -> None:
    import docx

    made = docx.Document()
    made.add_heading("Lights of the coast")
    for number in range(400):
        made.add_paragraph(f"Entry {number}: rivers, trade and bridges were spoken of, and the price of salt and wool.")
        if number == 250:
            made.add_paragraph(FACT)
    made.save(str(tmp_path / "coast.docx"))
    argv = [
        "--model",
        str(pocket_dir),
        "--context",
        "1024",
        "--temperature",
        "0",
        "--file",
        str(tmp_path / "coast.docx"),
    ]
    refused = ask(*argv, "How tall is the lighthouse of Wendelbury?")
    assert refused.returncode == 1 and refused.stdout == "" and "fit into a context of 1,024" in refused.stderr
    done = ask(*argv, "--window", "--json", "How tall is the lighthouse of Wendelbury?")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert "43" in facts["answer"]
    assert facts["usage"]["prompt_tokens"] <= 768
    assert facts["files"][0]["paragraphs"] == 402 and "paragraphs " in facts["files"][0]["left_out"]["where"]
