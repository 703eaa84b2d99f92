"""Ranks that are killed, stopped, asked to end, or cannot start: one line, nobody left, it goes on.

`pytest --kills 40 tests/tinyconv/parallel/test_launch.py` kills forty more, at random moments.
"""

import importlib.util
import math
import os
import signal
import subprocess
import sys

import pytest
from rank_runs import (
    ROOT,
    SMALL,
    Kill,
    alive,
    environment,
    pids,
    random_kill,
    run,
    same_training,
    spawned,
    start,
)

from tinyconv.parallel import launch
from tinyconv.parallel.launch import Patience, Watch

SUM = "tinyconv.parallel.replicas_memory.add_in_order"
STEP = "tinyconv.parallel.replicas.ReplicaStep._backward"
PART = "tinyconv.parallel.replicas.part_of"

KILLS = [
    (2, Kill(0, "os.replace", 6), 1),  # a checkpoint is written, but not yet under its name
    (2, Kill(1, SUM, 5), 2),
    (4, Kill(2, PART, 2), 1),  # it validates
    (4, Kill(3, "os.fsync", 5, at=0), 1),  # the first rank writes a checkpoint
    (2, Kill(1, "", 0.5), 1),  # it imports
]


def pytest_generate_tests(metafunc):
    if "kill" in metafunc.fixturenames:
        count = metafunc.config.getoption("--kills")
        inside = "tinyconv.parallel.replicas_memory.SharedMemory._of"
        cases = KILLS + [random_kill(seed, inside) for seed in range(count)]
        metafunc.parametrize("ranks, kill, again", cases)


def go_on(alone, out, folder, ranks):
    """What a run printed that was resumed by so many ranks."""
    if ranks == 1:
        arguments = ["--resume", out, "--device", "cpu", "--parallel", "none"]
        status, printed = alone.run(arguments), alone.printed()
    else:
        status, printed, err = run(["--resume", out, *spawned(ranks)], folder)
        printed += err
    assert status == 0, printed
    return printed


def test_a_rank_that_is_killed_is_named_and_the_run_goes_on(
    alone, photos, whole, tmp_path, ranks, kill, again
):
    out, folder = tmp_path / "run", tmp_path / "ranks"
    arguments = ["--data", photos, "--out", out, *SMALL, *spawned(ranks)]
    status, _, err = run(arguments, folder, kill)
    assert status == 1 and err == (
        f"train_alexnet.py: rank {kill.rank} (cpu, process {pids(folder)[kill.rank]}) was killed by"
        " SIGKILL; the others have stopped; --resume and the run's folder go on from the last "
        "checkpoint\n"
    )
    if (out / "run.json").exists():  # it got so far
        printed = go_on(alone, out, tmp_path / "again", again)
        assert "resuming after step " in printed and "skipped a" not in printed
        same_training(out, whole)
    else:
        assert not kill.where


def test_a_rank_that_hangs_is_named_and_all_are_ended(alone, photos, whole, tmp_path):
    out, folder = tmp_path / "run", tmp_path / "ranks"
    arguments = ["--data", photos, "--out", out, *SMALL, *spawned(4), "--rank-timeout", "8"]
    status, _, err = run(arguments, folder, Kill(2, SUM, 5, signal=signal.SIGSTOP))
    assert status == 1 and err == (
        f"train_alexnet.py: rank 2 (cpu, process {pids(folder)[2]}) has kept the others waiting for"
        " 8 seconds, and all have been ended; --resume and the run's folder go on from the last "
        "checkpoint, --rank-timeout gives more time\n"
    )
    assert "resuming after step 4" in go_on(alone, out, tmp_path / "again", 1)
    same_training(out, whole)


def test_a_signal_to_one_rank_ends_all_after_the_same_step(alone, photos, whole, tmp_path):
    out = tmp_path / "run"
    arguments = ["--data", photos, "--out", out, *SMALL, *spawned(2)]
    kill = Kill(1, STEP, 7, signal=signal.SIGTERM)
    status, printed, err = run(arguments, tmp_path / "ranks", kill)
    assert (status, err) == (143, "") and "stopped after step 7 (epoch 2)" in printed
    assert max(path.name for path in out.glob("checkpoint-*")) == "checkpoint-000000007.h5"
    printed = go_on(alone, out, tmp_path / "again", 4)
    assert "resuming after step 7 (epoch 2)" in printed
    same_training(out, whole)


