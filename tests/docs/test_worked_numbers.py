"""Every number in the worked examples of docs/ is recomputed, from the inputs that stand there.

What is read from a document: in blocks between ``` lines, arrays ("dy =" and indented rows) and
equations ("y[0, 0] = 1 + 1·1 = 2": every part after the first must be worth what the layer's
y[0, 0] is); in tables, rows whose first cell begins with a name in backticks.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from layers import Conv2D, LocalResponseNorm, MaxPool2D, simulator
from layers.fast.host.im2col import im2col
from tinyconv.data.augment import Augment, colour_axes
from tinyconv.data.statistics import Statistics
from tinyconv.lab.cases import GROUPS, checked_shape
from tinyconv.lab.traffic import measure

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROUNDED = 6e-5  # half a unit of the fourth decimal, and the error of a float32 kernel
OF_ROUNDED = 2e-4  # of an expression whose operands are rounded to four decimals


def blocks(text):
    """The lines of each block between ``` lines; not those of a debugging session."""
    parts = re.split(r"^```.*$", text, flags=re.M)
    return [block.splitlines() for block in parts[1::2] if "(Pdb)" not in block]


def arrays_in(name):
    """The arrays of a document by name, from its blocks and its tables."""
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    found = {}
    for lines in blocks(text):
        for start, line in enumerate(lines):
            if title := re.fullmatch(r"(\w+) =", line.strip()):
                rows = []
                for row in lines[start + 1 :]:
                    if not re.fullmatch(r"[\d\s.-]+", row):
                        break
                    rows.append([float(cell) for cell in row.split()])
                found[title[1]] = np.array(rows)
    for row in re.findall(r"^\| `(\w+)`.*?\|(.*)\|$", text, re.M):
        cells = [cell.strip() for cell in row[1].split("|")]
        if all(re.fullmatch(r"-?[\d.]+", cell) for cell in cells):
            found[row[0]] = np.array(cells, float)
    return found


def value_of(expression):
    """The number that an expression of numbers and + − · / ^ ( ) stands for, else None."""
    if not re.fullmatch(r"[\d\s.,·+*/()^²−-]+", expression) or not expression.strip():
        return None
    for written, meant in {"·": "*", "−": "-", "²": "**2", "^": "**"}.items():
        expression = expression.replace(written, meant)
    expression = re.sub(r"(?<=\d),(?=\d{3}\b)", "", expression)
    return eval(expression.strip())


def check_equations(name, arrays):
    """Check every equation of a document; returns how many there were."""
    count = 0
    for line in sum(blocks((DOCS / f"{name}.md").read_text(encoding="utf-8")), []):
        left, *others = [part.strip() for part in line.split("=")]
        values = [value for value in map(value_of, others) if value is not None]
        if not values:
            continue
        if entry := re.fullmatch(r"(\w+)(?:\[([\d, ]+)\])?", left):
            if entry[1] not in arrays:
                continue
            index = tuple(int(i) for i in (entry[2] or "").split(",") if i)
            true = float(arrays[entry[1]].squeeze()[index])
        else:
            true = value_of(left)
        if true is None:
            continue
        assert len(values) == len(others), f"{name}.md: a part that is no number: {line}"
        assert values[-1] == pytest.approx(true, rel=0, abs=ROUNDED), line
        for value in values[:-1]:
            assert value == pytest.approx(true, rel=0, abs=OF_ROUNDED), line
        count += 1
    return count


def compare(written, computed):
    """Each of the computed arrays stands in the document."""
    for name, array in computed.items():
        assert name in written, name
        np.testing.assert_allclose(
            written[name], array.reshape(written[name].shape), rtol=0, atol=ROUNDED, err_msg=name
        )


def image(rows, device):
    """(H, W) numbers as one image of one channel, in float64."""
    return device.array(rows[None, :, :, None], np.float64)


def test_convolution(device):
    doc = arrays_in("conv")
    layer = Conv2D(1, 1, 3, stride=2, padding=(1, 0)).to(device, "float64")
    layer.weight.value[...] = device.array(doc["w"].reshape(1, 3, 3, 1))
    layer.bias.value[...] = 1
    y = device.to_host(layer.forward(image(doc["x"], device))).copy()
    dx = device.to_host(layer.backward(image(doc["dy"], device)))
    computed = {
        "y": y,
        "dw": device.to_host(layer.weight.grad),
        "dx": dx,
        "columns": np.empty((4, 9)),
        "dcolumns": doc["dy"].reshape(4, 1) * doc["w"].reshape(1, 9),
    }
    padded = np.pad(doc["x"], (1, 0)).reshape(1, 5, 5, 1)
    im2col(padded, computed["columns"].reshape(2, 2, 9), 3, 2, 2, 0)
    compare(doc, computed)
    computed["db"], computed["b"] = device.to_host(layer.bias.grad), np.ones(1)
    assert check_equations("conv", computed) == 4 + 1 + 3 + 4 + 2 + 1 + 3 + 1


