"""Bench: a load on a node, or on a peer of it, and what came of it.

`workload` says what is asked for, `speakers` how it is said in each protocol, `load` asks and takes
the times, `watching` takes those of notifications, and `report` writes them down.
"""