def test_ctrl_c_at_the_parent_reaches_the_ranks(photos, tmp_path):
    arguments = ["--data", photos, "--out", tmp_path / "run", *SMALL, *spawned(2)]
    process = start([*arguments, "--epochs", "100000"], tmp_path / "ranks")
    for line in process.stdout:
        if line.startswith("epoch "):
            break
    os.kill(process.pid, signal.SIGINT)
    printed, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err == "" and "stopped after step" in printed


def test_with_the_parent_killed_no_rank_stays(photos, tmp_path):
    folder = tmp_path / "ranks"
    arguments = ["--data", photos, "--out", tmp_path / "run", *SMALL, *spawned(2)]
    process = start([*arguments, "--epochs", "100000"], folder)
    for line in process.stdout:
        if line.startswith("epoch "):
            break
    os.kill(pids(folder)[1], signal.SIGSTOP)  # not even one that hangs
    process.kill()
    process.communicate(timeout=30)  # standard output ends when the last rank has closed it
    assert len(pids(folder)) == 2 and not any(alive(pid) for pid in pids(folder).values())


MISTAKES = {
    "kinds": (["--parallel", "replicas", "--device", "cpu,cuda:0"], "devices of one kind"),
    "gap": (["--parallel", "replicas", "--device", "cpu,,cpu"], "devices of one kind"),
    "autos": (["--parallel", "replicas", "--device", "auto,auto"], "devices of one kind"),
    "no parallel": (["--device", "cpu,cpu"], "add --parallel replicas"),
    "no time": ([*spawned(2), "--rank-timeout", "nan"], "--rank-timeout must be positive, not nan"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_wrong_options_are_one_line_and_status_2(name, photos, tmp_path, capsys):
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
    arguments = ["--data", photos, "--out", out, *SMALL, *spawned(2), "--batch-size", "7"]
    status, _, err = run(arguments, tmp_path / "ranks")
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
wrong = [name for name in sys.modules if name.partition(".")[0] in ("mpi4py", "cupy")]
wrong += [name for name in sys.modules if name.rpartition(".")[2] == "nccl"]
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
        if self.killed:
            return -9
        return None if self.lives > 0 else self.status

    def kill(self):
        self.killed = True

    def join(self):
        os.close(self.sentinel)


@pytest.mark.parametrize("status, failed", [(143, False), (0, False), (-9, True), (2, True)])
def test_ranks_are_killed_after_a_failure_but_not_while_they_stop(monkeypatch, status, failed):
    monkeypatch.setattr(launch, "GRACE", -1)
    first, other = Ended(5, 143), Ended(0, status)
    watch = Watch([first, other], [], Patience([0, 0], math.inf))
    watch.run()
    assert first.killed == failed and not other.killed
    # Not the one that was killed here.
    assert watch.first == (1 if failed else None) and watch.lines == watch.late == []


def test_ranks_that_are_late_are_killed(monkeypatch):
    ranks = [Ended(5, 0), Ended(5, 0), Ended(5, 0)]
    watch = Watch(ranks, [], Patience([7, 4, 4], 0.0))
    watch.run()
    assert watch.late == [1, 2] and all(rank.killed for rank in ranks)


def test_patience_is_for_ranks_that_others_wait_for(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(launch.time, "monotonic", lambda: now[0])
    board = [2, 2, 2]
    patience = Patience(board, 3.0)

    def look(*numbers, after=1.0):
        now[0] += after
        board[:] = numbers
        return patience.late()

    # All compute, as long as they like.
    assert [look(2, 2, 2) for _ in range(9)] == [[]] * 9
    # Two wait for the first, which comes at the last moment; then for the second.
    assert [look(2, 3, 3) for _ in range(3)] == [[]] * 3
    assert [look(5, 4, 5) for _ in range(3)] == [[]] * 3
    # Whoever looks has been stopped for an hour, and the ranks with it.
    assert look(5, 4, 5, after=3600.0) == [1]
    board[:] = [5, 5, 5]
    patience = Patience(board, 3.0)
    assert look(5, 5, 4) == look(5, 5, 4, after=3600.0) == [] and look(5, 5, 4) == [2]
    # The root of a broadcast does not wait, and is not late, but far ahead.
    patience = Patience(board, 1.0)
    assert [look(6, 3, 4) for _ in range(9)] == [[]] * 9
    assert [look(8, 4, 4) for _ in range(2)][-1] == [1, 2]
