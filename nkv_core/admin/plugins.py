"""The verbs of the admin socket that change plugins."""

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from nkv_core.admin.server import Call, Verb
from nkv_core.errors import BadRequest

if TYPE_CHECKING:
    from nkv_core.plugin_host import PluginHost

S = TypeVar("S", bound=msgspec.Struct)


class _Load(msgspec.Struct, forbid_unknown_fields=True):
    spec: str
    settings: dict[str, Any] | None = None


class _Replace(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    spec: str | None = None
    settings: dict[str, Any] | None = None


class _Unload(msgspec.Struct, forbid_unknown_fields=True):
    name: str


def plugin_verbs(host: "PluginHost") -> dict[str, Verb]:
    """`plugins.list`, `.load`, `.replace` and `.unload`, each with the parameters of the host's."""

    async def list_(_: Call) -> Any:
        return host.plugins()

    async def load(call: Call) -> Any:
        params = params_of(call, _Load)
        return await host.load(params.spec, params.settings)

    async def replace(call: Call) -> Any:
        params = params_of(call, _Replace)
        return await host.replace(params.name, params.spec, params.settings)

    async def unload(call: Call) -> None:
        await host.unload(params_of(call, _Unload).name)

    return {
        "plugins.list": list_,
        "plugins.load": load,
        "plugins.replace": replace,
        "plugins.unload": unload,
    }


def params_of(call: Call, into: type[S]) -> S:
    """What a verb is called with, as this type. Raises `BadRequest`."""
    try:
        return msgspec.convert(call.params, into)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{call.verb}: {error}.") from None
