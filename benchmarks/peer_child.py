"""One runtime with one model in a process of its own, asked over standard input, line by line in JSON.

    PYTHON benchmarks/peer_child.py RUNTIME MODEL OPTIONS

Any Python runs it that has the runtime: apart from "ours" and "itrex", nothing of this repository is imported to
answer. Loading begins at once and ends with `{"loaded": …}`. Then `{"prompt": [ids], "new": N}` is answered with
`{"first": true}` at the first token and `{"tokens": [...], "token_seconds": [...]}` at the end; `{"windows": FILE,
"logits": FILE, "exact": …}` writes the logits of every window. A fault is `{"error": "…"}`; the end of the input ends
the process.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Seen = Callable[[int], None]
"""Told of every token as it comes."""


class Ours:
    """As `glm4-edge chat` runs a model on the CPU: its settings, its checks, its process beside this one."""

    def __init__(self, model: Path, options: dict[str, Any]) -> None:
        from edge.commands import loading
        from edge.runtime.settings import Settings

        wanted = loading.Wanted(model, Settings("CPU"), fallback=False, prompt=None)
        self._model = model
        self._engine = loading.load(wanted, overflow="refuse", remark=lambda line: None)
        self._engine.warm_up()  # as chat does before it answers

    def ask(self, prompt: Sequence[int], new: int, seen: Seen) -> Sequence[float]:
        """Greedy, past the stop tokens; when each came. Pieces of text do not say that: one waits until its characters
        are whole."""
        from edge.messages import Sampling, Tokens

        sampling = Sampling(temperature=0, max_new_tokens=new, ignore_eos=True, repetition_penalty=1.0)
        usage = None
        for chunk in self._engine.stream(Tokens(tuple(prompt)), sampling):
            usage = chunk.usage or usage
            for token in chunk.token_ids:
                seen(token)
        return () if usage is None else usage.token_seconds

    def logits(self, windows: Any, exact: bool) -> Iterator[Any]:
        """Of the weights with the settings of `ask`; the cache is the plugin's own, not the pipeline's pages."""
        from edge.manifest import Manifest
        from edge.runtime import devices, tuned

        found = tuned.read(self._model, "CPU")
        properties = devices.default_properties("CPU", Manifest.read(self._model))
        return _openvino_logits(self._model, {**properties, **(found.properties if found else {})}, windows, exact)

    def close(self) -> None:
        """End its process."""
        self._engine.close()


class Itrex(Ours):
    """The same as `glm4-edge chat --runtime itrex` runs it: in ITREX's process beside this one."""

    def __init__(self, model: Path, options: dict[str, Any]) -> None:
        from edge.commands import loading
        from edge.runtime.settings import Settings

        wanted = loading.Wanted(model, Settings("CPU", runtime="itrex"), fallback=False, prompt=None)
        self._model = model
        self._engine = loading.load(wanted, overflow="refuse", remark=lambda line: None)

    def logits(self, windows: Any, exact: bool) -> Iterator[Any]:
        """As it computes them for `ask`: there is no exacter way."""
        from edge.manifest import Manifest
        from edge.runtime import itrex

        if exact:
            raise RuntimeError("ITREX computes in one way only")
        self._engine.close()  # two at once need twice the memory
        with itrex.Reader(itrex.load(self._model, Manifest.read(self._model))) as reader:
            for ids in windows:
                yield reader.read(ids, 0)


