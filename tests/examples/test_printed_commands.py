"""Every command that a program prints works as printed: each is run in a shell, where it was.

Not run, but checked for their parts: installations by pip, and what needs photos that are not here.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from marks import long
from photo_bytes import photo_folder

ROOT = Path(__file__).resolve().parents[2]
SMALL = "--device cpu --width 0.05 --image-size 64 --batch-size 4 --epochs 2"
TRAIN = f"{sys.executable} examples/train_alexnet.py"
COMMAND = re.compile(
    r"(?:^ {4}|: )((?:\S*python\S*|tinyconv) (?:-m tinyconv|\S+\.py|train) .*)$", re.M
)


@pytest.fixture
def home(tmp_path):
    """A folder with the programs, and photos of two classes."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    photo_folder(tmp_path / "my photos", train=6, val=3)
    return tmp_path


def run(command, home, **options):
    """Exit status, and what the command prints."""
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    environment |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, shell=True, cwd=home, env=environment, capture_output=True, text=True, **options
    )
    return done.returncode, done.stdout + done.stderr


def printed_commands(text):
    """The commands in what a program printed."""
    return [found.strip() for found in COMMAND.findall(text)]


def test_commands_are_found():
    text = (
        "next: python examples/train_alexnet.py --data 'a b'\n    /x/python -m tinyconv plan\nno: 1"
    )
    assert printed_commands(text) == [
        *("python examples/train_alexnet.py --data 'a b'", "/x/python -m tinyconv plan"),
    ]


# A run that stops itself at its third step, as Ctrl-C would.
STOPPED = f"""
import os, signal, sys
sys.path.insert(0, "examples")
sys.argv = ["examples/train_alexnet.py", *sys.argv[1:]]
import train_alexnet
from tinyconv.train import SingleStep
original = SingleStep.forward_backward
def step(self, x, labels, number):
    if number == int(os.environ["STOP_AT"]):
        os.kill(os.getpid(), {int(signal.SIGINT)})
    return original(self, x, labels, number)
SingleStep.forward_backward = step
sys.exit(train_alexnet.main())
"""


@pytest.mark.parametrize("elsewhere", [long(False), True])
def test_a_stopped_run_prints_how_it_is_resumed(elsewhere, home):
    """With the photos named relatively; and again with options that were given at a resumption."""
    (home / "stopped.py").write_text(STOPPED)
    begin = f"STOP_AT=2 {sys.executable} stopped.py --data 'my photos' --out 'my run' {SMALL}"
    status, printed = run(begin, home)
    (command,) = printed_commands(printed)
    assert status == 130 and "--resume 'my run'" in command, printed
    if elsewhere:
        # Resumed with more epochs, and stopped again: the command has to say so, too.
        more = f"STOP_AT=5 {sys.executable} stopped.py --resume 'my run' --epochs 3"
        status, printed = run(more, home)
        (command,) = printed_commands(printed)
        assert status == 130 and "--epochs 3" in command, printed
    status, printed = run(command, home)
    assert status == 0 and f"epoch   {3 if elsewhere else 2} " in printed, printed
    for following in printed_commands(printed):
        assert run(following, home)[0] == 0, following


@pytest.mark.full
def test_prepare_prints_a_command_that_trains(home):
    status, printed = run(
        f"{sys.executable} -m tinyconv prepare 'my photos' 'my file.h5' --size 73", home
    )
    (command,) = printed_commands(printed)
    assert status == 0 and "--data 'my file.h5'" in command
    status, printed = run(f"{command} --epochs 1 --width 0.05 --batch-size 4 --device cpu", home)
    assert status == 0, printed


@pytest.mark.full
def test_prepare_of_small_squares_prints_a_command_that_makes_larger_ones(home):
    status, printed = run(
        f"{sys.executable} -m tinyconv prepare 'my photos' small.h5 --size 32", home
    )
    (command,) = printed_commands(printed)
    status, printed = run(command, home)
    assert status == 0, printed
    (command,) = printed_commands(printed)
    status, printed = run(f"{command} --epochs 1 --width 0.05 --batch-size 4 --device cpu", home)
    assert status == 0, printed


@pytest.mark.full
def test_a_folder_that_is_a_run_already_names_resume(home):
    begin = f"{TRAIN} --data 'my photos' --out r {SMALL}"
    assert run(begin, home)[0] == 0
    status, printed = run(begin, home)
    assert status == 2 and "name another folder with --out (or resume it: --resume)" in printed
    assert run(f"{TRAIN} --resume r --epochs 3", home)[0] == 0


def test_missing_extras_are_named_as_setup_cfg_has_them():
    """`pip install -e '.[...]'` in messages: every extra exists."""
    setup = (ROOT / "setup.cfg").read_text()
    extras = set(re.findall(r"^([\w-]+) =$", setup.split("[options.extras_require]")[1], re.M))
    found = set()
    for folder in ("layers", "tinyconv", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for names in re.findall(r"'\.\[([\w,-]+)\]", path.read_text(encoding="utf-8")):
                found |= set(names.split(","))
    assert found and found <= extras
