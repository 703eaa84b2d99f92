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

Each stage is a process of its own with a share of the minutes, stage b several. One that hangs is
killed, one that dies is started again behind the case that killed it. The report, Markdown and
JSON, is replaced after each case: whatever ends the visit leaves what was found until then.

Needs NumPy, Numba, numba-cuda, CuPy, h5py and Pillow, and nothing from a network. What else is
missing is said. Data are random, other ones in each run; the seed is in the report.

Exit status 0: everything ran and is right; 1: something failed; 2, and one line: no GPU.
"""

import argparse
import datetime
import json
import os
import queue
import re
import secrets
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from machine import gpu_count, machine  # noqa: E402
from measuring import table  # noqa: E402
from runner import Case, Result, run_cases  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = "numba", "numba-cuda", "cupy-cuda12x", "cupy-cuda13x", "numpy", "h5py", "torch"
OPTIONAL = "tqdm", "greenlet", "matplotlib", "torch"
BATCHES = 128, 1024
WARNING = (
    "**A rehearsal: tiny shapes, and no GPU. It shows that every case runs and is checked; its "
    "times say nothing.**"
)
SILENT = 45.0
"""Seconds without a word of stage b after which its process is taken to hang."""
UNLIMITED = 1e9
"""Minutes of a rehearsal."""


class Stage(NamedTuple):
    """minutes: of nine; others in proportion. sections: of the results that it has."""

    minutes: float
    sections: tuple[str, ...]


STAGES = {
    "a": Stage(0.4, ("ceilings",)),
    "b": Stage(2.0, ("kernels",)),
    "c": Stage(1.2, ("losses",)),
    "d": Stage(1.0, ("training",)),
    "e": Stage(1.5, ("steps",)),
    "f": Stage(1.0, ("convolutions",)),
    "g": Stage(0.7, ("layers", "launches")),
    "h": Stage(0.2, ("columns",)),
    "i": Stage(0.6, ("sanitizer",)),
    "j": Stage(0.4, ("tiles",)),
}

# --- the report

WORDS = ", TF32", ", BF16"


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3f}"


def share(rate: float, ceiling: float | None) -> str:
    """`rate` as a share of the ceiling, if that was measured."""
    return f"{rate / ceiling:.0%}" if ceiling else ""


def of_product(result: Result, ceilings: dict[str, float]) -> str:
    """The share of the matrix product's rate in the precision that the result's name tells."""
    words = next((words for words in WORDS if words in result.who), "")
    return share(result.operations / result.median, ceilings.get(f"matrix product{words}"))


def noted(result: Result, ceilings: dict[str, float]) -> str:
    """The notes that are for a reader, in one cell."""
    notes = dict(result.notes)
    if "losses" in notes:
        notes["last losses"] = f"{notes.pop('losses')[-1]:.6f}, {notes.pop('beside')[-1]:.6f}"
    if "peak bytes" in notes:
        notes["peak MiB"] = f"{notes.pop('peak bytes') / 2**20:,.0f}"
    hidden = "kernels", "launches", "precision", "batch"
    shown = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in notes.items()}
    return "; ".join(f"{k}: {v}" for k, v in shown.items() if k not in hidden).replace("|", "/")


Cell = Callable[[Result, dict[str, float]], str]
CELLS: dict[str, Cell] = {
    "ms": lambda r, _: ms(r.median),
    "fastest to slowest": lambda r, _: f"{ms(min(r.seconds))} to {ms(max(r.seconds))}",
    "times": lambda r, _: f"{len(r.seconds)}",
    "GB/s": lambda r, _: f"{r.moved / r.median / 1e9:,.1f}" if r.moved else "",
    "TFLOP/s": lambda r, _: f"{r.operations / r.median / 1e12:,.2f}" if r.operations else "",
    "of the copy bandwidth": lambda r, c: share(r.moved / r.median, c.get("copy bandwidth")),
    "of the matrix product": of_product,
    "images/s": lambda r, _: f"{r.images / r.median:,.0f}",
    "host ms": lambda r, _: ms(statistics.median(r.host_seconds)),
    "notes": noted,
}
"""By the name of a column, a result's cell, given what the ceilings are."""

