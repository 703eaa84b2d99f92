"""The doctor's checks of the host: folders, memory, cores, and whether the device computes."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from tinyconv.tools.doctor_checks import OK, ROOT, WARNING, WRONG, Finding, Machine, one_line


def writable(folder: Path) -> bool:
    """Whether a file can be made in `folder`, or the folder be made first. Leaves nothing."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def numba_cache(machine: Machine) -> Finding:
    """Where Numba can keep compiled loops; with no such place it refuses to load them."""
    places = [ROOT / "layers" / "__pycache__"]
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        places.insert(0, Path(given))
    appdirs = importlib.import_module("numba.misc.appdirs")
    places.append(Path(appdirs.AppDirs("numba", appauthor=False).user_cache_dir))
    usable = [place for place in places if writable(place)]
    if not usable:
        tried = ", ".join(str(place) for place in places)
        mend = f"export NUMBA_CACHE_DIR={Path(tempfile.gettempdir()) / 'numba-cache'}"
        return Finding(WRONG, f"no writable folder among {tried}", mend)
    if usable[0] != places[0]:
        return Finding(WARNING, f"{usable[0]}, for {places[0]} is not writable")
    return Finding(OK, str(usable[0]))


def current_folder(machine: Machine) -> Finding:
    """Room and permission for what a run writes."""
    # Weights and velocities of 61 million parameters, 4 bytes each, are 0.49 GB: two checkpoints
    # and the best are kept while the next one is written.
    room, needed = shutil.disk_usage(".").free, 4 * 0.49e9
    found = f"{os.getcwd()}, {room / 1e9:,.1f} GB free"
    if not writable(Path.cwd()):
        mend = "cd to a folder of yours, or give train_alexnet.py --out FOLDER"
        return Finding(WARNING, f"{found}, and not writable", mend)
    if room < needed:
        note = f"{found}; checkpoints of the full net take {needed / 1e9:.1f} GB"
        return Finding(WARNING, note, "df -h .")
    return Finding(OK, f"{found}, writable")


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can be had, a container's limit included; None where Linux does not say it."""
    limits = []
    try:
        text = (root / "proc/meminfo").read_text()
        if found := re.search(r"^MemAvailable:\s+(\d+) kB", text, re.M):
            limits.append(int(found[1]) * 1024)
        group = root / "sys/fs/cgroup"
        limit = int((group / "memory.max").read_text())  # "max" is no number: no limit
        used = int((group / "memory.current").read_text())
        # Files that were read stay in memory until it is needed for something else.
        cached = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.M)
        limits.append(limit - used + (int(cached[1]) if cached else 0))
    except (OSError, ValueError):
        pass
    return min(limits, default=None)


def memory(machine: Machine) -> Finding:
    """Memory that is free or can be freed."""
    available = available_memory()
    if available is None:
        return Finding(OK, "the system does not say how much is available")
    found = f"{available / 1e9:,.1f} GB available"
    if available < 2e9:
        advice = "train_alexnet.py --width 0.25 --image-size 96 --batch-size 32"
        return Finding(WARNING, found + ": little; close programs, or train less", advice)
    return Finding(OK, found)


def cores(machine: Machine) -> Finding:
    """Cores, and the threads that Numba's loops and the matrix products will use."""
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    loops = importlib.import_module("numba").config.NUMBA_NUM_THREADS
    build = importlib.import_module("numpy").show_config(mode="dicts")
    blas = build.get("Build Dependencies", {}).get("blas", {}).get("name", "BLAS of unknown name")
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
    set_to = {name: os.environ[name] for name in names if name in os.environ}
    # `layers/threads.py` gives BLAS one thread; the fast tier divides the work itself.
    limits = [f"{name}={number}" for name, number in set_to.items() if number != "1"]
    found = f"{usable} of {total} cores usable; {loops} threads; {blas} {', '.join(limits)}"
    found = found.rstrip()
    if loops > usable:
        mend = f"export NUMBA_NUM_THREADS={usable}"
        return Finding(WARNING, f"{found}: threads stand in each other's way", mend)
    return Finding(OK, found)


# --- does it compute?

UNSUPPORTED_PTX = (
    "the driver is older than the PTX that Numba's compiler writes: a newer driver, or",
    "pip install --upgrade {nvjitlink}",
)


def launch(machine: Machine) -> Finding:
    """A loop (on a GPU, a kernel) and a matrix product on the device, compared with the truth."""
    try:
        return _compute(machine)
    except Exception as error:
        reason = one_line(error)
        if type(error).__name__ not in reason:
            reason = f"{type(error).__name__}: {reason}"
        hint, mend = "", ""
        if "UNSUPPORTED_PTX_VERSION" in str(error):
            hint, mend = UNSUPPORTED_PTX
            suffix = "-cu12" if "nvidia-nvjitlink-cu12" in machine.installed else ""
            mend = mend.format(nvjitlink=f"nvidia-nvjitlink{suffix}")
        elif isinstance(error, ImportError):
            mend = "pip install -e ."
        return Finding(WRONG, reason + (f" ({hint})" if hint else ""), mend)


def _compute(machine: Machine) -> Finding:
    from layers import Device, Linear, ReLU

    device = Device(machine.device)
    machine.used = device.name
    relu, linear = ReLU().to(device), Linear(4, 2).to(device)
    # Small whole numbers: exact in float32 and in TF32 as well.
    linear.weight.value[...] = device.array([[1, 2, 3, 4], [-4, 3, -2, 1]], "float32")
    x = device.array([[1, -2, 3, -4], [-5, 6, 7, 8], [0, -1, 2, 5]], "float32")
    y = device.to_host(linear.forward(relu.forward(x))).tolist()
    expected = [[10, -10], [65, 12], [26, 1]]
    if y != expected:
        return Finding(WRONG, f"{device} computes {y}, not {expected}")
    what = "a kernel" if device.is_cuda else "a compiled loop"
    found = f"{device}: {what} and a matrix product give the right numbers"
    if device.is_simulated:
        note = f"{found}; the simulator is for looking at kernels, far too slow to train"
        return Finding(WARNING, note)
    if device.is_cuda:
        free, _ = device.xp.cuda.runtime.memGetInfo()
        found += f"; {free / 1e9:,.1f} GB of its memory free"
    return Finding(OK, found)
