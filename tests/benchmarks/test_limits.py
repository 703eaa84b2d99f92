"""benchmarks/limits.py: its counts by hand, and its tables in docs/limits.md."""

import limits
import pytest

from layers import Conv2D, Dropout, Flatten, Linear, LocalResponseNorm, MaxPool2D, ReLU
from tinyconv import Sequential

WORD = 4
LAYERS = {
    # layer, one image's shape; words of 3 images forward and backward, multiply-adds forward
    "Conv2D": (Conv2D(4, 6, 3, groups=2), (5, 4, 4), (240 + 114 + 108, 108 + 468 + 240), 1944),
    "Linear": (Linear(7, 5), (7,), (21 + 40 + 15, 15 + 21 + 80 + 21), 105),
    "MaxPool2D": (MaxPool2D(3, 2), (5, 7, 2), (210 + 2 * 36, 2 * 36 + 210), 0),
    "LocalResponseNorm": (LocalResponseNorm(), (2, 3, 5), (180, 270), 0),
    "ReLU": (ReLU(), (2, 3, 5), (180, 270), 0),
    "Dropout": (Dropout(), (30,), (180, 180), 0),
    "Flatten": (Flatten(), (2, 3, 5), (0, 0), 0),
}


@pytest.mark.parametrize("title", LAYERS)
def test_work_is_what_counting_by_hand_gives(title):
    layer, shape, words, multiply_adds = LAYERS[title]
    forward, backward = limits.work(layer, shape, 3)
    assert (forward.moved, backward.moved) == tuple(WORD * count for count in words)
    assert (forward.operations, backward.operations) == (2 * multiply_adds, 4 * multiply_adds)


def test_without_input_gradient_half_the_backward_operations_and_no_dx():
    layer, shape, (_, words), multiply_adds = LAYERS["Linear"]
    _, backward = limits.work(layer, shape, 3, input_gradient=False)
    assert backward == (2 * multiply_adds, WORD * (words - 21))


@pytest.mark.parametrize("title", LAYERS)
def test_in_bf16_activations_have_two_bytes_and_all_else_four(title):
    layer, shape, words, _ = LAYERS[title]
    parameters = sum(p.value.size for p in layer.parameters())
    winners = 36 if title == "MaxPool2D" else 0
    full = parameters + winners, 2 * parameters + winners
    for one, all_words, kept in zip(limits.work(layer, shape, 3, word=2), words, full, strict=True):
        assert one.moved == 2 * (all_words - kept) + 4 * kept


def test_the_longer_of_two_times_is_the_floor_and_names_the_bound():
    machine = limits.Machine(flops=100.0, bandwidth=10.0, source="a drawing board")
    assert limits.Work(200, 10).seconds(machine) == 2.0
    assert limits.Work(200, 10).bound(machine) == "c"
    assert limits.Work(200, 50).seconds(machine) == 5.0
    assert limits.Work(200, 50).bound(machine) == "m"


def test_a_step_is_all_passes_and_the_update():
    net = Sequential([Linear(7, 5), ReLU(), Linear(5, 2)], (7,))
    update = limits.Work(0, 5 * WORD * (40 + 12))
    plain, fused = (limits.step_work(net, 3, fused) for fused in (False, True))
    assert len(plain) == 7 and plain[-1] == fused[-1] == update
    assert len(fused) == 5
    # The first layer needs no dx.
    assert plain[1] == limits.work(net.layers[0], (7,), 3, input_gradient=False)[1]
    halved = limits.step_work(net, 3, word=2)
    assert halved[0] == limits.work(net.layers[0], (7,), 3, word=2)[0] and halved[-1] == update


def test_columns_count_the_bytes_of_their_precision(monkeypatch):
    machines = {f"{word} bytes": limits.Machine(1e30, 1e9, "", word) for word in (4, 2)}
    monkeypatch.setattr(limits, "MACHINES", machines)
    monkeypatch.setattr(limits, "BATCH", 1)
    net = Sequential([LocalResponseNorm()], (1, 1, 1_250_000))
    row = limits.layers_table(net).splitlines()[2]
    assert row == "| localresponsenorm1 |  | 20.0 | 10.0 |  | 20.000 m | 10.000 m |"
    times = limits.totals_table(net).splitlines()[2]
    assert times == "| layer by layer, ms | 20.00 | 10.00 |"
    assert limits.growth_table("n", [("2", net, 2)]).endswith("| 0.0 | 0.04 | 50 | 100 |")


@pytest.fixture(scope="module")
def parts():
    return limits.tables()


def test_the_document_holds_what_is_printed(parts, capsys):
    text = limits.DOCUMENT.read_text(encoding="utf-8")
    assert limits.filled(text, parts) == text, "python benchmarks/limits.py --write"
    assert text.count("<!-- printed:") == len(parts)


def test_the_full_net_has_the_operations_known_of_it(parts):
    # 724.4 million multiply-adds an image forward; backward twice that, less conv1's dx.
    conv1 = 55 * 55 * 96 * 363
    expected = 2 * 128 * (3 * 724_406_816 - conv1) / 1e9
    row = next(line for line in parts["batch"].splitlines() if line.startswith("| 128 |"))
    assert float(row.split("|")[2].replace(",", "")) == pytest.approx(expected, abs=0.05)


def test_a_document_without_a_place_is_refused():
    with pytest.raises(ValueError, match="no place for 'width'"):
        limits.filled("nothing", {"width": ""})