TIMES = "ms", "fastest to slowest", "times"
PRODUCTS = "TFLOP/s", "of the matrix product"
STEP = (*TIMES, "images/s", *PRODUCTS, "host ms", "notes")
SECTIONS = {
    "kernels": (
        "Every kernel beside the host",
        (),
        "Each layer and step in every way of computing it, by itself, with fresh data and poisoned "
        "outputs, beside the host in float64. Only what failed is listed.",
    ),
    "losses": (
        "Losses of twenty steps",
        ("notes",),
        "Of the whole net on one batch: ours beside the simple kernels in float32, PyTorch beside "
        "ours. Equal bits: of the weights after a replay, and after plain launches.",
    ),
    "training": (
        "Training",
        ("notes",),
        "The README's first command, as a process of its own; and the loop on photos in memory.",
    ),
    "ceilings": (
        "Measured ceilings",
        (*TIMES, "GB/s", "TFLOP/s"),
        "A copy counts its bytes twice, once read and once written. The products are the "
        "library's; a share below is of the product in the same precision.",
    ),
    "steps": (
        "Whole steps, by batch size",
        STEP,
        "Host ms: until everything of a step is queued. Peak: of the library's own memory pool "
        "(for ours, all that it holds). Pieces: calls that replay a recorded step, 0 if none was "
        "recorded. Images are on the GPU; our labels come from the host. PyTorch's LRN, groups and "
        "dropout are its own modules; BF16 is its autocast.",
    ),
    "columns": ("Two columns", STEP, "Both on this GPU, one after the other."),
    "convolutions": (
        "Convolutions",
        (*TIMES, *PRODUCTS),
        "Forward includes the bias; the filter gradient includes the bias gradient. What our "
        "kernels rearrange before they multiply is timed with them. Where the padding differs from "
        "side to side PyTorch's is done before, untimed; in BF16 all its arrays are bfloat16 "
        "before. Its backward passes are timed as autograd runs them.",
    ),
    "layers": (
        "The other layers",
        (*TIMES, "GB/s", "of the copy bandwidth"),
        "GB/s: bytes that have to move (docs/limits.md) in the time taken; an array that is read "
        "twice counts once. Of PyTorch's passes both are timed as autograd runs them.",
    ),
    "sanitizer": ("compute-sanitizer", ("notes",), "The hostile checks of stage b under it."),
    "tiles": ("Tiles, round by round", TIMES, "A product by its key in tiles.json."),
}
"""Title, columns, and what they mean."""


def verdict(results: list[Result], kernels: list[str]) -> str:
    """One line: which kernels are right, and which checks failed, with how."""
    checks = [r for r in results if r.section == "kernels"]
    if not checks:
        return "no verdict: the kernels have not been checked"
    failed = [r for r in checks if r.why]
    launched = {name for r in checks for name in r.notes.get("kernels", ())}
    doubtful = {name for r in failed for name in r.notes.get("kernels", ())}
    fine = [name for name in kernels if name in launched - doubtful]
    line = f"{len(fine)} of {len(kernels)} kernels are right in all of their checks"
    if failed:
        shown = "; ".join(f"{r.what}, {r.who}: {r.why}" for r in failed[:4])
        more = f"; and {len(failed) - 4} more" if len(failed) > 4 else ""
        line = f"WRONG: {len(failed)} of {len(checks)} checks failed. {shown}{more}. {line}"
    never = [name for name in kernels if name not in launched]
    return line + (f"; not launched: {', '.join(never)}" if never else "")


def section_table(name: str, results: list[Result], ceilings: dict[str, float]) -> str:
    """A row for each result; those with one `what` are together."""
    columns = SECTIONS[name][1]
    rows = []
    for what in dict.fromkeys(result.what for result in results):
        for r in (result for result in results if result.what == what):
            cells = [r.why.replace("|", "/")] + [""] * (len(columns) - 1)
            if not r.why:
                cells = [CELLS[column](r, ceilings) for column in columns]
            rows.append([what, r.who, *cells])
    return table(["what", "who", *columns], rows, text=2)


def launch_table(result: Result, predicted: dict[str, float]) -> str:
    """The launches of one step, by kernel, slowest first; milliseconds."""
    found: dict[str, list[float]] = {}
    for name, seconds in result.notes["launches"]:
        found.setdefault(name, []).append(1e3 * seconds)
    rows = [
        [
            *(name, f"{len(times)}", f"{sum(times):.3f}"),
            f"{predicted[name]:.3f}" if name in predicted else "",
        ]
        for name, times in sorted(found.items(), key=lambda item: -sum(item[1]))
    ]
    total = sum(map(sum, found.values()))
    rows.append(["all", f"{sum(map(len, found.values()))}", f"{total:.3f}", ""])
    return table(["kernel", "launches", "ms", "predicted ms"], rows)


