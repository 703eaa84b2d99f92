"""Weights files and checkpoints: whole or not at all, the same bits, never silent nonsense."""

import io
import json
from dataclasses import asdict

import h5py
import numpy as np
import pytest
from damage import damaged
from small import new_training, random_photos, saved_net

from tinyconv import RECIPES, alexnet
from tinyconv.data.augment import Augment
from tinyconv.data.random_arrays import normal
from tinyconv.run.checkpoint import (
    KIND,
    CheckpointError,
    DamagedError,
    load_checkpoint,
    load_model,
    load_weights,
    save_checkpoint,
    save_weights,
)
from tinyconv.run.sealed import write_sealed
from tinyconv.schedule import Plateau

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

    monkeypatch.setattr("tinyconv.run.sealed.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(saved, net(seed=3), MEAN, {})
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["weights.h5"]


def assert_refused(path, message, target, error=CheckpointError):
    """The file is not loaded, and the net stays as it is."""
    before = snapshot(target)
    with pytest.raises(error, match=message):
        load_weights(path, target)
    for a, b in zip(before, target.parameters(), strict=True):
        np.testing.assert_array_equal(a, b.value)


@pytest.mark.parametrize(
    "other, message",
    [
        ({"classes": 4}, r"fc8.weight is float32 \(3, 204\), the net has \(4, 204\)"),
        ({"width": 0.1}, r"conv1.weight is float32 \(4, 11, 11, 3\)"),
    ],
)
def test_another_network_is_refused_with_the_first_difference(saved, other, message):
    assert_refused(saved, message, net(**other))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f.pop("mean_image"), "cannot be read"),
        (lambda f: f["weights"].create_dataset("x", data=1.0), "holds x, which the net does"),
        (lambda f: f["weights"].pop("fc8.bias"), "holds no fc8.bias"),
        (lambda f: wrong_type(f["weights"]), "fc8.bias is int64"),
    ],
)
def test_missing_extra_and_wrongly_typed_arrays_are_refused(saved, change, message):
    """The HDF5 contents are changed, and the file is sealed again, as another program could."""
    contents = io.BytesIO(saved.read_bytes())
    with h5py.File(contents, "r+") as file:
        change(file)

    def fill(file):
        with h5py.File(contents, "r") as source:
            for name in source:
                source.copy(name, file)

    write_sealed(saved, KIND, fill)
    assert_refused(saved, message, net(seed=2))


def wrong_type(weights):
    del weights["fc8.bias"]
    weights["fc8.bias"] = np.zeros(3, int)


@pytest.mark.parametrize(
    "name, message",
    [
        ("text.h5", "is not a tinyconv checkpoint"),
        ("absent.h5", "No such file"),
        (".", "Is a directory"),
    ],
)
def test_files_that_are_no_weights_are_explained(tmp_path, name, message):
    (tmp_path / "text.h5").write_text("hello")
    assert_refused(tmp_path / name, message, net(), DamagedError)


def test_bit_flips_and_truncation_are_always_noticed(saved):
    target = net(seed=2)
    before = snapshot(target)
    for data in damaged(saved.read_bytes(), 300):
        saved.write_bytes(data)
        with pytest.raises(DamagedError):
            load_weights(saved, target)
    for a, b in zip(before, target.parameters(), strict=True):
        np.testing.assert_array_equal(a, b.value)


# --- whole states


def training(seed=1, width=0.05, recipe="authors", **options):
    """Three classes of noise; colour, dropout, a plateau: everything that has a state."""
    photos = random_photos(30)
    axes = np.diag([20.0, 10.0, 5.0])
    augment = Augment(photos.mean_image(), 64, 1.1, seed, axes)
    options = {"epochs": 3, "batch_size": 8, "seed": seed, "lr": 0.02} | options
    options.setdefault("schedule", Plateau(1))
    some_net = alexnet(3, width, 64, recipe, seed)
    return new_training(some_net, photos, random_photos(9, seed=9), augment, **options)


SETTINGS = {"width": 0.05, "data": "abc", "classes": ["a", "b"], "recipe": {"lr": 1, "ones": (1,)}}


def state_of(run):
    arrays = [run.optimizer.values, run.optimizer.velocities]
    return [array.tobytes() for array in arrays], asdict(run.progress), run.schedule.state


