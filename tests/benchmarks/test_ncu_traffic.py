"""benchmarks/ncu_traffic.py, as much of it as can be tested without a GPU."""

import ncu_traffic
import pytest
import textbook

HEADER = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size",'
    '"Grid Size","Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"'
)


def ncu_csv(*kernels):
    """A sample of ncu's CSV, put together by hand: a row for each metric of each kernel."""
    rows = ["==PROF== Connected to process 77 (/usr/bin/python3)", "==PROF== Profiling", HEADER]
    for number, (kernel, metrics) in enumerate(kernels):
        for name, value in metrics.items():
            rows.append(
                f'"{number}","77","python3","127.0.0.1","{kernel}","1","7","(256, 1, 1)",'
                f'"(16, 1, 1)","0","9.0","Command line profiler metrics","{name}","","{value}"'
            )
    return "\n".join([*rows, "==PROF== Disconnected from process 77"])


def test_ncus_table_is_read():
    text = ncu_csv(
        ("_ZN8textbook11copy_kernel(Array, Array)", {"a.sum": "1,024", "b.sum": "3", "c": "n/a"}),
        ("other", {"a.sum": "7.0"}),
    )
    assert ncu_traffic.parsed(text) == [
        ("_ZN8textbook11copy_kernel(Array, Array)", {"a.sum": 1024, "b.sum": 3}),
        ("other", {"a.sum": 7}),
    ]
    with pytest.raises(ValueError, match="no table"):
        ncu_traffic.parsed("==ERROR== no permission")


@pytest.fixture(scope="module")
def ours():
    return ncu_traffic.predicted()


def test_predictions_are_compared(ours):
    assert list(ours) == list(textbook.TEXTBOOK)
    assert ours["transpose"]["shared read wavefronts"] == 4096
    assert ours["strided copy"]["global read sectors"] == 1024
    rows, wrong = ncu_traffic.compared(ours, ours)
    assert wrong == 0 and len(rows) == 2 + 5 * len(ncu_traffic.METRICS)
    theirs = {name: dict(counts) for name, counts in ours.items()}
    theirs["copy"]["global read sectors"] += 1
    theirs["transpose"].pop("shared read wavefronts")
    theirs["matrix product"]["shared read wavefronts"] -= 1
    rows, wrong = ncu_traffic.compared(ours, theirs)
    assert wrong == 2
    assert "| copy | global read sectors | 500 | 501 | DIFFERENT |" in rows
    assert "| transpose | shared read wavefronts | 4,096 | n/a | NOT MEASURED |" in rows
    assert sum("fewer" in row for row in rows) == 1


def test_measured_by_a_stand_in_for_ncu(ours, tmp_path):
    kernels = [
        (
            f"{textbook.TEXTBOOK[name]().kernel.__name__}(Array, Array)",
            {ncu_traffic.METRICS[title]: f"{count:,}" for title, count in counts.items()},
        )
        for name, counts in ours.items()
    ]
    program = tmp_path / "ncu"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{ncu_csv(*kernels)}\nEND\n")
    program.chmod(0o755)
    assert ncu_traffic.measured(str(program)) == ours
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{ncu_csv(*kernels[1:])}\nEND\n")
    with pytest.raises(RuntimeError, match="ncu saw"):
        ncu_traffic.measured(str(program))
    program.write_text("#!/bin/sh\necho no permission\nexit 1\n")
    with pytest.raises(RuntimeError, match="no permission"):
        ncu_traffic.measured(str(program))


def test_without_ncu_one_line(monkeypatch, capsys):
    monkeypatch.setattr(ncu_traffic, "gpu_count", lambda: 0)
    assert ncu_traffic.main(["--ncu", "no-such-program"]) == 2
    error = capsys.readouterr().err
    assert error == "nothing to compare with: a GPU and no-such-program not found\n"
