"""A browser's own EventSource and WebSocket, against a node that restarts."""

import pytest

from ..ports import free_port

pytestmark = pytest.mark.one_python

PAGE = """
<!doctype html>
<script>
  const seen = { events: [], messages: [] };
  let due = false;
  const report = async () => {
    due = true;
    try {
      const body = JSON.stringify(seen);
      const answer = await fetch("/v1/kv/report", { method: "PUT", body });
      due = !answer.ok;
    } catch {
      // the node is away: what follows brings this too
    }
  };
  setInterval(() => due && report(), 100);

  const events = new EventSource("/v1/watch?pattern=data.*");
  events.addEventListener("put", (event) => {
    seen.events.push([event.lastEventId, JSON.parse(event.data).value]);
    report();
  });
  events.addEventListener("gap", () => { seen.events.push(["gap"]); report(); });
  events.onopen = () => { seen.connected = (seen.connected ?? 0) + 1; report(); };

  let since = null;
  const connect = () => {
    const socket = new WebSocket(`ws://${location.host}/v1/ws`);
    socket.onopen = () => {
      const request = { op: "subscribe", subscription: "s", pattern: "data.*" };
      if (since !== null) request.since = since;
      socket.send(JSON.stringify(request));
    };
    socket.onmessage = (message) => {
      const told = JSON.parse(message.data);
      since = told.token ?? told.result?.token ?? since;
      if (told.result) seen.subscribed = (seen.subscribed ?? 0) + 1;
      if (told.event === "put") seen.messages.push([told.token, told.data.value]);
      if (told.event === "gap") seen.messages.push(["gap"]);
      report();
    };
    socket.onclose = () => setTimeout(connect, 100);
  };
  connect();
</script>
"""

PLUGIN = """
from nkv_core import Reply, hookimpl

@hookimpl
def nkv_handlers(handlers):
    handlers.add("/page", lambda request: Reply(200, {"Content-Type": "text/html"}, PAGE))

PAGE = %r
"""


def test_a_page_that_watches_misses_nothing_over_a_restart(serve, browse, tmp_path):
    plugin = tmp_path / "page.py"
    plugin.write_text(PLUGIN % PAGE.encode())
    arguments = ("--plugin", str(plugin), "--set", "notifier.sse.retry=0.1")
    arguments += ("--port", str(free_port()))  # the same one after the restart
    node = serve(*arguments)
    browse(f"{node.url}/page")
    node.reported("report", lambda seen: seen.get("connected") and seen.get("subscribed"))
    count = 0

    def put(many):
        nonlocal count
        with node.client() as client:
            for _ in range(many):
                assert client.put(f"/v1/kv/data.{count % 3}", content=str(count)).is_success
                count += 1

    put(20)
    both = ("events", "messages")
    node.reported("report", lambda seen: all(len(seen.get(each, ())) >= 20 for each in both))
    node.kill()
    node = serve(*arguments)
    put(20)
    seen = node.reported("report", lambda seen: all(len(seen.get(each, ())) >= 40 for each in both))
    for each in both:
        assert [value for _, value in seen[each]] == [str(number) for number in range(40)]
    assert seen["events"] == seen["messages"]
    assert seen["connected"] >= 2
    assert seen["subscribed"] >= 2


def test_a_page_of_another_origin_can_neither_read_write_nor_connect(serve, browse, tmp_path):
    """The page comes from a second node, and tries the first."""
    first = serve(data_dir=tmp_path / "first")
    plugin = tmp_path / "page.py"
    plugin.write_text(PLUGIN % FOREIGN.replace("TARGET", first.url.partition("//")[2]).encode())
    second = serve("--plugin", str(plugin), data_dir=tmp_path / "second")
    with first.client() as client:
        client.put("/v1/kv/secret", content=b"secret")
        browse(f"{second.url}/page")
        seen = second.reported("report", lambda seen: len(seen) == 5)
        assert client.get("/v1/kv/hacked").status_code == 404
    assert seen == {
        "read": "refused",
        "written": "refused",
        "set": "refused",
        "events": "refused",
        "socket": "refused",
    }


FOREIGN = """
<!doctype html>
<script>
  const seen = {};
  const note = (what, how) => {
    seen[what] ??= how;
    fetch("/v1/kv/report", { method: "PUT", body: JSON.stringify(seen) });
  };
  const attempt = async (what, request) => {
    try {
      await request();
      note(what, "done");
    } catch {
      note(what, "refused");
    }
  };
  attempt("read", async () => (await fetch("http://TARGET/v1/kv/secret")).text());
  attempt("written", () => fetch("http://TARGET/v1/kv/hacked", { method: "PUT", body: "1" }));
  attempt("set", async () => {
    const answer = await fetch("http://TARGET/set?k=hacked&v=1", { mode: "no-cors" });
    if (answer.type === "opaque") throw new Error("nobody may know");
  });
  const events = new EventSource("http://TARGET/v1/watch");
  events.onopen = () => note("events", "done");
  events.onerror = () => note("events", "refused");
  const socket = new WebSocket("ws://TARGET/v1/ws");
  socket.onopen = () => note("socket", "done");
  socket.onerror = () => note("socket", "refused");
</script>
"""
