"""The verbs of the admin socket that change plugins."""

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from nkv_core.admin.changes import Changes
from nkv_core.admin.server import Call, Verb
from nkv_core.errors import BadRequest

if TYPE_CHECKING:
    from nkv_core.plugin_host import PluginHost

S = TypeVar("S", bound=msgspec.Struct)


class _Load(msgspec.Struct, forbid_unknown_fields=True):
    spec: str
    settings: dict[str, Any] | None = None
    sha256: str | None = None


class _Replace(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    spec: str | None = None
    settings: dict[str, Any] | None = None
    sha256: str | None = None
    if_generation: int | None = None


class _Unload(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    if_generation: int | None = None


def plugin_verbs(host: "PluginHost", changes: Changes) -> dict[str, Verb]:
    """`plugins.list`, `.load`, `.replace` and `.unload`, each with the parameters of the host's."""

    async def list_(_: Call) -> Any:
        return host.plugins()

    async def load(call: Call) -> Any:
        params = params_of(call, _Load)
        with changes.attempt(call, spec=params.spec) as attempt:
            return await host.load(
                params.spec, params.settings, sha256=params.sha256, attempt=attempt
            )

    async def replace(call: Call) -> Any:
        params = params_of(call, _Replace)
        with changes.attempt(call, plugin=params.name, spec=params.spec) as attempt:
            return await host.replace(
                params.name,
                params.spec,
                params.settings,
                sha256=params.sha256,
                if_generation=params.if_generation,
                attempt=attempt,
            )

    async def unload(call: Call) -> None:
        params = params_of(call, _Unload)
        with changes.attempt(call, plugin=params.name) as attempt:
            await host.unload(params.name, if_generation=params.if_generation, attempt=attempt)

    return {
        "plugins.list": list_,
        "plugins.load": load,
        "plugins.replace": replace,
        "plugins.unload": unload,
    }


def params_of(call: Call, into: type[S]) -> S:
    """The parameters of a call. Raises `BadRequest`."""
    try:
        return msgspec.convert(call.params, into)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{call.verb}: {error}.") from None
