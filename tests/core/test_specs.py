"""SPECs: which are paths, and what they mean elsewhere."""

import pytest

from nkv_core.specs import absolute_spec


@pytest.mark.parametrize("spec", ["nkv_transport_http", "package.module", "hello"])
def test_a_name_is_no_path(spec):
    assert absolute_spec(spec) == spec


def test_what_looks_like_a_path_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/x")
    assert absolute_spec("a.py") == str(tmp_path / "a.py")
    assert absolute_spec("./a") == str(tmp_path / "a")
    assert absolute_spec("a/") == str(tmp_path / "a")
    assert absolute_spec("~/a") == "/home/x/a"
    assert absolute_spec("/a/../b.py") == "/a/../b.py"
