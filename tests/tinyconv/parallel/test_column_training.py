"""Training on two columns: the same loop, checkpoints that fit both forms, the main job."""

import numpy as np
import pytest
from fake_gpus import Gpus
from programs import example
from rank_runs import metrics
from small import new_training, random_photos

from layers import Conv2D, Device, Flatten, Linear, ReLU
from tinyconv import RECIPES, SGD, Sequential, alexnet, initialize
from tinyconv.data.augment import Augment
from tinyconv.parallel.column_training import ColumnAugment, ColumnSGD
from tinyconv.parallel.columns import Columns
from tinyconv.parallel.stage import Both
from tinyconv.run.checkpoint import load_checkpoint, load_model, load_weights, save_checkpoint
from tinyconv.run.diagnose import origin_of, where_not_finite
from tinyconv.run.graph_step import GraphStep
from tinyconv.run.training import step_for
from tinyconv.schedule import Steps
from tinyconv.train import LossError, SingleStep

PHOTOS = random_photos(24)


def new_run(columns, dtype="float64", recipe="authors", **options):
    net = alexnet(3, 0.05, 64, recipe, seed=1).to("cpu", dtype)
    colour = None if recipe == "robust" else np.diag([20.0, 10.0, 5.0])
    divisor = RECIPES["robust"].input_divisor if recipe == "robust" else 64.0
    augment = Augment(PHOTOS.mean_image(), 64, divisor, 1, colour)
    options = {"epochs": 3, "batch_size": 8, "seed": 1, "lr": 0.02} | options
    net = Columns(net) if columns else net
    return new_training(net, PHOTOS, random_photos(9, seed=9), augment, **options)


def arrays(training):
    return {p.name: Device.to_host(p.value) for p in training.net.parameters()}


def assert_equal_weights(found, wanted):
    for name, value in wanted.items():
        # float64: sums in other orders over a few steps.
        size = np.nanmax(np.abs(value), initial=0)
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-9 * size)


def run(training, steps=None):
    """Train for some steps, or to the end; the epochs."""
    history = []
    training.run(on_epoch=history.append, should_stop=lambda: training.progress.step == steps)
    return history


def test_a_run_is_that_of_one_device():
    runs = [new_run(columns) for columns in (False, True)]
    histories = [run(training) for training in runs]
    assert_equal_weights(arrays(runs[1]), arrays(runs[0]))
    for one, two in zip(*histories, strict=True):
        assert two.train_loss == pytest.approx(one.train_loss, rel=1e-9)
        assert (two.train_top1, two.val_top1, two.best) == (one.train_top1, one.val_top1, one.best)
        assert two.val_loss == pytest.approx(one.val_loss, rel=1e-9)


def test_it_learns_and_two_runs_give_the_same_bits():
    runs = [new_run(True, "float32", "robust", epochs=20, seed=2) for _ in range(2)]
    histories = [run(training) for training in runs]
    assert histories[0][-1].val_top1 == 1.0
    assert histories[0][-1].train_loss < 0.5 * histories[0][0].first_loss
    for name, value in arrays(runs[0]).items():
        assert value.tobytes() == arrays(runs[1])[name].tobytes()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_a_checkpoint_of_either_form_is_resumed_by_either_form(first, second, tmp_path):
    whole = new_run(first)
    run(whole)
    begun = new_run(first)
    run(begun, steps=5)
    path, settings = tmp_path / "checkpoint.h5", {"width": 0.05}
    save_checkpoint(path, begun, settings)
    resumed = new_run(second)
    load_checkpoint(path, resumed, settings)
    assert resumed.progress == begun.progress and resumed.progress.step == 5
    for old, new in zip(begun.net.parameters(), resumed.net.parameters(), strict=True):
        velocities = (
            Device.to_host(training.optimizer.velocity(parameter))
            for training, parameter in ((begun, old), (resumed, new))
        )
        np.testing.assert_array_equal(*velocities)
    run(resumed)
    assert_equal_weights(arrays(resumed), arrays(whole))
    if first == second:
        for name, value in arrays(whole).items():
            assert arrays(resumed)[name].tobytes() == value.tobytes()


def test_a_checkpoint_of_another_net_changes_nothing(tmp_path):
    path = tmp_path / "checkpoint.h5"
    save_checkpoint(path, new_run(True), {})
    other = Columns(alexnet(4, 0.05, 64))
    before = other["conv1"].weight.value.get()
    with pytest.raises(ValueError, match=r"fc8.weight is float64 \(3, .* the net has \(4, "):
        load_weights(path, other)
    np.testing.assert_array_equal(other["conv1"].weight.value.get(), before)