def test_what_convolution_costs():
    text = (DOCS / "conv.md").read_text(encoding="utf-8")
    conv2 = Conv2D(96, 256, 5, padding=2, groups=2)
    multiply_adds = conv2.multiply_adds((27, 27, 96))
    assert f"{multiply_adds:,}" in text
    read, written = 128 * 27 * 27 * 96 + conv2.weight.value.size, 128 * 27 * 27 * 256
    per_byte = 128 * multiply_adds / (4 * (read + written))
    assert f"{per_byte:.0f} multiply-adds for each byte" in text


@pytest.mark.parametrize("stride, window", [(4, 11)])
def test_how_many_window_rows_lie_on_a_pixel(stride, window):
    counts = {sum((h - r) % stride == 0 for r in range(window)) for h in range(100)}
    assert counts == {2, 3}  # "only two or three" in conv.md


def test_max_pooling(device):
    doc = arrays_in("max_pool")
    layer = MaxPool2D(3, 2).to(device, "float64")
    y = device.to_host(layer.forward(image(doc["x"], device))).copy()
    dx = device.to_host(layer.backward(image(doc["dy"], device)))
    place = np.arange(25).reshape(5, 5)[0:3, 2:5]
    computed = {
        "y": y,
        "winner": device.to_host(layer.winner),
        "dx": dx,
        "place": place,
        "value": doc["x"].reshape(-1)[place],
    }
    compare(doc, computed)
    assert check_equations("max_pool", computed) == 5 + 3
    value = doc["value"].ravel()
    assert np.count_nonzero(value == value.max()) == 2  # the tie
    assert np.count_nonzero(computed["winner"] == 11) == 2  # the input that wins twice


