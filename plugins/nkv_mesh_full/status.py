"""Status: what the mesh shows of itself, to people and to whoever measures."""

from typing import Any

from nkv_core.contracts.context import Measurement

from .core import Core
from .members import Peer


def status_of(core: Core, *, left: bool = False) -> dict[str, Any]:
    """What `/v1/status` and `nkv mesh` show."""
    return {
        "name": "full",
        "address": core.own.address,
        "incarnation": core.own.incarnation,
        "left": left,
        "acknowledge": core.settings.acknowledge,
        "catching_up": catching_up(core),
        "members": [
            {
                "address": core.own.address,
                "node_id": f"{core.own.node_id:016x}",
                "name": core.own.name,
                "kind": "nkv",
                "state": "self",
                "detail": "",
            },
            *(_member(core, peer) for peer in sorted(core.members, key=lambda one: one.address)),
            *(() if core.nkvd is None else (peer.shown() for peer in core.nkvd.peers)),
        ],
        "nkvd": core.nkvd
        and {
            "address": core.nkvd.own,
            "taken": core.nkvd.taken,
            "unnamed": sorted(core.nkvd.unnamed),
        },
        "last_comparison": core.comparisons.last,
        "changes_sent": core.figures.sent,
        "changes_received": core.figures.received,
        "changes_taken": core.figures.taken,
        "refused": core.figures.refused,
        "stale_records_dropped": core.figures.dropped,
    }


def catching_up(core: Core) -> list[dict[str, str]]:
    """From whom something is still to be fetched that their streams do not bring, and why."""
    owed = core.comparisons.owed
    found = {
        peer.node_id: owed.get(peer.node_id, "comparing")
        for peer in core.members
        if (
            peer.node_id == core.comparisons.running
            or (peer.node_id in owed and peer.state == "up")
            or (peer.node_id in core.intakes and not core.intakes[peer.node_id].complete)
        )
    }
    return [
        {"from": peer.address, "why": found[peer.node_id]}
        for peer in core.members
        if peer.node_id in found
    ]


def _member(core: Core, peer: Peer) -> dict[str, Any]:
    feed, intake = core.feeds.get(peer.node_id), core.intakes.get(peer.node_id)
    head = core.keyspace.token.revision
    return {
        "address": peer.address,
        "node_id": f"{peer.node_id:016x}",
        "name": peer.rumour.name,
        "kind": "nkv",
        "state": peer.state,
        "detail": peer.detail,
        "incarnation": peer.rumour.incarnation,
        #: Changes flow in both directions.
        "connected": feed is not None and intake is not None,
        #: How far the other has our changes, and how many revisions it lacks.
        "acknowledged": None if feed is None or feed.acked < 0 else feed.acked,
        "lag": None if feed is None or feed.acked < 0 else max(head - feed.acked, 0),
        #: How far this node has the other's, and from where it goes on after a restart.
        "taken": None if intake is None else intake.upto,
        "kept": None if intake is None else intake.kept,
        "behind": None if intake is None else max(peer.head - intake.upto, 0),
    }


def measurements_of(core: Core) -> list[Measurement]:
    """What `/metrics` shows."""
    figures = core.figures
    states: dict[str, int] = {}
    for peer in core.members:
        states[peer.state] = states.get(peer.state, 0) + 1
    head = core.keyspace.token.revision
    lags = [
        ({"peer": peer.address}, float(max(head - core.feeds[peer.node_id].acked, 0)))
        for peer in core.members
        if peer.node_id in core.feeds and core.feeds[peer.node_id].acked >= 0
    ]
    counters = (
        ("nkv_mesh_changes_sent_total", "Changes sent to other nodes.", figures.sent),
        ("nkv_mesh_changes_received_total", "Changes that came from others.", figures.received),
        ("nkv_mesh_changes_taken_total", "Of these, the newer ones.", figures.taken),
        ("nkv_mesh_refused_total", "Connections and messages refused.", figures.refused),
        ("nkv_mesh_comparisons_total", "Comparisons made.", figures.compared),
        ("nkv_mesh_compared_bytes_total", "Bytes of comparisons.", figures.compared_bytes),
        ("nkv_mesh_stale_dropped_total", "Stale records dropped.", figures.dropped),
    )
    return [
        Measurement(
            "nkv_mesh_members",
            "gauge",
            "Other nodes by state.",
            [({"state": state}, float(count)) for state, count in states.items()],
        ),
        Measurement("nkv_mesh_lag", "gauge", "Revisions that another node lacks.", lags),
        *(Measurement(name, "counter", text, [({}, float(n))]) for name, text, n in counters),
    ]
