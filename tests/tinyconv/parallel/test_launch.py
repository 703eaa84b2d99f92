"""Ranks that train, fail, are killed, or are asked to stop: by spawn, by mpiexec, and as threads.

`pytest --kills 40 tests/tinyconv/parallel/test_launch.py` kills forty more of each, at random
moments.
"""

import os
import re
import signal
import time
from types import SimpleNamespace

import pytest
from marks import long
from programs import environment, run_program
from rank_runs import (
    SMALL,
    STEP,
    SUM,
    VALIDATION,
    Kill,
    has_mpi,
    pids,
    random_kill,
    run,
    said,
    same_training,
    start,
    start_endless,
    wait_until_none_is_left,
)
from rank_threads import connected, explain, on_all

from layers import Device, DeviceError
from tinyconv.parallel import launch
from tinyconv.parallel.communicator import LOST
from tinyconv.parallel.launch import THREADS, device_of, run_rank, under_mpi
from tinyconv.run.checkpoint import load_model
from tinyconv.train import TrainingError

SPAWN, MPIEXEC = "spawn", "mpiexec"
both = pytest.mark.parametrize("how", [SPAWN, MPIEXEC])

KILLS = [
    (SPAWN, 2, Kill(0, "os.replace", 6), 1),  # a checkpoint is written, but not yet under its name
    (SPAWN, 2, Kill(1, SUM, 5), 2),
    (SPAWN, 4, Kill(2, VALIDATION, 2), 1),
    (SPAWN, 4, Kill(3, "os.fsync", 5, at=0), 1),  # the first rank writes a checkpoint
    (SPAWN, 2, Kill(1, "", 0.5), 1),  # it imports
    (MPIEXEC, 4, Kill(2, SUM, 5), 1),
]


def pytest_generate_tests(metafunc):
    if "kill" in metafunc.fixturenames:
        count = metafunc.config.getoption("--kills")
        more = [(how, *random_kill(seed)) for how in (SPAWN, MPIEXEC) for seed in range(count)]
        metafunc.parametrize("how, ranks, kill, again", KILLS + more)


@pytest.fixture(autouse=True)
def mpi(request):
    """Tests under mpiexec need one."""
    if getattr(request.node, "callspec", None) and MPIEXEC in request.node.callspec.params.values():
        has_mpi or pytest.skip("needs mpi4py and an MPI")


def resume(alone, how, out, folder, ranks):
    """What a run printed that was resumed by so many ranks."""
    if ranks == 1:
        arguments = ["--resume", out, "--device", "cpu", "--parallel", "none"]
        status, printed = alone.run(arguments), alone.printed()
    else:
        status, printed, err = run(how, ranks, ["--resume", out], folder)
        printed += err
    assert status == 0, printed
    return printed


@pytest.mark.full
def test_a_rank_is_killed_and_the_run_resumes(
    alone, photos, whole, tmp_path, how, ranks, kill, again
):
    out, folder = tmp_path / "run", tmp_path / "ranks"
    status, printed, err = run(how, ranks, ["--data", photos, "--out", out, *SMALL], folder, kill)
    if how == SPAWN:
        pid = pids(folder)[kill.rank]
        assert status == 1 and said(how, err) == [
            f"train_alexnet.py: rank {kill.rank} (cpu, process {pid}) was killed by SIGKILL; the "
            "others have stopped; --resume and the run's folder continue from the last checkpoint"
        ]
    else:  # mpiexec reports some process that has ended
        assert status != 0 and said(how, err) == []
        assert not kill.where or f"rank {kill.rank}: cpu on " in printed
    if (out / "run.json").exists():  # it got so far
        printed = resume(alone, how, out, tmp_path / "again", again)
        assert "resuming after step " in printed and "skipped a" not in printed
        same_training(out, whole)
    else:
        assert not kill.where


