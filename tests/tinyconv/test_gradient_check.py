"""The check itself: it must find what is wrong, and say where."""

import numpy as np
import pytest

from layers import Dropout, Linear, ReLU
from tinyconv import check_gradients
from tinyconv.lab.cases.book import gradient_cases
from tinyconv.tools.command_line import main


class WrongReLU(ReLU):
    """Its derivative is 1 % off in one element."""

    def backward(self, dy):
        dx = super().backward(dy)
        dx[1, 2] *= 1.01
        return dx


class ForgetfulLinear(Linear):
    """It adds to the bias gradient instead of overwriting it."""

    def backward(self, dy):
        before = self.bias.grad.copy()
        dx = super().backward(dy)
        self.bias.grad += before
        return dx


def filled(layer):
    for parameter in layer.parameters():
        parameter.value[...] = np.random.default_rng(1).standard_normal(parameter.value.shape)
    return layer


X = np.random.default_rng(0).uniform(0.2, 2, (3, 4))


def test_a_small_error_in_one_element_is_found_and_located():
    (row,) = check_gradients(WrongReLU().to("cpu", "float64"), X)
    assert not row.ok and row.where == (1, 2) and row.name == "x" and row.checked == 12
    assert row.error == pytest.approx(0.01, rel=0.02) and "WRONG in 1 of 12: here " in str(row)


def test_a_parameter_gradient_that_accumulates_is_found():
    layer = filled(ForgetfulLinear(4, 2)).to("cpu", "float64")
    layer.bias.grad[...] = 1
    x, weight, bias = check_gradients(layer, X)
    assert x.ok and weight.ok and not bias.ok


def test_nan_is_an_error_not_a_pass():
    class Nan(ReLU):
        def backward(self, dy):
            return super().backward(dy) * np.nan

    (row,) = check_gradients(Nan().to("cpu", "float64"), X)
    assert not row.ok and row.wrong == 12


def test_samples_are_seeded_and_bounded():
    layer = filled(Linear(4, 2)).to("cpu", "float64")
    rows = check_gradients(layer, X, samples=3, seed=5)
    assert [row.checked for row in rows] == [3, 3, 2] and all(row.ok for row in rows)
    assert rows == check_gradients(layer, X, samples=3, seed=5)


def test_nothing_is_left_changed():
    layer = filled(Linear(4, 2)).to("cpu", "float64")
    layer.input_gradient = False
    x, weight = X.copy(), layer.weight.value.copy()
    check_gradients(layer, x)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(layer.weight.value, weight)
    assert layer.input_gradient is False


def test_dropout_is_checked_with_one_mask_and_in_test_mode():
    for train in (True, False):
        (row,) = check_gradients(Dropout(0.5).to("cpu", "float64"), X, train=train)
        assert row.ok


def test_float32_is_refused():
    with pytest.raises(ValueError, match="float32.*float64"):
        check_gradients(ReLU(), X)


@pytest.mark.parametrize("kernels", ["simple", "fast"])
def test_the_command_passes_and_prints_a_row_for_each_array(kernels, capsys):
    assert main(["gradcheck", "--kernels", kernels]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].endswith(f"kernels {kernels}")
    for title, layer, _, _ in gradient_cases():
        assert title in printed
        assert all(parameter.name.split(".")[-1] in printed for parameter in layer.parameters())
    assert printed.count(" ok\n") >= 35 and "\nall derivatives agree: " in printed


def test_the_command_fails_on_a_wrong_derivative(capsys, monkeypatch):
    cases = [("wrong", WrongReLU(), X, None)]
    monkeypatch.setattr("tinyconv.tools.gradcheck_command.gradient_cases", lambda: iter(cases))
    assert main(["gradcheck"]) == 1
    assert (
        "\n1 of 1 derivatives are wrong: 1 arrays, simple host loops; " in capsys.readouterr().out
    )


def test_the_command_explains_a_device_that_makes_no_sense(capsys):
    assert main(["gradcheck", "--device", "gpu"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_some_layers_by_name(capsys):
    assert main(["gradcheck", "lrn", "Tanh"]) == 0
    printed = capsys.readouterr().out
    titles = [line.split()[0] for line in printed.splitlines() if line and line[0].isupper()]
    assert set(titles) == {"LocalResponseNorm", "Tanh"}
    assert printed.endswith("simple host loops; no kernel was run (--simulate runs them)\n")
    assert main(["gradcheck", "max_pool", "locally_connected"]) == 0
    printed = capsys.readouterr().out
    titles = [line.split()[0] for line in printed.splitlines() if line and line[0].isupper()]
    assert set(titles) == {"MaxPool2D", "LocallyConnected2D"}
    assert main(["gradcheck", "conv4d"]) == 2
    said = capsys.readouterr().err
    assert "no layer is called 'conv4d': did you mean conv" in said and said.count("\n") == 1
    assert "choose from conv2d, maxpool2d," in said and said.endswith(", net\n")


def test_simulated_kernels(capsys, cuda_device):
    assert main(["gradcheck", "relu", "--simulate"]) == 0
    assert capsys.readouterr().out.endswith("all derivatives agree: 1 arrays, simple kernels\n")
