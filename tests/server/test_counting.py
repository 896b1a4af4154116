"""What `/metrics` and the log tell of requests and their answers."""

from __future__ import annotations

import logging
import re

import pytest

from tests.server.engines import Counting, Told, question, says, serving, until


def test_metrics() -> None:
    engine = Told(*says("a", "b", cached_tokens=4))
    engine.cache_share = 0.25
    with serving(engine) as live:
        live.chat()
        live.chat(stream=True)
        live.chat(temperature=9)
        for name, value in (
            ('glm4_edge_requests_total{path="/v1/chat/completions",status="200"}', 2),
            ('glm4_edge_requests_total{path="/v1/chat/completions",status="400"}', 1),
            ("glm4_edge_prompt_tokens_total", 14), ("glm4_edge_completion_tokens_total", 4),
            ("glm4_edge_prefix_cache_hit_tokens_total", 8), ("glm4_edge_prefix_cache_hits_total", 2),
            ("glm4_edge_kv_cache_used_ratio", 0.25), ("glm4_edge_queue_length", 0), ("glm4_edge_ready", 1),
            ("glm4_edge_time_to_first_token_seconds_count", 2), ("glm4_edge_queue_seconds_count", 2),
            ("glm4_edge_time_per_output_token_seconds_count", 2), ("glm4_edge_time_per_output_token_seconds_sum", 0.02),
            ('glm4_edge_cancellations_total{reason="client"}', 0), ('glm4_edge_answers_total{finish_reason="stop"}', 2),
        ):  # fmt: skip
            assert live.number(name) == pytest.approx(value), name
        for path in ("/a", "/b", "/v1/models/x", "/v1/models/y"):
            live.http.get(path)
        paths = set(re.findall(r'requests_total\{path="([^"]*)"', live.http.get("/metrics").text))
        assert paths == {"/v1/chat/completions", "/metrics", "other", "/v1/models/{model}"}


def test_metrics_count_a_prompt_once_however_many_answers_it_has() -> None:
    with serving(Told(*says("a", cached_tokens=4))) as live:
        live.chat(n=3)
        live.http.post("/v1/completions", json={"prompt": ["x", "y"], "n": 2})
        for name, value in (("prompt_tokens", 21), ("completion_tokens", 7), ("prefix_cache_hit_tokens", 12),
                            ("prefix_cache_hits", 3)):  # fmt: skip
            assert live.number(f"glm4_edge_{name}_total") == value, name


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("why", ["client", "timeout", "shutdown"])
def test_a_stream_that_is_ended_is_counted_as_such_with_the_tokens_it_had(
    why: str, n: int, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Counting(seconds_per_token=0.01)
    status = {"client": 499, "timeout": 504, "shutdown": 503}[why]
    with (
        caplog.at_level(logging.INFO, "edge.server"),
        serving(engine, timeout_seconds=1.5 if why == "timeout" else 60) as live,
    ):
        with live.http.stream("POST", "/v1/chat/completions", json=question(stream=True, n=n)) as reply:
            assert reply.status_code == 200
            lines = reply.iter_lines()
            while "x" not in next(lines):
                pass
            if why == "shutdown":
                live.desk.end_all()
            if why != "client":
                assert any(line == "event: error" for line in lines)
        until(lambda: f'path="/v1/chat/completions",status="{status}"}} 1.0' in live.http.get("/metrics").text)
        until(lambda: live.number("glm4_edge_prompt_tokens_total") == len("hello"))
        until(lambda: engine.under_way == 0)
        assert 0 < live.number("glm4_edge_completion_tokens_total") <= engine.made
        # the last came too late, on a busy machine a few of each answer
        until(lambda: live.number("glm4_edge_completion_tokens_total") >= engine.made - 10 * n)
        assert live.number(f'glm4_edge_cancellations_total{{reason="{why}"}}') == 1
        assert f"POST /v1/chat/completions {status}," in caplog.text
