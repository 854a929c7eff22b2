"""Mutants: what `nkv plugins new` writes, each with one thing changed that breaks a promise.

Each is an edit of the text, and the tests of the suite that must find it. The tests of a suite that
no mutant is for are the ones that would not be missed.
"""

from typing import NamedTuple

NOT_MAIN = "__import__('threading').current_thread() is not __import__('threading').main_thread()"


class Mutant(NamedTuple):
    name: str  #: the promise that it breaks
    file: str
    edits: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]


def mutant(name, file, old, new, *tests, also=()):
    return Mutant(name, file, ((old, new), *also), tests)


PUT = "                        table.put(key, value)\n"
GET = "            return self._table(table).pairs.get(key)\n"
CLOSED = "            self._tables = {}\n"

STORAGE = [
    mutant(
        "does not say where it runs",
        "storage.py",
        'reads: Where = "inline"',
        'reads = "somewhere"',
        "test_says_where_it_runs_and_whether_it_is_durable",
    ),
    mutant(
        "begins with something in it",
        "storage.py",
        "                self._tables = {table: _Table() for table in TABLES}\n",
        "                self._tables = {table: _Table() for table in TABLES}\n"
        '                self._tables["meta"].put(b"form", b"1")\n',
        "test_begins_empty",
    ),
    mutant(
        "keeps the first value",
        "storage.py",
        "self.pairs[key] = value",
        "self.pairs.setdefault(key, value)",
        "test_puts_overwrites_and_deletes",
    ),
    mutant(
        "gives something like bytes",
        "storage.py",
        GET,
        "            found = self._table(table).pairs.get(key)\n"
        "            return None if found is None else bytearray(found)\n",
        "test_gives_back_bytes_and_nothing_else",
    ),
    mutant(
        "ends keys at a zero byte",
        "storage.py",
        PUT,
        PUT.replace("key,", 'key.partition(b"\\0")[0] or key,'),
        "test_takes_every_byte_in_a_key",
    ),
    mutant(
        "cuts long keys",
        "storage.py",
        PUT,
        PUT.replace("key,", "key[:200],"),
        "test_takes_long_keys",
    ),
    mutant(
        "takes an empty value for none",
        "storage.py",
        GET,
        GET.replace(".get(key)", ".get(key) or None"),
        "test_takes_an_empty_value_and_tells_it_from_none",
    ),
    mutant(
        "gets some of many",
        "storage.py",
        "for key in keys if key in pairs",
        "for key in keys[:300] if key in pairs",
        "test_gets_many_at_once_as_one_by_one",
    ),
    mutant(
        "cuts big values",
        "storage.py",
        PUT,
        PUT.replace("value)", "value[:65_000])"),
        "test_takes_big_values",
    ),
    mutant(
        "has one table",
        "storage.py",
        "return self._tables[table]",
        'return self._tables["records"]',
        "test_tables_are_apart",
    ),
    mutant(
        "trips over an empty batch",
        "storage.py",
        "            puts = sum(",
        "            assert work\n            puts = sum(",
        "test_an_empty_batch_does_nothing",
    ),
    mutant(
        "repeats a key that is written again",
        "storage.py",
        "        if key not in self.pairs:\n",
        "        if self:\n",
        "test_a_batch_can_be_applied_twice",
    ),
    mutant(
        "makes part of a big batch",
        "storage.py",
        "in writes.items():\n                    if",
        "in list(writes.items())[:256]:\n                    if",
        "test_takes_batches_of_any_size",
    ),
    mutant(
        "has the order of writing",
        "storage.py",
        "insort(self.keys, key)",
        "self.keys.append(key)",
        "test_scans_in_key_order_and_the_reverse_of_it",
    ),
    mutant(
        "includes the end of a range",
        "storage.py",
        "bisect_left(self.keys, stop)",
        'bisect_left(self.keys, stop + b"\\0")',
        "test_scans_from_start_up_to_but_not_with_stop",
        "test_deletes_a_range_from_start_up_to_but_not_with_stop",
    ),
    mutant(
        "forgets the limit",
        "storage.py",
        "keys[:limit]",
        "keys",
        "test_scans_no_more_than_the_limit",
    ),
    mutant(
        "repeats the last key of a page",
        "storage.py",
        "bisect_left(self.keys, start)",
        'bisect_left(self.keys, start.rstrip(b"\\0"))',
        "test_a_scan_can_be_continued_behind_its_last_key",
    ),
    mutant(
        "counts something else than keys",
        "storage.py",
        "return len(self._table(table).pairs)",
        "return 2 * len(self._table(table).pairs)",
        "test_counts_keys_and_not_writes",
        "test_does_what_a_dict_does",
    ),
    mutant(
        "deletes part of a long range",
        "storage.py",
        "            keys = found.keys[where]\n            del found.keys[where]\n",
        "            keys = found.keys[where][:10_000]\n"
        "            del found.keys[where.start : where.start + len(keys)]\n",
        "test_deletes_a_range_out_of_many",
    ),
    mutant(
        "is of the thread that opened it",
        "storage.py",
        GET,
        f"            if {NOT_MAIN}:\n                return None\n{GET}",
        "test_other_threads_see_what_was_applied",
    ),
    mutant(
        "takes writes of one thread",
        "storage.py",
        "            puts = sum(",
        f"            if {NOT_MAIN}:\n                return\n            puts = sum(",
        "test_may_be_written_by_another_thread_than_opened_it",
    ),
    mutant(
        "shows half a batch",
        "storage.py",
        "self._lock = Lock()",
        "self._lock = __import__('contextlib').nullcontext()",
        "test_readers_see_a_batch_whole_or_not_at_all",
        also=(
            (
                "            for table, writes in work:\n",
                "            for table, writes in work:\n"
                "                __import__('time').sleep(0.001)\n",
            ),
        ),
    ),
    mutant(
        "closes once",
        "storage.py",
        CLOSED,
        f'            del self._tables["meta"]\n{CLOSED}',
        "test_closing_twice_does_nothing",
    ),
    mutant(
        "is closed by one thread",
        "storage.py",
        CLOSED,
        f"            if {NOT_MAIN}:\n                return\n{CLOSED}",
        "test_may_be_closed_by_any_thread",
    ),
    mutant(
        "works once closed",
        "storage.py",
        CLOSED,
        "            pass\n",
        "test_refuses_everything_once_closed",
    ),
    mutant(
        "works before it is opened",
        "storage.py",
        "= {}  # none while",
        "= {table: _Table() for table in TABLES}  # none while",
        "test_refuses_everything_until_opened",
    ),
    mutant(
        "opens once",
        "storage.py",
        "            if not self._tables:\n                self",
        '            if not self._tables and self.__dict__.setdefault("new", True):\n'
        "                self.new = False\n"
        "                self",
        "test_can_be_opened_again",
    ),
    mutant(
        "fails with an error that nobody knows",
        "storage.py",
        'StorageFailed("The storage is not open.")',
        'KeyError("not open")',
        "test_closing_while_others_read_is_safe",
    ),
    mutant(
        "is not as durable as it says",
        "storage.py",
        "durable = False",
        "durable = True",
        "test_what_is_durable_is_there_after_reopening",
        "test_killed_under_writes_keeps_what_it_acknowledged",
    ),
]