@pytest.mark.full
@pytest.mark.parametrize("others", [(SPAWN, MPIEXEC)])
def test_spawn_and_mpiexec_give_the_same_bits(photos, whole, tmp_path, others):
    weights = []
    for how in others:
        out, folder = tmp_path / how, tmp_path / f"{how} ranks"
        status, printed, err = run(how, 4, ["--data", photos, "--out", out, *SMALL], folder)
        assert status == 0, err
        assert printed.count("validation top-1") == 1
        for rank, pid in pids(folder).items():
            assert f"rank {rank}: cpu on {os.uname().nodename}, process {pid}\n" in printed
        same_training(out, whole)
        weights.append([p.value.tobytes() for p in load_model(out / "weights.h5").net.parameters()])
    assert len(weights[0]) == 16 and weights[0] == weights[1]


@pytest.mark.full
@both
def test_a_signal_to_one_rank_ends_all_after_the_same_step(alone, how, photos, whole, tmp_path):
    out, kill = tmp_path / "run", Kill(1, STEP, 7, signal=signal.SIGTERM)
    arguments = ["--data", photos, "--out", out, *SMALL]
    status, printed, err = run(how, 2, arguments, tmp_path / "ranks", kill)
    assert (status, said(how, err)) == (143, []) and "stopped after step 7 (epoch 2)" in printed
    assert max(path.name for path in out.glob("checkpoint-*")) == "checkpoint-000000007.h5"
    printed = resume(alone, how, out, tmp_path / "again", 1)
    assert "resuming after step 7 (epoch 2)" in printed
    same_training(out, whole)


@pytest.mark.full
@pytest.mark.parametrize(
    "how, number", [(SPAWN, signal.SIGINT), (SPAWN, signal.SIGTERM), (MPIEXEC, signal.SIGINT)]
)
def test_a_signal_to_the_parent_reaches_the_ranks(how, photos, tmp_path, number):
    process = start_endless(how, photos, tmp_path)
    os.kill(process.pid, number)
    printed, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert said(how, err) == [] and "stopped after step" in printed
    wait_until_none_is_left(tmp_path / "ranks")


@pytest.mark.full
def test_ctrl_c_while_ranks_import_is_one_line(photos, tmp_path):
    folder = tmp_path / "ranks"
    process = start(SPAWN, 2, ["--data", photos, "--out", tmp_path / "run", *SMALL], folder)
    while len(list(folder.glob("rank.*"))) < 2:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "train_alexnet.py: interrupted\n")
    wait_until_none_is_left(folder)


@pytest.mark.full
def test_ctrl_c_twice_ends_a_run_in_which_a_rank_hangs(photos, tmp_path):
    process = start_endless(SPAWN, photos, tmp_path)
    os.kill(pids(tmp_path / "ranks")[1], signal.SIGSTOP)
    for _ in range(2):
        time.sleep(0.5)  # two signals at once may arrive as one
        os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    wait_until_none_is_left(tmp_path / "ranks")


@pytest.mark.full
@both
def test_with_the_parent_killed_no_rank_stays(how, photos, tmp_path):
    process = start_endless(how, photos, tmp_path)
    process.kill()
    process.communicate(timeout=30)  # standard output ends when the last rank has closed it
    assert len(pids(tmp_path / "ranks")) == 2
    wait_until_none_is_left(tmp_path / "ranks")


BATCH_OF_7 = "a batch of 7 cannot be divided among 2 processes: use --batch-size 6 or 8"
NO_MPI4PY = (
    "started by mpiexec, and mpi4py cannot be used (there is none): pip install -e '.[mpi]' "
)


@pytest.mark.parametrize(
    "how, options, message",
    [
        (SPAWN, ["--batch-size", "7"], BATCH_OF_7),
        long(MPIEXEC, ["--batch-size", "7"], BATCH_OF_7),
        long(MPIEXEC, ["--resume", "none"], "none"),
        long(MPIEXEC, "no mpi4py", f"{NO_MPI4PY}mpich"),
    ],
)
def test_a_mistake_of_all_ranks_is_one_line_and_status_2(how, options, message, photos, tmp_path):
    out, more = tmp_path / "run", {}
    arguments = ["--data", photos, "--out", out, *SMALL, *options]
    if options == "no mpi4py":
        (tmp_path / "mpi4py.py").write_text("raise ImportError('there is none')")
        more["PYTHONPATH"] = os.pathsep.join((str(tmp_path), environment()["PYTHONPATH"]))
        arguments = arguments[: -len(options)]
    if "--resume" in options:
        arguments = options
    status, _, err = run(how, 2, arguments, tmp_path / "ranks", **more)
    (line,) = said(how, err)
    assert status == 2 and not out.exists()
    assert line.startswith("train_alexnet.py: error: ") and message in line


