"""Ranks that are killed, asked to end, or cannot start: one line, nobody left, the run goes on.

The tests run examples/train_alexnet.py by way of this file, so that a rank can end itself at a
moment that is certain: END="signal,rank,class.method,count".
"""

import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from photo_bytes import encoded, put
from PIL import Image

from tinyconv.parallel import launch
from tinyconv.parallel.replicas_mpiexec import under_mpi
from tinyconv.parallel.replicas_rank import THREADS

ROOT = Path(__file__).resolve().parents[3]
MOMENTS = {
    "loading": ("replicas.ReplicaTraining._loader", 1),
    "forward": ("replicas.ReplicaTraining._totals", 6),
    "backward": ("replicas_memory.SharedMemory.start", 5),
    "sums": ("replicas_memory.SharedMemory.finish", 4),
    "validation": ("replicas.ReplicaTraining._evaluate", 1),
}


def end_oneself(number: int, rank: int, where: str, count: int) -> None:
    """At the count-th call of a method, on one rank, send this process a signal."""
    module, kind, method = where.split(".")
    owner = getattr(importlib.import_module(f"tinyconv.parallel.{module}"), kind)
    original, calls = getattr(owner, method), []

    def patched(self, *arguments):
        calls.append(1)
        if getattr(self, "replica", self).rank == rank and len(calls) == count:
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    setattr(owner, method, patched)


if __name__ in ("__main__", "__mp_main__") and "END" in os.environ:
    number, rank, where, count = os.environ["END"].split(",")
    end_oneself(int(number), int(rank), where, int(count))

