"""Probes, preconditions, pins, and several changes in one step."""

import anyio
import pytest

from nkv_core.contracts.settings import PluginSettings
from nkv_core.errors import (
    PluginInUse,
    PluginInvalid,
    PluginNotFound,
    PluginSetupFailed,
    RouteTaken,
    SettingsError,
    StaleGeneration,
    UntrustedFile,
)
from nkv_core.events import PluginFailed, PluginLoaded
from nkv_core.plugin_host.exchange import Changes

pytestmark = pytest.mark.anyio

#: Answers `/probed`; what its probe does is filled in.
PROBED = """
    import anyio
    from contextlib import asynccontextmanager
    from nkv_core import hookimpl

    FAIL = anyio.Event()
    ASKED = []

    @hookimpl
    async def nkv_setup(ctx):
        ctx.tasks.start_soon(task)
        yield

    async def task():
        await FAIL.wait()
        raise OSError("a task has died")

    @hookimpl
    def nkv_handlers(handlers):
        handlers.add("/probed", lambda request: {answer!r})

    @hookimpl
    async def nkv_probe(ctx):
        {probe}
"""

#: What goes wrong after the switch, and what is told.
FAILING = {
    "raises": ("raise OSError('no luck')", r"nkv_probe: OSError: no luck \(.*probed\.py:24\)"),
    "exits": ("raise SystemExit(3)", "SystemExit: 3"),
    "hangs": ("await anyio.sleep_forever()", "nkv_probe took longer than 0.3 s"),
    "dies": (
        "FAIL.set(); await anyio.sleep_forever()",
        r"a task of its own: OSError: a task has died \(.*probed\.py:16\)",
    ),
}


@pytest.fixture(params=FAILING)
def failing(request):
    return FAILING[request.param]


@pytest.fixture
def probed(write):
    def to(answer, probe="pass"):
        return write("probed.py", PROBED.format(answer=answer, probe=probe))

    return to


async def test_a_replacement_that_fails_its_probe_after_the_switch_is_taken_back(
    serving, probed, failing
):
    probe, told = failing
    async with serving(probe_deadline=0.3) as it:
        path = probed("one")
        await it.host.load(path)
        before = it.residue()
        probed("two", probe)
        with pytest.raises(PluginSetupFailed, match=told):
            await it.host.replace("probed")
        assert await it.ask("/probed") == "one"
        await it.quiet()
        assert it.residue() == before
        (info,) = it.host.plugins()
        assert (info.state, info.generation) == ("active", 1)
        assert "its replacement failed" in info.error
        (event,) = it.seen(PluginFailed)
        assert (event.name, event.generation) == ("probed", 2)
        probed("three")
        assert (await it.host.replace("probed")).generation == 3
        assert await it.ask("/probed") == "three"


async def test_a_load_that_fails_its_probe_leaves_nothing(serving, probed, failing):
    probe, told = failing
    async with serving(probe_deadline=0.3) as it:
        before = it.residue()
        with pytest.raises(PluginSetupFailed, match=told):
            await it.host.load(probed("one", probe))
        await it.quiet()
        assert it.residue() == before
        assert (await it.ask("/probed")).code == "no_handler"
        assert it.seen(PluginLoaded) == []


async def test_while_it_is_probed_the_new_one_answers_and_the_old_one_finishes(serving, write):
    source = """
        import anyio
        from nkv_core import hookimpl

        GATE = anyio.Event()

        @hookimpl
        def nkv_handlers(handlers):
            handlers.add("/slow", slow)
            handlers.add("/version", lambda request: {version})
            handlers.add("/open", lambda request: GATE.set())

        async def slow(request):
            await GATE.wait()
            return {version}

        @hookimpl
        async def nkv_probe(ctx):
            if {version} == 2:
                await GATE.wait()
                raise OSError("not this one")
    """
    async with serving(probe_deadline=20) as it:
        path = write("slow.py", source.format(version=1))
        await it.host.load(path)
        answers = []

        async def ask(path):
            answers.append(await it.ask(path))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "/slow")
            await anyio.wait_all_tasks_blocked()
            write("slow.py", source.format(version=2))

            async def replace():
                with pytest.raises(PluginSetupFailed):
                    await it.host.replace("slow")

            tasks.start_soon(replace)
            while await it.ask("/version") != 2:
                await anyio.sleep(0.001)
            tasks.start_soon(ask, "/slow")  # it begins in the one that will be taken back
            await anyio.wait_all_tasks_blocked()
            await it.ask("/open")  # that of the second
            while await it.ask("/version") != 1:
                await anyio.sleep(0.001)
            assert answers == [2]
            await it.ask("/open")  # that of the first
        assert answers == [2, 1]