TRANSPORT = [
    mutant(
        "runs on fewer backends than its test says",
        "server.py",
        'frozenset(("asyncio", "trio"))',
        'frozenset(("asyncio",))',
        "test_serves_on_the_backends_that_it_names_and_refuses_others",
    ),
    mutant(
        "answers differently each time",
        "commands.py",
        'b"VALUE " + record.value',
        'b"VALUE %d " % request.id + record.value',
        "test_answers_as_soon_as_it_is_loaded",
        "test_serves_many_at_once",
    ),
    mutant(
        "dispatches nothing",
        "server.py",
        "await ctx.dispatch(request, reply)",
        'await reply(b"VALUE hello\\n", None, None)',
        "test_takes_each_request_through_its_life",
    ),
    mutant(
        "keeps the outcome to itself",
        "server.py",
        "line_of(outcome, error)",
        'b"VALUE hello\\n"',
        "test_tells_the_client_what_a_listener_refuses",
        "test_sends_what_a_listener_puts_in_the_place_of_the_outcome",
    ),
    mutant(
        "answers no errors",
        "server.py",
        "            await stream.send(line_of(outcome, error))\n",
        "            if error is None:\n"
        "                await stream.send(line_of(outcome, error))\n",
        "test_tells_the_client_what_a_listener_refuses",
    ),
    mutant(
        "serves one client after the other",
        "server.py",
        "tasks.start_soon(self._serve, ctx, stream, peer)",
        "await self._serve(ctx, stream, peer)",
        "test_serves_many_at_once",
    ),
    mutant(
        "dies of a client that goes",
        "server.py",
        "(anyio.IncompleteRead, anyio.DelimiterNotFound)",
        "ZeroDivisionError",
        "test_garbage_and_clients_that_go_hurt_nobody_else",
    ),
    mutant(
        "listens by itself",
        "server.py",
        "sockets = (await ctx.listen(address)).sockets()",
        "sockets = [socket.create_server((address.host, address.port))]",
        "test_answers_as_soon_as_it_is_loaded",
    ),
    mutant(
        "cuts whoever is connected when it goes",
        "server.py",
        "await self._drain(deadline)",
        "await anyio.sleep(0)",
        "test_what_is_under_way_when_it_goes_is_answered",
    ),
    mutant(
        "drops the first client of a replacement",
        "server.py",
        "                await self._converse(ctx, stream, peer)\n",
        "                if ctx.owner.generation == 1 or self.__dict__.get('old'):\n"
        "                    await self._converse(ctx, stream, peer)\n"
        "                self.old = True\n",
        "test_a_replacement_keeps_the_port_and_fails_no_request",
    ),
    mutant(
        "leaves its sockets open",
        "server.py",
        "                listening.close()\n",
        "                self._settings.__class__.kept = "
        "[*getattr(self._settings, 'kept', ()), listening]\n"
        "                __import__('atexit').register(listening.close)\n",
        "test_unloading_closes_listeners_and_connections",
    ),
    mutant(
        "does not stop",
        "server.py",
        "await stop.wait()",
        "await anyio.sleep_forever()",
        "test_ends_by_itself_when_told_to",
    ),
    mutant(
        "stays in memory",
        "server.py",
        "        self._settings = settings\n",
        "        self._settings = settings\n"
        "        __import__('atexit').register(self._until_empty)\n",
        "test_nothing_of_a_generation_stays_in_memory",
    ),
]