def test_the_last_stage_leaves_conv1_of_both_columns_as_it_is():
    training = new_run(True, schedule=Steps([2, 3]), bare_last_stage=True)
    kept, colour = [], []

    def note(epoch):
        kept.append(training.net["conv1"].weight.value.get())
        colour.append(training.data.augment.colour_on)

    training.run(on_epoch=note)
    assert colour == [True, True, False]
    assert not np.array_equal(kept[0], kept[1])
    np.testing.assert_array_equal(kept[1], kept[2])


def test_a_loss_that_is_no_number_ends_it_with_its_layer():
    training = new_run(True)
    training.net["fc8"].bias.value[...] = np.nan
    before = arrays(training)
    with pytest.raises(LossError, match="nan in step 1 ") as error:
        run(training)
    assert_equal_weights(arrays(training), before)
    assert "fc8.bias has values that are not finite" in origin_of(training, error.value)


def test_the_walk_for_the_first_nan_goes_through_both_columns(monkeypatch):
    net = Columns(alexnet(3, 0.05, 64, "robust"))
    second = net["conv4"].steps[1][0]
    forward = second.forward

    def spoilt(x, train=True):
        y = forward(x, train)
        y[0, 0, 0, 0] = np.inf
        return y

    monkeypatch.setattr(second, "forward", spoilt)
    x = np.ones((2, 64, 64, 3), np.float32)
    said = where_not_finite(net, Both((x, x)), 0)
    assert said == "the output of conv4 is the first that is not finite"


# --- optimizer


def test_the_optimizer_steps_both_columns_by_the_same_rule():
    grouped = alexnet(3, 0.05, 64, "authors", seed=4).to("cpu", "float64")
    columns = Columns(grouped)
    one = SGD(grouped.parameters(), 0.1, 0.8, 0.01)
    two = ColumnSGD(columns.parameters(), 0.1, 0.8, 0.01)
    rng = np.random.default_rng(0)
    for step in range(3):
        one.lr = two.lr = 0.1 / (step + 1)
        assert two.lr == one.lr
        if step == 2:
            one.freeze(grouped["conv2"].parameters())
            two.freeze(columns["conv2"].parameters())
        for whole, split in zip(grouped.parameters(), columns.parameters(), strict=True):
            whole.grad[...] = split.grad[...] = rng.normal(size=whole.grad.shape)
        one.step()
        two.step()
    for whole, split in zip(grouped.parameters(), columns.parameters(), strict=True):
        np.testing.assert_array_equal(split.value.get(), whole.value)
        np.testing.assert_array_equal(two.velocity(split).get(), one.velocity(whole))


def test_an_optimizer_refuses_what_sgd_refuses():
    with pytest.raises(ValueError, match="no parameters to train"):
        ColumnSGD([])
    with pytest.raises(ValueError, match="lr >= 0"):
        ColumnSGD(Columns(alexnet(3, 0.05, 64)).parameters(), lr=-1)


def small_columns(device):
    """Two columns of a small net on one device, and a GPU's or a host's step for them."""
    layers = {"conv1": Conv2D(3, 4, 2), "relu1": ReLU(), "flatten": Flatten(), "fc2": Linear(24, 4)}
    net = initialize(Sequential(layers, (3, 4, 3)), "robust", seed=1).to("cpu", "float64")
    columns = Columns(net).to(device)
    return step_for(columns, ColumnSGD(columns.parameters(), 0.1), graph=False)


def test_steps_on_gpus_give_the_figures_of_the_host_and_a_nan_changes_neither_column(cuda_device):
    host, gpu = small_columns("cpu"), small_columns("cuda:0,cuda:0")
    assert type(host) is SingleStep and type(gpu) is GraphStep
    x, labels = np.random.default_rng(1).standard_normal((3, 3, 4, 3)), np.array([0, 3, 1])
    for number in range(4):
        batch = np.full_like(x, np.nan) if number == 2 else x
        found = []
        for step in (host, gpu):
            before = [p.value.get() for p in step.net.parameters()]
            loss, hits, count = step.forward_backward(batch.copy(), labels, number)
            step.optimizer.step(loss)
            after = [p.value.get() for p in step.net.parameters()]
            changed = [not np.array_equal(*pair) for pair in zip(before, after, strict=True)]
            # Once a GPU has seen a NaN it makes no further update.
            assert any(changed) == (number < 2 or (number == 3 and step is host))
            found.append((float(loss), int(float(hits)), count))
        np.testing.assert_allclose(found[0], found[1], rtol=1e-12 if number < 3 else 1e-9)


# --- photos for both


def test_both_columns_get_the_same_crops():
    net = Columns(alexnet(3, 0.05, 64).to("cpu", "float64"))
    augment = Augment(PHOTOS.mean_image(), 64, 2.0, 3, np.diag([20.0, 10.0, 5.0]))
    both = ColumnAugment(augment, net).to("cpu", "float64")
    augment.to("cpu", "float64")
    images, ids = PHOTOS.images[:5], np.arange(5)
    for wanted, found in (
        (augment.random(images, ids, 2), both.random(images, ids, 2)),
        (augment.centre(images), both.centre(images)),
    ):
        np.testing.assert_array_equal(found[0], wanted)
        np.testing.assert_array_equal(found[1], wanted)


