"""One command for a machine with a GPU: which kernels are right, how fast they are, and PyTorch's.

    python benchmarks/gpu_day.py                # nine minutes; benchmarks/results/<date>-<gpu>.md
    python benchmarks/gpu_day.py --minutes 4    # every stage shorter: fewer repeats, fewer cases
    python benchmarks/gpu_day.py --stages abj   # some of the stages
    python benchmarks/gpu_day.py --rehearse     # the same code without a GPU, on tiny shapes

The first line on standard output is the verdict on the kernels. Stages, the most valuable first:

    a  versions, clocks, ceilings         f  every convolution beside cuDNN
    b  every kernel beside the host       g  the other layers; each launch of a step, predicted too
    c  losses of twenty steps             h  the paper's two columns on one GPU
    d  the main job, and its throughput   i  compute-sanitizer on a short list
    e  whole steps beside PyTorch         j  tiles; writes layers/fast/conv/tiles.json
    k  switches of the kernels, each with its default and turned

Each stage is a process of its own with a share of the minutes, b and k are several. One that hangs
is killed, one that dies is started again behind the case that killed it. The report, Markdown and
JSON, is replaced after each case: whatever ends the visit leaves what was found until then. On a
GPU one stage runs after the other, as they are timed; in a rehearsal as many as there are cores.

Needs NumPy, Numba, numba-cuda, CuPy, h5py and Pillow, and nothing from a network. What else is
missing is said. Data are random, other ones in each run; the seed is in the report.

Exit status 0: everything ran and is right; 1: something failed; 2, and one line: no GPU.
"""

import argparse
import datetime
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from gpu_report import SWITCHES, Report, ms, verdict  # noqa: E402
from machine import gpu_count  # noqa: E402
from runner import Case, Result, run_cases  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
OPTIONAL = "tqdm", "greenlet", "matplotlib", "torch"
SILENT = 45.0
"""Seconds without a word of stage b after which its process is taken to hang."""
UNLIMITED = 1e9
"""Minutes of a rehearsal."""


STAGES = {
    **{"a": (0.4, "ceilings"), "b": (1.8, "kernels"), "c": (1.1, "losses"), "d": (1.0, "training")},
    **{"e": (1.3, "steps"), "f": (0.9, "convolutions"), "g": (0.6, "launches")},
    **{"h": (0.2, "columns"), "i": (0.5, "sanitizer"), "j": (0.4, "tiles"), "k": (0.8, "switches")},
}
"""Minutes of nine (others in proportion), and the section of the first results."""


# --- the processes of a stage


class Watched:
    """A process that is killed at `until`, or after `silent` seconds without `heard()`."""

    def __init__(self, command: list[str], log: Any, until: float, silent: float) -> None:
        self.until, self.silent, self.why = until, silent, ""
        self.heard()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # its end tells the process that this one is gone
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        threading.Thread(target=self._watch, daemon=True).start()

    def heard(self) -> None:
        self.last = time.monotonic()

    def _watch(self) -> None:
        while self.process.poll() is None and not self.why:
            now = time.monotonic()
            if now >= self.until:
                self.why = "the stage's time was over"
            elif now >= self.last + self.silent:
                self.why = f"killed after {self.silent:.0f} s without an answer"
            time.sleep(0 if self.why else 0.1)
        if self.why:
            with suppress(ProcessLookupError):  # and what it has started
                os.killpg(self.process.pid, signal.SIGKILL)

    def how_it_ended(self) -> str:
        """Why its case has no result."""
        status = self.process.wait()
        if status < 0 and not self.why:
            self.why = f"the process was killed by {signal.Signals(-status).name}"
        return f"failed: {self.why or f'the process ended with status {status}'}"


