"""The administration socket: JSON lines over a Unix socket, for the node's own user and root.

A request is `{"id", "verb", "params"}`. The answer is `{"id", "result"}` or
`{"id", "error": {"code", "detail"}}`; lines `{"id", "progress"}` may come before it. One connection
asks one thing at a time. There is no such door over TCP.
"""

from nkv_core.admin.calling import call_admin
from nkv_core.admin.changes import Changes
from nkv_core.admin.mesh import mesh_verbs
from nkv_core.admin.plugins import plugin_verbs
from nkv_core.admin.reload import reload_verbs
from nkv_core.admin.server import Call, Verb, serve_admin, verbs
from nkv_core.admin.storage import storage_verbs

__all__ = [
    "Call",
    "Changes",
    "Verb",
    "call_admin",
    "mesh_verbs",
    "plugin_verbs",
    "reload_verbs",
    "serve_admin",
    "storage_verbs",
    "verbs",
]