class GenAi:
    """A plain `LLMPipeline` with nothing said: what somebody gets who follows OpenVINO GenAI's first page."""

    def __init__(self, model: Path, options: dict[str, Any]) -> None:
        import openvino_genai

        self._model = model
        self._pipeline = openvino_genai.LLMPipeline(str(model), "CPU")

    def ask(self, prompt: Sequence[int], new: int, seen: Seen) -> None:
        """Greedy, past the stop tokens."""
        import numpy as np
        import openvino as ov
        import openvino_genai as genai

        class Streamer(genai.StreamerBase):  # type: ignore[misc]
            def write(self, token: Any) -> Any:
                for each in token if isinstance(token, Sequence) else [token]:
                    seen(each)
                return genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new, True, False
        ids = np.array([prompt], np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        self._pipeline.generate(inputs, config, Streamer())

    def logits(self, windows: Any, exact: bool) -> Iterator[Any]:
        """Of the weights with the plugin's defaults; the cache is the plugin's own, not the pipeline's pages."""
        del self._pipeline
        return _openvino_logits(self._model, {}, windows, exact)

    def close(self) -> None:
        """Nothing more to do."""


def _openvino_logits(folder: Path, properties: dict[str, Any], windows: Any, exact: bool) -> Iterator[Any]:
    from edge.infer import EXACT, core, infer

    compiled = core().compile_model(str(folder / "openvino_model.xml"), "CPU", EXACT if exact else properties)
    for ids in windows:
        yield infer(compiled.create_infer_request(), ids, 0)


class LlamaCpp:
    """llama.cpp through its C interface, with its defaults but for the number of threads, which it asks for.

    Args:
        options: "threads", "context".
    """

    def __init__(self, model: Path, options: dict[str, Any]) -> None:
        import llama_cpp  # type: ignore[import-not-found] # in an environment of its own

        self._llama, self._options = llama_cpp, options
        self._log = llama_cpp.llama_log_callback(_only_errors)  # kept: called as long as the library is used
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {model.name}")
        self._context = self._make_context(options["context"])
        self._sampler = llama_cpp.llama_sampler_init_greedy()

    def _make_context(self, tokens: int) -> Any:
        params = self._llama.llama_context_default_params()
        params.n_ctx = tokens
        params.n_threads = params.n_threads_batch = self._options["threads"]
        context = self._llama.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError(f"llama.cpp makes no context of {tokens} tokens")
        self._step = int(self._llama.llama_n_batch(context))
        return context

    def ask(self, prompt: Sequence[int], new: int, seen: Seen) -> None:
        """Greedy, past the stop tokens."""
        llama, context = self._llama, self._context
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        for start in range(0, len(prompt), self._step):
            self._decode(prompt[start : start + self._step])
        for number in range(new):
            token = llama.llama_sampler_sample(self._sampler, context, -1)
            seen(token)
            if number + 1 < new:
                self._decode([token])

    def _decode(self, ids: Sequence[int]) -> None:
        array = (self._llama.llama_token * len(ids))(*ids)
        failed = self._llama.llama_decode(self._context, self._llama.llama_batch_get_one(array, len(ids)))
        if failed:
            raise RuntimeError(f"llama_decode failed with {failed}")

    def logits(self, windows: Any, exact: bool) -> Iterator[Any]:
        """As it computes them for `ask`: there is no exacter way."""
        import numpy as np

        if exact:
            raise RuntimeError("llama.cpp computes in one way only")
        llama, context = self._llama, self._context
        vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        for ids in windows:
            llama.llama_memory_clear(llama.llama_get_memory(context), True)
            batch = llama.llama_batch_init(len(ids), 0, 1)
            batch.n_tokens = len(ids)
            for place, token in enumerate(ids):
                batch.token[place], batch.pos[place], batch.logits[place] = int(token), place, 1
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            if failed := llama.llama_decode(context, batch):
                raise RuntimeError(f"llama_decode failed with {failed}")
            yield np.ctypeslib.as_array(llama.llama_get_logits(context), (len(ids), vocabulary)).copy()
            llama.llama_batch_free(batch)

    def close(self) -> None:
        """Nothing more to do."""


def _only_errors(level: int, text: bytes, data: object) -> None:
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        sys.stderr.write(text.decode("utf-8", "replace"))


RUNTIMES = {"ours": Ours, "genai": GenAi, "llama.cpp": LlamaCpp, "itrex": Itrex}


def main() -> None:
    """Load, and answer until the input ends."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer

    def tell(**facts: Any) -> None:
        told.write(json.dumps(facts) + "\n")
        told.flush()

    runtime: Any = None
    try:
        name, model, options = sys.argv[1:]
        runtime = RUNTIMES[name](Path(model), json.loads(options))
        tell(loaded=True)
        for line in sys.stdin:
            _answer(runtime, json.loads(line), tell)
    except Exception as error:  # the parent says it
        tell(error=f"{type(error).__name__}: {error}")
        raise
    finally:
        if runtime is not None:
            runtime.close()


def _answer(runtime: Any, question: dict[str, Any], tell: Callable[..., None]) -> None:
    if "windows" in question:
        import numpy as np

        windows = np.load(question["windows"])
        out = None
        for number, rows in enumerate(runtime.logits(windows, question["exact"])):
            if out is None:
                shape = (len(windows), *rows.shape)
                out = np.lib.format.open_memmap(question["logits"], mode="w+", dtype=np.float32, shape=shape)
            out[number] = rows
        tell(done=True)
        return
    tokens: list[int] = []
    seconds: list[float] = []
    begin = time.perf_counter()

    def seen(token: int) -> None:
        seconds.append(time.perf_counter() - begin)
        tokens.append(int(token))
        if len(tokens) == 1:
            tell(first=True)

    known = runtime.ask(question["prompt"], question["new"], seen)  # when they came, if the runtime says it itself
    tell(tokens=tokens, token_seconds=seconds if known is None else list(known))


if __name__ == "__main__":
    main()
