"""benchmarks/gpu_tables.py: results as Markdown."""

import gpu_tables
from gpu_runner import Result


def test_shares_are_of_the_measured_ceilings_and_missing_cases_are_named():
    facts = {"device": "a GPU", "rehearsal": False, "repeats": 30}
    results = [
        Result("ceilings", "copy bandwidth", "cupy", [2.0], moved=4 * 10**12),
        Result("ceilings", "matrix product", "cupy", [1.0] * 30, operations=10 * 10**12),
        Result("ceilings", "matrix product, TF32", "cupy", [1.0] * 30, operations=40 * 10**12),
        Result("ceilings", "matrix product, BF16", "cupy", [1.0] * 30, operations=80 * 10**12),
        Result("convolutions", "conv1 filter gradient", "tiled", [1.0] * 30, operations=10**12),
        Result("convolutions", "conv1 both gradients", "tiled", [1.5] * 30, operations=2 * 10**12),
        Result(
            "convolutions", "conv1 forward", "PyTorch, TF32", [1.0] * 30, operations=10 * 10**12
        ),
        Result("convolutions", "conv2 forward", "tensor, BF16", [1.0] * 30, operations=10**13),
        Result("layers", "relu1 forward", "we", [1.0, 1.0, 4.0], moved=10**12),
        Result(
            *("steps", "128", "we, TF32", [0.5] * 30, [0.1] * 30),
            operations=10**13,
            images=128,
            notes={"replayed": False, "peak bytes": 2**21},
        ),
        Result("steps", "1,024", "we", why="failed: MemoryError: too much"),
    ]
    report = gpu_tables.markdown(facts, results)
    assert gpu_tables.WARNING not in report
    for row in (
        "| copy bandwidth | cupy | 2,000.000 | 2,000.000 to 2,000.000 | 1 | 2,000.0 GB/s |",
        "| conv1 filter gradient | tiled | 1,000.000 | 1,000.000 to 1,000.000 | 30 | 1.00 | 10% |",
        "| conv1 input gradient, by difference | tiled | 500.000 | 500.000 to 500.000 | 1 | 2.00 "
        "| 20% |",
        "| conv1 forward | PyTorch, TF32 | 1,000.000 | 1,000.000 to 1,000.000 | 30 | 10.00 | 25% |",
        "| relu1 forward | we | 1,000.000 | 1,000.000 to 4,000.000 | 3 | 1,000.0 | 50% |",
        "| conv2 forward | tensor, BF16 | 1,000.000 | 1,000.000 to 1,000.000 | 30 | 10.00 | 12% |",
        "| 128 | we, TF32 | 500.000 | 500.000 to 500.000 | 30 | 256 | 20.00 | 50% | 100.000 | 2 "
        "| no: launched one by one |",
        "| 1,024 | we | failed: MemoryError: too much |  |  |  |  |  |  |  |  |",
        "- steps: 1,024, we: failed: MemoryError: too much.",
    ):
        assert row in report.splitlines(), row
    assert "relu1 forward (we: 3)" in report


def test_two_columns_stand_beside_the_grouped_net_in_the_same_precision():
    def step(who, *seconds):
        return Result("steps", "128", who, list(seconds), list(seconds), images=128)

    columns = "tinyconv, two columns on this GPU"
    rows = [
        *(step("tinyconv", 1.0), step("tinyconv, graph", 0.1), step("tinyconv, TF32", 0.5)),
        *(step(columns, 1.25), step(f"{columns}, TF32", 0.5, 1.0, 9.0)),
    ]
    assert gpu_tables.columns_beside_grouped(rows).splitlines() == [
        f"- {columns}, batch 128: 80% of the rate of tinyconv.",
        f"- {columns}, TF32, batch 128: 50% of the rate of tinyconv, TF32.",
    ]
    assert gpu_tables.columns_beside_grouped(rows[1:3]) == ""
