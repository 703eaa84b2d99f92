"""`kernel_report.py`: reading SASS, occupancy, and the limits that matter of the real kernels."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gpu_model
import kernel_report
import pytest
import sass

from tinyconv.lab.cases import CASES
from tinyconv.lab.cases.case import TENSOR_CORES

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


def test_a_load_that_nobody_executes_is_none():
    loop = sass.main_loop(LISTING.replace("     LDS.128 R8, [R2]", "@!PT LDS RZ, [RZ]"))
    assert loop.instructions == 10
    assert loop.memory == {"LDG.128": 1, "LDG.32": 1, "STS.32": 1}


def test_tensor_cores_are_work_too_and_what_feeds_them_is_counted():
    listing = LISTING
    for before, after in (
        ("FFMA R3, R8, R9, R3", "HMMA.1688.F32.TF32 R4, R8, R12, R4"),
        ("FFMA.FTZ R3, R10, R11, R3", "HMMA.16816.F32.BF16 R4, R8, R12, R4"),
        ("LDG.E.128.SYS R12, [R6.64]", "LDGSTS.E.BYPASS.128.ZFILL [R9], [R6.64], P0"),
        ("LDG.E R16, [R6.64+0x10]", "LDSM.16.MT88.4 R16, [R6]"),
        ("STS [R2+0x100], R16", "LDSM.16.M88.2 R16, [R6]"),
        ("LDS.128 R8, [R2]", "LDSM.16.M88 R16, [R6]"),
    ):
        assert before in listing
        listing = listing.replace(before, after)
    loop = sass.main_loop(listing)
    assert loop.work == {"HMMA": 2}
    assert loop.memory == {"LDGSTS.128": 1, "LDSM.128": 1, "LDSM.32": 1, "LDSM.64": 1}
    assert loop.mix == (2, 3, 5) and loop.moved("LDGSTS") == 1


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


def test_shared_loads_of_both_kinds_are_in_the_mix_and_stores_are_not():
    memory = {"LDS.32": 3, "LDSM.128": 2, "STS.128": 5, "LDGSTS.128": 7, "LDG.128": 1}
    assert sass.Loop(100, {"HMMA": 40, "FFMA": 1}, memory).mix == (40, 5, 55)


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
        **{"path": 1200, "moved": 48, "divisions": 2},
        **{"stack": 0, "spills": 0, "loop": loop, "occupancy": 0.5, **changes},
    }
    return sass.Kernel(**values)


def test_a_row_shows_every_number():
    assert kernel_report.row(kernel()) == (
        "| b_kernel | 20 | 1,024 | 0 | 50% | 1,200 | 48 | 2 | 10 | 80.0% | 1 LDS.128 | none |"
    )
    shown = kernel_report.row(kernel(loop=None, stack=256, doubles=["DADD", "DFMA"]))
    assert shown == (
        "| b_kernel | 20 | 1,024 | stack 256 | 50% | 1,200 | 48 | 2 |  |  |  | DADD, DFMA |"
    )


def test_kernels_for_tensor_cores_have_a_table_of_their_own():
    memory = {"LDGSTS.128": 4, "LDS.32": 4, "LDSM.128": 12}
    tensor = kernel(name="layers.a.tensor_kernel", loop=sass.Loop(96, {"HMMA": 32}, memory))
    text = kernel_report.tables([kernel(), tensor, kernel(architecture=(9, 0))], [])
    _, plain, tensors, _, _ = text.split("\n\n")
    assert plain.splitlines()[2:] == [kernel_report.row(kernel())]
    header, rule, row = tensors.splitlines()
    assert "| HMMA | LDGSTS | LDSM, LDS | HMMA : shared loads : others |" in header
    assert header.count("|") == rule.count("|") == row.count("|")
    assert row == (
        "| tensor_kernel | 20 | 1,024 | 0 | 50% | 1,200 | 48 | 2 | 96 | 33.3% | 4.2% "
        "| 16.7% | 1 : 0.5 : 1.5 | 4 LDGSTS.128, 4 LDS.32, 12 LDSM.128 | none |"
    )


def test_launches_of_convolutions_are_shown_as_they_fill_a_gpu(monkeypatch):
    def launch(title, name, blocks):
        kernel = SimpleNamespace(__name__=name)
        return gpu_model.Launch(title, kernel, (blocks, 2, 1), 128, (), (), 0)

    launches = [
        launch("conv1 forward", "filters_to_s2d_kernel", 7),  # no part of the products
        launch("conv1 backward", "sum_rows_kernel", 660),
        launch("norm1 backward", "sum_rows_kernel", 3),
    ]
    compiled = gpu_model.Counted("", 40, 0)
    monkeypatch.setattr(gpu_model, "launches_of", lambda *arguments: launches)
    monkeypatch.setattr(gpu_model, "compiled", lambda *arguments: compiled)
    title, _, _, _, *rows = kernel_report.launch_table("H200", "tf32", "authors").splitlines()
    assert title == "## H200, tf32, batch 128"
    # 65,536 registers hold 12 blocks of 128 · 40 of them, and 132 multiprocessors 1,584 blocks.
    assert rows == ["| conv1 backward | sum_rows | 40 | 12 | 1,320 | 0.83 |"]


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

PINNED = [(7, 5), (8, 0), (9, 0)]
VECTORIZED = ["tiled_forward_vectorized_kernel", "tiled_filter_vectorized_kernel"]
SCALAR = ["tiled_forward_scalar_kernel", "tiled_filter_scalar_kernel"]


def of_report(name, architecture, compiled_kernels, dtype="float32"):
    """All numbers of the report for a kernel."""
    ptx = compiled_kernels.ptx(name, dtype, architecture)
    found = kernel_report.described(CASES[name], architecture, *sass.assemble(ptx, architecture))
    return found.as_dict()


@pytest.fixture(scope="session")
def tools():
    """NVIDIA's assembler and disassembler."""
    if missing := sass.missing_tools():
        pytest.skip("; ".join(missing))


