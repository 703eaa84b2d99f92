"""Runs in tf32 and bf16: stopped and gone on with, as replicas, in two columns."""

import numpy as np
from small import new_training, random_photos

from layers import (
    Conv2D,
    Flatten,
    Linear,
    ReLU,
)
from layers.fast.bfloat16 import round_bf16
from tinyconv import Sequential, alexnet
from tinyconv.data.augment import Augment
from tinyconv.data.random_arrays import normal
from tinyconv.initialize import initialize
from tinyconv.parallel.columns import Columns
from tinyconv.parallel.communicator import Replica
from tinyconv.parallel.replicas import begin_together
from tinyconv.run.checkpoint import load_checkpoint, save_checkpoint

# --- training


def new_run(precision, seed=1, **settings):
    photos = random_photos(12, seed=3)
    net = alexnet(3, 0.05, 64, "authors", seed).to("cpu", precision=precision)
    augment = Augment(photos.mean_image(), 64, 1.1, seed, np.diag([20.0, 10.0, 5.0]))
    settings = {"epochs": 2, "batch_size": 4, "lr": 0.02, "seed": seed} | settings
    return new_training(net, photos, random_photos(6, seed=9), augment, **settings)


def weights_of(run):
    return run.optimizer.values.tobytes()


def test_a_run_that_was_stopped_goes_on_to_the_same_bits_in_bf16(tmp_path):
    whole, first, second = (new_run("bf16") for _ in range(3))
    whole.run()
    first.run(should_stop=lambda: first.progress.step == 4)
    assert first.progress.step == 4
    save_checkpoint(tmp_path / "c.h5", first, {})
    load_checkpoint(tmp_path / "c.h5", second, {})
    second.run()
    assert weights_of(second) == weights_of(whole) != weights_of(first)
    exact = new_run("fp32")
    exact.run()
    assert weights_of(exact) != weights_of(whole)


def test_a_checkpoint_may_go_on_in_another_precision(tmp_path):
    run = new_run("bf16")
    run.run(should_stop=lambda: run.progress.step == 2)
    save_checkpoint(tmp_path / "c.h5", run, {"precision": "bf16", "seed": 1})
    other = new_run("fp32")
    load_checkpoint(tmp_path / "c.h5", other, {"precision": "fp32", "seed": 1})
    assert weights_of(other) == weights_of(run)


class Alone(Replica):
    """One rank, or two of which the other is always like this one."""

    def exchange(self, value):
        return [value] * self.size

    def start(self, flat):
        flat *= self.size

    def finish(self):
        pass

    def abort(self, status):
        raise AssertionError(status)


def test_replicas_train_in_bf16():
    """One rank is a plain run; of two equal ones each scales its gradient by a half."""
    plain = new_run("bf16")
    plain.run()

    def ranks(size):
        run = new_run("bf16", replica=Alone(0, size))
        begin_together(run)
        return run

    one = ranks(1)
    one.run()
    assert weights_of(one) == weights_of(plain)
    two = ranks(2)
    seen = []
    step = two.net.steps[-2]  # behind it stands the rounding of what it is given
    backward = step.backward
    step.backward = lambda dy: seen.append(dy.copy()) or backward(dy)
    two.run()
    # A photo's share of the loss's gradient: at most 1 / 4 of the batch, a power of two exactly.
    assert all(np.array_equal(dy, round_bf16(dy, np.empty_like(dy))) for dy in seen)
    assert max(np.abs(dy).max() for dy in seen) <= 0.25


# --- two columns


def test_two_columns_in_tf32_are_one_device_in_tf32():
    nets = [alexnet(4, 0.05, 64, "paper", 5).to("cpu", precision=p) for p in ("tf32", "fp32")]
    columns = Columns(nets[0])
    assert columns.precision == "tf32"
    assert all(stage.precision == "tf32" for stage in columns.stages())
    x = normal((2, 64, 64, 3), 1.0, 3, 3).astype(np.float32)
    y, exact, mine = (np.array(net.forward(x, train=False)) for net in (nets[0], nets[1], columns))
    size = np.abs(y).max()
    assert np.abs(mine - y).max() < 1e-5 * size < 1e-4 * size < np.abs(mine - exact).max()


def test_two_columns_in_tf32_on_tensor_cores(cuda_device):
    net = Sequential({"conv1": Conv2D(3, 4, 2), "relu1": ReLU(), "flatten": Flatten(),
                      "fc2": Linear(24, 4)}, (3, 4, 3))  # fmt: skip
    initialize(net, "robust", seed=1).to("cpu", precision="tf32")
    columns = Columns(net, "cuda:0")
    x = normal((2, 3, 4, 3), 1.0, 4, 4).astype(np.float32)
    y = net.forward(x)
    np.testing.assert_allclose(columns.forward(cuda_device.array(x)), y, rtol=1e-5, atol=1e-5)
    dx = net.backward(np.ones_like(y))
    np.testing.assert_allclose(columns.backward(np.ones_like(y)), dx, rtol=1e-5, atol=1e-5)


def test_two_columns_take_the_precision_of_the_net_or_another():
    columns = Columns(alexnet(4, 0.05, 64).to("cpu", precision="bf16"))
    assert columns.precision == "bf16"
    assert {stage.precision for stage in columns.stages()} == {"bf16"}
    assert columns.to("cpu,cpu", precision="auto").precision == "fp32"
    assert columns.to("cpu,cpu", precision="tf32").precision == "tf32"