def test_stopped_after_any_step_and_resumed_the_bits_are_those_of_the_uninterrupted_run(tmp_path):
    whole = training()
    assert whole.run()
    for steps in range(1, 12):  # 3 batches and 2 validation batches an epoch: within and between
        first, second = training(), training()
        assert not first.run(should_stop=iter([False] * (steps - 1) + [True]).__next__)
        save_checkpoint(tmp_path / "c.h5", first, SETTINGS)
        load_checkpoint(tmp_path / "c.h5", second, json.loads(json.dumps(SETTINGS)))
        assert state_of(second) == state_of(first)
        assert second.run()
        assert state_of(second) == state_of(whole), steps


@pytest.mark.parametrize(
    "change, message",
    [
        ({"width": 0.1}, "width: the checkpoint has 0.05, this run has 0.1"),
        ({"data": "xyz"}, "data: the checkpoint has 'abc', this run has 'xyz'"),
        ({"classes": ["a", "c"]}, r"classes\[1\]: the checkpoint has 'b', this run has 'c'"),
        ({"classes": ["a"]}, "classes: the checkpoint has 2, this run has 1"),
        ({"recipe": {"lr": 2, "ones": [1]}}, "recipe, lr: the checkpoint has 1, this run has 2"),
        ({"more": 1}, "more: the checkpoint has 'nothing', this run has 1"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_and_changes_nothing(tmp_path, change, message):
    save_checkpoint(tmp_path / "c.h5", training(), {**SETTINGS, "versions": {"numpy": "1"}})
    target = training(seed=2)
    before = state_of(target)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "c.h5", target, {**SETTINGS, **change})
    assert state_of(target) == before
    load_checkpoint(tmp_path / "c.h5", target, SETTINGS)  # other versions are no difference


def test_a_recipe_of_an_older_version_has_the_defaults_of_newer_fields(tmp_path):
    recipe = asdict(RECIPES["authors"])
    old = {**SETTINGS, "recipe": {k: v for k, v in recipe.items() if k != "conv1_scale"}}
    save_checkpoint(tmp_path / "c.h5", training(), old)
    load_checkpoint(tmp_path / "c.h5", training(), {**SETTINGS, "recipe": recipe})
    other = {**SETTINGS, "recipe": recipe | {"conv1_scale": 0.05}}
    with pytest.raises(CheckpointError, match=r"conv1_scale: the checkpoint has 1.0.*new run with"):
        load_checkpoint(tmp_path / "c.h5", training(), other)


def test_a_checkpoint_of_another_net_and_a_weights_file_are_refused(tmp_path, saved):
    save_checkpoint(tmp_path / "c.h5", training(width=0.1), SETTINGS)
    with pytest.raises(CheckpointError, match=r"conv1.weight is float32 \(10, 11, 11, 3\)"):
        load_checkpoint(tmp_path / "c.h5", training(), SETTINGS)
    save_weights(saved, training().net, MEAN, SETTINGS)
    with pytest.raises(CheckpointError, match="holds only weights"):
        load_checkpoint(saved, training(), SETTINGS)


def test_it_runs_on_simulated_devices_too(tmp_path, cuda_device):
    run = training()
    save_checkpoint(tmp_path / "c.h5", run, SETTINGS)
    net = alexnet(3, 0.05, 64, "authors", 5).to(cuda_device)
    photos = random_photos(9)
    other = new_training(net, photos, photos, Augment(photos.mean_image(), 64, 1.1), epochs=1)
    load_checkpoint(tmp_path / "c.h5", other, SETTINGS)
    values = cuda_device.to_host(other.optimizer.values)
    assert values.tobytes() == run.optimizer.values.tobytes()


# --- models


def test_a_model_is_built_from_the_file_alone(tmp_path):
    original = alexnet(3, 0.05, 64, "authors", seed=3)
    saved_net(tmp_path / "best.h5", "abc", "authors", original, MEAN, class_ids=["n1", "n2", "n3"])
    for path in (tmp_path / "best.h5", tmp_path):
        model = load_model(path)
        assert model.class_names == ["a", "b", "c"] and model.class_ids == ["n1", "n2", "n3"]
        np.testing.assert_array_equal(model.mean_image, MEAN)
        x = normal((2, 64, 64, 3), 50.0, 0, 0)
        np.testing.assert_array_equal(
            model.net.forward(x, train=False), original.forward(x, train=False)
        )


def test_what_is_no_model_is_explained(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds neither best.h5 nor weights.h5"):
        load_model(tmp_path)
    saved_net(tmp_path / "weights.h5", "abc", image_size=None)
    with pytest.raises(CheckpointError, match=r"does not say which net it is \('image_size'\)"):
        load_model(tmp_path)
