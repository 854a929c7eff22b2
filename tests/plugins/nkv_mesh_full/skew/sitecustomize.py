"""Sets the clock of one process off, by the milliseconds in TEST_CLOCK_SKEW."""

import os
import time

_skew = int(os.environ.get("TEST_CLOCK_SKEW", "0"))
_now = time.time_ns

time.time_ns = lambda: _now() + _skew * 1_000_000
time.time = lambda: time.time_ns() / 1e9
