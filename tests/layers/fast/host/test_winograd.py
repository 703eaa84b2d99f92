"""Winograd's algorithm on the host: exact matrices, hostile shapes, its error, blocks, threads."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import oracles
import pytest
from host_steps import formula, host_step, results

from layers import Conv2D, Device
from layers.fast.host import threads
from layers.fast.host import winograd as host
from layers.fast.host.winograd_matrices import matrices
from layers.fast.plan import plan

# image (N, H, W, C), filters, size, stride, padding, groups
CASES = {
    "3x3, a remainder on both sides": ((3, 9, 11, 20), 18, 3, 1, 1, 1),
    "5x5, two groups": ((3, 13, 6, 34), 36, 5, 1, 2, 2),
    "one output": ((2, 3, 3, 19), 18, 3, 1, 0, 1),
    "padding only after, as wide as the filter": ((2, 6, 5, 16), 17, 3, 1, (0, 3), 1),
    "padding only before": ((1, 4, 9, 24), 24, 5, 1, (4, 0), 3),
}
SIDES = [(m, n + 1 - m) for n in (4, 6, 7, 8) for m in range(2, n)]


def make(title, dtype=np.float64, relu=True):
    return host_step(host.WinogradConv, CASES[title], dtype, relu)


# --- matrices


@pytest.mark.parametrize(("m", "r"), SIDES)
def test_the_matrices_give_a_convolution_exactly(m, r):
    """For numbers without a pattern, in fractions: y[i] = Σ_j w[j] x[i + j]."""
    exact = matrices(m, r)
    a, g, b = (np.array(exact[name], dtype=object) for name in "AGB")
    n = m + r - 1
    assert a.shape == (n, m) and g.shape == (n, r) and b.shape == (n, n)
    x = np.array([Fraction(7 * i * i - 3 * i + 1, i + 2) for i in range(n)])
    w = np.array([Fraction(5 - 3 * j, 2 * j + 1) for j in range(r)])
    y = a.T @ ((g @ w) * (b.T @ x))
    assert list(y) == [sum(w[j] * x[i + j] for j in range(r)) for i in range(m)]


def test_only_powers_of_two_scale_the_matrices():
    """So scaling rounds nothing, and V and U are of a like size."""
    for m, r in ((4, 3), (5, 3), (6, 3), (2, 5), (3, 5), (4, 5)):
        b = matrices(m, r)["B"]
        for column in zip(*b, strict=True):
            assert Fraction(3, 4) <= max(map(abs, column)) <= Fraction(3, 2)
        assert all(
            value.denominator & value.denominator - 1 == 0
            for row in matrices(m, r)["A"]
            for value in row
        )


@pytest.mark.parametrize(("m", "r"), [(m, r) for m, r in SIDES if r % 2])
def test_a_pair_of_points_shares_its_sums(m, r):
    """Rows at a and −a differ in the sign of odd elements; the last ones have even or odd ones."""
    exact, pairs = matrices(m, r), (m + r - 2) // 2
    for rows in (exact["A"], [list(column) for column in zip(*exact["B"], strict=True)]):
        for plus, minus in zip(rows[: 2 * pairs : 2], rows[1 : 2 * pairs : 2], strict=True):
            assert minus == [-value if i % 2 else value for i, value in enumerate(plus)]
        for k, row in enumerate(rows[2 * pairs :]):
            assert not any(row[1 - k :: 2]) and any(row[k::2])


def test_sides_without_points_are_named():
    with pytest.raises(
        ValueError, match=r"no points for m=7, r=3: m \+ r - 1 must be 4, 6, 7 or 8"
    ):
        matrices(7, 3)


@pytest.mark.parametrize(("outputs", "r", "m"), [(55, 3, 5), (27, 5, 4), (13, 3, 5), (7, 3, 4)])
def test_the_tile_is_the_one_with_the_fewest_multiplications(outputs, r, m):
    """55: 11·7 = 77 (10·8, 14·6 are more); 27: 7·8; 13: 3·7; 7: 2·6."""
    assert host.tile_side((outputs, outputs), r) == m


# --- the step


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("title", CASES)
def test_the_formula_holds(title, relu):
    step, x, dy = make(title, relu=relu)
    assert step.fits(step.layers[0])
    for mine, right in zip(results(step, x, dy), formula(step, x, dy), strict=True):
        # Transforms lose one digit beside the thousand terms of the longest sum.
        np.testing.assert_allclose(mine, right, rtol=0, atol=1e-12 * np.abs(right).max())


@pytest.mark.parametrize("title", CASES)
def test_the_error_in_float32(title):
    """Relative to the root mean square of what is computed: 1e-5 in the mean square."""
    step, x, dy = make(title, np.float32, relu=False)
    exact, *_ = make(title, np.float64, relu=False)
    for own, other in zip(exact.layers[0].parameters(), step.layers[0].parameters(), strict=True):
        own.value[...] = other.value
    right = results(exact, x.astype(np.float64), dy.astype(np.float64))
    for mine, each in zip(results(step, x, dy), right, strict=True):
        assert mine.dtype == np.float32
        assert np.sqrt(np.mean((mine - each) ** 2) / np.mean(each**2)) < 1e-5


@pytest.mark.parametrize("title", CASES)
def test_a_block_may_be_a_single_tile(title, monkeypatch):
    wanted = results(*make(title))
    monkeypatch.setattr(host, "SMALL_BLOCK", 1)
    monkeypatch.setattr(host, "LARGE_BLOCK", 1)
    for mine, right in zip(results(*make(title)), wanted, strict=True):
        np.testing.assert_allclose(mine, right, rtol=0, atol=1e-13 * np.abs(right).max())


@pytest.mark.parametrize("title", ["5x5, two groups", "one output"])
def test_any_number_of_threads_gives_the_same_but_for_roundings(title, monkeypatch):
    monkeypatch.setattr(threads, "SPLITS", True)
    found = []
    for count in (1, 2, 3, 8, 2):
        monkeypatch.setattr(threads, "get_num_threads", lambda count=count: count)
        found.append(results(*make(title, np.float32)))
    for others in found[1:]:
        for mine, right in zip(others, found[0], strict=True):
            oracles.assert_close(mine, right, np.float32)
    for mine, again in zip(found[1], found[4], strict=True):
        np.testing.assert_array_equal(mine, again)


def test_other_sizes_of_batch_and_image_in_turn():
    """Arrays are used again: nothing of a larger batch before may be left in them."""
    step, x, dy = make("3x3, a remainder on both sides")
    wanted = results(step, x, dy)
    large = np.full((5, 14, 12, 20), 1e6)
    y = step.forward(large)
    step.backward(np.full(y.shape, 1e6))
    for mine, right in zip(results(step, x, dy), wanted, strict=True):
        np.testing.assert_array_equal(mine, right)
    for mine, right in zip(results(step, x[:1], dy[:1]), wanted[:2], strict=False):
        np.testing.assert_allclose(mine, right[:1], rtol=0, atol=1e-12 * np.abs(right).max())


def test_without_an_input_gradient():
    step, x, dy = make("5x5, two groups")
    _, _, *wanted = results(step, x, dy)
    step.layers[0].input_gradient = False
    step.forward(x)
    assert step.backward(dy) is None
    for mine, right in zip(oracles.gradients(step.layers[0]), wanted, strict=True):
        np.testing.assert_array_equal(mine, right)


def test_not_a_number_reaches_what_depends_on_it():
    step, x, dy = make("3x3, a remainder on both sides")
    x[1, 2, 3, 0] = np.nan
    y, _, dw, _ = results(step, x, dy)
    assert np.isnan(y[1, 1:4, 2:5]).all() and not np.isnan(y[0]).any()
    assert np.isnan(dw[..., 0]).any()


# --- the choice


def test_what_the_plan_takes_it_for():
    def kind(*settings, dtype=np.float32, precision="fp32", algorithm="auto"):
        conv = Conv2D(*settings, algorithm=algorithm).to("cpu", dtype)
        (step, *_) = plan([conv], Device("cpu"), dtype, precision, float32_ends=False)
        return type(step).__name__

    assert kind(96, 256, 5, 1, 2, 2) == kind(256, 384, 3, 1, 1) == "WinogradConv"
    assert kind(256, 384, 3, 1, 1, dtype=np.float64) == "WinogradConv"
    assert kind(256, 384, 3, 1, 1, precision="bf16") == "Im2colConv"  # its operands are rounded
    assert kind(64, 96, 3, 1, 1) == kind(24, 64, 5, 1, 2, 2) == "WinogradConv"  # a small net's
    assert kind(3, 96, 11, 4, (2, 1)) == kind(640, 64, 3, 2, 1) == "RegisterTileConv"  # a stride
    assert kind(3, 24, 11, 4, (0, 3)) == kind(32, 32, 3, 1, 1) == "RegisterTileConv"
    assert kind(256, 384, 7, 1, 3) == kind(256, 384, 1) == "RegisterTileConv"
    assert kind(15, 3840, 3, 1, 1) == "RegisterTileConv"  # too few channels
    assert kind(640, 64, 3, 2, 1, 8) == "Im2colConv"  # 8 filters a group
    assert kind(64, 64, 3, 1, 1, algorithm="direct") == "Conv2D"
    assert kind(64, 64, 3, 1, 1, algorithm="host") == "Im2colConv"


# --- docs/winograd.md


def test_the_worked_example_of_the_document():
    text = (Path(__file__).resolve().parents[4] / "docs" / "winograd.md").read_text()
    exact = matrices(2, 3)
    a, g, b = (np.array(exact[name], dtype=object) for name in "AGB")
    lines = text.replace("−", "-").partition("    A =  ")
    start = lines[0].rindex("\n\n")
    block = text.replace("−", "-")[start:].strip("\n").splitlines()[:4]
    numbers = [[Fraction(word) for word in line.split() if word[-1].isdigit()] for line in block]
    assert numbers == [[*a[i], *g[i], *b.T[i]] for i in range(4)]
    x, w = np.array([1, 2, 3, 4]), np.array([2, 0, 1])
    product = (g @ w) * (b.T @ x)
    for label, found in (("G w ", g @ w), ("Bᵀ x", b.T @ x), ("⊙   ", product)):
        wanted = ", ".join(str(value) for value in found).replace("-", "−")
        assert f"    {label} = ({wanted})" in text
    assert list(a.T @ product) == [5, 8] and "y    = (5, 8)" in text


@pytest.mark.parametrize(
    ("layer", "outputs", "r", "size"),
    [("conv2", 27, 5, 5), ("conv3 to conv5", 13, 3, 3)],
)
def test_the_table_of_tiles(layer, outputs, r, size):
    m = host.tile_side((outputs, outputs), r)
    places = -(-outputs // m) * (m + r - 1)
    gain = (outputs * size) ** 2 / places**2
    text = (Path(__file__).resolve().parents[4] / "docs" / "winograd.md").read_text()
    assert f"| {layer} | {outputs} | {r} | {m} | {m + r - 1} | {places} | {gain:.1f} |" in text
