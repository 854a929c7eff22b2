"""The verbs of the admin socket for the mesh that the node is a member of."""

from typing import TYPE_CHECKING, Any

from nkv_core.admin.server import Call, Verb
from nkv_core.contracts.mesh import Mesh
from nkv_core.errors import NotSupportedHere

if TYPE_CHECKING:
    from nkv_core.plugin_host import PluginHost


def mesh_verbs(host: "PluginHost") -> dict[str, Verb]:
    """`mesh.status` and `mesh.leave`, without parameters."""

    async def status(_: Call) -> dict[str, Any]:
        return _mesh(host).status()

    async def leave(_: Call) -> None:
        await _mesh(host).leave()

    return {"mesh.status": status, "mesh.leave": leave}


def _mesh(host: "PluginHost") -> Mesh:
    if host.mesh is None:
        raise NotSupportedHere(
            "This node is in no mesh: nkv plugins load nkv_mesh_full, or start it with --join."
        )
    return host.mesh
