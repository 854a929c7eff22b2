"""The hooks of those who listen. Each may be plain or async; none can harm the request.

A listener that raises is logged and counted. An async one is cancelled at its time budget; a plain
one that blocks is named, with its stack, while it blocks. Either is quarantined after repeated
offences: it is called no more until its plugin is replaced.
"""

from nkv_core.contracts.markers import hookspec
from nkv_core.events import (
    Connect,
    Disconnect,
    PluginFailed,
    PluginLoaded,
    PluginUnloaded,
    RequestComplete,
    RequestEnd,
    RequestStart,
)
from nkv_core.records import Change


class ListenerHooks:
    """One hook for each event."""

    @hookspec
    def nkv_connect(self, event: Connect) -> None:
        """Called when a listener is open.

        :param event: its host, port and transport.
        """

    @hookspec
    def nkv_disconnect(self, event: Disconnect) -> None:
        """Called when a listener has closed.

        :param event: its host, port and transport, and the error if there was one.
        """

    @hookspec
    def nkv_request_start(self, event: RequestStart) -> None:
        """Called before the handler. May raise `Rejected(status, code)`: the handler is not run.

        :param event: the request.
        """

    @hookspec
    def nkv_request_complete(self, event: RequestComplete) -> None:
        """Called when the handler is done, before the reply. May call `event.replace(outcome)`.

        :param event: the request with its outcome or error.
        """

    @hookspec
    def nkv_request_end(self, event: RequestEnd) -> None:
        """Called after the reply, which it never delays.

        :param event: the request with its outcome or error and the seconds that it took.
        """

    @hookspec
    def nkv_changed(self, change: Change) -> None:
        """Called with each change from the plugin's load on, in order; never on the write path.

        It has no time budget: one that is slow falls behind by itself, and delays nobody.

        :param change: what was committed; its cause is `replicated` where it came from elsewhere.
        """

    @hookspec
    def nkv_plugin_loaded(self, event: PluginLoaded) -> None:
        """Called when a plugin, or a new generation of one, serves.

        :param event: its name and generation.
        """

    @hookspec
    def nkv_plugin_unloaded(self, event: PluginUnloaded) -> None:
        """Called when a generation of a plugin is closed.

        :param event: its name and generation.
        """

    @hookspec
    def nkv_plugin_failed(self, event: PluginFailed) -> None:
        """Called when a plugin could not be loaded, or stopped by itself.

        :param event: its name, generation and error.
        """