def run_share(
    letter: str, report: Report, command: list[str], until: float, silent: float, number: int
) -> None:
    """A share of a stage's cases; a process that dies is replaced, behind the case it died of.

    silent: seconds without a message after which a process is killed.
    """
    skip, begun = 0, True
    while begun:
        case: list[str] = []
        with open(report.path.with_suffix(".log"), "ab") as log:
            rest = ["--share", str(number), "--skip", str(skip)]
            child = Watched([*command, *rest], log, until, silent)
        assert child.process.stdout is not None
        for line in child.process.stdout:
            child.heard()
            try:
                message = json.loads(line)
            except ValueError:
                continue  # cut off
            if "begin" in message:
                case = message["begin"]
                continue
            report.add(message)
            if "section" in message:
                say(Result(**message))
                case, skip = [], skip + 1
            if message.get("complete"):
                child.process.wait()
                return
        section = STAGES[letter][1] if letter in STAGES else "launches"
        what = case or [section, f"stage {letter}", "its process"]
        result = Result(*what, why=child.how_it_ended())
        report.add(asdict(result))
        say(result)
        begun, skip = bool(case) and time.monotonic() < until, skip + 1


def shares_of(
    letter: str, report: Report, command: list[str], limit: float, silent: float, shares: int = 1
) -> list[Callable[[], None]]:
    """What runs a stage within `limit` seconds, from now: a function for each of its shares."""
    command = [*command, "--child", letter, "--shares", str(shares)]
    command += ["--limit", f"{0.92 * limit:.1f}"]
    rest = letter, report, command, time.monotonic() + limit, silent
    return [partial(run_share, *rest, number) for number in range(shares)]


def run_all(tasks: list[Callable[[], None]], at_a_time: int) -> None:
    """Call all of them, in order."""
    left = iter(tasks)

    def work() -> None:
        for task in left:
            task()

    # Daemons: they must not keep the process alive that a Ctrl-C ends.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(at_a_time)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def say(result: Result) -> None:
    """One line for each case, on standard error."""
    took = result.why or "right"
    if result.seconds:
        took = f"{ms(result.median)} ms, {len(result.seconds)} times"
    print(f"{result.section}: {result.what}, {result.who}: {took}", file=sys.stderr, flush=True)


# --- within such a process


