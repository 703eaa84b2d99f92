"""Training that is killed, stopped, starved of disk or given damaged files, and goes on."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from fork_server import ForkServer
from photo_bytes import photo_folder, plain, put

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")

SCRIPT = Path(__file__).parents[2] / "examples" / "train_alexnet.py"
SMALL = ["--device", "cpu", "--width", "0.05", "--image-size", "64", "--batch-size", "4"]
OPTIONS = [*SMALL, "--epochs", "4", "--lr", "0.02", "--recipe", "authors", "--drops", "2,4"]
"""With colour noise, dropout, two drops and a bare last stage: everything that draws or changes."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ForkServer(SCRIPT, tmp_path_factory.mktemp("log") / "printed") as server:
        yield server


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photo_folder(tmp_path_factory.mktemp("data") / "photos", train=12, val=4)


@pytest.fixture(scope="module")
def whole(server, photos, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    status = server.run(["--data", photos, "--out", out, "--checkpoint-steps", 5, *OPTIONS])
    assert status == 0, server.printed()
    return out


def same_results(out, whole):
    """Weights, the newest checkpoint and the best one byte by byte; metrics but for the times."""
    newest = max(path.name for path in whole.glob("checkpoint-*.h5"))
    for name in ("weights.h5", newest, "best.h5"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert metrics(out) == metrics(whole)


def metrics(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timing = ("seconds", "images_per_second", "waited", "val_seconds", "ended")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


@pytest.mark.full
def test_killed_at_thirty_moments_it_ends_with_the_same_bytes(server, photos, whole, tmp_path):
    moments, runs, out = random.Random(1), 0, tmp_path / "run0"
    started = time.monotonic()
    assert server.run(["--data", photos, "--out", tmp_path / "timed", *OPTIONS]) == 0
    duration = min(1.0, time.monotonic() - started)  # on this machine, under its present load

    def go_on(kill_after=None):
        """The status of a run that begins, or goes on from whatever the last one left."""
        nonlocal out, runs
        begun = (out / "run.json").exists()
        arguments = ["--resume", out] if begun else ["--data", photos, "--out", out, *OPTIONS]
        status = server.run([*arguments, "--checkpoint-steps", 2], kill_after=kill_after)
        assert status in (0, -9), server.printed()
        if status == 0:
            same_results(out, whole)
            runs, out = runs + 1, tmp_path / f"run{runs + 1}"
        return status

    kills = 0
    while kills < 30:
        kills += go_on(kill_after=moments.uniform(0.02, 0.9) * duration) == -9
    assert go_on() == 0 and runs > 0


@pytest.mark.parametrize("number, expected", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_end_it_finishes_the_step_and_says_how_to_resume(
    server, photos, whole, tmp_path, number, expected
):
    out = tmp_path / "run"
    # The signal comes in the middle of step 8, from the step itself: the moment is certain.
    prelude = f"""
import signal
from tinyconv.train import SingleStep
original, calls = SingleStep.forward_backward, []
def step(self, *arguments):
    calls.append(1)
    if len(calls) == 8:
        os.kill(os.getpid(), {int(number)})
    return original(self, *arguments)
SingleStep.forward_backward = step
"""
    status = server.run(["--data", photos, "--out", out, *OPTIONS], prelude=prelude)
    assert status == expected, server.printed()
    assert "stopped after step 8 (epoch 2)" in server.printed()
    assert f"--resume {out}" in server.printed()
    assert max(p.name for p in out.glob("checkpoint-*")) == "checkpoint-000000008.h5"
    assert server.run(["--resume", out, "--checkpoint-steps", 5]) == 0
    assert "resuming after step 8 (epoch 2)" in server.printed()
    same_results(out, whole)


def test_a_full_disk_is_one_line_and_the_run_can_be_resumed(server, photos, whole, tmp_path):
    out = tmp_path / "run"
    arguments = ["--data", photos, "--out", out, "--checkpoint-steps", 5, *OPTIONS]
    size = max(path.stat().st_size for path in whole.glob("checkpoint-*"))
    limit = "import resource; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "from tinyconv.run.run_folder import RunFolder\n"
    limit += "def full(path, *rest, real=RunFolder.save):\n"
    limit += "    if rest[0].progress.step == 10:\n"
    limit += f"        resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))\n"
    limit += "    return real(path, *rest)\n"
    limit += "RunFolder.save = full\n"
    assert server.run(arguments, prelude=limit) == 2
    printed = server.printed().splitlines()
    assert printed[-1].startswith("train_alexnet.py: error: the disk is full (")
    assert "File too large" in printed[-1] and "resume the run with --resume" in printed[-1]
    assert "Traceback" not in server.printed()
    assert not list(out.glob(".*"))
    assert server.run(["--resume", out]) == 0
    assert "resuming after step 6" in server.printed() or "step 5" in server.printed()
    same_results(out, whole)


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 8
    path.write_bytes(data[: len(data) // 3] if how == "cut" else data)


@pytest.fixture
def stopped(server, photos, tmp_path):
    """A run that was killed in its third epoch; with two checkpoints."""
    out = tmp_path / "run"
    prelude = """
from tinyconv.train import SingleStep
original = SingleStep.forward_backward
def step(self, *arguments):
    if arguments[2] == 14:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *arguments)
SingleStep.forward_backward = step
"""
    arguments = ["--data", photos, "--out", out, "--checkpoint-steps", 5, *OPTIONS]
    assert server.run(arguments, prelude=prelude) == -9
    assert [p.name for p in sorted(out.glob("checkpoint-*"))] == [
        "checkpoint-000000010.h5",
        "checkpoint-000000012.h5",
    ]
    return out


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(server, stopped, whole, how):
    damage(stopped / "checkpoint-000000012.h5", how)
    assert server.run(["--resume", stopped]) == 0
    assert "skipped a checkpoint: " in server.printed()
    assert "checkpoint-000000012.h5: is damaged" in server.printed()
    assert "resuming after step 10 (epoch 2)" in server.printed()
    same_results(stopped, whole)


def test_with_every_checkpoint_damaged_it_says_so(server, stopped):
    for path in stopped.glob("checkpoint-*"):
        damage(path, "flip")
    assert server.run(["--resume", stopped]) == 2
    assert server.printed().count("is damaged") == 2


def test_resuming_with_other_options_or_photos_is_refused_with_the_difference(
    server, photos, stopped, tmp_path
):
    for options, message in (
        (["--lr", "0.5"], "--lr is 0.02 there, not 0.5"),
        (["--seed", "0", "--width", "0.1"], "--width is 0.05 there, not 0.1"),
        (["--recipe", "paper"], "--recipe is 'authors' there, not 'paper'"),
    ):
        assert server.run(["--resume", stopped, *options]) == 2
        assert message in server.printed(), server.printed()
    other = tmp_path / "other"
    for path in photos.rglob("*.png"):
        target = other / path.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    put(other / "val" / "dark" / "0.png", plain((0, 0, 0), (80, 70)))
    assert server.run(["--resume", stopped, "--data", other]) == 2
    assert "validation photos: the checkpoint has '" in server.printed()


def test_the_same_photos_elsewhere_will_do(server, photos, stopped, whole, tmp_path):
    moved = tmp_path / "moved"
    os.symlink(photos, moved)
    assert server.run(["--resume", stopped, "--data", moved]) == 0
    same_results(stopped, whole)


def test_more_epochs_can_be_asked_for(server, photos, whole, tmp_path):
    out = tmp_path / "run"
    arguments = [*OPTIONS, "--epochs", "3"]
    assert server.run(["--data", photos, "--out", out, *arguments]) == 0
    assert server.run(["--resume", out, "--epochs", 4]) == 0
    same_results(out, whole)


def test_two_processes_do_not_train_into_one_folder(server, photos, whole):
    prelude = """
import subprocess
from tinyconv.run.run_folder import RunFolder
held = RunFolder.reopen(sys.argv[2] if len(sys.argv) > 2 else job["arguments"][1])
"""
    assert server.run(["--resume", whole], prelude=prelude) == 2
    assert "another process is training into" in server.printed()


def test_folders_that_are_no_runs(server, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("[1, 2")
    for folder, message in (
        (tmp_path / "absent", "has no run.json"),
        (tmp_path, "has no run.json"),
        (tmp_path / "broken", "is damaged"),
    ):
        assert server.run(["--resume", folder]) == 2
        assert message in server.printed() and server.printed().count("\n") == 1
