"""`python -m tinyconv traffic`: tables, JSON, and what it refuses."""

import argparse
import json

import pytest

from tinyconv.lab import traffic_command


def command(capsys, *arguments):
    parser = argparse.ArgumentParser()
    traffic_command.options(parser)
    status = traffic_command.main(parser.parse_args(arguments))
    return status, capsys.readouterr().out


def test_command(capsys):
    status, text = command(capsys, "lrn", "--shape", "1,2,3,8")
    assert status == 0
    assert "lrn_forward_kernel, grid (1, 1, 1)" in text and "lrn_backward_kernel" in text
    assert "total += x[row, j] * x[row, j]" in text and "(1, 2, 3, 8)" in text


def test_command_of_one_kernel(capsys):
    _, text = command(capsys, "MaxPool2D", "--json")
    both = json.loads(text)
    _, text = command(capsys, "max_pool_backward_kernel", "--json")
    assert json.loads(text) == both[1:] and both[1]["kernel"] == "max_pool_backward_kernel"


def test_command_json(capsys):
    status, text = command(capsys, "max_pool", "--json")
    kernels = [traffic["kernel"] for traffic in json.loads(text)]
    assert (status, kernels) == (0, ["max_pool_forward_kernel", "max_pool_backward_kernel"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["lrm"], "no layer or kernel is called 'lrm': did you mean lrn.* choose from conv, max_p"),
        (["lrn", "--shape", "2,x"], "positive numbers such as 2,6,7,5, not '2,x'"),
        (["lrn", "--shape", "2,13"], "such as 2,6,7,5, not '2,13'"),
        (["lrn", "--shape", "2,0,3,4"], "such as 2,6,7,5"),
        (["lrn", "--shape", "128,55,55,96"], "37,171,200 elements"),
        (["max_pool", "--shape", "1,1,1,1"], "no whole window of 3x3"),
    ],
)
def test_command_refuses(capsys, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        command(capsys, *arguments)
    assert "\n" not in str(caught.value)
