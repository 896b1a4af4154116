"""Continuations scored: the same numbers whatever is read together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.errors import ContextError, VerificationError
from edge.quality import scoring
from edge.quality.scoring import Asked, Group, Row, Scorer, groups, rows_of, score_group
from edge.runtime.likeness import next_log_probs

VOCAB = 40


class Fake:
    """A model whose logits depend on the whole text so far; it remembers what it has read."""

    def __init__(self) -> None:
        self.read: list[tuple[int, ...]] = [()]
        self.tokens = 0

    def __call__(self, tokens: NDArray[np.int64], past: int, rows: NDArray[np.int32] | None) -> NDArray[np.float32]:
        before = [self.read[place] for place in rows] if rows is not None else self.read
        if past == 0:
            before = [()] * len(tokens)
        assert all(len(each) == past for each in before) and len(before) == len(tokens)
        self.tokens += tokens.size
        self.read = [(*old, *map(int, new)) for old, new in zip(before, tokens, strict=True)]
        return np.stack([[told(text[: past + i + 1]) for i in range(tokens.shape[1])] for text in self.read])


def told(text: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng([7, *text]).standard_normal(VOCAB).astype(np.float32)


def alone(each: Asked) -> tuple[list[float], bool]:
    """The definition: each token after all before it."""
    text = (*each.context, *each.continuation)
    logits = np.stack([told(text[:end]) for end in range(len(each.context), len(text))])
    following = np.array(each.continuation)
    return list(next_log_probs(logits, following)), bool((logits.argmax(1) == following).all())


def asked(seed: int = 0) -> list[Asked]:
    """A task's: 3 subjects of long examples, 5 questions in each, 4 choices of 1 to 3 tokens."""
    rng = np.random.default_rng(seed)

    def some(count: int) -> tuple[int, ...]:
        return tuple(map(int, rng.integers(0, VOCAB, count)))

    out = []
    for _ in range(3):
        examples = some(150)
        for _ in range(5):
            question = some(int(rng.integers(3, 9)))
            out += [Asked((*examples, *question), some(1 + choice % 3)) for choice in range(4)]
    return [out[place] for place in rng.permutation(len(out))]


@pytest.mark.parametrize("tokens", [512, 20, 1])
def test_what_is_read_together_is_scored_as_alone(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_TOKENS", tokens)
    wanted = asked()
    sure = told(wanted[0].context).argmax()
    wanted.append(Asked(wanted[0].context, (int(sure),)))
    found = {}
    read = 0
    for group in groups(rows_of(wanted)):
        fake = Fake()
        found |= score_group(group, wanted, fake)
        read += fake.tokens
    assert sorted(found) == list(range(len(wanted)))
    for place, each in enumerate(wanted):
        log_probs, greedy = alone(each)
        assert np.allclose(found[place].log_probs, log_probs) and found[place].greedy == greedy
    assert found[len(wanted) - 1].greedy
    assert read < 0.25 * sum(len(each.context) for each in wanted)


def test_choices_of_one_token_need_nothing_but_the_context() -> None:
    wanted = [Asked((1, 2, 3), (choice,)) for choice in range(4)]
    (row,) = rows_of(wanted)
    assert row == Row((1, 2, 3), 2, (0, 1, 2, 3))


def test_texts_that_share_nothing_are_read_alone() -> None:
    wanted = [Asked((place, *range(5)), (9,)) for place in range(4)]
    assert [len(group.rows) for group in groups(rows_of(wanted))] == [1, 1, 1, 1]
    assert groups([]) == []


def test_numbers_that_are_none_are_told() -> None:
    with pytest.raises(VerificationError, match="not finite"):
        score_group(
            Group(0, (Row((1, 2), 0, (0,)),)), [Asked((1,), (2, 3))],
            lambda tokens, past, rows: np.full((1, 2, VOCAB), np.nan, np.float32),
        )  # fmt: skip


@pytest.mark.model
def test_the_pocket_model_scores_alike_alone_and_together(pocket_dir: Path) -> None:
    """In full precision: with activations in 8 bits, what is read together is rounded otherwise."""
    scorer = Scorer(pocket_dir, "CPU", exact=True)
    rng = np.random.default_rng(1)
    examples = tuple(map(int, rng.integers(1000, 40000, 40)))
    wanted = [
        Asked((*examples, *map(int, rng.integers(1000, 40000, 4))), tuple(map(int, rng.integers(1000, 40000, 1 + n))))
        for n in range(3)
    ]
    together = scorer.score(wanted)
    for each, found in zip(wanted, together, strict=True):
        (single,) = scorer.score([each])
        assert np.allclose(found.log_probs, single.log_probs, atol=2e-3)
    with pytest.raises(ContextError, match="8,200"):
        scorer.score([Asked((1,) * 8199, (2,))])