async def test_a_replacement_cancelled_while_it_is_probed_is_taken_back(serving, probed):
    async with serving(probe_deadline=20) as it:
        await it.host.load(probed("one"))
        before = it.residue()
        probed("two", "await anyio.sleep_forever()")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(it.host.replace, "probed")
            while await it.ask("/probed") != "two":
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
        assert await it.ask("/probed") == "one"
        await it.quiet()
        assert it.residue() == before


async def test_one_that_fails_while_its_successor_is_probed_is_told_when_it_is_back(
    serving, write, caplog
):
    source = """
        import anyio
        from nkv_core import hookimpl

        FAIL = anyio.Event()
        GO_ON = anyio.Event()

        @hookimpl
        async def nkv_setup(ctx):
            ctx.tasks.start_soon(task)
            yield

        async def task():
            await FAIL.wait()
            raise OSError("the old one has died")

        @hookimpl
        def nkv_handlers(handlers):
            handlers.add("/fail", lambda request: FAIL)
            handlers.add("/go-on", lambda request: GO_ON.set())
            handlers.add("/version", lambda request: {version})

        @hookimpl
        async def nkv_probe(ctx):
            if {version} == 2:
                await GO_ON.wait()
                raise OSError("not this one")
    """
    async with serving(probe_deadline=20) as it:
        path = write("fails.py", source.format(version=1))
        await it.host.load(path)
        fail = await it.ask("/fail")
        write("fails.py", source.format(version=2))
        async with anyio.create_task_group() as tasks:

            async def replace():
                with pytest.raises(PluginSetupFailed):
                    await it.host.replace("fails")

            tasks.start_soon(replace)
            while await it.ask("/version") != 2:
                await anyio.sleep(0.001)
            fail.set()
            while "the old one has died" not in caplog.text:
                await anyio.sleep(0.001)
            await it.ask("/go-on")
        (info,) = it.host.plugins()[:1]
        assert info.state == "failed"
        assert "the old one has died" in info.error
        del fail


async def test_stale_if_generation_rejected(serving, hello):
    async with serving() as it:
        path = hello("one")
        await it.host.load(path)
        before = it.residue()
        for call in (it.host.replace, it.host.unload):
            with pytest.raises(StaleGeneration, match="of generation 1, not 7"):
                await call("hello", if_generation=7)
        assert it.residue() == before
        hello("two")
        assert (await it.host.replace("hello", if_generation=1)).generation == 2
        with pytest.raises(StaleGeneration):
            await it.host.replace("hello", if_generation=1)
        await it.host.unload("hello", if_generation=2)


async def test_nothing_runs_before_hash_check(serving, write, tmp_path):
    canary = tmp_path / "canary"
    source = f"open({str(canary)!r}, 'w').close()\n"
    path = write("pinned.py", source)
    async with serving() as it:
        before = it.residue()
        with pytest.raises(UntrustedFile, match="Nothing of it was executed"):
            await it.host.load(path, sha256="0" * 64)
        assert it.residue() == before
    async with serving(sha256={"pinned": "1" * 64}) as it:
        with pytest.raises(UntrustedFile, match="1" * 64):
            await it.host.load(path)
    assert not canary.exists()


async def test_a_replacement_must_have_the_pin_too(serving, hello, tmp_path):
    async with serving() as it:
        pin = (await it.host.load(hello("one"))).sha256
        await it.host.unload("hello")
    async with serving(sha256={"hello": pin}) as it:
        await it.host.load(hello("one"))
        hello("two")
        with pytest.raises(UntrustedFile):
            await it.host.replace("hello")
        assert await it.ask("/hello") == "one"


