"""`hot_path.py` and `gpu_model.py`: what is counted, and what the real kernels may cost."""

import os
import re
import subprocess
import sys
from pathlib import Path

import gpu_model
import pytest
import sass
from hot_path import hot_path
from l1_replay import Cache

ROOT = Path(__file__).resolve().parents[2]


def listing(*lines):
    """SASS of these instructions; "name:" is a label."""
    return "\n".join(
        f".{line}" if line.startswith("L_") else f"        /*{16 * i:04x}*/   {line} ;"
        for i, line in enumerate(lines)
    )


def test_the_path_is_that_of_a_thread_inside_of_the_array():
    path = hot_path(listing("ISETP P0", "@P0 EXIT", "LDG.E R1", "STG.E R1", "EXIT"))
    assert (path.instructions, path.moved, path.loops, path.divisions) == (5, 8, (), 0)


def test_of_equal_bytes_the_widest_accesses_count_and_calls_are_avoided():
    path = hot_path(
        listing(
            *("@P0 BRA `(.L_x_1)", "LDG.E R1", "LDG.E R2", "LDG.E R3", "LDG.E R4", "NOP", "EXIT"),
            *("L_x_1:", "@P1 BRA `(.L_x_2)", "CALL.REL `($__cuda_sm20_div_s64)", "L_x_2:"),
            *("LDG.E.128.CONSTANT R1", "EXIT"),
        )
    )
    assert (path.instructions, path.moved, path.divisions) == (4, 16, 1)


def test_a_division_is_not_skipped_for_its_special_cases():
    path = hot_path(listing("@P0 BRA `(.L_x_1)", "MUFU.RCP R1", "NOP", "L_x_1:", "EXIT"))
    assert path.instructions == 4


def test_loops_count_as_often_as_they_run_and_inner_ones_in_each_round():
    text = listing(
        *("NOP", "L_x_1:", "LDG.E.U16 R1", "L_x_2:", "FFMA R1", "@P0 BRA `(.L_x_2)"),
        *("@P1 BRA `(.L_x_1)", "STG.E.64 R1", "EXIT"),
    )
    path = hot_path(text, [10, 3])
    assert path.instructions == 1 + 10 * (2 + 3 * 2) + 2
    assert path.moved == 10 * 2 + 8
    outer, inner = path.loops
    assert (outer.begin, outer.instructions, outer.moved, outer.trips) == (1, 2, 2, 10)
    assert (inner.begin, inner.instructions, inner.moved, inner.trips) == (2, 2, 0, 3)
    assert hot_path(text).instructions == 7
    assert "FFMA" in inner.work and "LDG" in outer.work


def test_a_kernel_without_an_end_is_refused():
    with pytest.raises(ValueError, match="no path leads"):
        hot_path(listing("L_x_1:", "BRA `(.L_x_1)"))


# --- the real kernels on an H200: instructions of the path, or of the longest loop, for each
#     element, window of pooling, or k-tile of tensor cores

PATH, LOOP = "path", "loop"
MOST = [
    ("lrn_vectorized_forward_kernel", "float32", PATH, 8, 24),
    ("lrn_vectorized_forward_kernel", "bfloat16", PATH, 8, 26),
    ("lrn_vectorized_backward_kernel", "float32", PATH, 8, 45),
    ("lrn_vectorized_backward_kernel", "bfloat16", PATH, 8, 49),
    ("max_pool_vectorized_forward_kernel", "float32", LOOP, 4, 50),
    ("max_pool_vectorized_backward_kernel", "float32", LOOP, 4, 43),
    ("crop_kernel", "float32", PATH, 12, 41),
    ("image_to_s2d_kernel", "float32", LOOP, 4, 26),
    ("masked_gradient_kernel", "float32", LOOP, 8, 18),
    ("bias_kernel", "float32", PATH, 4, 22),
    ("to_bfloat16_kernel", "bfloat16", PATH, 8, 6),
    ("from_bfloat16_kernel", "bfloat16", PATH, 8, 6),
    ("tensor_forward_128x128_tf32_rounded_kernel", "float32", LOOP, 1, 188),
    ("tensor_forward_128x64_tf32_rounded_kernel", "float32", LOOP, 1, 216),
    ("tensor_filter_128x128_tf32_rounded_kernel", "float32", LOOP, 1, 263),
]


