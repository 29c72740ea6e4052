"""What holds for all tests."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# The same examples in every run, and no clock: a busy machine is no mistake of the code's.
settings.register_profile(
    "embedkit", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("embedkit")

# Started in a shell's background this process ignores Ctrl-C, and so would those that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
