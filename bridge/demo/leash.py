"""Child processes that never outlive this one, however it ends.

A leashed command runs in a session of its own, so that Ctrl-C in a terminal reaches only us. Its standard input is a
pipe from us that carries nothing: when it closes, because we closed it or because we were killed, the kernel tells the
shell at the other end, and that ends the whole group. PR_SET_PDEATHSIG would not do: it fires when the *thread* that
started the child ends, and it does not reach a child's children.
"""

import contextlib
import os
import signal

# The shell outlives SIGTERM, which goes to the whole group, so that it can still report how the command ended.
_LEASH = """
exec 3<&0 </dev/null
(trap '' TERM; read -r _ <&3; kill -9 0) >/dev/null 2>&1 &
watcher=$!
trap : TERM
"$@" 3<&-
status=$?
kill -9 $watcher
exit $status
"""


def leashed(*command: str) -> list[str]:
    """The argument vector that runs a command on a leash.

    Start it with `stdin=PIPE` and `start_new_session=True`, and keep the pipe open for as long as it shall live. Its
    exit status is the command's.
    """
    return ["/bin/sh", "-c", _LEASH, "leash", *command]


def signal_group(leader: int, number: signal.Signals) -> None:
    """Send a signal to everything that was started with `leashed` as the process `leader`; nothing where it ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)
