"""What mpiexec sees of a rank: a small program that starts the rank, and says how it ended.

    python replicas_watch.py NAME COMMAND...

When one of its processes dies, mpiexec ends all others at once: none of them could say which rank
it was. This one is still there. It imports nothing of the project, so as to take little memory.
"""

import os
import signal
import socket
import subprocess
import sys

WATCHER = "TINYCONV_WATCHER"
"""In a rank's environment: the process id of the program that watches it."""

RANKS = "OMPI_COMM_WORLD_RANK", "PMI_RANK"
"""Where Open MPI and MPICH, or what is built on them, tell a process its rank."""


def from_environment(names: tuple[str, ...], default: int) -> int:
    """The first of these variables that holds a number."""
    found = (os.environ[name] for name in names if os.environ.get(name, "").isdecimal())
    return int(next(found, default))


def main(name: str, command: list[str]) -> int:
    """Run the command as this process's rank; returns the exit status."""
    rank = subprocess.Popen(
        command,
        env=os.environ | {WATCHER: str(os.getpid())},
        close_fds=False,  # MPI talks to mpiexec through one that is open
        start_new_session=True,  # some mpiexecs send a signal to this process, some to its group
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: rank.send_signal(number))
    status = rank.wait()
    if status >= 0:
        return status
    print(
        f"{name}: rank {from_environment(RANKS, 0)} (process {rank.pid} on {socket.gethostname()}) "
        f"was killed by {signal.Signals(-status).name}; mpiexec stops the others; --resume and the "
        "run's folder go on from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
