"""The plugin host: discovery, source, registry, lifecycle. Besides the markers of the contracts,
nothing else in nkv imports pluggy.
"""

from nkv_core.plugin_host.host import PluginHost
from nkv_core.plugin_host.info import PluginInfo

__all__ = ["PluginHost", "PluginInfo"]