SMALL = ["--width", "0.05", "--image-size", "64", "--batch-size", "4", "--epochs", "3"]
SMALL += ["--checkpoint-steps", "2", "--lr", "0.02", "--recipe", "authors", "--drops", "2,3"]
TWO = ["--parallel", "replicas", "--device", "cpu,cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for k in range(count):
            for name, low, high in (("dark", 0, 90), ("light", 160, 255)):
                noise = Image.fromarray(rng.integers(low, high, (70, 80, 3), np.uint8))
                put(folder / split / name / f"{k}.png", encoded(noise).getvalue())
    return folder


def environment(**more):
    paths = [ROOT, ROOT / "examples", ROOT / "tests" / "helpers"]
    path = os.pathsep.join(str(path) for path in paths)
    kept = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    return kept | {"PYTHONPATH": path} | more


def start(arguments, before=(), **more):
    """The program, in a process group of its own."""
    return subprocess.Popen(
        [*before, sys.executable, __file__, *map(str, arguments)],
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(arguments, before=(), **more):
    """Exit status, standard output and standard error; and no rank is left."""
    process = start(arguments, before, **more)
    try:
        out, err = process.communicate(timeout=50)
    finally:
        process.kill()
    for pid in re.findall(r"process (\d+)$", out, re.M):
        assert not alive(int(pid))
    return process.returncode, out, err


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """The folder of a run by one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    status, _, err = run(["--data", photos, "--out", out, "--device", "cpu", *SMALL])
    assert status == 0, err
    return out


def same_training(out, whole):
    """float32: sums over the batch in another order, a few roundings in twelve steps."""
    for ours, theirs in zip(metrics(out), metrics(whole), strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert ours["val_top1"] == theirs["val_top1"]


seeded = random.Random(7)
KILLS = [(rank, seeded.choice(sorted(MOMENTS))) for rank in (0, 1)]


@pytest.mark.parametrize("rank, moment", KILLS)
def test_a_rank_that_is_killed_is_named_and_the_run_goes_on(photos, whole, tmp_path, rank, moment):
    out = tmp_path / "run"
    where, count = MOMENTS[moment]
    started = time.monotonic()
    arguments = ["--data", photos, "--out", out, *SMALL, *TWO]
    status, printed, err = run(arguments, END=f"9,{rank},{where},{count}")
    assert time.monotonic() - started < 30
    pid = re.search(rf"^rank {rank}: cpu on .*, process (\d+)$", printed, re.M)[1]
    assert status == 1 and err == (
        f"train_alexnet.py: rank {rank} (cpu, process {pid}) was killed by SIGKILL; the others have"
        " stopped; --resume and the run's folder go on from the last checkpoint\n"
    )
    # With one process, or with two again.
    resumed = ["--device", "cpu", "--parallel", "none"] if rank == 0 else []
    status, printed, err = run(["--resume", out, *resumed])
    assert status == 0 and "going on after step " in printed, err
    same_training(out, whole)


def test_a_signal_to_one_rank_ends_all_after_the_same_step(photos, whole, tmp_path):
    out = tmp_path / "run"
    where = "replicas.ReplicaTraining._totals"
    arguments = ["--data", photos, "--out", out, *SMALL, *TWO]
    status, printed, err = run(arguments, END=f"15,1,{where},7")
    assert (status, err) == (143, "") and "stopped after step 7 (epoch 2)" in printed
    assert max(path.name for path in out.glob("checkpoint-*")) == "checkpoint-000000007.h5"
    four = ["--device", "cpu,cpu,cpu,cpu", "--parallel", "replicas"]
    status, printed, err = run(["--resume", out, *four])
    assert status == 0 and "going on after step 7 (epoch 2)" in printed, err
    same_training(out, whole)


def test_ctrl_c_at_the_parent_reaches_the_ranks(photos, tmp_path):
    out = tmp_path / "run"
    arguments = ["--data", photos, "--out", out, *SMALL, *TWO, "--epochs", "100000"]
    process = start(arguments)
    for line in process.stdout:
        if line.startswith("epoch "):
            break
    os.kill(process.pid, signal.SIGINT)
    printed, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err == "" and "stopped after step" in printed


def test_with_the_parent_killed_no_rank_stays(photos, tmp_path):
    arguments = ["--data", photos, "--out", tmp_path / "run", *SMALL, *TWO, "--epochs", "100000"]
    process, pids = start(arguments), []
    for line in process.stdout:
        pids += re.findall(r"^rank \d: .*process (\d+)$", line)
        if line.startswith("epoch "):
            break
    process.kill()
    process.communicate(timeout=30)  # standard output ends when the last rank has closed it
    assert len(pids) == 2 and not any(alive(int(pid)) for pid in pids)


MISTAKES = {
    "kinds": (["--parallel", "replicas", "--device", "cpu,cuda:0"], "devices of one kind"),
    "gap": (["--parallel", "replicas", "--device", "cpu,,cpu"], "devices of one kind"),
    "no parallel": (["--device", "cpu,cpu"], "add --parallel replicas"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_list_of_devices_is_one_line_and_status_2(name, photos, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("script", ROOT / "examples" / "train_alexnet.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    options, message = MISTAKES[name]
    out = tmp_path / "run"
    assert script.main(["--data", str(photos), "--out", str(out), *SMALL, *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("train_alexnet.py: error: ") and err.count("\n") == 1
    assert message in err and not out.exists()


def test_a_mistake_that_all_ranks_find_is_said_once(photos, tmp_path):
    out = tmp_path / "run"
    status, _, err = run(["--data", photos, "--out", out, *SMALL, *TWO, "--batch-size", "7"])
    assert (status, err) == (
        2,
        "train_alexnet.py: error: a batch of 7 cannot be divided among 2 processes: use "
        "--batch-size 6 or 8\n",
    )
    assert not out.exists()


def test_one_process_imports_neither_mpi_nor_nccl(photos, tmp_path):
    arguments = ["--data", str(photos), "--out", str(tmp_path / "run"), *SMALL, "--epochs", "1"]
    arguments += ["--parallel", "replicas", "--device", "cpu"]
    program = f"""
import sys, train_alexnet
assert train_alexnet.main({arguments!r}) == 0
wrong = [name for name in sys.modules if name.startswith(("mpi4py", "cupy"))]
assert not wrong, wrong
"""
    subprocess.run([sys.executable, "-c", program], env=environment(), check=True, timeout=50)


class Ended:
    """A child process that is found alive a few times, and then no more."""

    def __init__(self, lives, status):
        self.lives, self.status, self.killed = lives, status, False
        self.sentinel, other = os.pipe()
        os.close(other)  # whoever waits for it need not wait

    def is_alive(self):
        self.lives -= 1
        return self.lives >= 0 and not self.killed

    @property
    def exitcode(self):
        return None if self.lives > 0 and not self.killed else self.status

    def kill(self):
        self.killed = True

    def join(self):
        os.close(self.sentinel)


@pytest.mark.parametrize("status, killed", [(143, False), (0, False), (-9, True), (2, True)])
def test_ranks_are_killed_after_a_failure_but_not_while_they_stop(monkeypatch, status, killed):
    monkeypatch.setattr(launch, "GRACE", -1)
    first, other = Ended(5, 143), Ended(0, status)
    assert launch._watch([first, other], []) == []
    assert first.killed == killed


def test_mpiexec_is_recognised_by_what_it_leaves_in_the_environment(monkeypatch):
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not under_mpi()
    monkeypatch.setenv("PMI_SIZE", "1")
    assert not under_mpi()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert under_mpi()


# --- mpiexec

MPIEXEC = shutil.which(
    "mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)
needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None, reason="needs mpi4py and an MPI"
)
REPLICAS = ["--parallel", "replicas", "--device", "cpu"]


def mpiexec(ranks):
    version = subprocess.run([MPIEXEC, "--version"], capture_output=True, text=True).stdout
    free = "Open MPI" in version or "OpenRTE" in version or "prte" in version
    return [
        MPIEXEC,
        *(["--allow-run-as-root", "--oversubscribe"] if free else []),
        "-n",
        str(ranks),
    ]


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_of_mpiexec_train_the_same(photos, whole, tmp_path, ranks):
    out = tmp_path / "run"
    arguments = ["--data", photos, "--out", out, *SMALL, *REPLICAS]
    # With the threads given a rank need not start itself again, as it does to change them.
    threads = {} if ranks == 2 else dict.fromkeys(THREADS, "1")
    status, printed, err = run(arguments, mpiexec(ranks), **threads)
    assert status == 0, err
    assert printed.count("process ") == ranks and printed.count("validation top-1") == 1
    same_training(out, whole)


@needs_mpi
def test_under_mpiexec_a_mistake_is_one_line_and_a_killed_rank_ends_all(photos, whole, tmp_path):
    out = tmp_path / "run"
    arguments = ["--data", photos, "--out", out, *SMALL, *REPLICAS]
    threads = dict.fromkeys(THREADS, "1")
    status, _, err = run([*arguments, "--batch-size", "7"], mpiexec(2), **threads)
    assert status == 2 and err.count("\n") == 1 and "a batch of 7 cannot be divided" in err
    end = f"{int(signal.SIGKILL)},1,replicas.ReplicaTraining._gather,7"
    status, printed, err = run(arguments, mpiexec(2), END=end, **threads)
    pid = re.search(r"^rank 1: cpu on .*, process (\d+)$", printed, re.M)[1]
    assert status != 0 and pid in printed + err
    status, printed, err = run(["--resume", out, "--device", "cpu", "--parallel", "none"])
    assert status == 0 and "going on after step 6" in printed, err
    same_training(out, whole)


if __name__ == "__main__":
    import train_alexnet

    sys.exit(train_alexnet.main())
