"""docs/http.md has every path, method and code that there is, and nothing else."""

import re
from pathlib import Path

import pytest

from nkv_core import errors

DOCUMENT = (Path(__file__).parents[3] / "docs" / "http.md").read_text()
CODES = re.findall(r"^\| (\d{3}) \| `([a-z_]+)` \|", DOCUMENT, re.MULTILINE)


def section(heading):
    (found,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    return found


@pytest.mark.anyio
async def test_the_paths_are_those_that_are_registered(serving):
    rows = re.findall(r"^\| `(/\S+)` \| ([A-Z ]+) \| (yes|no) \|", section("Paths"), re.MULTILINE)
    documented = {
        (path, method, token == "no") for path, methods, token in rows for method in methods.split()
    }
    async with serving() as node:
        registered = {
            (route.path, route.method, route.public) for route in node.dispatcher.routes("http")
        }
    assert documented == registered


def test_the_codes_are_those_of_the_errors_with_their_statuses():
    known = {
        (str(kind.status), kind.code)
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.NkvError)
    }
    assert set(CODES) <= known
    assert len(set(CODES)) == len(CODES)


def test_every_error_that_a_request_can_end_with_is_there():
    elsewhere = (
        errors.StartError,
        errors.PluginError,
        errors.SettingsError,
        errors.Unreachable,
        errors.ClientGone,
        errors.Rejected,
        errors.InvalidToken,  # of watches
        errors.NotText,  # of the nkvd paths
        errors.LockHeld,  # of the client library
        errors.LockLost,
        errors.MigrationRunning,  # of `nkv storage`
        errors.MigrationFailed,
        errors.NoMigration,
        errors.VolatileTarget,
    )
    missing = {
        kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, errors.NkvError)
        and not issubclass(kind, elsewhere)
        and kind is not errors.NkvError
    } - {code for _, code in CODES}
    assert missing == set()


def test_the_codes_of_nkvd_are_there():
    from nkv_transport_http import nkvd_errors

    own = {
        kind.code
        for kind in vars(nkvd_errors).values()
        if isinstance(kind, type)
        and issubclass(kind, errors.NkvError)
        and kind.__module__ == nkvd_errors.__name__
    }
    documented = set(re.findall(r"^\| 4\d\d \| `([A-Z_]+)` \|", DOCUMENT, re.MULTILINE))
    assert documented == own | {"MISSING_RECORD", "NOT_TEXT"}


def test_the_batch_in_the_document_can_be_read():
    import json

    from nkv_core.operations import parse_batch

    (request, answer) = re.findall(
        r"```json\n(.*?)```", section("Several changes, all or none"), re.S
    )
    operations, checks = parse_batch(request.encode())
    assert len(operations) == 5
    assert len(checks) == 2
    assert json.loads(answer)
