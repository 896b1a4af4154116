"""A page that says what the server takes, made of its OpenAPI document: no script, nothing from elsewhere. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff }
code, pre { font: 14px/1.45 ui-monospace, monospace; background: #f3f3f3; border-radius: 4px }
code { padding: 1px 4px } pre { padding: .8rem; overflow-x: auto }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem }
td, th { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #ddd }
h2 { margin-top: 2.2rem }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1b1b1b } code, pre { background: #2a2a2a }
  td, th { border-color: #444 } a { color: #8ab4f8 } }
"""
_EXAMPLE = """curl {address}/v1/chat/completions -H "Content-Type: application/json" \\
  -d '{"messages": [{"role": "user", "content": "Why is the sky blue?"}], "stream": true}'"""


def page(document: Mapping[str, Any]) -> str:
    """The page, in HTML."""
    schemas = document["components"]["schemas"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(document['info']['title'])}</title><style>{_STYLE}</style>",
        f"<h1>{escape(document['info']['title'])} {escape(document['info']['version'])}</h1>",
        f"<p>{escape(document['info']['description'])} Programs read <a href='/openapi.json'>openapi.json</a>.</p>",
        f"<pre>{escape(_EXAMPLE.replace('{address}', 'http://127.0.0.1:8000'))}</pre>",
    ]
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(route['description'])}</p>")
            body = route.get("requestBody")
            if body is not None:
                parts.append(_fields(_resolved(body["content"]["application/json"]["schema"], schemas), schemas))
            parts.append(_answers(route["responses"]))
    return "".join(parts)


def _fields(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' (needed)' if name in schema.get('required', ()) else ''}"
        f"<td>{escape(_kind(field, schemas))}<td>{escape(field.get('description', ''))}"
        for name, field in schema["properties"].items()
    )
    return f"<table><tr><th>field<th>takes<th>{rows}</table>"


def _answers(responses: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(code)}<td>{escape('' if code == '200' else answer['description'])}"
        for code, answer in responses.items()
        if code != "200"
    )
    return f"<details><summary>Errors</summary><table>{rows}</table></details>" if rows else ""


def _resolved(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    ref = schema.get("$ref")
    return schema if ref is None else schemas[ref.rpartition("/")[2]]


def _kind(field: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    """What a field may hold, in words."""
    for word in ("anyOf", "oneOf"):
        if word in field:
            kinds = [_kind(each, schemas) for each in field[word] if each.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds)) or "null"
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        inside = _resolved(field, schemas).get("properties", {})
        kind = inside.get("type", {})
        return repr(kind["const"]) if "const" in kind else f"{name} {{{', '.join(inside)}}}"
    if "const" in field:
        return repr(field["const"]).lower() if isinstance(field["const"], bool) else repr(field["const"])
    if "enum" in field:
        return " or ".join(map(repr, field["enum"]))
    kind = str(field.get("type", "any"))
    if kind == "null":
        return "only null"
    if kind == "array":
        return f"array of {_kind(field.get('items', {}), schemas)}"
    bounds = [
        f"{words} {field[word]:,}" for word, words in (
            ("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "below"),
        ) if word in field
    ]  # fmt: skip
    if kind == "object" and field.get("maxProperties") == 0:
        return "empty object"
    return " ".join([kind, *bounds])
