"""`kernel_report.py`: reading SASS, occupancy, and the limits that matter of the real kernels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import kernel_report
import pytest
import sass

from layers import simulator
from tinyconv.lab.subjects import subjects

ROOT = Path(__file__).resolve().parents[2]

LISTING = """
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   FFMA R3, R4, R5, R3 ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
.L_x_1:
        /*0030*/                   LDS.128 R8, [R2] ;
        /*0040*/                   LDG.E.128.SYS R12, [R6.64] ;
        /*0050*/              @P1  LDG.E R16, [R6.64+0x10] ;
        /*0060*/                   FFMA R3, R8, R9, R3 ;
        /*0070*/                   FFMA.FTZ R3, R10, R11, R3 ;
        /*0080*/                   HFMA2.MMA R20, -RZ, RZ, 0, 0 ;
        /*0090*/                   STS [R2+0x100], R16 ;
.L_x_3:
        /*00a0*/                   IADD3 R0, R0, -0x1, RZ ;
        /*00b0*/              @P2  BRA `(.L_x_3) ;
        /*00c0*/             @!UP0 BRA `(.L_x_1) ;
        /*00d0*/                   FFMA R3, R3, R3, R3 ;
        /*00e0*/                   FFMA R3, R3, R3, R3 ;
        /*00f0*/                   BRA `(.L_x_0) ;
.L_x_2:
        /*0100*/                   EXIT ;
.L_x_4:
        /*0110*/                   BRA `(.L_x_4);
