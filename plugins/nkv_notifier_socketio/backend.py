"""The async backend that python-socketio needs."""

import anyio

from nkv_core.errors import PluginSetupFailed


def refuse_other_than_asyncio() -> None:
    """Raise `PluginSetupFailed` where the node does not run on asyncio."""
    backend = anyio.get_cancelled_exc_class().__module__.partition(".")[0]
    if backend != "asyncio":
        raise PluginSetupFailed(
            f"nkv_notifier_socketio does not run on {backend}, only on asyncio: set node.backend."
        )