ITEMS = "map(_line_of, items)"


def without(condition):
    kept = f"item for item in items if not (isinstance(item, Changed) and {condition})"
    return f"map(_line_of, [{kept}])"


NOTIFIER = [
    mutant(
        "runs on one backend",
        "__init__.py",
        "    journal = Journal(",
        "    __import__('asyncio').get_running_loop()\n    journal = Journal(",
        "test_tells_on_the_backends_that_it_runs_on",
    ),
    mutant(
        "leaves deletes out",
        "journal.py",
        ITEMS,
        without("item.change.kind == 'delete'"),
        "test_tells_every_change_in_order",
        "test_tells_a_batch_in_the_order_of_its_operations",
    ),
    mutant(
        "spoils values",
        "journal.py",
        "        told.data,\n",
        '        told.data.replace(b"\\\\n", b" "),\n',
        "test_tells_a_value_as_it_was_written",
    ),
    mutant(
        "leaves expiries out",
        "journal.py",
        ITEMS,
        without("item.change.cause == 'expire'"),
        "test_tells_that_a_record_has_expired",
    ),
    mutant(
        "leaves clears out",
        "journal.py",
        ITEMS,
        without("item.change.kind == 'clear'"),
        "test_tells_a_clear_as_one_or_as_deletes",
    ),
    mutant(
        "tells what has not happened",
        "journal.py",
        'lines = b"".join(map(_line_of, items))',
        'lines = b"".join(map(_line_of, items)) + '
        'b\'{"event":"delete","id":"","data":{"key":"never there"}}\\n\'',
        "test_does_not_tell_what_was_refused",
    ),
    mutant(
        "stops the node while its receiver is away",
        "journal.py",
        "await sleep(_PAUSE)",
        "__import__('time').sleep(8)",
        "test_a_receiver_that_hangs_delays_no_write",
    ),
    mutant(
        "keeps no place",
        "__init__.py",
        'ctx, "file", label',
        "ctx, None, label",
        "test_tells_what_changed_while_the_node_was_away",
    ),
    mutant(
        "loses what it is given first",
        "journal.py",
        "        while True:\n",
        '        if self.__dict__.setdefault("new", True):\n'
        "            self.new = False\n"
        "            return\n"
        "        while True:\n",
        "test_a_replacement_misses_nothing",
    ),
    mutant(
        "tells on once it is unloaded",
        "__init__.py",
        "ctx.tasks.start_soon(follower.run, journal.deliver",
        "__import__('asyncio').get_running_loop().create_task(follower.run(journal.deliver)",
        "test_tells_nothing_once_it_is_unloaded",
    ),
    mutant(
        "stays in memory",
        "journal.py",
        "        self._log = log\n",
        "        self._log = log\n        __import__('atexit').register(self._append)\n",
        "test_nothing_of_a_generation_stays_in_memory",
    ),
]

