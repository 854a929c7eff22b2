"""What all tests share: both async backends, and how hypothesis goes about its work."""

import os

import pytest
from hypothesis import HealthCheck, settings

# The same examples every time, so that a red run is red again; `make soak` looks for new ones.
settings.register_profile(
    "test", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("soak", settings.get_profile("test"), derandomize=False)
settings.load_profile("soak" if os.environ.get("NKV_SOAK") == "1" else "test")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


def pytest_collection_modifyitems(config, items):
    """Leave the long randomised runs to `make soak`."""
    if os.environ.get("NKV_SOAK") == "1":
        return
    long_ones = [item for item in items if item.get_closest_marker("soak")]
    if long_ones:
        config.hook.pytest_deselected(items=long_ones)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]
