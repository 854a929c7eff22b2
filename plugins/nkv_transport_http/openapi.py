"""`/v1/openapi.json`: what the node answers just now, from the routes as they are registered."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final, TypeVar

import msgspec

from nkv_core.contracts.handlers import Handlers, Request, Route

from .replies import JSON, PROBLEM

_ATTRIBUTE: Final = "nkv_description"
_PROBLEM_REF: Final = "#/components/schemas/Problem"

H = TypeVar("H", bound=Callable[..., Any])


class Description(msgspec.Struct, frozen=True):
    """What of a handler its route does not say."""

    query: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    body: str | None = None  #: content type of the request
    answers: Mapping[int, str | None] = {}  #: content types by status
    answer_headers: Mapping[str, str] = {}


def described(
    *,
    query: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    body: str | None = None,
    answers: Mapping[int, str | None] | None = None,
    answer_headers: Mapping[str, str] | None = None,
) -> Callable[[H], H]:
    """Say of a handler what its route does not: parameters, content types, answers."""

    def describe(handler: H) -> H:
        description = Description(
            query or {}, headers or {}, body, answers or {200: JSON}, answer_headers or {}
        )
        setattr(handler, _ATTRIBUTE, description)
        return handler

    return describe


def register(handlers: Handlers) -> None:
    """Register the path."""
    handlers.add("/v1/openapi.json", openapi, command="openapi", timeout=None)


@described(answers={200: JSON})
def openapi(request: Request) -> dict[str, Any]:
    """Describe every path that is answered now, those of plugins included."""
    return document(request.node.routes(request.transport), request.node.name)


def document(routes: Iterable[Route], title: str) -> dict[str, Any]:
    """The OpenAPI document for these routes. WebSockets and mounts are not in it."""
    paths: dict[str, dict[str, Any]] = {}
    for route in sorted(routes, key=lambda route: (route.path, route.method)):
        if route.kind == "handler":
            path = route.path.replace(":path}", "}")
            paths.setdefault(path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1"},
        "paths": paths,
        "security": [{"bearer": []}, {"key": []}, {}],
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
            "schemas": {
                "Problem": {
                    "type": "object",
                    "required": ["title", "status", "code", "detail"],
                    "properties": {
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "code": {"type": "string"},
                        "detail": {"type": "string"},
                    },
                }
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    description = getattr(route.target, _ATTRIBUTE, None)
    if not isinstance(description, Description):
        # That of another generation of this module is of another class.
        description = Description()
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()} {route.path}",
        "tags": [route.owner.name],
        "responses": {
            str(status): _response(status, kind, description.answer_headers)
            for status, kind in description.answers.items()
        },
    }
    if (doc := inspect.getdoc(route.target)) is not None:
        operation["summary"] = doc.splitlines()[0]
    operation["responses"].setdefault("default", _response(0, None, {}))
    parameters = [
        *(_parameter(name, "path", "") for name in _names(route.path)),
        *(_parameter(name, "query", about) for name, about in description.query.items()),
        *(_parameter(name, "header", about) for name, about in description.headers.items()),
    ]
    if parameters:
        operation["parameters"] = parameters
    if description.body is not None:
        operation["requestBody"] = {"required": True, "content": {description.body: {}}}
    if route.public:
        operation["security"] = []
    return operation


def _names(path: str) -> list[str]:
    levels = (level for level in path.split("/") if level.startswith("{"))
    return [level[1:-1].removesuffix(":path") for level in levels]


def _parameter(name: str, place: str, about: str) -> dict[str, Any]:
    parameter: dict[str, Any] = {
        "name": name,
        "in": place,
        "required": place == "path",
        "schema": {"type": "string"},
    }
    if about:
        parameter["description"] = about
    return parameter


def _response(status: int, kind: str | None, headers: Mapping[str, str]) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": HTTPStatus(status).phrase if status else "What went wrong."
    }
    if status == 0 or status >= 400:
        response["content"] = {PROBLEM: {"schema": {"$ref": _PROBLEM_REF}}}
    elif kind is not None:
        response["content"] = {kind: {}}
    if headers and 200 <= status < 400:
        response["headers"] = {
            name: {"description": about, "schema": {"type": "string"}}
            for name, about in headers.items()
        }
    return response
