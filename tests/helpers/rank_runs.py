"""Runs of examples/train_alexnet.py by several ranks, one of which gets a signal at some moment.

    run(arguments, folder, Kill(rank=1, where="tinyconv.parallel.replicas.part_of"))

This file is also the program that is run: the example, with each rank's process id in `folder`, and
in one rank the function `where` replaced by one that sends the signal.
"""

import importlib
import json
import math
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tinyconv.parallel.replicas_watch import RANKS, WATCHER, from_environment

ROOT = Path(__file__).resolve().parents[2]
FOLDER, KILL = "RANK_RUNS_FOLDER", "RANK_RUNS_KILL"

SMALL = ["--width", "0.05", "--image-size", "64", "--batch-size", "4", "--epochs", "3"]
SMALL += ["--checkpoint-steps", "2", "--lr", "0.02", "--recipe", "authors", "--drops", "2,3"]
"""With colour noise, dropout, two drops and a bare last stage: everything that draws or changes."""


@dataclass(frozen=True)
class Kill:
    """`signal` to `rank`, when `at` (None: `rank` itself) calls `where` for the count-th time.

    where: a function by its full name, or "" for so many seconds after the process has begun.
    """

    rank: int
    where: str
    count: float = 1
    at: int | None = None
    signal: int = signal.SIGKILL


def random_kill(seed, in_the_sum):
    """How many ranks, which one is killed and when, and by how many ranks the run is resumed.

    in_the_sum: a function that ranks call three times a step, or more often. Thirty seeds have each
    rank of two and of four in each of five moments.
    """
    rng = random.Random(seed)
    ranks, victim = [(2, 0), (2, 1), (4, 0), (4, 1), (4, 2), (4, 3)][seed % 6]
    where, count, at = [
        ("", rng.uniform(0, 1.5), None),
        ("tinyconv.parallel.replicas.Replica.agree", rng.randint(1, 12), None),
        (in_the_sum, rng.randint(1, 36), None),
        ("tinyconv.evaluate.count_hits", rng.randint(1, 3), None),
        (rng.choice(["os.fsync", "os.replace"]), rng.randint(3, 9), 0),  # a checkpoint's
    ][seed // 6 % 5]
    return ranks, Kill(victim, where, count, at), rng.choice([1, 2, 4])


def spawned(count):
    """The options for so many ranks."""
    return ["--parallel", "replicas", "--device", ",".join(["cpu"] * count)]


def environment(**more):
    """For a process that imports the example and trains on the host."""
    paths = [ROOT, ROOT / "examples", ROOT / "tests" / "helpers"]
    kept = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    return kept | {"PYTHONPATH": os.pathsep.join(map(str, paths))} | more


def start(arguments, folder, kill=None, before=(), **more):
    """The program, in a process group of its own; `before` is what starts it, such as mpiexec."""
    more[FOLDER] = str(folder)
    if kill is not None:
        more[KILL] = json.dumps(asdict(kill))
    folder.mkdir()
    return subprocess.Popen(
        [*before, sys.executable, __file__, *map(str, arguments)],
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(arguments, folder, kill=None, before=(), **more):
    """Exit status, standard output and standard error; no rank is left.

    Half a minute after a rank has got its signal all is over.
    """
    process = start(arguments, folder, kill, before, **more)
    try:
        out, err = process.communicate(timeout=100)
        ended = time.time()
    finally:
        process.kill()
    started = pids(folder).values()
    assert started
    deadline = time.monotonic() + 5  # the kernel is busy with them when mpiexec has ended
    while any(alive(pid) for pid in started):
        assert time.monotonic() < deadline, f"some of {started} are left"
        time.sleep(0.05)
    if kill is not None:
        seconds = ended - (folder / "sent").stat().st_mtime
        print(f"{kill}: all was over {seconds:.1f} s after the signal")
        assert seconds < 30
    return process.returncode, out, err


def pids(folder):
    """The process of each rank."""
    return {int(file.suffix[1:]): int(file.read_text()) for file in folder.glob("rank.*")}


def alive(pid):
    """Does the process run?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def metrics(out):
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same_training(out, whole):
    """float32: sums over the batch in another order, a few roundings in twelve steps."""
    for ours, theirs in zip(metrics(out), metrics(whole), strict=True):
        assert math.isclose(ours["train_loss"], theirs["train_loss"], rel_tol=1e-4)
        assert ours["val_top1"] == theirs["val_top1"]


# --- in the ranks


def _own_rank():
    """None in the process that starts or watches ranks."""
    if WATCHER in os.environ:
        return from_environment(RANKS, 0)
    spawned = re.fullmatch(r"SpawnProcess-(\d+)", multiprocessing.current_process().name)
    return int(spawned[1]) - 1 if spawned else None


def _prepare(kill, folder):
    """Send the signal when it is time."""

    def send():
        (folder / "sent").touch()
        os.kill(pids(folder)[kill.rank], kill.signal)

    if not kill.where:
        threading.Timer(kill.count, send).start()
        return
    parts = kill.where.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:cut]))
            break
        except ModuleNotFoundError:
            continue
    for name in parts[cut:-1]:
        owner = getattr(owner, name)
    original, calls = getattr(owner, parts[-1]), []

    def counted(*arguments, **named):
        calls.append(1)
        if len(calls) == kill.count:
            send()
        return original(*arguments, **named)

    setattr(owner, parts[-1], counted)


if __name__ in ("__main__", "__mp_main__") and (rank := _own_rank()) is not None:
    ranks_folder = Path(os.environ[FOLDER])
    (ranks_folder / f"rank.{rank}").write_text(str(os.getpid()))
    if KILL in os.environ:
        kill = Kill(**json.loads(os.environ[KILL]))
        if rank == (kill.rank if kill.at is None else kill.at):
            _prepare(kill, ranks_folder)

if __name__ == "__main__":
    import train_alexnet

    sys.exit(train_alexnet.main())