def child(options: argparse.Namespace) -> int:
    """Run this process's share of a stage's cases, and write what is found to standard output."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print isn't a message

    def leave_with_the_parent() -> None:
        while os.read(0, 1):
            pass
        os.killpg(0, signal.SIGKILL)

    def send(**message: Any) -> None:
        stream.write(json.dumps(message) + "\n")
        stream.flush()

    if not options.alone:
        threading.Thread(target=leave_with_the_parent, daemon=True).start()
    import gpu_bench
    import gpu_stages
    import gpu_switches

    if options.child == "predict":
        send(predicted=gpu_stages.predictions(options.device), complete=True)
        return 0
    bench, clock = gpu_bench.bench_and_clock(
        options.child, options.device, options.rehearse, options.seed
    )
    if options.child == "k":
        clock = gpu_switches.Alone(clock)
    send(**gpu_stages.facts(options.child, bench, clock))
    cases = gpu_stages.cases_of(options.child, bench, options)
    cases = cases[options.share :: options.shares][options.skip :]
    found = []
    checking = options.child == "b"  # elsewhere it would take time from what is timed
    with gpu_bench.launches() if checking else nullcontext([]) as made:
        for each in run_cases(cases, clock, options.limit):
            if isinstance(each, Case):
                send(begin=each[:3])
                continue
            if checking:
                each.notes["kernels"] = sorted({f"{x.name} {x.dtype}".strip() for x in made})
                made.clear()
            found.append(each)
            send(**asdict(each))
    if options.child == "j" and not options.rehearse:
        gpu_stages.write_tiles(found, bench)
    send(complete=True)
    return int(any(each.why.startswith("failed") for each in found))


# --- command line


def stage_letters(text: str) -> str:
    """In order, without repetitions."""
    if not text or set(text) - set(STAGES):
        raise argparse.ArgumentTypeError(f"{text!r}: use letters of {''.join(STAGES)}")
    return "".join(letter for letter in STAGES if letter in text)


def arguments_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=9.0, help="for all stages, on a GPU (default 9)")
    add("--stages", type=stage_letters, default="".join(STAGES), help="letters (default: all)")
    add("--device", default="cuda:0")
    add("--seed", type=int, default=secrets.randbelow(2**32), help="of the data")
    add("--out", type=Path, default=RESULTS, help="folder for the report")
    add("--rehearse", action="store_true", help="without a GPU: tiny shapes")
    for name in ("--child", "--only"):
        add(name, default="", help=argparse.SUPPRESS)
    for name in ("--share", "--skip"):
        add(name, type=int, default=0, help=argparse.SUPPRESS)
    add("--shares", type=int, default=1, help=argparse.SUPPRESS)
    add("--limit", type=float, default=UNLIMITED, help=argparse.SUPPRESS)
    add("--alone", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """0: all is right; 1: something failed; 2: no GPU."""
    options = arguments_of(arguments)
    if options.child:
        return child(options)
    rehearse, cores = options.rehearse, os.cpu_count() or 1
    error = f"--device {options.device}: use cuda:0"
    if re.fullmatch(r"cuda:\d+", options.device):
        error = "" if rehearse or gpu_count() else "no GPU found; --rehearse runs without one"
    if error:
        print(f"gpu_day.py: error: {error}", file=sys.stderr)
        return 2
    os.environ.pop("NUMBA_ENABLE_CUDASIM", None)
    if rehearse:  # a process for each core, with a thread
        one_thread = "NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"
        os.environ.update(dict.fromkeys(("NUMBA_ENABLE_CUDASIM", *one_thread), "1"))
    now = datetime.datetime.now()
    options.out.mkdir(parents=True, exist_ok=True)
    absent = [package for package in OPTIONAL if find_spec(package) is None]
    report = Report(
        options.out / f"{now:%Y-%m-%d-%H%M}-{'rehearsal' if rehearse else 'gpu'}",
        rehearse,
        date=f"{now:%Y-%m-%d %H:%M}",
        seed=options.seed,
        **({"not installed": ", ".join(absent)} if absent else {}),
    )
    command = [sys.executable, str(Path(__file__).resolve()), "--device", options.device]
    command += ["--seed", str(options.seed)] + ["--rehearse"] * rehearse
    end = time.monotonic() + 60 * (UNLIMITED if rehearse else options.minutes)
    predicting = None
    if "g" in options.stages and not rehearse:
        (predict,) = shares_of("predict", report, command, end - time.monotonic(), UNLIMITED)
        predicting = threading.Thread(target=predict, daemon=True)
        predicting.start()
    at_a_time = max(1, min(8, cores if rehearse else cores // 2))
    for letters in ["ab", "cdefghijk"] if rehearse else options.stages:
        tasks = []
        for letter in [letter for letter in letters if letter in options.stages]:
            weights = [STAGES[each][0] for each in options.stages if each >= letter]
            limit = weights[0] / sum(weights) * (end - time.monotonic())
            silent = SILENT if letter == "b" and not rehearse else UNLIMITED
            shares = {"b": at_a_time, "k": min(at_a_time, len(SWITCHES))}.get(letter, 1)
            tasks += shares_of(letter, report, command, limit, silent, shares)
        run_all(tasks, at_a_time)
        if "b" in letters and "b" in options.stages:
            print(verdict(report.results, report.kernels), flush=True)
    if "b" not in options.stages:
        print(verdict(report.results, report.kernels))
    if predicting is not None:
        predicting.join(max(0, end - time.monotonic()))
    print(report.path.with_suffix(".md"))
    return int(any(result.why.startswith("failed") for result in report.results))


if __name__ == "__main__":
    sys.exit(main())
