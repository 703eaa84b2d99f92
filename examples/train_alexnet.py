"""Train AlexNet: on drawn textures and shapes at once, on a folder of photos, or on ImageNet.

    python examples/train_alexnet.py
    python examples/train_alexnet.py --data photos --width 0.5 --image-size 128 --epochs 30
    python examples/train_alexnet.py --data imagenet.h5 --epochs 90 --schedule plateau
    python examples/train_alexnet.py --resume runs/003
    python examples/train_alexnet.py --parallel columns --device cuda:0,cuda:1
    python examples/train_alexnet.py --parallel replicas --device cuda:0,cuda:1
    mpiexec -n 16 python examples/train_alexnet.py --parallel replicas --device cuda:0,cuda:1

--data is a folder with train/<class>/ and val/<class>/ (photos of any size, mode and format), or a
file made by `python -m tinyconv prepare`. The run writes checkpoints, weights.h5, metrics.jsonl,
curves.png and conv1_filters.png into a folder. Ctrl-C and SIGTERM end it after the step, with a
checkpoint; --resume continues from there, or from the last checkpoint before a crash, to the same
bits. The loop itself is in tinyconv/train.py, and written out in examples/train_by_hand.py.
"""

import sys

from tinyconv import SGD
from tinyconv.data.augment import Augment, colour_axes
from tinyconv.data.training_data import TrainingData
from tinyconv.parallel.column_training import ColumnAugment, ColumnSGD
from tinyconv.parallel.columns import Columns
from tinyconv.parallel.replicas import ReplicaStep, begin_together
from tinyconv.run.diagnose import losses_explained, overfit
from tinyconv.run.fine_tune import begin_from
from tinyconv.run.first_use import compilation_announced
from tinyconv.run.models import MODELS
from tinyconv.run.options import describe, make_schedule, parse
from tinyconv.run.program import load_photos, open_device, open_folder, run
from tinyconv.run.progress_bar import ProgressBar
from tinyconv.run.recorder import Recorder, in_turn
from tinyconv.run.stop import StopSignals
from tinyconv.run.training import step_for
from tinyconv.train import Training
from tinyconv.weights.live import watched


def train(options, replica=None):
    """One run, or one process of it (a replica); returns the exit status."""
    device = open_device(options, replica)
    with (
        open_folder(options, replica) as folder,
        watched(options, folder) as also,  # --watch, --tensorboard
        load_photos(options, device) as data,
    ):
        # The net with its initial weights (paper §3), on the device.
        model = MODELS[options.model]
        recipe = model.recipe(options.recipe)
        classes = len(data.class_names)
        net = model.make(classes, options.width, options.image_size, recipe, options.seed)
        begin_from(net, options)  # --init-from, --freeze, --lr-multiplier
        if options.parallel == "columns":
            net = Columns(net, options.device)
            device = net.devices
        net.to(device, precision=options.precision, kernels=options.kernels)
        print(f"\n{net}\n\nrecipe {recipe.name}: {recipe.summary}")

        # Batches: random crops, mirror images, colours (§4.1).
        colour = colour_axes(data.eigenvalues, data.eigenvectors, recipe.colour)
        augment = Augment(
            data.mean_image, options.image_size, recipe.input_divisor, options.seed, colour
        )
        if options.overfit_one_batch:
            return overfit(net, data.train, augment, options.batch_size, options.lr)

        # Momentum SGD (§5), and one step: on one device, in two columns, or by several replicas.
        sgd, decay = (net.parameters(), options.lr), {"weight_decay": recipe.weight_decay}
        if options.parallel == "columns":
            augment = ColumnAugment(augment, net)
            step = step_for(net, ColumnSGD(*sgd, **decay), graph=False)
        elif replica:
            step = ReplicaStep(net, SGD(*sgd, **decay), replica)
        else:
            step = step_for(net, SGD(*sgd, **decay), graph=not options.no_graph)

        share = (replica.rank, replica.size) if replica else (0, 1)
        training = Training(
            net,
            TrainingData(data.train, data.val, augment, options.batch_size, options.seed, *share),
            step,
            epochs=options.epochs,
            schedule=make_schedule(options),
            bare_last_stage=recipe.bare_last_stage,
            seed=options.seed,
        )

        # The loop, with checkpoints, metrics and a progress bar as callbacks.
        recorder = Recorder(folder, training, describe(options, data, net), options)
        recorder.begin()
        if replica:
            begin_together(training)
        with (
            StopSignals(replica) as stop,
            ProgressBar(training, recorder.prints) as bar,
            losses_explained(training, replica),
        ):
            done = training.run(
                on_step=in_turn(bar.on_step, recorder.on_step),
                on_epoch=also(recorder.on_epoch, data),
                should_stop=stop.asked,
            )

        # Weights, curves and the picture of the first filters (figure 3).
        recorder.finish(done)
        return 0 if done else 128 + stop.received


def main(arguments=None):
    return run(train, *parse(__doc__, arguments), program="train_alexnet.py")


if __name__ == "__main__":
    with compilation_announced():
        sys.exit(main())