def test_several_devices_without_parallel_are_one_line_and_status_2(alone, photos, tmp_path):
    out = tmp_path / "run"
    assert alone.run(["--data", photos, "--out", out, *SMALL, "--device", "cpu,cpu"]) == 2
    (line,) = alone.printed().splitlines()
    assert line.startswith("train_alexnet.py: error: ") and not out.exists()
    assert "add --parallel replicas" in line


@pytest.mark.full
def test_one_process_imports_neither_mpi_nor_nccl(photos, tmp_path):
    arguments = ["--data", str(photos), "--out", str(tmp_path / "run"), *SMALL, "--epochs", "1"]
    arguments += ["--parallel", "replicas", "--device", "cpu"]
    program = f"""
import sys, train_alexnet
assert train_alexnet.main({arguments!r}) == 0
wrong = [name for name in sys.modules if name.partition(".")[0] in ("mpi4py", "cupy")]
wrong += [name for name in sys.modules if name.endswith("cuda.nccl")]
assert not wrong, wrong
"""
    status, _, err = run_program("-c", program)
    assert status == 0, err


# --- the parent; the ranks are functions of this file


def together(replica):
    """Come to where ranks fail one by one."""
    replica.broadcast()
    replica.begun = True


def ends(options, replica):
    """One rank ends as `options` say: by a signal (negative) or with a status."""
    together(replica)
    how = options.ends[replica.rank]
    if how < 0:
        os.kill(os.getpid(), -how)
    if how == 70:
        os._exit(how)
    return how


def hangs(options, replica):
    """Rank 1 fails while rank 0 neither computes nor waits for it."""
    together(replica)
    if replica.rank:
        raise ValueError("no room")
    signal.pause()


@pytest.fixture
def one_thread(monkeypatch):
    """`spawn` sets what the environment does not say."""
    for name in THREADS:
        monkeypatch.setenv(name, "1")


@pytest.mark.full
@pytest.mark.parametrize(
    "ends_by, status, line",
    [
        ((0, 0), 0, ""),
        ((0, -11), 1, r"program: rank 1 \(cpu, process \d+\) was killed by SIGSEGV; the others"),
        ((70, 0), 1, r"program: rank 0 \(cpu, process \d+\) ended with status 70; the others"),
        ((143, 143), 143, ""),
    ],
)
def test_the_parent_reports_how_ranks_end(capsys, one_thread, ends_by, status, line):
    options = SimpleNamespace(device="cpu,cpu", ends=ends_by)
    assert launch.spawn(ends, options, explain, "program") == status
    err = capsys.readouterr().err
    assert re.match(line, err) and err.count("\n") == (1 if line else 0)


def test_a_rank_that_does_not_notice_a_failure_is_killed(monkeypatch, capsys, one_thread):
    monkeypatch.setattr(launch, "GRACE", 0.1)
    assert launch.spawn(hangs, SimpleNamespace(device="cpu,cpu"), explain, "program") == 2
    assert capsys.readouterr().err == "error: rank 1 (cpu): no room\n"


def test_mpiexec_is_recognised_by_its_environment_variables(monkeypatch):
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not under_mpi()
    monkeypatch.setenv("PMI_SIZE", "1")
    assert not under_mpi()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert under_mpi()


# --- ranks that are threads


class FakeGPU:
    """A device of some name; the text after the space is compared."""

    is_cuda, is_simulated = True, False
    xp = SimpleNamespace(__name__="no_cupy", cuda=None)

    def __init__(self, name):
        self.name, _, self.kind = name.partition(" ")
        if self.kind == "missing":
            raise DeviceError(f"{self.name}: there is no such GPU")

    def use(self):
        return self

    def __str__(self):
        return f"{self.name}, {self.kind}"


def all_run(devices, work=None):
    """The exit statuses of ranks with devices of these names, and all lines that they told."""
    told, options = [], SimpleNamespace(device=devices)

    def one(rank):
        return run_rank(work, rank, lambda: options, explain, lambda *line: told.append(line[1]))

    return on_all(connected(devices.count(",") + 1), one), told


