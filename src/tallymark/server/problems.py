"""Errors as RFC 9457 problem details: what is wrong, in which field, by which rule; never what was sent."""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.routing import Match

from tallymark.errors import QueryError, StoreError
from tallymark.privacy import mask_text
from tallymark.server.headers import SECURITY_HEADERS

MEDIA_TYPE = "application/problem+json"
MAX_FIELD_ERRORS = 20
"""Most fields that one answer names; the first ones are enough to repair a client."""
MAX_TEXT = 500
"""Longest text in an answer: names of fields come from the client and may be of any size."""

_QUOTE = re.compile(r"""(['"])(.*?)(?:…|\1)""")

logger = logging.getLogger("tallymark.server")


class FieldProblem(BaseModel):
    """One field and the rule that it breaks."""

    field: str = Field(examples=["body.value"])
    rule: str = Field(examples=["Input should be a finite number"])


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    type: str = Field(description="names the kind of problem; `about:blank`: the status says it all")
    title: str = Field(examples=["The request is not valid"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["body.value: Input should be a finite number"])
    errors: list[FieldProblem] = Field(default=[], description="the fields at fault, where there are such")


class ProblemError(HTTPException):
    """Raised anywhere in a request, becomes the answer.

    Args:
        status: the HTTP status.
        detail: what happened and what to do about it; shown to the client.
        kind: one word for ``type``; without it the type is ``about:blank``.
        title: one line for the kind of problem; by default the phrase of the status.
        errors: (field, rule) pairs.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        kind: str | None = None,
        title: str | None = None,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, dict(headers) if headers else None)
        self.kind = kind
        self.title = title or HTTPStatus(status).phrase
        self.errors = errors

    def response(self) -> Response:
        """The answer itself, for code that runs outside the application's error handling."""
        return problem_response(
            self.status_code,
            str(self.detail),
            kind=self.kind,
            title=self.title,
            errors=self.errors,
            headers=self.headers,
        )


def invalid(errors: Sequence[tuple[str, str]]) -> ProblemError:
    """422 with the fields and their rules."""
    shown = errors[:MAX_FIELD_ERRORS]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return ProblemError(
        422,
        f"{shown[0][0]}: {shown[0][1]}{more}",
        kind="validation",
        title="The request is not valid",
        errors=shown,
    )


def problem_response(
    status: int,
    detail: str,
    *,
    kind: str | None = None,
    title: str | None = None,
    errors: Sequence[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An ``application/problem+json`` answer."""
    content: dict[str, Any] = {
        "type": f"urn:tallymark:problem:{kind}" if kind else "about:blank",
        "title": title or HTTPStatus(status).phrase,
        "status": status,
        "detail": _shown(detail),
    }
    if errors:
        content["errors"] = [{"field": _shown(field), "rule": _shown(rule)} for field, rule in errors]
    # ASCII only: a field's name may hold lone surrogates, which UTF-8 cannot.
    body = json.dumps(content, ensure_ascii=True).encode("ascii")
    return Response(body, status, headers, MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of these answers; :func:`in_openapi` completes it."""
    return {status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in statuses}


def in_openapi(schema: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with every error as a problem, where FastAPI describes its own."""
    problem = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path in schema["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if status >= "4":
                    response["content"] = problem
    for unused in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(unused, None)
    return schema


def install(app: FastAPI) -> None:
    """Make every error of the application a problem."""
    app.add_exception_handler(AnyHTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _validation_problem)
    app.add_exception_handler(QueryError, _query_problem)
    app.add_exception_handler(StoreError, _store_problem)
    app.add_exception_handler(Exception, _unexpected_problem)


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, AnyHTTPException)
    if isinstance(error, ProblemError):
        return error.response()
    if error.status_code == 404:
        return problem_response(404, "There is nothing at this path.")
    if error.status_code == 405:
        allowed = _allowed_methods(request)
        return problem_response(405, f"This path has {allowed} only.", headers={"Allow": allowed})
    return problem_response(error.status_code, str(error.detail), headers=error.headers)


def _allowed_methods(request: Request) -> str:
    """Of every route with this path; the framework names those of the first one."""
    routes = request.app.routes
    return ", ".join(
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    )


async def _validation_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Only the place and pydantic's message: its "input" and "ctx" hold what was sent.
    return invalid([(_place(e["loc"]), _rule(e)) for e in error.errors()]).response()


async def _query_problem(request: Request, error: Exception) -> Response:
    part, colon, rule = str(error).partition(": ")
    # Such a message quotes what it is about, for people at a terminal. Here it may come from anybody.
    # A space may have been a plus that was not escaped, and is quoted as one.
    sent = [repr(value).replace(" ", "+") for value in request.query_params.values()]

    def hidden(quote: re.Match[str]) -> str:
        return "…" if any(quote[2].replace(" ", "+") in value for value in sent) else quote[0]

    rule = _QUOTE.sub(hidden, rule if colon else part)
    return invalid([(f"query.{part}" if colon and part.isidentifier() else "query", rule)]).response()


async def _store_problem(request: Request, error: Exception) -> Response:
    logger.error("the store failed: %s", error, exc_info=error if os.environ.get("TALLYMARK_DEBUG") else None)
    return problem_response(
        503,
        "The store cannot be used at the moment; the server's log says why.",
        kind="store",
        title="The store is not available",
        headers={"Retry-After": "5"},
    )


async def _unexpected_problem(request: Request, error: Exception) -> Response:
    # Whoever runs the server finds the traceback in its log: the error is raised again after this answer.
    # It is answered outside of the middleware that would add the headers, and uvicorn closes the connection.
    headers = {**SECURITY_HEADERS, "Connection": "close"}
    return problem_response(500, "The server failed; its log says why.", kind="internal", headers=headers)


def _place(location: Sequence[str | int]) -> str:
    return ".".join(_shown(str(part)) for part in location)


def _rule(error: Mapping[str, Any]) -> str:
    # These two kinds of pydantic's messages quote the input.
    if error["type"] == "json_invalid":
        return f"is not JSON: {error.get('ctx', {}).get('error', 'syntax error')}"
    return str(error["msg"])


def _shown(text: str) -> str:
    """The beginning of a text, without what looks private: an address may have been sent as the name of a field."""
    masked = mask_text(text[: 2 * MAX_TEXT])
    return masked if len(masked) <= MAX_TEXT else masked[:MAX_TEXT] + "…"