@pytest.fixture(scope="session")
def tiled(tools, compiled_kernels):
    """By name and architecture, what the report says of the tiled convolution."""
    return {
        (name, architecture): of_report(name, architecture, compiled_kernels)
        for name in VECTORIZED + SCALAR
        for architecture in PINNED
    }


def test_the_program_compiles_and_says_the_same(tools, compiled_kernels):
    command = [sys.executable, str(ROOT / "benchmarks" / "kernel_report.py")]
    command += ["--json", "--only", "layers.conv.conv_forward", "--arch", "75,90"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = [of_report("conv_forward_kernel", a, compiled_kernels) for a in ((7, 5), (9, 0))]
    assert json.loads(done.stdout) == json.loads(json.dumps(expected))


@pytest.mark.parametrize("architecture", PINNED, ids=kernel_report.label)
@pytest.mark.parametrize("name", VECTORIZED + SCALAR)
def test_tiled_kernels_keep_everything_in_registers(name, architecture, tiled):
    found = tiled[name, architecture]
    assert (found["stack"], found["spills"], found["doubles"]) == (0, 0, [])
    assert found["blocks"] >= 3
    assert not any(kind.startswith(("LDL", "STL")) for kind in found["loop"]["memory"])


@pytest.mark.parametrize("architecture", PINNED, ids=kernel_report.label)
@pytest.mark.parametrize(
    ("name", "least"), [(n, 0.80) for n in VECTORIZED] + [(n, 0.69) for n in SCALAR]
)
def test_most_of_a_tiled_loop_is_multiply_adds(name, least, architecture, tiled):
    loop = tiled[name, architecture]["loop"]
    assert loop["work"] == {"FFMA": 512}
    assert tiled[name, architecture]["share"] >= least


@pytest.mark.parametrize("architecture", PINNED, ids=kernel_report.label)
@pytest.mark.parametrize("name", VECTORIZED)
def test_vectorized_kernels_load_four_numbers_at_a_time(name, architecture, tiled):
    memory = tiled[name, architecture]["loop"]["memory"]
    loads = {kind: count for kind, count in memory.items() if kind.startswith("LD")}
    assert loads == {"LDG.128": 3, "LDS.128": 32}


@pytest.mark.parametrize("architecture", PINNED, ids=kernel_report.label)
@pytest.mark.parametrize("direction", ["forward", "input_gradient", "filter_gradient"])
def test_the_loop_of_tiles_in_shared_memory_loads_two_numbers_for_16_multiply_adds(
    direction, architecture, tools, compiled_kernels
):
    name = f"shared_{direction}_kernel"
    found = of_report(name, architecture, compiled_kernels)
    assert (found["stack"], found["spills"], found["doubles"]) == (0, 0, [])
    assert found["blocks"] >= 4 and found["threads"] == 256
    assert found["loop"]["work"] == {"FFMA": 16}
    memory = found["loop"]["memory"]
    assert (memory["LDG.32"], memory["STS.32"]) == (2, 2)


TENSOR = [name for name, case in CASES.items() if case.architectures == TENSOR_CORES]


@pytest.fixture(scope="session")
def tensor(tools, compiled_kernels):
    """By name and architecture, what the report says of the tensor-core convolution."""
    return {
        (name, architecture): of_report(name, architecture, compiled_kernels, CASES[name].dtypes[0])
        for name in TENSOR
        for architecture in TENSOR_CORES
    }


@pytest.mark.parametrize("architecture", [(8, 0), (9, 0), (12, 0)], ids=kernel_report.label)
@pytest.mark.parametrize("name", TENSOR)
def test_a_loop_on_tensor_cores_multiplies_a_slice_that_was_copied_in_the_background(
    name, architecture, tensor
):
    found = tensor[name, architecture]
    assert (found["stack"], found["spills"], found["doubles"]) == (0, 0, [])
    # Two blocks fit, or four of the smaller tile, but two where shared memory is 100 KiB.
    assert found["shared"] <= 49152
    assert found["blocks"] == (4 if "128x64" in name and architecture != (12, 0) else 2)
    # A warp's 64 x 64 sums, or 64 x 32, in fragments of 16 x 8, two products deep.
    small = "tensor_filter_128x64" in name
    assert found["loop"]["work"] == {"HMMA": 4 * (4 if small else 8) * 2}
    if "tensor_forward_128x128" in name:
        assert found["loop"]["instructions"] <= (330 if "tf32" in name else 260)
    memory = found["loop"]["memory"]
    assert memory["LDGSTS.128"] == (8 if "128x128" in name else 6 if small else 12)
    assert not set(memory) & {"LDG.32", "LDG.64", "LDG.128", "STS.32", "STS.128", "LDL.128"}


def test_before_ampere_there_are_no_such_kernels(compiled_kernels):
    of_turing = [row for row in compiled_kernels.rows if row["architecture"] == [7, 5]]
    assert of_turing and not {row["kernel"] for row in of_turing} & set(TENSOR)
