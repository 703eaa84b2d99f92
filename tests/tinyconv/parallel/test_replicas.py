"""Any number of ranks trains the same net; each has its rows, and nobody else's.

The ranks are processes of this file, started as a program: python test_replicas.py MODE RANKS FILE
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from marks import long
from programs import run_program
from small import new_training, random_photos

from layers import Dropout
from tinyconv import alexnet
from tinyconv.data.augment import Augment
from tinyconv.data.loader import Loader
from tinyconv.parallel.communicator import RankLostError, Replica
from tinyconv.parallel.launch import spawn
from tinyconv.parallel.replicas import ReplicaError, begin_together
from tinyconv.run.diagnose import losses_explained
from tinyconv.schedule import Steps
from tinyconv.train import TrainingError


def training(count=21, **settings):
    """With dropout, colour noise, a drop, a bare last stage, photos left over: all that differs."""
    photos, val = random_photos(count, seed=3), random_photos(7, seed=9)
    net = alexnet(3, 0.05, 64, "authors", seed=1).to("cpu", settings.pop("dtype", "float64"))
    augment = Augment(photos.mean_image(), 64, 1.1, 1, np.diag([20.0, 10.0, 5.0]))
    settings = {"epochs": 3, "batch_size": 8, "lr": 0.02, "seed": 1} | settings
    settings |= {"schedule": Steps([2, 3]), "bare_last_stage": True}
    return new_training(net, photos, val, augment, **settings)


def results(run, history):
    """Everything that is to be compared, as JSON can hold it."""
    timing = ("seconds", "images_per_second", "waited", "val_seconds", "ended")
    epochs = [{k: v for k, v in asdict(e).items() if k not in timing} for e in history]
    return {"weights": run.optimizer.values.tolist(), "epochs": epochs}


def whole(**settings):
    history = []
    run = training(**settings)
    assert run.run(on_epoch=history.append)
    return results(run, history)


def work(options, replica):
    """One rank's part."""
    mode, found = options.mode, {}
    for name, settings in CASES.items() if mode == "same" else [("", {"epochs": 9, "count": 41})]:
        run, history = training(replica=replica, check_every=2, **settings), []
        replica.begun = False
        if not replica.first:
            # Only rank 0 would have read a checkpoint: the others get its weights.
            run.optimizer.values[...] = 7
            run.progress.step = 3
        begin_together(run)
        with losses_explained(run, replica):
            on_step = (lambda run=run: FAULTS[mode](run)) if replica.rank == 1 else None
            assert run.run(on_epoch=history.append, on_step=on_step)
        found[name] = results(run, history)
    if replica.first:
        Path(options.path).write_text(json.dumps(found))
    return 0


def other_weights(run):
    if run.progress.step == 3:
        run.optimizer.values[5] *= 1 + 1e-15


def no_number(run):
    """From the second step on, also when the step is looked at again."""
    original = run.data.augment.random

    def broken(images, ids, epoch):
        x = original(images, ids, epoch)
        x[0] = np.nan
        return x

    run.data.augment.random = broken


def full_disk(run):
    raise OSError("no space left")


FAULTS = {
    "same": lambda run: None,
    "fault": other_weights,
    "nan": no_number,
    "lone": full_disk,
}
"""What happens on rank 1 after each step."""

CASES = {"float64": {}, "less than a batch": {"count": 7}, "float32": {"dtype": "float32"}}


def explain(error, whose=""):
    if isinstance(error, TrainingError):
        return 1, f"error: {whose}{error}"
    return (2, f"error: {whose}{error}") if isinstance(error, OSError) else None


@pytest.fixture(scope="module")
def alone():
    return {name: whole(**settings) for name, settings in CASES.items()}


@pytest.mark.parametrize("count", [2, long(4)])
def test_any_number_of_ranks_trains_the_same_net(alone, tmp_path, count):
    status, _, err = run_program(__file__, "same", count, tmp_path / "found")
    assert status == 0, err
    for name, case in json.loads((tmp_path / "found").read_text()).items():
        # Sums over the batch in another order; the rest is the same arithmetic. 1e-5 is some
        # hundred roundings of float32, of weights of the order of 0.01 to 1.
        tolerance = 1e-5 if name == "float32" else 1e-9
        np.testing.assert_allclose(
            case["weights"], alone[name]["weights"], rtol=tolerance, atol=tolerance / 10
        )
        for ours, theirs in zip(case["epochs"], alone[name]["epochs"], strict=True):
            assert ours == pytest.approx(theirs, rel=tolerance)