USE = "use 'cpu', 'cuda:0' (or another index) or 'auto'"
DEVICES = {
    "missing": ("cuda:0 A,cuda:1 missing", "rank 1 (cuda:1 missing): cuda:1: there is no such GPU"),
    "unequal": (
        "cuda:0 A,cuda:1 A,cuda:2 B",
        "replicas need equal devices: rank 0 has A, rank 2 has B; leave one out of --device",
    ),
    "used twice": (
        "cuda:0 A,cuda:0 A",
        "two ranks use cuda:0 on here: --device cuda:0,cuda:1,... names one for each",
    ),
    "without NCCL": (
        "cuda:0 A,cuda:1 A",
        "cuda:0: NCCL is missing (No module named 'no_cupy'): pip install -e '.[nccl12]' or "
        "'.[nccl13]', whichever CUDA CuPy is for",
    ),
    "no device": ("cpu,gpu:7", f"rank 1 (gpu:7): device 'gpu:7': {USE}"),
    "no name": ("cpu,,cpu", f"device '': {USE}"),
    "two kinds": (
        "cpu,cuda:0 A",
        "replicas need equal devices: rank 0 has the host, rank 1 has A; leave one out of --device",
    ),
}


@pytest.mark.parametrize("devices, message", DEVICES.values(), ids=DEVICES)
def test_devices_that_cannot_be_used_are_reported_once(monkeypatch, devices, message):
    monkeypatch.setattr(
        launch, "Device", lambda name: FakeGPU(name) if "cuda" in name else Device(name)
    )
    monkeypatch.setattr(launch.socket, "gethostname", lambda: "here")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    found, told = all_run(devices)
    assert told == [f"error: {message}"]
    # A rank that ends because of another one's error has its status.
    assert found == [2] * len(found)


def fails(errors, begun=True):
    """Work in which some ranks raise their errors."""

    def work(_, replica):
        if begun:
            together(replica)
        if replica.rank in errors:
            raise errors[replica.rank]
        replica.broadcast()

    return work


GONE, NAN, BY_ZERO = ValueError("gone"), TrainingError("nan"), ZeroDivisionError("by zero")
STOP = KeyboardInterrupt()


@pytest.mark.parametrize(
    "errors, begun, statuses, line",
    [
        ({1: GONE}, False, [2, 2, 2], "error: rank 1 (cpu): gone"),
        ({0: GONE, 1: GONE, 2: GONE}, False, [2, 2, 2], "error: gone"),
        ({2: GONE}, True, [LOST, LOST, 2], "error: rank 2 (cpu): gone"),
        ({0: NAN, 1: NAN, 2: NAN}, True, [1, 1, 1], "nan"),
        ({0: STOP}, False, [130, LOST, LOST], "interrupted"),
        ({0: STOP, 1: GONE, 2: GONE}, False, [130, LOST, LOST], "interrupted"),
        ({2: BY_ZERO}, True, [LOST, LOST, 1], "rank 2 (cpu): Traceback ... by zero"),
    ],
)
def test_a_failure_ends_all_ranks_and_is_reported_once(errors, begun, statuses, line):
    found, (told,) = all_run("cpu,cpu,cpu", fails(errors, begun))
    begin, _, end = line.partition(" ... ")
    assert found == statuses and told.startswith(begin) and told.endswith(end or begin)


def test_a_rank_has_the_device_of_its_place_among_those_of_its_host():
    hosts = ["a", "b", "a", "b"]
    found = [device_of("cuda:2,cuda:5", hosts, rank) for rank in range(4)]
    assert found == ["cuda:2", "cuda:2", "cuda:5", "cuda:5"]
    assert [device_of("cpu", hosts, rank) for rank in range(4)] == ["cpu"] * 4
    # Every rank finds it, also on the host where there is one for each.
    for rank in range(4):
        with pytest.raises(ValueError, match=r"cpu,cpu names 2 devices, and b has 3 ranks: name"):
            device_of("cpu,cpu", ["a", "b", "b", "b"], rank)