APPLY = "await self.within.apply_foreign(entries_of(line))"

MESH = [
    mutant(
        "does not know which member it is",
        "mesh.py",
        'Member(self._address, "self",',
        'Member(self._address, "up",',
        "test_names_itself_first",
    ),
    mutant(
        "tells of nobody who comes",
        "mesh.py",
        "self._ctx.emit(PeerUp(",
        "repr(PeerUp(",
        "test_tells_of_nodes_that_come_and_go",
    ),
    mutant(
        "says goodbye whenever it ends",
        "mesh.py",
        "if goodbye():",
        "if goodbye() or True:",
        "test_a_replacement_is_no_departure",
    ),
    mutant(
        "waits for nodes that are gone",
        "mesh.py",
        "    async def leave(self)",
        "    async def put(self, *args, **kwargs):\n"
        "        while self.__dict__.setdefault('had', self._peers) and not any(\n"
        "            peer.state == 'up' for peer in self._peers.values()\n"
        "        ):\n"
        "            await anyio.sleep(0.01)\n"
        "        return await super().put(*args, **kwargs)\n\n"
        "    async def leave(self)",
        "test_writes_go_on_when_others_are_gone",
        also=(("self._peers.pop(peer.address, None)\n            elif", "pass\n            elif"),),
    ),
    mutant(
        "does not listen to others",
        "mesh.py",
        APPLY,
        "len(line.entries)",
        "test_what_is_written_on_one_is_read_on_all",
    ),
    mutant(
        "takes the last that it hears for the last that was written",
        "mesh.py",
        APPLY,
        "[await self.within.put(e.key, e.value) for e in line.entries if e.value is not None]",
        "test_what_was_written_on_both_at_once_ends_equal",
    ),
    mutant(
        "tells what changes, but not what is there",
        "mesh.py",
        "await self._tell_everything(channel)",
        "await anyio.sleep(0)",
        "test_who_comes_later_gets_everything",
    ),
    mutant(
        "forgets what was deleted",
        "mesh.py",
        "lines_of(page.entries)",
        "lines_of(entry for entry in page.entries if hasattr(entry, 'value'))",
        "test_what_was_deleted_meanwhile_is_not_brought_back",
    ),
    mutant(
        "forgets what was cleared",
        "mesh.py",
        "lines_of(self.within.clears())",
        "lines_of(())",
        "test_what_was_deleted_meanwhile_is_not_brought_back",
    ),
    mutant(
        "forgets when a record expires",
        "lines.py",
        "entry.value, entry.expires)",
        "entry.value)",
        "test_an_expiry_is_the_same_everywhere",
    ),
    mutant(
        "tells every other change",
        "mesh.py",
        "map(entry_of, changes)",
        "map(entry_of, changes[: len(changes) // 2])",
        "test_watchers_of_another_node_are_told",
    ),
    mutant(
        "leaves without a word",
        "mesh.py",
        "            await self._say_goodbye(_FAREWELL)\n",
        "",
        "test_one_that_leaves_has_told_everything_and_is_no_member_any_more",
    ),
    mutant(
        "serves no more once it is unloaded",
        "mesh.py",
        "            for listening in sockets:\n                n",
        "            del self.within\n            for listening in sockets:\n                n",
        "test_reads_and_writes_go_on_when_it_is_unloaded",
    ),
    mutant(
        "stays in memory",
        "mesh.py",
        "        self._goodbye = False\n",
        "        self._goodbye = False\n        __import__('atexit').register(self.leave)\n",
        "test_nothing_of_a_generation_stays_in_memory",
    ),
]

MUTANTS = {"storage": STORAGE, "transport": TRANSPORT, "notifier": NOTIFIER, "mesh": MESH}
