"""What the project has set itself for speed, and how far each benchmark has found it to be."""

import re

#: What, in which section of docs/performance.md, what finds the figure there, and the goal with its
#: unit: `x` is times the peer, at least; other figures are at most.
GOALS = (
    ("GET, 50 connections, beside redis-server", "resp", r"GET, no pipeline.*?: (\S+) x", 0.9, "x"),
    ("SET, the same", "resp", r"SET, no pipeline.*?: (\S+) x", 0.9, "x"),
    ("GET, `-P 16 -r 100000 -d 100`", "resp", r"GET, -P 16.*?: (\S+) x", 0.33, "x"),
    ("SET, the same", "resp", r"SET, -P 16.*?: (\S+) x", 0.33, "x"),
    ("durable SET, 64 connections, beside redis-server", "resp", r"durable.*?: (\S+) x", 0.4, "x"),
    ("set to keyspace event, beside redis-server", "resp", r"event, p50.*?: (\S+) x", 1.2, "of it"),
    ("set to tracking, the same", "resp", r"tracking, p50.*?: (\S+) x", 1.2, "of it"),
    ("GET on the fast lane, beside bare ASGI on uvicorn", "fast", r"get  .*?/s +(\S+) x", 1.8, "x"),
    ("the same with a listener on each event", "fast", r"event .*?/s +(\S+) x", 1.6, "x"),
    ("`/set` on the fast lane", "fast", r"set  .*?/s +(\S+) x", 1.4, "x"),
    ("GET on Hypercorn, beside bare Starlette on it", "http_get", r"ratio: (\S+)", 0.9, "x"),
    ("a write to the last of 1,000 watchers", "crowd", r"has it after (\S+) ms", 50, "ms"),
    ("memory of 1,000,000 records, beside redis-server", "memory", r"ratio +(\S+)", 2, "of it"),
)


def table(document):
    """The goals and the figures of a document as a table. A figure that is missing is a dash."""
    rows = ["| | goal | measured | |", "| --- | --- | --- | --- |"]
    for what, section, pattern, goal, unit in GOALS:
        found = re.search(rf"<!-- {section} -->(.*?)<!-- end of {section} -->", document, re.DOTALL)
        figure = re.search(pattern, found[1]) if found else None
        least = unit == "x"
        aim = f"{'at least' if least else 'at most'} {goal} {unit}"
        if figure is None:
            rows.append(f"| {what} | {aim} | - | |")
            continue
        value = float(figure[1])
        verdict = "" if (value >= goal if least else value <= goal) else "falls short"
        rows.append(f"| {what} | {aim} | {value:g} {unit} | {verdict} |")
    return "\n".join(rows)