@pytest.mark.parametrize("peers", [True, False])
@pytest.mark.parametrize("on_gpu", [True, False])
def test_on_two_gpus_photos_cross_once_as_bytes(peers, on_gpu, monkeypatch):
    """Each device cuts its own crops; photos that are on the host go to each by themselves."""
    gpus = Gpus(monkeypatch, peers=peers)
    seen = []

    def cut(self, images, top, left, flip, shift=None, views=1):
        seen.append((self.device.name, gpus.now, images, top))
        return self.device.name

    monkeypatch.setattr(Augment, "to", lambda self, device, dtype: setattr(self, "device", device))
    monkeypatch.setattr(Augment, "_cut", cut)
    net = type("Net", (), {"devices": tuple(reversed([Device("cuda:1"), Device("cuda:0")]))})
    both = ColumnAugment(Augment(np.zeros((9, 9, 3)), 8), net)
    images = np.arange(5 * 9 * 9 * 3, dtype=np.uint8).reshape(5, 9, 9, 3)
    gpus.calls.clear()
    x = both.centre(gpus.array(images, 0) if on_gpu else images)
    gpus.run_all()
    assert isinstance(x, Both) and tuple(x) == ("cuda:0", "cuda:1")
    assert [where[:2] for where in seen] == [("cuda:0", 0), ("cuda:1", 1)]
    assert seen[0][3] is seen[1][3]
    if not on_gpu:
        assert seen[0][2] is seen[1][2] is images and not gpus.calls
        return
    assert gpus.calls == (["peer"] if peers else ["to host", "from host"])
    np.testing.assert_array_equal(seen[1][2].values, images)
    assert seen[1][2].gpu == 1


# --- the main job


def main(*arguments):
    return example("train_alexnet").main([str(each) for each in arguments])


def job(photos, out, *more):
    small = ("--width", 0.05, "--image-size", 64, "--batch-size", 4, "--epochs", 3)
    return main("--data", photos, "--out", out, *small, *more)


COLUMNS = ("--parallel", "columns", "--device", "cpu,cpu")


def test_the_main_job_on_two_columns_is_the_one_on_one_device(photos, tmp_path, capsys):
    two, one = tmp_path / "two", tmp_path / "one"
    assert job(photos, two, *COLUMNS) == 0
    printed = capsys.readouterr().out
    assert "devices: column 0 on the host" in printed and "; column 1 on the host" in printed
    assert job(photos, one, "--device", "cpu") == 0
    assert {each.name for each in two.iterdir()} == {each.name for each in one.iterdir()}
    for first, second in zip(metrics(one), metrics(two), strict=True):
        # float32: sums in other orders over twelve steps.
        assert second["train_loss"] == pytest.approx(first["train_loss"], rel=1e-3)
        assert second["val_top1"] == first["val_top1"]
    model, other = load_model(two / "weights.h5"), load_model(one / "weights.h5")
    assert model.settings == other.settings
    for a, b in zip(model.net.parameters(), other.net.parameters(), strict=True):
        np.testing.assert_allclose(a.value, b.value, atol=1e-3 * np.abs(b.value).max(), rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_goes_on_in_the_other_form(precision, photos, tmp_path, capsys):
    out = tmp_path / "run"
    assert job(photos, out, *COLUMNS, "--drops", "9", "--precision", precision) == 0
    assert f"precision: {precision}" in capsys.readouterr().out
    more = ("--resume", out, "--epochs", 4)
    assert main(*more, "--parallel", "none", "--device", "cpu") == 0
    assert "resuming after step 12 (epoch 4)" in capsys.readouterr().out
    assert main("--resume", out, "--epochs", 5, *COLUMNS) == 0
    assert [line["epoch"] for line in metrics(out)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "devices", ["cpu", "auto", "cpu,cpu,cpu", "cpu,", "", "cpu,cuda:0", "gpu,gpu"]
)
def test_a_wrong_list_of_devices_is_one_line_and_exit_status_2(devices, photos, tmp_path, capsys):
    out = tmp_path / "run"
    assert job(photos, out, "--parallel", "columns", "--device", devices) == 2
    error = capsys.readouterr().err
    assert error.startswith("train_alexnet.py: error: ") and error.count("\n") == 1
    assert "needs two devices" in error or "device 'gpu'" in error or "cuda:0" in error
    assert not out.exists()


def test_one_batch_is_memorized_on_one_device(photos, tmp_path, capsys):
    assert job(photos, tmp_path / "run", *COLUMNS, "--overfit-one-batch") == 2
    assert "--overfit-one-batch runs on one device" in capsys.readouterr().err