def missing(results: list[Result]) -> str:
    """Which cases failed or were dropped."""
    lines = [f"- {r.section}: {r.what}, {r.who}: {r.why}." for r in results if r.why]
    return "\n".join(lines) or "Nothing."


class Report:
    """What has been found, in two files that are replaced after each addition."""

    def __init__(self, path: Path, rehearsal: bool, **facts: Any) -> None:
        self.path, self.rehearsal = path, rehearsal
        self.facts: dict[str, Any] = {"machine": machine(*PACKAGES), **facts}
        self.kernels: list[str] = []
        self.predicted: dict[str, dict[str, float]] = {}
        self.results: list[Result] = []
        self._lock = threading.Lock()  # predictions come from another thread

    def add(self, message: dict[str, Any]) -> None:
        """A result, facts, kernels' names or predictions, from the process of a stage."""
        with self._lock:
            if "section" in message:
                self.results.append(Result(**message))
            self.facts |= message.get("facts", {})
            self.predicted |= message.get("predicted", {})
            self.kernels = message.get("kernels", self.kernels)
            content = {
                "verdict": verdict(self.results, self.kernels),
                "rehearsal": self.rehearsal,
                "facts": self.facts,
                "kernels": self.kernels,
                "predicted": self.predicted,
                "results": [asdict(result) for result in self.results],
            }
            self._replace(".json", json.dumps(content, indent=1) + "\n")
            self._replace(".md", self.markdown())

    def _replace(self, suffix: str, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(f"{suffix}.new")
        new.write_text(text, encoding="utf-8")
        os.replace(new, self.path.with_suffix(suffix))

    def markdown(self) -> str:
        """The whole report."""
        parts = [f"# {self.facts.get('device', 'a GPU')}", *([WARNING] * self.rehearsal)]
        parts.append(f"**{verdict(self.results, self.kernels)}.**")
        parts.append("\n".join(f"- {name}: {value}" for name, value in self.facts.items()))
        ceilings = {
            r.what: (r.moved or r.operations) / r.median
            for r in self.results
            if r.section == "ceilings" and r.seconds
        }
        for name, (title, columns, note) in SECTIONS.items():
            rows = [result for result in self.results if result.section == name]
            if rows:
                checked = f"{sum(not r.why for r in rows)} of {len(rows)} checks passed."
                text = section_table(name, rows, ceilings) if columns else checked
                parts += [f"## {title}", note, text]
        for result in self.results:
            if result.section == "launches" and not result.why:
                predicted = self.predicted.get(result.what, {})
                parts += [f"## Each launch of a step, {result.what}"]
                parts.append(launch_table(result, predicted))
        parts += ["## What failed or is missing", missing(self.results)]
        return "\n\n".join(parts) + "\n"


# --- the processes of a stage


class Worker:
    """A process that runs some cases of a stage and says what it finds, a line of JSON each."""

    def __init__(self, command: list[str], share: int, skip: int, messages: Any, log: Any) -> None:
        self.command, self.share, self.skip = command, share, skip
        self.case: list[str] = []
        self.heard, self.why = time.monotonic(), ""
        self.complete = False
        self.process = subprocess.Popen(
            [*command, "--share", str(share), "--skip", str(skip)],
            stdin=subprocess.PIPE,  # its end tells the process that this one is gone
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        threading.Thread(target=self._read, args=(messages,), daemon=True).start()

    def _read(self, messages: Any) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                messages.put((self, json.loads(line)))
            except ValueError:
                continue  # cut off
        messages.put((self, None))

    def kill(self, why: str) -> None:
        """End the process and what it has started."""
        self.why = self.why or why
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def how_it_ended(self) -> str:
        """Why its case has no result."""
        status = self.process.wait()
        if self.why:
            return f"failed: {self.why}"
        if status < 0:
            return f"failed: the process was killed by {signal.Signals(-status).name}"
        return f"failed: the process ended with status {status}"


def run_stage(
    letter: str, report: Report, command: list[str], limit: float, silent: float, shares: int = 1
) -> None:
    """All cases of a stage within `limit` seconds; every process that dies is replaced.

    silent: seconds without a message after which a process is killed. shares: processes at a time.
    """
    messages: queue.Queue[tuple[Worker, Any]] = queue.Queue()
    until = time.monotonic() + limit
    command = [*command, "--child", letter, "--shares", str(shares)]
    command += ["--limit", f"{0.92 * limit:.1f}"]
    section = STAGES[letter].sections[0] if letter in STAGES else "launches"
    with open(report.path.with_suffix(".log"), "ab") as log:
        running = [Worker(command, number, 0, messages, log) for number in range(shares)]
        while running:
            now = time.monotonic()
            next_check = min(until, *(worker.heard + silent for worker in running))
            try:
                worker, message = messages.get(timeout=max(0.05, min(next_check - now, 3600)))
            except queue.Empty:
                for worker in running:
                    if time.monotonic() >= until:
                        worker.kill("the stage's time was over")
                    elif time.monotonic() >= worker.heard + silent:
                        worker.kill(f"killed after {silent:.0f} s without an answer")
                continue
            worker.heard = time.monotonic()
            if message is None:
                running.remove(worker)
                if worker.complete:
                    continue
                case = worker.case or [section, f"stage {letter}", "its process"]
                report.add(asdict(Result(*case, why=worker.how_it_ended())))
                say(report.results[-1])
                if worker.case and time.monotonic() < until:
                    skip = worker.skip + 1
                    running.append(Worker(command, worker.share, skip, messages, log))
            elif "begin" in message:
                worker.case = message["begin"]
            else:
                report.add(message)
                worker.complete = message.get("complete", False)
                if "section" in message:
                    say(report.results[-1])
                    worker.case, worker.skip = [], worker.skip + 1


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
    import gpu_checks

    if options.child == "predict":
        send(predicted=gpu_checks.predictions(BATCHES), complete=True)
        return 0
    bench, clock = gpu_checks.bench_and_clock(
        options.child, options.device, options.rehearse, options.seed
    )
    send(**gpu_checks.facts(options.child, bench, clock))
    cases = gpu_checks.cases_of(options.child, bench, BATCHES, options)
    cases = cases[options.share :: options.shares][options.skip :]
    with gpu_checks.watched(options.child) as seen:
        found = []
        for each in run_cases(cases, clock, options.limit):
            if isinstance(each, Case):
                send(begin=each[:3])
                continue
            if options.child == "b":
                each.notes["kernels"] = sorted(seen)
                seen.clear()
            found.append(each)
            send(**asdict(each))
    if options.child == "j" and not options.rehearse:
        gpu_checks.write_tiles(found, bench)
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
    rehearse = options.rehearse
    if not re.fullmatch(r"cuda:\d+", options.device):
        print(f"gpu_day.py: error: --device {options.device}: use cuda:0", file=sys.stderr)
        return 2
    if not rehearse and not gpu_count():
        print("gpu_day.py: error: no GPU found; --rehearse runs without one", file=sys.stderr)
        return 2
    os.environ["CUPY_TF32"] = "0"  # it would make CuPy's float32 products something else
    os.environ.pop("NUMBA_ENABLE_CUDASIM", None)
    if rehearse:
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
    now = datetime.datetime.now()
    name = f"{now:%Y-%m-%d-%H%M}-{'rehearsal' if rehearse else 'gpu'}"
    options.out.mkdir(parents=True, exist_ok=True)
    absent = [package for package in OPTIONAL if find_spec(package) is None]
    report = Report(
        options.out / name,
        rehearse,
        date=f"{now:%Y-%m-%d %H:%M}",
        seed=options.seed,
        **({"not installed": ", ".join(absent)} if absent else {}),
    )
    command = [sys.executable, str(Path(__file__).resolve()), "--device", options.device]
    command += ["--seed", str(options.seed)] + ["--rehearse"] * rehearse
    end = time.monotonic() + 60 * (UNLIMITED if rehearse else options.minutes)
    predicting = None
    if find_spec("gpu_model") is not None and "g" in options.stages and not rehearse:
        left = end - time.monotonic()
        predicting = threading.Thread(
            target=run_stage, args=("predict", report, command, left, left), daemon=True
        )
        predicting.start()
    for place, letter in enumerate(options.stages):
        weights = [STAGES[later].minutes for later in options.stages[place:]]
        limit = weights[0] / sum(weights) * (end - time.monotonic())
        shares = max(1, min(8, (os.cpu_count() or 1) // 2)) if letter == "b" else 1
        silent = SILENT if letter == "b" and not rehearse else UNLIMITED
        run_stage(letter, report, command, limit, silent, shares)
        if letter == "b":
            print(verdict(report.results, report.kernels), flush=True)
    if "b" not in options.stages:
        print(verdict(report.results, report.kernels))
    if predicting is not None:
        predicting.join(max(0, end - time.monotonic()))
    print(report.path.with_suffix(".md"))
    return int(any(result.why.startswith("failed") for result in report.results))


if __name__ == "__main__":
    sys.exit(main())
