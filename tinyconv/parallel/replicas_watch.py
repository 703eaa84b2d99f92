"""What mpiexec sees of a rank: a small program that starts the rank, and says how it ended.

    python replicas_watch.py NAME COMMAND...

When one of its processes dies, mpiexec ends all others at once: none of them could say which rank
it was. This one is still there. It imports nothing of the project, so as to take little memory.

A rank tells its watcher when it has joined the others, since MPICH's mpiexec passes over a process
that ends before that, unless it dies of a signal: the others would wait for it for ever.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import time

WATCHER, JOINED = "TINYCONV_WATCHER", "TINYCONV_JOINED"
"""In a rank's environment: its watcher's process id, and where to write that it has joined."""

RANKS = "OMPI_COMM_WORLD_RANK", "PMI_RANK"
"""Where Open MPI and MPICH, or what is built on them, tell a process its rank."""

JOIN = 300.0
"""Seconds that the ranks have for joining each other."""

PASSED_ON = 1.0
"""Seconds for mpiexec to pass on what a rank has said: what is left when it ends them is lost."""

MISTAKE = 2
"""Exit status for what every rank finds: mpiexec need not end the others."""

ON = "mpiexec stops the others; --resume and the run's folder go on from the last checkpoint"


def from_environment(names: tuple[str, ...], default: int) -> int:
    """The first of these variables that holds a number."""
    found = (os.environ[name] for name in names if os.environ.get(name, "").isdecimal())
    return int(next(found, default))


def have_joined() -> None:
    """Tell the watcher; by a rank, once."""
    joined = int(os.environ[JOINED])
    os.write(joined, b"1")
    os.close(joined)


def main(name: str, command: list[str]) -> int:
    """Run the command as this process's rank; returns the exit status, or dies of a signal."""
    rank = from_environment(RANKS, 0)
    asked: list[int] = []
    children: list[subprocess.Popen] = []

    def forward(number: int, _: object) -> None:
        asked.append(number)
        for child in children:
            child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    joining, joined = os.pipe()
    os.set_inheritable(joined, True)
    child = subprocess.Popen(
        command,
        env=os.environ | {WATCHER: str(os.getpid()), JOINED: str(joined)},
        close_fds=False,  # MPI talks to mpiexec through one that is open
        start_new_session=True,  # some mpiexecs send a signal to this process, some to its group
    )
    os.close(joined)
    children.append(child)
    for early in asked:
        child.send_signal(early)

    def say(what: str) -> None:
        who = f"{name}: rank {rank} (process {child.pid} on {socket.gethostname()})"
        print(f"{who} {what}", file=sys.stderr, flush=True)
        time.sleep(PASSED_ON)

    # Ready when it has joined and when it has ended. One watcher's patience is enough.
    ready, _, _ = select.select([joining], [], [], JOIN if rank == 0 else None)
    if not ready:
        say(f"has not found all others in {JOIN:g} seconds; {ON}")
        os.kill(os.getpid(), signal.SIGKILL)
    has_joined = os.read(joining, 1) == b"1"
    status = child.wait()
    if status < 0 and -status not in asked:
        say(f"was killed by {signal.Signals(-status).name}; {ON}")
    if status < 0 or (status not in (0, MISTAKE) and not has_joined):
        os.kill(os.getpid(), signal.SIGKILL)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