class Many:
    """A host with three plugins, and changes to several of them."""

    def __init__(self, it, hello, write):
        self.it, self.hello, self.write = it, hello, write
        self.sections = {}

    async def load(self):
        for name in ("one", "two", "three"):
            await self.it.host.load(self.hello(name, name=f"{name}.py", path=name))

    async def change(self, **changes):
        return await self.it.host.change(
            Changes(settings=PluginSettings(), sections=lambda name: {}, **changes)
        )

    async def answers(self):
        asked = [await self.it.ask(f"/{name}") for name in ("one", "two", "three", "four")]
        return [getattr(answer, "code", answer) for answer in asked]


async def test_several_changes_are_one_step(serving, hello, write):
    async with serving() as it:
        many = Many(it, hello, write)
        await many.load()
        hello("new", name="one.py", path="one")
        four = hello("four", name="four.py", path="three")  # the path that `three` gives up
        infos = await many.change(load=(four,), replace=("one",), unload=("three",))
        assert [(info.name, info.generation) for info in infos] == [("one", 2), ("four", 1)]
        assert await many.answers() == ["new", "two", "four", "no_handler"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"load": ("four",), "replace": ("one", "bad")}, PluginNotFound),
        ({"replace": ("one", "two"), "unload": ("three",)}, PluginInvalid),
        ({"replace": ("one",), "unload": ("four",)}, PluginNotFound),
        ({"load": ("taken",), "replace": ("one",)}, RouteTaken),
        ({"load": ("probed",), "replace": ("one",), "unload": ("three",)}, PluginSetupFailed),
    ],
    ids=["not loaded", "broken", "unload", "taken", "probe"],
)
async def test_of_several_changes_all_are_made_or_none(serving, hello, write, changes, error):
    async with serving() as it:
        many = Many(it, hello, write)
        await many.load()
        before = it.residue()
        hello("new", name="one.py", path="one")
        write("two.py", "def broken(:\n")
        files = {
            "four": hello("four", name="four.py", path="four"),
            "taken": hello("taken", name="taken.py", path="two"),
            "probed": write("probed.py", PROBED.format(answer=1, probe="raise OSError")),
        }
        load = tuple(files[name] for name in changes.get("load", ()))
        with pytest.raises(error):
            await many.change(**{**changes, "load": load})
        await it.quiet()
        assert await many.answers() == ["one", "two", "three", "no_handler"]
        after = it.residue()
        assert sorted(after.pop("plugins")) == sorted(before.pop("plugins"))
        assert after == before


async def test_changes_keep_the_settings_that_they_fail_with_out(serving, write):
    source = """
        import msgspec
        from nkv_core import hookimpl

        class Settings(msgspec.Struct):
            word: str = "none"

        @hookimpl
        def nkv_settings():
            return Settings

        @hookimpl
        async def nkv_setup(ctx):
            ctx.handlers.add("/word", lambda request: ctx.settings.word)
            yield
    """
    async with serving({"plugin.says": {"word": "old"}}) as it:
        await it.host.load(write("says.py", source))
        for word, error in ((3, SettingsError), ("new", None)):
            changes = Changes(
                settings=PluginSettings(),
                sections=lambda name, word=word: {"word": word},
                replace=("says",),
            )
            if error is not None:
                with pytest.raises(error):
                    await it.host.change(changes)
                await it.host.replace("says")
                assert await it.ask("/word") == "old"
            else:
                await it.host.change(changes)
                await it.host.replace("says")
                assert await it.ask("/word") == "new"


async def test_what_is_held_is_changed_with_nothing_else(serving, hello, write):
    async with serving() as it:
        many = Many(it, hello, write)
        await many.load()
        it.host.hold("two", "it is needed.")
        with pytest.raises(PluginInUse):
            await many.change(replace=("one",), unload=("two",))
        assert [info.generation for info in it.host.plugins()] == [1, 1, 1]
