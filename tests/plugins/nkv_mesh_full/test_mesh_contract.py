"""The suite of meshes, over whole nodes, and that of mergers."""

import msgspec
import pytest
from hypothesis import strategies as st

from nkv_core.testing import MergerContract, MeshContract
from nkv_mesh_full.mergers import MERGERS


class TestFullMesh(MeshContract):
    plugin = "nkv_mesh_full"

    def settings(self, join):
        return {
            "port": 0,
            "join": join,
            "ping_interval": 0.1,
            "suspect_after": 20.0,  # a slow machine is no dead node
            "down_after": 40.0,
        }


class TestCounter(MergerContract):
    values = st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)).map(msgspec.json.encode)

    @pytest.fixture
    def merger(self):
        return MERGERS["counter"]()


class TestSet(MergerContract):
    values = st.lists(st.sampled_from("abcd")).map(msgspec.json.encode)

    @pytest.fixture
    def merger(self):
        return MERGERS["set"]()