@pytest.mark.full
@pytest.mark.parametrize(
    "mode, status, message",
    [
        ("fault", 1, "after step 4 rank 1 (cpu) held other weights than the rest"),
        ("nan", 1, "nan in step 2 (epoch 1): rank 1 (cpu): the input of the net is not finite"),
        ("lone", 2, "error: rank 1 (cpu): no space left"),
    ],
)
def test_what_goes_wrong_on_one_rank_is_said_once_with_its_name(tmp_path, mode, status, message):
    found, _, err = run_program(__file__, mode, 2, tmp_path / "found")
    assert found == status and message in err and err.count("\n") == 1, err


def place(rank, size, answers=None):
    """The place of a rank among others that answer so, or (None) the same as this one."""
    replica = Replica(rank, size)
    replica.exchange = lambda value: [value] * size if answers is None else answers
    return replica


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batch_size": 9}, "batch of 9 cannot be divided among 4 processes: use --batch-size 8 "),
        ({"batch_size": 3}, "use --batch-size 4 or 8"),
        ({"count": 3}, "3 training photos cannot be divided among 4"),
    ],
)
def test_what_cannot_be_divided_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        training(replica=place(0, 4), **settings)


def test_a_rank_that_failed_before_the_first_step_is_noticed_by_the_others():
    with pytest.raises(RankLostError) as caught:
        place(0, 2, [(0, None), (2, None)]).broadcast()
    assert caught.value.status == 2


@pytest.mark.parametrize("sums, odd", [((5, 6, 6, 6), 0), ((5, 6), 1), ((5, 5, 7, 5), 2)])
def test_the_odd_one_out_is_named_by_majority(sums, odd):
    names = [(each, f"rank {rank}") for rank, each in enumerate(sums)]
    run = training(replica=place(1, 4, names))
    with pytest.raises(ReplicaError, match=f"^now rank {odd} held other weights"):
        run.step.compare("now")


@pytest.mark.parametrize("size", [2, 3, 4])
def test_rows_of_every_batch_are_disjoint_and_complete(size):
    photos = random_photos(26, size=4)
    with Loader(photos, 12, seed=5) as loader:
        expected = [(ids.copy(), labels.copy()) for _, labels, ids in loader.epoch(2, first=1)]
    batches = []
    for rank in range(size):
        with Loader(photos, 12, seed=5, rank=rank, ranks=size) as loader:
            assert loader.batches_per_epoch == 2
            own = []
            for images, labels, ids in loader.epoch(2, first=1):
                np.testing.assert_array_equal(images, photos.images[ids])
                own.append((ids, labels))
            batches.append(own)
            with pytest.raises(ValueError, match="has 2 batches"):
                loader.epoch(1, first=3)
    for number, (ids, labels) in enumerate(expected):
        np.testing.assert_array_equal(np.concatenate([own[number][0] for own in batches]), ids)
        np.testing.assert_array_equal(np.concatenate([own[number][1] for own in batches]), labels)


@pytest.mark.parametrize("mode", ["paper", "inverted"])
def test_dropout_masks_are_those_of_the_rows_in_the_whole_batch(device, mode):
    x = np.random.default_rng(0).standard_normal((5, 3, 7)).astype(np.float32)
    layer = Dropout(0.4, mode).to(device)
    layer.set_seed(3, 6)
    layer.set_step(2)
    first, last = Dropout(0.4, mode).to(device), Dropout(0.4, mode).to(device)
    for own, row in ((first, 0), (last, 2)):
        own.set_seed(3, 6)
        own.set_step(2)
        own.first_row = row
    expected = device.to_host(layer.forward(device.array(x))).copy()
    expected_dx = device.to_host(layer.backward(device.array(x + 1))).copy()
    for own, rows in ((first, slice(0, 2)), (last, slice(2, 5))):
        y = device.to_host(own.forward(device.array(x[rows])))
        np.testing.assert_array_equal(y, expected[rows])
        dx = device.to_host(own.backward(device.array(x[rows] + 1)))
        np.testing.assert_array_equal(dx, expected_dx[rows])
        test = device.to_host(own.forward(device.array(x[rows]), train=False))
        np.testing.assert_array_equal(
            test, device.to_host(layer.forward(device.array(x[rows]), train=False))
        )


def test_the_net_looks_the_same_and_its_dropout_knows_its_rows():
    run = training(replica=place(1, 2))
    run.step.replica.first = True  # it broadcasts
    begin_together(run)
    assert run.net["drop6"].first_row == run.net["drop7"].first_row == 4
    assert str(run.net) == str(training().net)


if __name__ == "__main__":
    mode, count, path = sys.argv[1:]
    options = SimpleNamespace(device=",".join(["cpu"] * int(count)), mode=mode, path=path)
    sys.exit(spawn(work, options, explain, "test_replicas.py"))
