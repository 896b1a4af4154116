"""The routes, and the document that describes them. The only importer of fastapi."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import Response

from edge import __version__
from edge.errors import EdgeError
from edge.server.asking import no_model
from edge.server.desk import CHAT, TEXT, Desk
from edge.server.doors import Door, Observed
from edge.server.faults import RefusedError
from edge.server.numbers import CONTENT_TYPE
from edge.server.page import page
from edge.server.protocol import ChatRequest, CompletionRequest
from edge.server.replies import ChatChunk, ChatCompletion, Completion, Faulty, Health, ModelCard, ModelList, Reply
from edge.server.sending import EVENT_STREAM, fault, reply

_REF = "#/components/schemas/{model}"
_FAULTS = {
    400: "The request is refused; the error names the field.", 401: "There is no key, or a wrong one.",
    403: "The page or name it comes under may not ask.", 404: "There is no such model.",
    408: "The body did not come in time.", 413: "The body is too large.", 415: "The body is not for JSON.",
    429: "The queue is full; Retry-After says when to come again.", 500: "A fault of the server's.",
    503: "The model is being loaded, its device has failed, or the server is ending.",
    504: "The answer was not there in time.",
}  # fmt: skip


def build(desk: Desk) -> FastAPI:
    """The application."""
    app = FastAPI(title="glm4-edge", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    _routes(app, desk)
    app.add_exception_handler(EdgeError, _refuse)
    app.add_exception_handler(HTTPException, _astray)
    document = _document(app, secured=bool(desk.options.keys))
    app.openapi = lambda: document  # type: ignore[method-assign]
    html = page(document)

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def describe() -> HTMLResponse:
        return HTMLResponse(html, headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"})

    app.add_middleware(Door, options=desk.options)
    if desk.options.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(desk.options.cors_origins), allow_methods=["GET", "POST"],
            allow_headers=["*"], expose_headers=["retry-after"],
        )  # fmt: skip
    app.add_middleware(Observed, desk=desk)
    return app


def _routes(app: FastAPI, desk: Desk) -> None:
    def told(model: Any, *others: int, piece: type[Reply] | None = None) -> dict[int | str, dict[str, Any]]:
        """What a route may answer."""
        whole: dict[str, Any] = {"model": model}
        if piece is not None:
            whole["content"] = {EVENT_STREAM: {"schema": _event(piece)}}
        always = (401,) if desk.options.keys else (403,)
        return {200: whole, **{code: {"model": Faulty, "description": _FAULTS[code]} for code in (*always, *others)}}

    asking = (400, 404, 408, 413, 415, 429, 500, 503, 504)

    @app.post("/v1/chat/completions", tags=["answers"], responses=told(ChatCompletion, *asking, piece=ChatChunk),
              openapi_extra=_body(ChatRequest))  # fmt: skip
    async def chat(request: Request) -> Response:
        """Answer a chat."""
        return await desk.answer(request, CHAT)

    @app.post("/v1/completions", tags=["answers"], responses=told(Completion, *asking, piece=Completion),
              openapi_extra=_body(CompletionRequest))  # fmt: skip
    async def completion(request: Request) -> Response:
        """Go on with a text."""
        return await desk.answer(request, TEXT)

    @app.post("/v1/embeddings", tags=["answers"], status_code=400,
              responses={code: kind for code, kind in told(Faulty, 400, 503).items() if code != 200})  # fmt: skip
    async def embeddings() -> Response:
        """Say that this model makes no embeddings."""
        raise RefusedError(f"the model {desk.model_name(desk.engine())!r} writes text, it makes no embeddings",
                           param="model", hint="Ask a server that has an embedding model.",
                           code="not_an_embedding_model")  # fmt: skip

    @app.get("/v1/models", tags=["models"], responses=told(ModelList, 503))
    async def models() -> Response:
        """List the model, and its adapters."""
        return reply(ModelList(object="list", data=[_card(desk, name) for name in desk.models(desk.engine())]))

    @app.get("/v1/models/{model:path}", tags=["models"], responses=told(ModelCard, 404, 503))
    async def model(model: str) -> Response:
        """Describe a model."""
        models = desk.models(desk.engine())
        if model not in models:
            raise no_model(model, models)
        return reply(_card(desk, model))

    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["server"], responses={
        200: {"model": Health}, 503: {"model": Health, "description": "It cannot answer, yet or any more."},
        **{code: kind for code, kind in told(Health).items() if code == 403},
    })  # fmt: skip
    async def health() -> Response:
        """Whether the server can answer."""
        return reply(Health(status=desk.status), 200 if desk.status == "ready" else 503)

    numbers = told(None)
    numbers[200] = {"content": {"text/plain": {"schema": {"type": "string"}}}}

    @app.get("/metrics", tags=["server"], responses=numbers, response_class=Response)
    async def metrics() -> Response:
        """Counters, as Prometheus reads them."""
        return Response(desk.numbers.text(), headers={"content-type": CONTENT_TYPE})


def _card(desk: Desk, name: str) -> ModelCard:
    engine = desk.engine()
    return ModelCard(id=name, object="model", created=desk.created, owned_by="glm4-edge",
                     context_length=engine.context_length)  # fmt: skip


async def _refuse(request: Request, error: Exception) -> Response:
    return fault(error)


async def _astray(request: Request, error: Exception) -> Response:
    """A path or method that there is not."""
    assert isinstance(error, HTTPException)
    where = f"{request.method[:10]} {request.url.path[:80]}"
    refused = RefusedError(
        f"there is no {where} here", hint="The page / lists what there is.", status=error.status_code,
        code={404: "not_found", 405: "method_not_allowed"}.get(error.status_code),
    )  # fmt: skip
    response = fault(refused)
    response.headers.update(error.headers or {})
    return response


def _body(kind: type[ChatRequest | CompletionRequest]) -> dict[str, Any]:
    """That a route reads a request; it does so itself, with its limits and its own words for what is wrong."""
    schema = {"$ref": _REF.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _event(piece: type[Reply]) -> dict[str, Any]:
    """One of a stream's events."""
    pieces = [
        {"type": "string", "contentMediaType": "application/json", "contentSchema": {"$ref": _REF.format(model=name)}}
        for name in (piece.__name__, Faulty.__name__)
    ]
    data = {
        "anyOf": [*pieces, {"const": "[DONE]"}],
        "description": "A piece of the answer; [DONE] after the last; of an event named error: what went wrong.",
    }
    return {"type": "object", "required": ["data"], "properties": {"data": data, "event": {"type": "string"}}}


def _document(app: FastAPI, *, secured: bool) -> dict[str, Any]:
    """The OpenAPI document."""
    document = get_openapi(
        title=app.title, version=app.version, routes=app.routes,
        description="GLM-4 on this machine. Parameters that are not listed are refused by name.",
    )  # fmt: skip
    _, schemas = models_json_schema(
        [(ChatRequest, "validation"), (CompletionRequest, "validation"), (ChatChunk, "serialization")],
        ref_template=_REF,
    )
    parts = document.setdefault("components", {})
    parts["schemas"] = {
        name: schema for name, schema in parts.get("schemas", {}).items()
        if name not in ("HTTPValidationError", "ValidationError")
    } | schemas["$defs"]  # fmt: skip
    for methods in document["paths"].values():
        for route in methods.values():
            route["responses"].pop("422", None)  # a path is any text, and bodies are read by the routes
    if secured:
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, methods in document["paths"].items():
            for route in methods.values():
                route["security"] = [] if path == "/health" else [{"key": []}]
    return document