"""


def test_the_main_loop_is_the_innermost_one_that_multiplies():
    loop = sass.main_loop(LISTING)
    assert loop.instructions == 10
    assert loop.work == {"FFMA": 2}
    assert loop.share == 0.2
    assert loop.memory == {"LDG.128": 1, "LDG.32": 1, "LDS.128": 1, "STS.32": 1}


def test_of_two_loops_the_one_with_more_multiply_adds_counts():
    second = LISTING.replace(".L_x_", ".L_y_").replace("LDS.128 R8, [R2]", "FFMA R8, R8, R8, R8")
    assert sass.main_loop(LISTING + second).work == {"FFMA": 3}


def test_tensor_cores_are_work_too():
    listing = LISTING.replace("FFMA R3, R8, R9, R3", "HMMA.1688.F32.TF32 R4, R8, R12, R4")
    assert sass.main_loop(listing).work == {"FFMA": 1, "HMMA": 1}


def test_a_kernel_without_a_loop_of_multiply_adds_has_no_main_loop():
    assert sass.main_loop(LISTING.replace("FFMA", "FADD")) is None
    assert sass.main_loop("") is None


def test_float64_instructions_are_found_and_their_look_alikes_are_not():
    listing = LISTING.replace("FFMA R3, R4, R5, R3", "DFMA R4, R6, R8, R4")
    listing = listing.replace("IADD3 R0, R0, -0x1, RZ", "F2F.F64.F32 R4, R0")
    assert sass.doubles_in(listing) == ["DFMA", "F2F.F64.F32"]
    assert sass.doubles_in(LISTING) == []


def test_what_ptxas_says_is_read_and_the_worst_function_counts():
    said = """ptxas info    : Function properties for f
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Function properties for g
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 127 registers, used 1 barriers, 14592 bytes smem"""
    expected = {"registers": 127, "shared": 14592, "stack": 8, "spills": 16}
    assert sass.resources(said) == expected
    assert sass.resources("ptxas info    : Used 10 registers")["shared"] == 0


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "expected"),
    [
        # 128 registers: 4096 a warp, 4 warps in each quarter of 16,384.
        ((8, 0), 128, 128, 0, (4, 16 / 64)),
        ((8, 0), 128, 129, 0, (3, 12 / 64)),
        ((8, 0), 1024, 32, 0, (2, 1.0)),
        ((7, 5), 128, 32, 0, (8, 1.0)),
        # Shared memory: 227 KiB and 1 KiB reserved fill a multiprocessor of Hopper.
        ((9, 0), 128, 32, 227 * 1024, (1, 4 / 64)),
        ((9, 0), 128, 32, 48 * 1024, (4, 16 / 64)),
        # Blocks: 32 of one warp each.
        ((9, 0), 32, 16, 0, (32, 32 / 64)),
        # A block that does not fit at all.
        ((8, 0), 1024, 128, 0, (0, 0.0)),
    ],
)
def test_occupancy_is_what_the_scarcest_resource_allows(
    architecture, threads, registers, shared, expected
):
    assert sass.occupancy(architecture, threads, registers, shared) == expected


@pytest.mark.parametrize("name", ["relu", "sgd", "linear", "lrn_rows", "softmax"])
def test_blocks_have_the_threads_that_the_report_takes_them_to_have(name):
    if not simulator.installed:
        pytest.skip("launches are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    for subject in subjects(name):
        x, y, z = subject.block
        assert kernel_report.threads_of(f"layers.any.{subject.name}") == x * y * z, subject.name


# --- the command line


def test_without_the_tools_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(sass, "find_tool", lambda name: None)
    assert kernel_report.main([]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "ptxas is missing: pip install 'cuda-toolkit[nvcc]==13.*'",
        "nvdisasm is missing: pip install 'cuda-toolkit[nvdisasm]==13.*'",
    ]


@pytest.mark.parametrize("text", ["81", "80,", "sm_80", ""])
def test_an_unknown_architecture_is_refused_with_the_known_ones(text, capsys):
    with pytest.raises(SystemExit):
        kernel_report.main(["--arch", text])
    assert "is none of 75, 80, 90, 120" in capsys.readouterr().err


def kernel(**changes):
    loop = sass.Loop(10, {"FFMA": 8}, {"LDS.128": 1})
    values = {
        **{"name": "layers.a.b_kernel", "architecture": (8, 0), "registers": 20, "shared": 1024},
        **{"stack": 0, "spills": 0, "loop": loop, "occupancy": 0.5, **changes},
    }
    return sass.Kernel(**values)


def test_a_row_shows_every_number():
    assert kernel_report.row(kernel()) == (
        "| b_kernel | 20 | 1,024 | 0 | 50% | 10 | 80.0% |  | 1 LDS.128 | none |"
    )
    shown = kernel_report.row(kernel(loop=None, stack=256, doubles=["DADD", "DFMA"]))
    assert shown == "| b_kernel | 20 | 1,024 | stack 256 | 50% |  |  |  |  | DADD, DFMA |"


def test_written_reports_name_date_and_machine(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(kernel_report, "ROOT", tmp_path)
    monkeypatch.setattr(sass, "missing_tools", lambda: [])
    report = [kernel()], ["layers.a.c_kernel, sm_80: TypingError: no"]
    monkeypatch.setattr(kernel_report, "report", lambda *_: report)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    assert kernel_report.main(["--write", "--arch", "80"]) == 1
    (file,) = (tmp_path / "benchmarks" / "results").glob("????-??-??-kernels.md")
    text = file.read_text()
    assert "## sm_80" in text
    assert "| b_kernel |" in text
    assert "- layers.a.c_kernel, sm_80: TypingError: no" in text
    assert "Python" in text.splitlines()[-1]
    assert "TypingError" in capsys.readouterr().err


# --- the real kernels


def reported(only, architectures):
    """By name and architecture, what the report says of these kernels."""
    if missing := sass.missing_tools():
        pytest.skip("; ".join(missing))
    command = [sys.executable, str(ROOT / "benchmarks" / "kernel_report.py")]
    command += ["--json", "--only", only, "--arch", architectures]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    return {(r["name"].rpartition(".")[2], tuple(r["architecture"])): r for r in rows}


@pytest.fixture(scope="session")
def tiled():
    """Rung 2 of convolution."""
    return reported("conv.tiled", "75,80,90")


PINNED = [(7, 5), (8, 0), (9, 0)]
WIDE = ["tiled_forward_wide_kernel", "tiled_filter_wide_kernel"]
NARROW = ["tiled_forward_narrow_kernel", "tiled_filter_narrow_kernel"]


@pytest.mark.parametrize("architecture", PINNED, ids=kernel_report.label)
@pytest.mark.parametrize("name", WIDE + NARROW)
def test_tiled_kernels_keep_everything_in_registers(name, architecture, tiled):
    found = tiled[name, architecture]
    assert (found["stack"], found["spills"], found["doubles"]) == (0, 0, [])
    assert found["blocks"] >= 3
    assert not any(kind.startswith(("LDL", "STL")) for kind in found["loop"]["memory"])


@pytest.mark.parametrize("architecture", PINNED, ids=kernel_report.label)
@pytest.mark.parametrize(("name", "least"), [(n, 0.80) for n in WIDE] + [(n, 0.69) for n in NARROW])
def test_most_of_a_tiled_loop_is_multiply_adds(name, least, architecture, tiled):
    loop = tiled[name, architecture]["loop"]
    assert loop["work"] == {"FFMA": 512}
    assert tiled[name, architecture]["share"] >= least


@pytest.mark.parametrize("architecture", PINNED, ids=kernel_report.label)
@pytest.mark.parametrize("name", WIDE)
def test_wide_kernels_load_four_numbers_at_a_time(name, architecture, tiled):
    memory = tiled[name, architecture]["loop"]["memory"]
    loads = {kind: count for kind, count in memory.items() if kind.startswith("LD")}
    assert loads == {"LDG.128": 3, "LDS.128": 32}


@pytest.fixture(scope="session")
def tensor():
    """Rung 3, with the large tile."""
    return reported("conv.tensor_core.tensor_forward_large", "80,90")


@pytest.mark.parametrize("architecture", PINNED[1:], ids=kernel_report.label)
@pytest.mark.parametrize(("kind", "instructions"), [("tf32", 190), ("bf16", 130)])
def test_a_loop_on_tensor_cores_is_short(kind, instructions, architecture, tensor):
    found = tensor[f"tensor_forward_large_{kind}_kernel", architecture]
    assert (found["threads"], found["blocks"]) == (256, 2)
    loop = found["loop"]
    assert loop["work"] == {"HMMA": 32}
    assert loop["instructions"] <= instructions
    assert loop["memory"]["LDGSTS.128"] == 4
    assert not any(kind.startswith(("LDG.", "LDL", "STL", "STS")) for kind in loop["memory"])
