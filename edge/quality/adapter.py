"""Our models as lm-eval asks them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from edge.errors import ContextError, UsageError
from edge.messages import Progress, Sampling, Tokens
from edge.quality.scoring import Asked, Scored, Scorer
from edge.runtime.interface import ChatEngine

_NEW_TOKENS = 256  # of an answer whose task names no bound: lm-eval's own
_KNOWN = {"do_sample", "temperature", "top_p", "top_k", "repetition_penalty"}
_MEANINGLESS = {"use_cache", "early_stopping", "num_return_sequences", "pad_token_id"}
"""Of transformers: they change no answer."""


class EdgeLM(TemplateLM):  # type: ignore[misc]
    """An exported model. What is answered comes from the engine, what is scored from all logits.

    Only one of the two is in memory: the other is let go of when it is no longer asked.

    Args:
        name: for lm-eval's records.
        tokenizer: a `PreTrainedTokenizerFast`.
        stop_ids: that end an answer.
        context_length: tokens of prompt and answer.
        scorer, engine: open what scores and what answers.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        stop_ids: Sequence[int],
        context_length: int,
        *,
        scorer: Callable[[], Scorer],
        engine: Callable[[], ChatEngine],
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.max_length = context_length
        self._name, self._stop_ids = name, tuple(stop_ids)
        self._prefix = list(tokenizer.encode("", add_special_tokens=True))
        self._open_scorer, self._open_engine, self._progress = scorer, engine, progress
        self._scorer: Scorer | None = None
        self._engine: ChatEngine | None = None

    def close(self) -> None:
        """Give the memory back."""
        self._scorer = None
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return self._stop_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context begins with, to lm-eval: the last of several; see `_begun`."""
        if self._prefix:
            return int(self._prefix[-1])
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests."""
        return self._name.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model reads it; the last turn is left open if it is the model's own."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )  # fmt: skip

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text, begun as the tokenizer begins one, unless a template has done so already."""
        ids = list(self.tokenizer.encode(string, add_special_tokens=False))
        begun = ids[: len(self._prefix)] == self._prefix
        return ids if add_special_tokens is False or begun else [*self._prefix, *ids]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts; see `LM.loglikelihood_rolling`."""
        asked: list[Asked] = []
        owners: list[int] = []
        room = self.max_length + 1 - max(len(self._prefix), 1)
        for place, (text,) in enumerate(request.args for request in requests):
            pairs = get_rolling_token_windows(
                self.tok_encode(text, add_special_tokens=False), self.prefix_token_id, room, 1
            )
            for context, continuation in map(make_disjoint_window, pairs):
                asked.append(Asked(tuple(self._begun(context)), tuple(continuation)))
                owners.append(place)
        sums = [0.0] * len(requests)
        for place, found in zip(owners, self._scoring().score(asked, self._progress), strict=True):
            sums[place] += found.total
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Of a context too long for the model, the beginning is left out, as lm-eval does."""
        asked = [
            Asked(tuple(self._begun(context)[-(self.max_length + 1 - len(continuation)) :]), tuple(continuation))
            for _, context, continuation in requests
        ]

        def keep(place: int, each: Scored) -> None:
            self.cache_hook.add_partial("loglikelihood", requests[place][0], (each.total, each.greedy))

        found = self._scoring().score(asked, self._progress, "scoring the choices", keep)
        return [(each.total, each.greedy) for each in found]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, as many at once as the engine makes."""
        engine = self._answering()
        # all are looked at before the first is answered: the last may come after hours
        asked = [self._asked(engine, *request.args) for request in requests]
        done = 0

        def one(place: int) -> str:
            nonlocal done
            prompt, sampling = asked[place]
            ids = [token for chunk in engine.stream(prompt, sampling) for token in chunk.token_ids]
            text = self.tokenizer.decode([each for each in ids if each not in self._stop_ids], skip_special_tokens=True)
            answer = str(postprocess_generated_text(text, list(sampling.stop), None))
            self.cache_hook.add_partial("generate_until", requests[place].args, answer)
            done += 1
            self._progress("answering", done, len(requests))
            return answer

        # Questions with the same examples one after the other: the prefix cache has those.
        order = sorted(range(len(requests)), key=lambda place: asked[place][0].ids)
        with ThreadPoolExecutor(max(engine.together, 1)) as pool:
            answers = list(pool.map(one, order))
        return [answer for _, answer in sorted(zip(order, answers, strict=True))]

    def _begun(self, context: list[int]) -> list[int]:
        """With all that a text begins with, where lm-eval has put one token for want of a context."""
        return self._prefix if self._prefix and context == [self.prefix_token_id] else context

    def _asked(self, engine: ChatEngine, context: str, wanted: Mapping[str, Any]) -> tuple[Tokens, Sampling]:
        prompt, sampling = self.tok_encode(context), sampling_of(wanted)
        assert sampling.max_new_tokens is not None
        longest = engine.context_length - sampling.max_new_tokens
        if engine.max_prompt is not None:
            longest = min(longest, engine.max_prompt)
        if len(prompt) > longest:
            raise ContextError(
                f"a question of {len(prompt):,} tokens and an answer of {sampling.max_new_tokens:,} do not fit the "
                f"context of {engine.context_length:,}",
                hint="Ask for a longer --context, or with fewer examples by --few-shot.",
            )
        return Tokens(tuple(prompt)), sampling

    def _scoring(self) -> Scorer:
        if self._scorer is None:
            self.close()
            self._scorer = self._open_scorer()
        return self._scorer

    def _answering(self) -> ChatEngine:
        if self._engine is None:
            self.close()
            self._engine = self._open_engine()
        return self._engine


def sampling_of(wanted: Mapping[str, Any]) -> Sampling:
    """What a task asks for, in our words. Greedy and without a penalty unless it says otherwise.

    Raises:
        UsageError: it asks for something that we do not have.
    """
    told = dict(normalize_gen_kwargs(dict(wanted), _NEW_TOKENS))
    until, new = told.pop("until"), told.pop("max_gen_toks")
    strange = sorted(set(told) - _KNOWN - _MEANINGLESS)
    if strange:
        raise UsageError(
            f"the task asks for {strange[0]}={told[strange[0]]!r}, which we do not have", hint="Leave the task out."
        )
    draws = bool(told.get("do_sample"))
    return Sampling(
        temperature=float(told.get("temperature", 1.0)) if draws else 0,
        top_p=told.get("top_p") if draws else None,
        top_k=told.get("top_k") if draws else None,
        repetition_penalty=told.get("repetition_penalty", 1.0),
        seed=0 if draws else None,
        max_new_tokens=int(new),
        stop=tuple(each for each in ([until] if isinstance(until, str) else until or ()) if each),
    )