def test_which_windows_hold_a_row():
    text = (DOCS / "max_pool.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| (-?\d) \| (\d) \| (\d) \| (\d) \| ([\d, ]+) \|$", text, re.M)
    assert [int(row[0]) for row in rows] == [0, 1, 2, 3, 4]
    for row in rows:
        h, low, high, first, end = (int(cell) for cell in row[:5])
        assert (low, high) == ((h - 3) // 2 + 1, h // 2 + 1)
        assert (first, end) == (max(0, low), min(2, high))
        windows = [p for p in range(2) if 2 * p <= h < 2 * p + 3]
        assert windows == list(range(first, end)) == [int(p) for p in row[5].split(",")]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_local_response_normalization(device, dtype):
    doc = arrays_in("lrn")
    layer = LocalResponseNorm(size=3, k=2.0, alpha=0.5, beta=0.75).to(device, dtype)
    x, dy = doc["x"], doc["dy"]
    y = device.to_host(layer.forward(device.array(x[None], dtype))).copy()[0]
    dx = device.to_host(layer.backward(device.array(dy[None], dtype)))[0]
    s = device.to_host(layer.scale)[0]
    window = np.abs(np.subtract.outer(range(4), range(4))) <= 1
    t = dy * y / s
    computed = {"total": window @ x**2, "s": s, "power": s**-0.75, "y": y}
    computed |= {"t": t, "around": window @ t, "own": dy * s**-0.75}
    computed |= {"others": 0.75 * x * (window @ t), "dx": dx}
    compare(doc, computed)
    np.testing.assert_allclose(dx, computed["own"] - computed["others"], rtol=0, atol=1e-6)
    assert check_equations("lrn", computed) == 6 + 5 + 2
    text = (DOCS / "lrn.md").read_text(encoding="utf-8")
    assert f"{computed['own'][3] - 0.75 * x[3] * t[3]:.3f} is left of 0.232" in text
    assert f"{0.75 * x[3] * t[2]:.3f} the other way" in text


def test_the_papers_constants_would_hardly_show():
    x = np.array([[1.0, 2, 1, 3]])
    small = LocalResponseNorm(3, 2.0, 1e-4, 0.75).to("cpu", "float64").forward(x)
    np.testing.assert_allclose(small, x * 2**-0.75, rtol=0, atol=1e-3)


def test_crop_flip_and_mean(device):
    doc = arrays_in("augment")
    photo, mean = (doc[name][..., None].repeat(3, axis=2) for name in ("red", "mean"))
    images = photo[None].astype(np.uint8)
    augment = Augment(mean, 2).to(device, "float64")
    x = device.to_host(augment._cut(images, [1], [2], [1]))[0, :, :, 0].copy()
    draws = {name: doc[name].astype(np.int64) for name in ("top", "left", "flip")}
    views = device.to_host(Augment(0 * mean, 2).to(device, "float64").ten_views(images))
    wanted = device.to_host(augment._cut(images, *draws.values(), views=10)).copy()
    compare(doc, {"x": x, "first": views[:, 0, 0, 0]})
    np.testing.assert_array_equal(wanted, device.to_host(augment.ten_views(images)))


def test_colours_of_four_pixels(device):
    doc = arrays_in("augment")
    pixels = doc["pixels"].astype(np.uint8)
    statistics = Statistics(2)
    statistics.add(pixels.reshape(1, 2, 2, 3))
    mean = statistics.mean_image().mean(axis=(0, 1))
    np.testing.assert_array_equal(mean, [120, 110, 100])
    values, p = statistics.eigenvalues, statistics.eigenvectors
    a = np.array([0.15, -0.05, 0.1])
    text, code = (colour_axes(values, p, kind) for kind in ("eigenvalue", "deviation"))
    shift = code @ a
    augment = Augment(np.tile(mean, (2, 2, 1)), 2, 1.1).to(device, "float64")
    cut = augment._cut(pixels.reshape(1, 2, 2, 3), [0], [0], [0], shift[None])
    computed = {
        "covariance": statistics.covariance,
        "p": p,
        "variance": values,
        "deviation": np.sqrt(values),
        "shift": shift,
        "scale": np.linalg.norm(text, axis=0),
        "moved": text @ a,
    }
    compare(doc, computed)
    computed["input"] = device.to_host(cut)[0, 0, 0]
    computed["x"] = doc["x"]
    assert check_equations("augment", computed) == 1 + 4 + 2 + 2 + 3 + 1 + 3 + 1


def test_the_scale_of_the_papers_colours():
    doc = arrays_in("augment")
    roots = doc["roots"]
    text, code = (colour_axes(roots**2, np.eye(3), kind) for kind in ("eigenvalue", "deviation"))
    computed = {
        "large": 0.1 * roots**2,
        "small": 0.1 * text.diagonal(),
        "code": 0.1 * code.diagonal(),
    }
    compare(doc, computed)
    # "by hundreds of levels": the direction has about equal parts of three channels.
    assert 300 < computed["large"][0] / np.sqrt(3) < 1000
    paper = " ".join((DOCS / "paper.md").read_text(encoding="utf-8").split())
    assert f"by {computed['large'][0]:,.0f} levels" in paper
    for name in ("small", "code"):
        assert "{:.1f}, {:.1f} and {:.1f} levels".format(*computed[name]) in paper


def test_the_ladder_of_convolution():
    shared, tiled = 2 + 3 + 1 + 4, 2 + 1 + 3 + 6
    tensor_cores = 5 + 2 + 1 + 3 + 5
    assert check_equations("kernels", {}) == shared + tiled + tensor_cores


def test_the_traffic_of_tiles_in_shared_memory():
    if not simulator.installed:
        pytest.skip("accesses are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    text = " ".join((DOCS / "kernels.md").read_text(encoding="utf-8").split())
    shape = re.search(r"traffic shared --shape ([\d,]+)", text)[1]
    run = next(iter(GROUPS["shared"].run(checked_shape("shared", shape)).values()))
    with simulator.record() as traces:
        run()
    lines = measure(traces[0]).lines
    x, w = (next(line for line in lines if line.array == name) for name in "xw")
    assert (x.lanes, w.lanes) == (x.requests * 32, w.requests * 32)
    assert f"{x.requests} requests to x and {w.requests} to w, of 32 lanes each" in text
    assert f"({x.requests} + {w.requests})·32 = 36,864 / 8" in text
    assert (x.ideal_sectors, w.ideal_sectors) == (x.sectors, w.sectors)
    assert f"{x.sectors} sectors for x and {w.sectors} for w, which is the ideal" in text
    shared = [line for line in lines if line.space == "shared"]
    requests, wavefronts = (
        sum(getattr(line, name) for line in shared) for name in ("requests", "wavefronts")
    )
    reads = sum(line.requests for line in shared if line.op == "read")
    assert f"{requests:,} requests to shared memory take {wavefronts:,} wavefronts" in text
    assert f"{reads:,} of these are reads of the product" in text
