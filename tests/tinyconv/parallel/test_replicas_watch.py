"""The watcher of a rank: here the rank is a line of Python, and there is no mpiexec."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tinyconv.parallel import replicas_watch

JOIN = "import os; os.write(int(os.environ['TINYCONV_JOINED']), b'1'); "


def watched(line, *, join=60.0, **more):
    """A watcher whose rank runs a line of Python."""
    command = [sys.executable, "-c", line]
    program = (
        f"import sys; sys.path.insert(0, {os.path.dirname(replicas_watch.__file__)!r})\n"
        f"import replicas_watch; replicas_watch.JOIN = {join}\n"
        f"sys.exit(replicas_watch.main('program', {command!r}))"
    )
    return subprocess.Popen(
        [sys.executable, "-I", "-c", program],
        env=os.environ | {"PMI_RANK": "3"} | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize(
    "line, status",
    [
        ("pass", 0),
        ("raise SystemExit(2)", 2),  # all find it
        ("raise SystemExit(1)", -9),  # mpiexec would let the others wait
        (f"{JOIN} raise SystemExit(1)", 1),
        (f"{JOIN} raise SystemExit(70)", 70),
    ],
)
def test_the_status_is_the_ranks_unless_the_others_would_wait_for_it(line, status):
    assert finished(watched(line)) == (status, "", "")


@pytest.mark.parametrize("join", ["", JOIN])
def test_a_rank_that_is_killed_is_named(join):
    line = f"{join}import os; print(os.getpid(), flush=True); os.kill(os.getpid(), 11)"
    status, printed, err = finished(watched(line))
    assert status == -9 and re.fullmatch(
        rf"program: rank 3 \(process {printed.strip()} on \S+\) was killed by SIGSEGV; mpiexec "
        r"stops the others; --resume and the run's folder go on from the last checkpoint\n",
        err,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_goes_to_the_rank_and_nothing_is_said_of_it(number):
    handles = (
        "import signal, sys, time; signal.signal({0}, lambda *_: sys.exit(128 + {0})); "
        "print(flush=True); time.sleep(30)"
    )
    process = watched(JOIN + handles.format(int(number)))
    process.stdout.readline()
    process.send_signal(number)
    assert finished(process) == (128 + number, "", "")
    # One that does not handle it yet, as it still imports.
    process = watched("import os; print(flush=True); os.read(os.pipe()[0], 1)")
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert finished(process) == (-9, "", "")


def test_the_first_rank_does_not_wait_for_ever_to_be_joined():
    line = "import os, time; print(os.getpid(), flush=True); time.sleep(30)"
    process = watched(line, join=0.5, PMI_RANK="0")
    rank = int(process.stdout.readline())
    assert process.wait(timeout=30) == -9
    os.kill(rank, signal.SIGKILL)  # one of ours would have asked the kernel for it
    _, err = process.communicate()
    assert err.startswith(f"program: rank 0 (process {rank} on ")
    assert " has not found all others in 0.5 seconds; mpiexec stops the others" in err


def test_the_other_ranks_leave_that_to_it_and_have_their_time_after_it_is_done():
    started = time.monotonic()
    assert finished(watched("import time; time.sleep(1)", join=0.1)) == (0, "", "")
    line = JOIN + "import time; time.sleep(1)"
    assert finished(watched(line, join=60.0, PMI_RANK="0")) == (0, "", "")
    assert time.monotonic() - started >= 2
