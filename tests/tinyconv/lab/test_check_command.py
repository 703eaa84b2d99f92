"""`python -m tinyconv check`, once its options are parsed."""

import argparse

import planted
import pytest
import textbook
from simulated import line_of

from tinyconv.lab import check_command
from tinyconv.lab.cases.case import CaseLaunch, KernelCase


def run(*arguments):
    parser = argparse.ArgumentParser()
    check_command.options(parser)
    return check_command.main(parser.parse_args(arguments))


def test_a_row_for_each_launch(capsys):
    assert run("lrn", "relu", "--shape", "2,3,2,5", "--orders", "1") == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["kernel", "launched", "by", "accesses", "verdict"]
    assert [row.split()[0] for row in rows[1:-3]] == [
        *("lrn_forward_kernel", "lrn_backward_kernel") * 2,
        *("relu_forward_kernel", "relu_backward_kernel"),
    ]
    assert all(row.endswith("  ok") for row in rows[1:-3])
    assert rows[-3] == "6 launches, nothing found"
    # A wrong index into the right tile is no fault to be found here.
    assert "Wrong results" in rows[-1] and "gradcheck --simulate, and pytest" in rows[-1]


def test_a_kernels_name_chooses_its_launches(capsys):
    assert run("lrn_backward_kernel", "relu", "--shape", "1,2,3,4", "--orders", "0") == 0
    rows = capsys.readouterr().out.splitlines()
    names = ["lrn_backward_kernel"] * 2 + ["relu_forward_kernel", "relu_backward_kernel"]
    assert [row.split()[0] for row in rows[1:-3]] == names


def test_issues_stand_below_their_row(capsys, monkeypatch):
    x, y = textbook.copy(planted.N).args
    case = KernelCase(planted.missing_barrier, fills="y")
    faulty = CaseLaunch("a fault", case, 1, planted.N, (x, y))
    monkeypatch.setattr(check_command, "launches", lambda name, shape: iter([faulty]))
    assert run("relu", "--orders", "0") == 1
    out = capsys.readouterr().out
    assert "1 found\n  race: [" in out and "\n1 launch, 1 found\n" in out
    assert f"planted.py:{line_of(planted.missing_barrier, '# fills')}: tile[i] = x[i]" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["relux"], "no layer or kernel is called 'relux': did you mean relu.* choose from conv,"),
        (["--shape", "1,1"], "--shape is for the NAMEs it fits"),
        (["lrn", "--shape", "2,3"], "--shape of lrn is positive numbers such as 2,6,7,5, not"),
        (["lrn", "--shape", "2,3,0,1"], "positive numbers"),
        (["lrn", "--shape", "big"], "not 'big'"),
        (["max_pool", "--shape", "1,2,2,1"], "no whole window of 3x3"),
        (["relu", "--orders", "-1"], "--orders cannot be negative: -1"),
    ],
)
def test_wrong_usage_is_one_line(arguments, message, capsys):
    with pytest.raises(ValueError, match=message) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value) and capsys.readouterr().out == ""


def test_it_needs_the_simulator(monkeypatch):
    monkeypatch.setattr(check_command.simulator, "installed", False)
    monkeypatch.setattr(check_command.simulator, "install", lambda: "off (set NUMBA_...)")
    with pytest.raises(ValueError, match="checked in the simulator, which is off"):
        run("relu")
