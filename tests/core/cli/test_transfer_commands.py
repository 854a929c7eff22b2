"""`nkv import` and `nkv export`, against something that answers as a node does."""

import io
import json
import os
import queue
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nkv_core.cli import main, sending
from nkv_core.client import Client, Put
from nkv_core.errors import InvalidKey
from nkv_core.keys import check_key
from nkv_core.records import wall_clock


def is_key(text):
    try:
        check_key(text)
    except InvalidKey:
        return False
    return True


keys = st.text(min_size=1, max_size=30).filter(is_key)


def line(key, value, **more):
    return json.dumps({"key": key, "value": value, **more}) + "\n"


@pytest.fixture
def nkv(plain_node, monkeypatch, capfdbinary):
    monkeypatch.setenv("NKV_URL", plain_node.url)

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return run


@pytest.fixture
def records(plain_node):
    def found():
        with Client(plain_node.url) as client:
            return {item.key: item.value for item in client.scan()}

    return found


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(sending, "BATCH_RECORDS", 10)


# --- what goes in ---------------------------------------------------------------------------------


def test_json_lines_go_in(nkv, records, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text(line("a", "1") + '{"key":"b","value_base64":"/wA="}\n')
    assert nkv("import", file) == (0, "imported 2 records, skipped 0\n", "")
    assert records() == {"a": b"1", "b": b"\xff\x00"}


def test_csv_and_tsv_go_in(nkv, records, tmp_path):
    (tmp_path / "in.csv").write_bytes(b'key,value\r\na,"1,\n2"\r\n')
    (tmp_path / "in.tsv").write_bytes(b"b\t2\n")
    assert nkv("import", tmp_path / "in.csv", "--header")[0] == 0
    assert nkv("import", tmp_path / "in.tsv")[0] == 0
    assert nkv("import", "-", "--format", "csv", stdin=b"c,3\n")[0] == 0
    assert records() == {"a": b"1,\n2", "b": b"2", "c": b"3"}


def test_standard_input_goes_in(nkv, records):
    assert nkv("import", "-", stdin=line("a", "1").encode())[0] == 0
    assert nkv("import", "-", stdin=b"") == (0, "imported 0 records, skipped 0\n", "")
    assert records() == {"a": b"1"}


def test_expiries_go_in_and_what_has_expired_is_skipped(nkv, plain_node, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text(
        line("old", "1", expires="2001-01-01T00:00:00.000Z")
        + line("new", "2", expires="2096-10-02T07:06:40.123Z")
    )
    code, out, err = nkv("import", file)
    assert (code, out) == (1, "imported 1 records, skipped 1\n")
    assert err == "nkv: line 1: expired at 2001-01-01T00:00:00.000Z\n"
    with Client(plain_node.url) as client:
        assert client.get("new").expires == 4_000_000_000_123
        assert client.get("old") is None


def test_many_records_go_in_and_the_last_of_a_key_wins(nkv, records, tmp_path, small_batches):
    file = tmp_path / "in.jsonl"
    lines = [line(f"k{number % 97}", str(number)) for number in range(2000)]
    file.write_text("".join(lines))
    assert nkv("import", file)[1] == "imported 2000 records, skipped 0\n"
    assert records() == {f"k{n % 97}": str(n).encode() for n in range(2000)}


def test_large_and_small_values_go_in_together(nkv, records, tmp_path):
    file = tmp_path / "in.jsonl"
    values = {f"k{number}": "\x01" * 200_000 for number in range(8)}
    values["max"] = "x" * (1024 * 1024)
    values["bytes"] = "ÿ" * (512 * 1024)
    file.write_text("".join(line(key, value) for key, value in values.items()))
    assert nkv("import", file)[:2] == (0, "imported 10 records, skipped 0\n")
    assert records() == {key: value.encode() for key, value in values.items()}


# --- what is skipped ------------------------------------------------------------------------------


def test_bad_lines_are_told_and_the_others_go_in(nkv, records, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_bytes(
        line("a", "1").encode() + b"nonsense\n\n" + b'{"key":"..","value":"1"}\n' + b'{"key":"b",'
    )
    code, out, err = nkv("import", file)
    assert (code, out) == (1, "imported 1 records, skipped 3\n")
    first, second, third = err.splitlines()
    assert first.startswith("nkv: line 2: not a record")
    assert second == "nkv: line 4: '..' cannot be a key."
    assert third.startswith("nkv: line 5: not a record")
    assert records() == {"a": b"1"}


def test_what_the_node_refuses_is_found_among_the_others(nkv, records, tmp_path):
    file = tmp_path / "in.jsonl"
    bad = {3: ("x" * 600, "1"), 77: ("big", "x" * (1024 * 1024 + 1))}
    lines = [bad.get(number, (f"k{number:03}", "1")) for number in range(1, 201)]
    file.write_text("".join(line(key, value) for key, value in lines))
    code, out, err = nkv("import", file)
    assert (code, out) == (1, "imported 198 records, skipped 2\n")
    assert "nkv: line 3: " in err
    assert "(invalid_key)" in err
    assert "nkv: line 77: " in err
    assert "(value_too_large)" in err
    assert sorted(records()) == [f"k{n:03}" for n in range(1, 201) if n not in bad]


def test_many_bad_lines_are_counted_and_written_to_a_file(nkv, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text("bad\n" * 25)
    code, out, err = nkv("import", file, "--skipped", tmp_path / "skipped")
    assert (code, out) == (1, "imported 0 records, skipped 25\n")
    assert len(err.splitlines()) == 11
    assert err.splitlines()[-1].startswith("nkv: and 15 more lines")
    told = [json.loads(text) for text in (tmp_path / "skipped").read_text().splitlines()]
    assert [one["line"] for one in told] == list(range(1, 26))
    assert all(one["reason"].startswith("not a record") for one in told)


def test_what_a_line_says_does_not_steer_a_terminal(nkv, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text('{"key":"a","value":"1","\x1b[2J":1}\n{"key":"a","value":"1","\\u001b[2J":1}\n')
    _, _, err = nkv("import", file)
    assert "\x1b" not in err


def test_a_line_without_end_is_skipped(nkv, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text("x" * 5000 + "\n" + line("a", "1"))
    code, out, err = nkv("import", file, "--max-line", "1000")
    assert (code, out) == (1, "imported 1 records, skipped 1\n")
    assert err == "nkv: line 1: the line is too long\n"


# --- what stops it --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [("in.txt",), ("in.jsonl", "--header"), ("in.jsonl", "--from-line", "0"), ()]
)
def test_wrong_use_has_exit_code_2(nkv, tmp_path, arguments):
    name, *rest = arguments or ("in.jsonl", "--format", "xml")
    (tmp_path / name).write_text("")
    code, out, err = nkv("import", tmp_path / name, *rest)
    assert (code, out) == (2, "")
    assert err.startswith("nkv: ")


def test_a_file_that_is_not_there_is_told(nkv, tmp_path):
    code, _, err = nkv("import", tmp_path / "never.jsonl")
    assert code == 1
    assert "never.jsonl" in err


def test_a_node_that_is_not_there_is_told_at_once(nkv, closed_url, tmp_path):
    (tmp_path / "in.jsonl").write_text(line("a", "1"))
    code, out, err = nkv("import", tmp_path / "in.jsonl", "--url", closed_url)
    assert (code, out) == (3, "")
    assert "(unreachable)" in err


def test_a_node_that_goes_away_and_comes_back_loses_nothing(
    nkv, plain_node, records, tmp_path, small_batches
):
    answer = plain_node.server.answer
    count = 0

    def flaky(asked):
        nonlocal count
        if asked.target == "/v1/batch":
            count += 1
            if count % 3 == 1:
                return None  # lost before it was carried out
            if count % 3 == 2:
                answer(asked)
                return None  # carried out, and the answer lost
        return answer(asked)

    plain_node.server.answer = flaky
    file = tmp_path / "in.jsonl"
    file.write_text("".join(line(f"k{n % 53}", str(n)) for n in range(70)))
    assert nkv("import", file) == (0, "imported 70 records, skipped 0\n", "")
    plain_node.server.answer = answer
    assert records() == {f"k{n % 53}": str(n).encode() for n in range(70)}


def test_an_import_that_stops_says_where_to_go_on(
    nkv, plain_node, records, tmp_path, small_batches
):
    answer = plain_node.server.answer
    count = 0

    def dying(asked):
        nonlocal count
        count += asked.target == "/v1/batch"
        return None if count > 5 else answer(asked)

    plain_node.server.answer = dying
    file, note = tmp_path / "in.jsonl", tmp_path / "note"
    file.write_text("".join(line(f"k{n:03}", str(n)) for n in range(200)))
    code, out, err = nkv("import", file, "--wait", "0", "--progress-file", note)
    assert (code, out) == (3, "")
    place = int(err.split("--from-line ")[1].split()[0])
    assert 1 <= place <= 51
    plain_node.server.answer = answer
    # Everything before the place is there; what lies behind it may be.
    assert {f"k{n:03}" for n in range(place - 1)} <= set(records())
    assert json.loads(note.read_text())["line"] == place - 1

    code, out, _ = nkv("import", file, "--from-line", place)
    assert (code, out) == (0, f"imported {201 - place} records, skipped 0\n")
    code, out, _ = nkv("import", file, "--progress-file", note)
    assert (code, out) == (0, f"imported {201 - place} records, skipped 0\n")
    assert not note.exists()
    assert records() == {f"k{n:03}": str(n).encode() for n in range(200)}


def test_a_progress_file_of_another_import_is_refused(nkv, tmp_path):
    (tmp_path / "in.jsonl").write_text(line("a", "1"))
    note = tmp_path / "note"
    note.write_text('{"source":"/other.jsonl","line":5}')
    code, _, err = nkv("import", tmp_path / "in.jsonl", "--progress-file", note)
    assert code == 2
    assert "/other.jsonl" in err
    note.write_text("precious")
    assert nkv("import", tmp_path / "in.jsonl", "--progress-file", note)[0] == 2
    assert note.read_text() == "precious"


def test_a_node_that_refuses_all_of_it_is_not_asked_for_each_line(
    nkv, plain_node, canned_reply, tmp_path
):
    answer = plain_node.server.answer

    def refuse(asked):
        if asked.target == "/v1/batch":
            return canned_reply(401, b'{"code":"unauthenticated","detail":"no"}')
        return answer(asked)

    plain_node.server.answer = refuse
    (tmp_path / "in.jsonl").write_text(line("a", "1") * 100)
    code, _, err = nkv("import", tmp_path / "in.jsonl")
    assert code == 1
    assert "(unauthenticated)" in err
    assert len(plain_node.server.asked) == 2


@pytest.fixture
def piped_import(plain_node, monkeypatch, capfdbinary):
    """An import in a thread that reads a pipe: the end to write into, and the exit code to come."""
    monkeypatch.setenv("NKV_URL", plain_node.url)
    reading, writing = os.pipe()
    codes = queue.SimpleQueue()
    with os.fdopen(reading, "r") as source, os.fdopen(writing, "wb", buffering=0) as pipe:
        monkeypatch.setattr(sys, "stdin", source)
        thread = threading.Thread(target=lambda: codes.put(main(["import", "-"])))
        thread.start()
        try:
            yield pipe, codes
        finally:
            pipe.close()
            thread.join(60)


def wait_for(node, key):
    with Client(node.url) as client:
        deadline = time.monotonic() + 30
        while client.get(key) is None:
            assert time.monotonic() < deadline, f"{key} was held up"


def test_what_comes_slowly_through_a_pipe_is_not_held_up(plain_node, piped_import):
    pipe, codes = piped_import
    for number in range(3):
        pipe.write(line(f"k{number}", "1").encode())
        wait_for(plain_node, f"k{number}")
    pipe.close()
    assert codes.get(timeout=30) == 0


def test_what_comes_while_the_node_is_busy_is_not_held_up_either(plain_node, piped_import):
    pipe, codes = piped_import
    answer, busy, free = plain_node.server.answer, threading.Event(), threading.Event()

    def answer_slowly(asked):
        if asked.target == "/v1/batch" and b"k0" in asked.body:
            busy.set()
            free.wait(30)
        return answer(asked)

    plain_node.server.answer = answer_slowly
    try:
        pipe.write(line("k0", "1").encode())
        assert busy.wait(30)
        pipe.write(line("k1", "1").encode())
        wait_for(plain_node, "k1")
    finally:
        free.set()
    wait_for(plain_node, "k0")
    pipe.close()
    assert codes.get(timeout=30) == 0


# --- what comes out -------------------------------------------------------------------------------


def test_records_come_out_in_key_order(nkv, plain_node):
    with Client(plain_node.url) as client:
        client.put("b", b"\xff")
        client.put("a.1", "größe".encode(), expires=4_000_000_000_000)
        client.put("a.2", b"")
    code, out, err = nkv("export")
    assert (code, err) == (0, "")
    assert out == (
        '{"key":"a.1","value":"größe","expires":"2096-10-02T07:06:40.000Z"}\n'
        '{"key":"a.2","value":""}\n'
        '{"key":"b","value_base64":"/w=="}\n'
    )
    assert nkv("export", "a.*")[1] == "".join(out.splitlines(keepends=True)[:2])


expiries = st.none() | st.integers(wall_clock() + 10**7, 2**47 - 1)
some_records = st.dictionaries(keys, st.tuples(st.binary(max_size=80), expiries), max_size=20)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=50,
)
@given(some_records)
def test_what_comes_out_goes_in_again_byte_for_byte(nkv, plain_node, tmp_path, given_records):
    with Client(plain_node.url) as client:
        plain_node.run(plain_node.keyspace.clear)
        puts = [Put(key, value, expires=e) for key, (value, e) in given_records.items()]
        if puts:
            client.batch(puts)
        code, out, _ = nkv("export")
        assert code == 0
        plain_node.run(plain_node.keyspace.clear)
        file = tmp_path / "records.jsonl"
        file.write_bytes(out.encode())
        assert nkv("import", file)[:2] == (0, f"imported {len(puts)} records, skipped 0\n")
        found = {item.key: (item.value, item.expires) for item in client.scan()}
        assert found == given_records
        assert nkv("export")[1] == out
