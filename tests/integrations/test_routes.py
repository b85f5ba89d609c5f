"""The names of requests: templates, in every way that Starlette and FastAPI can put routes together."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from recording import DEADLINE_SECONDS
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, Route
from starlette.staticfiles import StaticFiles

from tallymark import Metrics
from tallymark.integrations import routes
from tallymark.integrations.asgi import MetricsMiddleware
from tallymark.model import MAX_NAME_LENGTH

from .traffic import Recorded, ask, eventually, ok, only, serving, trace_ids


def starlette_app(metrics: Metrics) -> Starlette:
    users = Starlette(routes=[Route("/{user}", ok)])
    return Starlette(
        routes=[
            Route("/items/{id:int}", ok, methods=["GET", "POST"]),
            Route("/slash/", ok),
            Mount("/api", routes=[Route("/v{version:int}", ok), Mount("/users", users)]),
            Mount("/tenants/{tenant}", routes=[Route("/bills/{bill}", ok)]),
            Mount("/static", StaticFiles(directory=Path(__file__).parent)),
            Host("admin.example", Starlette(routes=[Route("/panel/{tab}", ok)])),
        ],
        middleware=[Middleware(MetricsMiddleware, metrics=metrics)],
    )


def fastapi_app(metrics: Metrics) -> FastAPI:
    leaf = APIRouter(prefix="/leaf")
    leaf.add_api_route("/{n}", lambda n: n)
    leaf.add_route("/plain/{n}", ok)  # FastAPI does not put the router's own prefix before these
    branch = APIRouter(prefix="/branch")
    branch.include_router(leaf)
    inner = FastAPI()
    inner.include_router(leaf)
    app = FastAPI()
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    app.add_api_route("/items/{id}", lambda id: id)  # noqa: A006
    app.include_router(branch)
    app.include_router(leaf, prefix="/again")
    app.mount("/inner", inner)
    app.mount("/files", StaticFiles(directory=Path(__file__).parent))
    return app


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/items/7", "GET /items/{id}"),
        ("/items/seven", "GET unmatched"),
        ("/slash", "GET unmatched"),
        ("/api/v2", "GET /api/v{version}"),
        ("/api/users/anna", "GET /api/users/{user}"),
        ("/api/users/anna/more", "GET unmatched"),
        ("/api/none", "GET unmatched"),
        ("/tenants/acme/bills/9", "GET /tenants/{tenant}/bills/{bill}"),
        ("/tenants/acme/nothing", "GET unmatched"),
        (f"/static/{Path(__file__).name}", "GET /static/{path}"),
        ("/static/none.txt", "GET /static/{path}"),
        ("/.env", "GET unmatched"),
    ],
)
def test_name_is_the_template_of_starlette(metrics: Metrics, recorded: Recorded, path: str, name: str) -> None:
    app = starlette_app(metrics)
    ask(app, path)
    ask(app, path)
    assert [record.name for record in recorded()] == [name, name]
    assert only(recorded()[:1]).metadata["endpoint"] == name.removeprefix("GET ")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/items/7", "GET /items/{id}"),
        ("/branch/leaf/7", "GET /branch/leaf/{n}"),
        ("/branch/plain/7", "GET /branch/plain/{n}"),
        ("/again/leaf/7", "GET /again/leaf/{n}"),
        ("/inner/leaf/7", "GET /inner/leaf/{n}"),
        ("/inner/openapi.json", "GET /inner/openapi.json"),
        ("/inner/none", "GET unmatched"),
        ("/docs", "GET /docs"),
        (f"/files/{Path(__file__).name}", "GET /files/{path}"),
        ("/none", "GET unmatched"),
    ],
)
def test_name_is_the_template_of_fastapi(metrics: Metrics, recorded: Recorded, path: str, name: str) -> None:
    app = fastapi_app(metrics)
    ask(app, path)
    ask(app, path)
    assert [record.name for record in recorded()] == [name, name]


def test_one_route_under_two_prefixes_has_two_names(metrics: Metrics, recorded: Recorded) -> None:
    app = fastapi_app(metrics)
    for prefix in ("/branch", "/again", "/inner", "/branch"):
        ask(app, f"{prefix}/leaf/1")
    assert [record.metadata["endpoint"] for record in recorded()] == [
        "/branch/leaf/{n}",
        "/again/leaf/{n}",
        "/inner/leaf/{n}",
        "/branch/leaf/{n}",
    ]


def test_host_route(metrics: Metrics, recorded: Recorded) -> None:
    ask(starlette_app(metrics), "/panel/users", headers=[(b"host", b"admin.example")])
    assert only(recorded()).name == "GET /panel/{tab}"


def test_root_path_is_not_part_of_the_name(metrics: Metrics, recorded: Recorded) -> None:
    app = starlette_app(metrics)
    ask(app, "/behind/proxy/items/7", root_path="/behind/proxy")
    ask(app, "/behind/proxy/api/users/anna", root_path="/behind/proxy")
    assert [record.name for record in recorded()] == ["GET /items/{id}", "GET /api/users/{user}"]


def test_middleware_within_a_mounted_application_names_the_whole_route(metrics: Metrics, recorded: Recorded) -> None:
    inner = Starlette(routes=[Route("/{id}", ok)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)])
    ask(Starlette(routes=[Mount("/inner", inner), Route("/outer", ok)]), "/inner/7")
    assert only(recorded()).name == "GET /inner/{id}"


def test_middleware_of_a_single_mount_measures_that_mount_alone(metrics: Metrics, recorded: Recorded) -> None:
    measured = Mount(
        "/measured", routes=[Route("/{id}", ok)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)]
    )
    app = Starlette(routes=[measured, Route("/free", ok)])
    ask(app, "/measured/7")
    ask(app, "/free")
    assert only(recorded()).name == "GET /measured/{id}"


def test_wrong_method_keeps_the_template_and_an_unknown_method_is_other(metrics: Metrics, recorded: Recorded) -> None:
    app = starlette_app(metrics)
    ask(app, "/items/7", method="DELETE")
    ask(app, "/items/7", method="X" * 300)
    ask(app, "/items/7", method="get")
    records = recorded()
    assert [record.name for record in records] == [
        "DELETE /items/{id}",
        "OTHER /items/{id}",
        "OTHER /items/{id}",
    ]
    assert [record.metadata["status_code"] for record in records] == [405, 405, 405]
    assert [record.metadata["method"] for record in records] == ["DELETE", "OTHER", "OTHER"]


def test_answer_of_another_middleware_has_the_name_of_the_route(metrics: Metrics, recorded: Recorded) -> None:
    async def refuse(request: Request, call_next: Any) -> Response:
        return PlainTextResponse("no", 401)

    app = starlette_app(metrics)
    app.add_middleware(BaseHTTPMiddleware, dispatch=refuse)
    with serving(app) as address:
        assert httpx.get(f"http://{address}/api/users/anna", timeout=DEADLINE_SECONDS).status_code == 401
        record = only(eventually(recorded, 1))
    assert (record.name, record.metadata["status_code"]) == ("GET /api/users/{user}", 401)


def test_values_of_a_mount_do_not_pile_up(
    metrics: Metrics, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "_MAX_KNOWN", 3)
    app = starlette_app(metrics)
    for number in range(8):
        ask(app, f"/tenants/{number}/bills/1")
    assert {record.name for record in recorded()} == {"GET /tenants/{tenant}/bills/{bill}"}


def test_a_very_long_template_is_cut(metrics: Metrics, recorded: Recorded) -> None:
    path = "/" + "x" * 300
    ask(Starlette(routes=[Route(path, ok)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)]), path)
    assert only(recorded()).name == f"GET {path}"[:MAX_NAME_LENGTH]


def test_a_bare_application_may_name_its_routes(metrics: Metrics, recorded: Recorded) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].startswith("/users/"):
            scope["route"] = "/users/{user}"
        await PlainTextResponse("ok")(scope, receive, send)

    measured = MetricsMiddleware(app, metrics)
    ask(measured, "/users/anna")
    ask(measured, "/other")
    assert [record.name for record in recorded()] == ["GET /users/{user}", "GET unmatched"]


def test_nested_middleware_measures_once(metrics: Metrics, recorded: Recorded) -> None:
    inner = starlette_app(metrics)
    outer = Starlette(routes=[Mount("/inner", inner)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)])
    sent = ask(outer, "/inner/items/7")
    assert only(recorded()).name == "GET /inner/items/{id}"
    assert len(trace_ids(sent)) == 1
