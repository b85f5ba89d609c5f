"""Names for requests: the method and the template of the route, never the path that was asked for.

A path is chosen by the client. As a name it would make a new series of every number that somebody types.
"""

from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any

from tallymark.model import MAX_NAME_LENGTH

UNMATCHED = "unmatched"
"""Stands for the template of every request that no route took."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "QUERY"})
"""The methods that are told apart; any other is ``OTHER``, because the client chooses it."""

# A mount with a parameter has a root path for each of its values, and the client chooses those too.
_MAX_KNOWN = 1_024

Scope = MutableMapping[str, Any]
_Key = tuple[Any, int, Any]


RouteName = tuple[str, str, str]
"""The name (``GET /items/{id}``; of a websocket the template alone), the method (one of :data:`METHODS` or
``OTHER``; empty for a websocket) and the template (``/items/{id}`` or :data:`UNMATCHED`)."""


class RouteNames:
    """Finds the name of a request from the ASGI scope that the application has left behind.

    Starlette and FastAPI note the route that they chose in ``scope["route"]``. A framework of another kind
    may put the template there itself, as a string. Names are worked out once for each route and kept.
    """

    def __init__(self) -> None:
        self._known: dict[_Key, tuple[object, RouteName]] = {}

    def of(self, scope: Scope) -> RouteName:
        """The name of the request of ``scope``, after the application has served it."""
        route = scope.get("route")
        fastapi = scope.get("fastapi")
        if fastapi:
            # FastAPI notes the route as it was declared. What the prefix of an included router makes of it is
            # in this context.
            context = fastapi.get("effective_route_context")
            if context is not None and context.original_route is route:
                route = context
        # A route is not hashable. Its id is a safe key as long as the route is kept alive beside the name.
        key = (scope.get("method"), id(route), scope.get("root_path"))
        known = self._known.get(key)
        return known[1] if known is not None else self._work_out(scope, route, key)

    def _work_out(self, scope: Scope, route: Any, key: _Key) -> RouteName:
        method = scope.get("method", "")
        is_common = method in METHODS or scope["type"] != "http"
        name = _named(method if is_common else "OTHER", _template(scope, route))
        if is_common and route is not None and not _has_children(route):
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[key] = (route, name)
        return name


def _named(method: str, template: str | None) -> RouteName:
    template = UNMATCHED if template is None else (template or "/")
    name = f"{method} {template}" if method else template
    return name[:MAX_NAME_LENGTH], method, template[:MAX_NAME_LENGTH]


def _template(scope: Scope, route: Any) -> str | None:
    if route is None or "app_root_path" in scope or _has_children(route):
        # No route was noted, or the route knows only its part below a mount: match once more, from the top.
        template = _matched_again(scope)
        if template is not None or route is None or _has_children(route):
            return template
    return _own_template(route)


def _matched_again(scope: Scope) -> str | None:
    router = scope.get("router")
    if router is None:
        # A middleware answered before the router was asked, or gave it a copy of the scope.
        router = scope.get("app")
    elif "endpoint" not in scope:
        return None  # the router looked, and found nothing
    top = {key: value for key, value in scope.items() if key not in ("fastapi", "route", "path_params")}
    top["root_path"] = scope.get("app_root_path", scope.get("root_path", ""))
    return _search(getattr(router, "routes", ()), top)


def _search(routes: Iterable[Any], scope: Scope) -> str | None:
    """The template that the router of Starlette or FastAPI would choose: the first full match, else the
    first partial.
    """
    partial = None
    for route in _flattened(routes):
        match, child_scope = route.matches(scope)
        if match.name == "FULL":
            return _joined(route, {**scope, **child_scope})
        if match.name == "PARTIAL" and partial is None:
            partial = _joined(route, {**scope, **child_scope})
    return partial


def _flattened(routes: Iterable[Any]) -> Iterator[Any]:
    """``routes`` with FastAPI's included routers replaced by their routes, prefixes applied."""
    for route in routes:
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:
            for context in contexts():
                yield context.starlette_route or context


def _joined(route: Any, scope: Scope) -> str | None:
    if not _has_children(route):
        return _own_template(route)
    below = _search(route.routes, scope)
    prefix: str = getattr(route, "path_format", "").removesuffix("/{path}")
    return None if below is None else prefix + below


def _has_children(route: Any) -> bool:
    """Whether ``route`` is a mount or a host of routes that can be looked at."""
    return bool(getattr(route, "routes", None))


def _own_template(route: Any) -> str | None:
    if isinstance(route, str):
        return route
    template = getattr(route, "path_format", None) or getattr(route, "path", None)
    return template if isinstance(template, str) else None
