"""Where the kernels of the tests run: on a GPU if there is one, else in the simulator.

The choice has to be made before numba is imported, so the driver is asked directly.
"""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from compiled import Compiled, compiled
from machine import gpu_count

if not gpu_count():
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

from layers import Device, DeviceError, simulator


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Two processes share the tests, a file at a time, where pytest-xdist is there to do it.

    Not on a GPU, of which there is one, not under a debugger, and not if `-n` says otherwise.
    """
    option = config.option
    chosen = getattr(option, "numprocesses", 0) is not None  # None: xdist is there, without -n
    if chosen or hasattr(config, "workerinput") or gpu_count() or option.usepdb:
        return
    if len(config.args) == 1 and config.args_source is not pytest.Config.ArgsSource.ARGS:
        option.numprocesses, option.dist, option.tx = 2, "loadfile", ["2*popen"]
        option.loadscopereorder = False  # the order is that of LONGEST


LONGEST = (
    "layers/test_kernels_compile.py",
    "layers/test_layer.py",  # compiles the host loops, which other processes find in the cache
    "tinyconv/parallel/test_launch.py",
    "layers/fast/conv/test_tiled.py",
    "layers/fast/test_agreement.py",
    "tinyconv/parallel/test_replicas.py",
    "benchmarks/test_gpu_day.py",
    "tinyconv/run/test_closing.py",  # overfits a batch of the first command
    "tinyconv/test_sequential.py",
    "tinyconv/lab/test_cases.py",
    "examples/test_train_survives.py",
    "tinyconv/test_step.py",
    "tinyconv/data/test_prepare_resumes.py",
    "tinyconv/parallel/test_columns.py",
    "tinyconv/lab/test_picture.py",
)
"""What two processes begin with, so that at the end neither waits long for the other."""


def everything(config: pytest.Config) -> bool:
    """Whether tests marked `full` run: with --full, and where files or tests are named."""
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    return config.getoption("--full") or named


left_out: set[int] = set()
"""How many tests each process has left out."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `full`, and benchmarks; the longest files first."""
    for item in items:
        if item.path.parent.name == "benchmarks":
            item.add_marker("full")
    if not everything(config):
        left = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left)
        left_out.add(len(left))
        if hasattr(config, "workeroutput"):
            config.workeroutput["left out"] = len(left)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
    if not hasattr(config, "workerinput"):
        return
    folder = Path(__file__).parent
    places = {folder / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a process of pytest-xdist has left out."""
    left_out.add(getattr(node, "workeroutput", {}).get("left out", 0))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was left out, and how to run it."""
    if count := max(left_out, default=0):
        terminalreporter.write_line(
            f"left out: {count} tests that take long; pytest --full runs them, too"
        )


def pytest_collection_finish() -> None:
    """What has been imported by now, a million objects, is never looked through for garbage."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    """The device that the kernels of this run see, or why there is none."""
    try:
        return f"kernels on {Device('cuda:0')}"
    except DeviceError as error:
        return f"no kernels: {error}"


@pytest.fixture(scope="session")
def cuda_device() -> Device:
    """cuda:0, real or simulated."""
    try:
        return Device("cuda:0")
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["cpu", "cuda:0"])
def device(request) -> Device:
    """The host, and then the device that runs kernels."""
    try:
        return Device(request.param)
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def compiled_kernels(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Compiled:
    """What the compiler, which needs no GPU, makes of every kernel."""
    return compiled(tmp_path_factory, everything(pytestconfig))


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest --full` for all tests; `--unchecked` for speed; `--kills 40` for a night."""
    parser.addoption(
        "--full",
        action="store_true",
        help="run all tests, also those that take long (CI does): about 15 minutes on two cores",
    )
    parser.addoption(
        "--unchecked",
        action="store_true",
        help="do not check the accesses of simulated kernels for races and the like",
    )
    parser.addoption(
        "--kills",
        type=int,
        default=0,
        help="kill so many more ranks (tests/tinyconv/parallel/test_launch.py) and preparations "
        "(tests/tinyconv/data/test_prepare_resumes.py) at random moments",
    )


@pytest.fixture(autouse=True)
def checked_launches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test is about, each simulated launch in it is checked as well.

    For races, for reads of memory that nothing wrote, and for outputs not written exactly once
    (`tinyconv/lab/checks.py`). Tests of faulty kernels have a conftest that switches this off.
    """
    if not simulator.installed or request.config.getoption("--unchecked"):
        yield
        return
    from tinyconv.lab.cases import CASES
    from tinyconv.lab.checks import check_trace

    found = []

    def check(trace: simulator.Trace) -> None:
        case = CASES.get(trace.kernel)  # None for a test's own kernel
        outputs, rewritten = (case.outputs, case.rewritten) if case else ((), None)
        found.extend(check_trace(trace, outputs, rewritten=rewritten))

    with simulator.record(check):
        yield
    assert not found, "\n\n".join(map(str, found[:5]))
