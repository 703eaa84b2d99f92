"""Many short runs of one script, each in a process of its own that can be killed.

    with ForkServer(script) as server:
        status = server.run(["--data", ...], kill_after=0.3)

Importing Numba and making it ready takes a second, so one process does that and forks for each run.
It forks before any parallel loop has run: no threads are lost. A run's standard output and error go
to a file. POSIX only.
"""

import json
import subprocess
import sys
from pathlib import Path

SERVER = """
import importlib.util, json, os, signal, sys, time
spec = importlib.util.spec_from_file_location("script", sys.argv[1])
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
# What every run would else do for itself: Numba fills its tables at the first call of a function,
# and at the end pictures are drawn.
import matplotlib.backends.backend_agg, matplotlib.figure, numpy
from layers.random_bits import random_words_host
random_words_host(*map(numpy.uint64, range(4)))
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        exec(job["prelude"])
        status = script.main(job["arguments"])
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    if job["kill_after"] is None:
        _, ended = os.waitpid(child, 0)
    else:
        deadline, ended = time.monotonic() + job["kill_after"], None
        while ended is None:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                ended = status
            elif time.monotonic() >= deadline:
                os.kill(child, job["signal"])
                _, ended = os.waitpid(child, 0)
            else:
                time.sleep(0.001)
    code = os.waitstatus_to_exitcode(ended)
    print(json.dumps(code), flush=True)
"""


class ForkServer:
    """A process that has imported `script` (which has a `main(arguments)`) and forks for a run."""

    def __init__(self, script: Path, log: Path) -> None:
        self.log = log
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        arguments: list[str],
        *,
        kill_after: float | None = None,
        signal: int = 9,
        prelude: str = "",
    ) -> int:
        """The exit status, or −signal. kill_after: seconds until `signal` is sent.

        prelude: Python that runs in the forked process first. What the run printed is in `log`.
        """
        job = {
            "arguments": [str(argument) for argument in arguments],
            "kill_after": kill_after,
            "signal": int(signal),
            "prelude": prelude,
            "log": str(self.log),
        }
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def printed(self) -> str:
        """What the last run printed."""
        return self.log.read_text(encoding="utf-8")

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
