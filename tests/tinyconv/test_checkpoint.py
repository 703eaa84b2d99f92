"""Weights files: whole or not at all, the same bytes, and never silent nonsense."""

import json

import h5py
import numpy as np
import pytest

from tinyconv import alexnet
from tinyconv.checkpoint import CheckpointError, load_weights, save_weights

MEAN = np.arange(64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)


def net(classes=3, seed=0, width=0.05):
    return alexnet(classes, width, 64, "robust", seed=seed)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "weights.h5"
    save_weights(path, net(seed=1), MEAN, {"width": 0.05, "classes": ["a", "b", "ç"]})
    return path


def snapshot(some_net):
    return [p.value.copy() for p in some_net.parameters()]


def test_what_is_saved_is_loaded(saved, device):
    other = net(seed=2).to(device)
    mean, settings = load_weights(saved, other)
    np.testing.assert_array_equal(mean, MEAN)
    assert settings == {"width": 0.05, "classes": ["a", "b", "ç"]}
    for a, b in zip(net(seed=1).parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(a.value, device.to_host(b.value))


def test_the_same_weights_give_the_same_bytes(saved, tmp_path):
    again = tmp_path / "again.h5"
    save_weights(again, net(seed=1), MEAN, {"classes": ["a", "b", "ç"], "width": 0.05})
    assert again.read_bytes() == saved.read_bytes()


def test_nothing_but_the_file_is_left_behind_and_a_failure_leaves_the_old_one(saved, monkeypatch):
    before = saved.read_bytes()
    assert [p.name for p in saved.parent.iterdir()] == ["weights.h5"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinyconv.checkpoint.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(saved, net(seed=3), MEAN, {})
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["weights.h5"]


@pytest.mark.parametrize(
    "other, message",
    [
        (lambda: net(classes=4), r"fc8.weight is float32 \(3, 204\), the net has \(4, 204\)"),
        (lambda: net(width=0.1), r"conv1.weight is float32 \(4, 11, 11, 3\)"),
    ],
)
def test_another_network_is_refused_with_the_first_difference(saved, other, message):
    target = other()
    before = snapshot(target)
    with pytest.raises(CheckpointError, match=message):
        load_weights(saved, target)
    for a, b in zip(before, target.parameters(), strict=True):
        np.testing.assert_array_equal(a, b.value)


def test_missing_extra_and_wrongly_typed_arrays_are_refused(saved):
    def damaged(change, message):
        with h5py.File(saved, "r+") as file:
            change(file)
        target = net(seed=2)
        before = snapshot(target)
        with pytest.raises(CheckpointError, match=message):
            load_weights(saved, target)
        for a, b in zip(before, target.parameters(), strict=True):
            np.testing.assert_array_equal(a, b.value)

    damaged(lambda f: f["weights"].create_dataset("x", data=1.0), "holds x, which the net does")
    damaged(lambda f: f["weights"].pop("fc8.bias"), "holds no fc8.bias")
    damaged(
        lambda f: f["weights"].create_dataset("fc8.bias", data=np.zeros(3, int)),
        "fc8.bias is int64",
    )
    damaged(lambda f: f.attrs.modify("version", 2), "not a tinyconv weights file of version 1")


def test_files_that_are_no_weights_are_explained(tmp_path):
    text = tmp_path / "text.h5"
    text.write_text("hello")
    for path in (text, tmp_path / "absent.h5", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_weights(path, net())


def test_bit_flips_and_truncation_give_an_error_or_a_correct_read(saved):
    """Of flips in the bulk of the numbers HDF5 knows nothing; elsewhere they are noticed."""
    whole = saved.read_bytes()
    rng = np.random.default_rng(0)
    target = net(seed=2)
    shapes = [p.value.shape for p in target.parameters()]
    for case in range(120):
        if case % 3:
            data = bytearray(whole)
            data[int(rng.integers(0, min(len(data), 20_000)))] ^= 1 << int(rng.integers(0, 8))
        else:
            data = bytearray(whole[: int(rng.integers(0, len(whole)))])
        saved.write_bytes(data)
        try:
            mean, settings = load_weights(saved, target)
        except CheckpointError:
            continue
        assert mean.ndim >= 1 and json.dumps(settings)
        assert [p.value.shape for p in target.parameters()] == shapes
