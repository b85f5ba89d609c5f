"""Pages that are made here: without scripts, and styled by themselves."""

import hashlib
import html
import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import Response

from tallymark.server.headers import SECURITY_HEADERS

_BASE_STYLE: Final = ":root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}"

LOGIN_STYLE: Final = (
    "form{display:grid;gap:.75rem;max-width:20rem;margin:20vh auto}input,button{font:inherit;padding:.5rem}"
)
DOCS_STYLE: Final = (
    "body{max-width:60rem;margin:2rem auto;padding:0 1rem}section{border-top:1px solid;margin-top:2rem}"
    "td,th{text-align:left;vertical-align:top;padding-right:1rem}"
    "pre{overflow:auto;background:#8882;padding:.75rem;border-radius:.4rem}"
)


def page(title: str, style: str, body: str, status: int = 200) -> Response:
    """A page. Its style is allowed by its hash; ``body`` is markup in which texts are escaped already."""
    style = _BASE_STYLE + style
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    content = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style>{body}</html>'
    )
    policy = f"{SECURITY_HEADERS['Content-Security-Policy']}; style-src 'sha256-{digest}'"
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
    return Response(content, status, headers, "text/html")


def add_docs(app: FastAPI) -> None:
    """``/docs``: the API for people. The page that FastAPI offers loads its scripts from another host."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return page("tallymark API", DOCS_STYLE, "".join(_document(app.openapi())))


def _document(schema: dict[str, Any]) -> Iterator[str]:
    text = html.escape
    yield f"<h1>tallymark API</h1><p>{text(schema['info']['summary'])} "
    yield 'For programs: <a href="openapi.json">openapi.json</a>.</p>'
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            yield f"<section><h2><code>{method.upper()} {text(path)}</code></h2>"
            yield f"<p>{text(operation['summary'])}. {text(operation.get('description', ''))}</p>"
            yield "".join(_parameters(operation.get("parameters", [])))
            body = operation.get("requestBody", {}).get("content", {})
            yield _example("Body", body, schema)
            for status, response in operation["responses"].items():
                if status < "4":
                    yield _example(f"Answer {status}", response.get("content", {}), schema)
            yield "</section>"


def _parameters(parameters: list[dict[str, Any]]) -> Iterator[str]:
    if not parameters:
        return
    yield "<table><tr><th>Parameter<th>Meaning<th>Default"
    for parameter in parameters:
        schema = parameter["schema"]
        default = "required" if parameter.get("required") else json.dumps(schema.get("default"))
        meaning = parameter.get("description") or ""
        examples = schema.get("examples", [])
        if examples:
            meaning += f" (e.g. {', '.join(map(str, examples))})"
        yield f"<tr><td><code>{html.escape(parameter['name'])}</code>"
        yield f"<td>{html.escape(meaning)}<td>{html.escape(default)}"
    yield "</table>"


def _example(title: str, content: dict[str, Any], schema: dict[str, Any]) -> str:
    reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
    model = schema["components"]["schemas"].get(reference.rpartition("/")[2], {})
    if not model.get("examples"):
        return ""
    example = json.dumps(model["examples"][0], indent=2, ensure_ascii=False)
    return f"<h3>{html.escape(title)}</h3><pre>{html.escape(example)}</pre>"
