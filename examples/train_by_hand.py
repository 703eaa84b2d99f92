"""Train a small AlexNet with the loop written out: forward, loss, backward, update.

    python examples/train_by_hand.py             # ten textures and shapes, about a minute
    python examples/train_by_hand.py simple      # the loops of layers/*.py, about 16 times slower

Put `breakpoint()` into the loop and step into `net.forward`. With NUMBA_DISABLE_JIT=1 before
`python`, and `simple`, a debugger also steps through the host loops: take a BATCH of 2 then.
"""

import sys

import numpy as np

from layers.fast.plan import KERNELS
from tinyconv import RECIPES, SGD, alexnet
from tinyconv.data import synthetic
from tinyconv.data.augment import Augment

EPOCHS, BATCH, CROP = 8, 64, 96


def main(kernels="fast"):
    # Data: 2,000 drawn pictures to learn from, 500 to be tested on.
    train, val = synthetic(size=110)
    recipe = RECIPES["robust"]
    augment = Augment(train.mean_image(), CROP, recipe.input_divisor).to("cpu", "float32")

    # The net, its loss, its optimizer (paper §5).
    net = alexnet(num_classes=10, width=0.25, image_size=CROP, recipe=recipe, seed=0)
    net.to("cpu", kernels=kernels)
    loss = net.loss()
    optimizer = SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    step = 0
    for epoch in range(1, EPOCHS + 1):
        if epoch == EPOCHS - 1:
            optimizer.lr /= 10
        order = np.random.default_rng(epoch).permutation(len(train))
        losses = []
        for ids in np.array_split(order, len(order) // BATCH):
            x = augment.random(train.images[ids], ids, epoch)  # random crops and mirror images
            labels = train.labels[ids]

            net.set_step(step)  # chooses dropout's masks
            logits = net.forward(x)
            losses.append(loss.forward(logits, labels))
            net.backward(loss.backward())
            optimizer.step()
            step += 1

        logits = net.forward(augment.centre(val.images), train=False)
        top1 = np.mean(logits.argmax(axis=1) == val.labels)
        print(f"epoch {epoch}   loss {np.mean(losses):.3f}   validation top-1 {top1:.1%}")


if __name__ == "__main__":
    if len(sys.argv) > 2 or not set(sys.argv[1:]) <= set(KERNELS):
        print(f"usage: python {sys.argv[0]} [{'|'.join(KERNELS)}]", file=sys.stderr)
        sys.exit(2)
    main(*sys.argv[1:])