@pytest.mark.parametrize(("name", "dtype", "what", "elements", "most"), MOST)
def test_what_an_element_costs(name, dtype, what, elements, most, compiled_kernels):
    if missing := sass.missing_tools():
        pytest.skip("; ".join(missing))
    _, text = sass.assemble(compiled_kernels.ptx(name, dtype, (9, 0)), (9, 0))
    path = hot_path(text)
    assert what != PATH or path.divisions == 0  # before a loop there may be some
    loops = [loop.instructions for loop in path.loops if what is PATH or loop.moved]
    if "tensor" in name:
        loops = [loop.instructions for loop in path.loops if "HMMA" in loop.work]
    count = path.instructions if what is PATH else max(loops)
    assert most - 8 < count / elements <= most


def test_every_kind_of_kernel_is_bound_by_bytes_and_the_step_is_as_fast_as_told():
    if missing := sass.missing_tools():
        pytest.skip("; ".join(missing))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_model.py"), "--precision", "tf32"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    bound = {(row[0], row[1]): row[6] for row in cells if len(row) == 8}
    for name in ("lrn_vectorized", "max_pool_vectorized", "masked_gradient"):
        large = [v for (step, n), v in bound.items() if n.startswith(name) and "fc" not in step]
        assert large and set(large) == {"bytes"}
    assert not any(re.search("_rows_(forward|backward)|_tf32$", name) for _, name in bound)
    sums = {row[0]: float(row[1]) for row in cells if len(row) == 2 and row[1][:1].isdigit()}
    assert sums["step"] == pytest.approx(sum(v for k, v in sums.items() if k != "step"), abs=0.05)
    assert sums["step"] <= 4.8


AUTHORS = """
import sys, gpu_model
for precision in ("fp32", "tf32", "bf16"):
    found = gpu_model.launches_of(gpu_model.MACHINES["H200"], precision, 16, "authors")
    for launch in found:
        print(precision, launch.title.replace(" ", "_"), launch.name, launch.blocks)
        if launch.kernel is None:
            m, n, k = launch.sizes
            print("word", precision, launch.moved / (m * n + m * k + n * k))
"""


def test_a_lone_convolutions_bias_gradient_is_a_wide_launch_and_products_move_their_words():
    # In the recipe "authors" LRN stands between conv1 and its ReLU.
    path = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks")))
    command = [sys.executable, "-c", AUTHORS]
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    launches = [line for line in lines if len(line) == 4]
    of_conv1 = [(p, name, int(n)) for p, title, name, n in launches if title == "conv1_backward"]
    assert not any("bias_gradient" in name for _, name, _ in of_conv1)
    wide = [(p, n) for p, name, n in of_conv1 if name == "sum_rows"]
    assert [p for p, _ in wide] == ["fp32", "tf32", "bf16"] and min(n for _, n in wide) >= 2 * 132
    words = [(line[1], float(line[2])) for line in lines if line[0] == "word"]
    assert len(words) == 3 * 9  # three layers, forward, dL/dx and dL/dw
    assert all(2 <= n < 4 if precision == "bf16" else n == 4 for precision, n in words)


def test_neighbours_find_their_lines_in_a_cache_until_it_is_full():
    cache = Cache(2)
    cache.copy("x", [0, 1], 64)  # two sectors of one line
    cache.copy("x", [1, 4], 64)  # one that is held, and another line
    assert (cache.loaded, cache.moved) == (96, 128)
    cache.copy("w", [0], 32)  # a third line drops the first
    cache.copy("x", [0], 32)
    cache.copy("dy", [0, 0], 64)
    assert (cache.loaded, cache.moved) == (96 + 32 + 32 + 64, 128 + 32 + 32 + 64)


def test_a_machine_without_a_precision_is_refused(capsys):
    if sass.missing_tools():
        pytest.skip("the tools are missing")
    assert gpu_model.main(["--machine", "T4", "--precision", "bf16"]) == 2
    assert capsys.readouterr().err == "T4 has no bf16: use fp32\n"
