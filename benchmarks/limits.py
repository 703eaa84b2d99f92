"""Lower bounds of the time of a training step of AlexNet, from operations and bytes.

    python benchmarks/limits.py                # the tables of docs/limits.md
    python benchmarks/limits.py --write        # ... written into it

Nothing is measured here. A layer cannot take less time than its operations take at the machine's
highest rate, nor less than its bytes take at the memory's: the longer of the two is its floor, and
the layer is bound by that one (the roofline model of Williams, Waterman and Patterson, 2009).

Operations: two for each multiply-add with a weight (`Layer.multiply_adds`), once forward, and
backward once for dL/dw and once for dL/dx (conv1 does without dL/dx). What LRN, pooling and the
rest compute is left out: next to their bytes it costs nothing on any of these machines.

Bytes: every array that a layer has to read or write crosses the memory once. Activations and their
gradients have four bytes, in BF16 two; parameters, their gradients and what SGD keeps are float32
in every precision. Forward reads x and the parameters and writes y; backward reads dy, x and the
weights and writes dx and the gradients. ReLU's derivative needs y in place of x, dropout's only dy,
pooling's dy and the winners, of four bytes each, that its forward pass writes. LRN recomputes its
sums. Not considered: caches between layers, and convolution algorithms with fewer multiplications
than the formula.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from measuring import table  # noqa: E402

from layers import Conv2D, Dropout, Flatten, Linear, MaxPool2D, ReLU  # noqa: E402
from tinyconv import alexnet  # noqa: E402

DOCUMENT = ROOT / "docs" / "limits.md"
BATCH = 128
WORD, HALF = 4, 2  # bytes of a float32, and of a winner's place; of a bfloat16
SGD_WORDS = 5  # read w, dw, v and write w, v
FREE_WHEN_FUSED = ReLU, Dropout


class Machine(NamedTuple):
    """Ceilings: floating-point operations and bytes a second, and where they are published."""

    flops: float
    bandwidth: float
    source: str
    word: int = WORD
    """Bytes of an activation in the precision that `flops` is the rate of."""


MACHINES = {
    "H200": Machine(67e12, 4.8e12, "NVIDIA H200 Tensor Core GPU, data sheet: H200 SXM, FP32"),
    "H200, TF32": Machine(
        494.5e12, 4.8e12, "the same: TF32 tensor cores, half of the 989 TFLOP/s given for sparsity"
    ),
    "H200, BF16": Machine(
        989.5e12,
        4.8e12,
        "the same: BFLOAT16 tensor cores, half of the 1,979 TFLOP/s given for sparsity",
        HALF,
    ),
    "RTX 4090": Machine(
        82.6e12,
        1.008e12,
        "NVIDIA Ada GPU Architecture, white paper: GeForce RTX 4090, FP32; its tensor cores have "
        "no higher rate in TF32, without sparsity",
    ),
    "RTX 4090, BF16": Machine(
        165.2e12,
        1.008e12,
        "the same: BF16 tensor cores, sums in FP32, without sparsity",
        HALF,
    ),
    "T4": Machine(8.1e12, 320e9, "NVIDIA T4 Tensor Core GPU, data sheet: FP32"),
    "laptop": Machine(
        768e9, 51.2e9, "8 cores · 3 GHz · 2 AVX2 units · 8 multiply-adds; 2 channels of DDR4-3200"
    ),
}


class Work(NamedTuple):
    """Operations and bytes of one pass."""

    operations: int
    moved: int

    def seconds(self, machine: Machine) -> float:
        return max(self.operations / machine.flops, self.moved / machine.bandwidth)

    def bound(self, machine: Machine) -> str:
        computing = self.operations / machine.flops > self.moved / machine.bandwidth
        return "c" if computing else "m"


def word_of(precision) -> int:
    """Bytes of an activation in "fp32", "tf32" or "bf16"."""
    return HALF if precision == "bf16" else WORD


def sized(width=1.0, image_size=224):
    """An AlexNet of that size; only the number of its weights matters here."""
    return alexnet(width=width, image_size=image_size, recipe="robust", init=False)


def work(layer, input_shape, batch, input_gradient=True, word=WORD) -> tuple[Work, Work]:
    """What the forward and the backward pass of a layer have to do for `batch` inputs.

    word: bytes of an activation.
    """
    x, y = (batch * math.prod(shape) for shape in (input_shape, layer.output_shape(input_shape)))
    parameters = sum(parameter.value.size for parameter in layer.parameters())
    operations = 2 * batch * layer.multiply_adds(input_shape)
    dx = x if input_gradient else 0
    kept = 0  # words of float32, and winners, that the forward pass moves
    if isinstance(layer, Flatten):
        activations = 0, 0
    elif isinstance(layer, Conv2D | Linear):
        activations, kept = (x + y, y + x + dx), parameters
    elif isinstance(layer, MaxPool2D):
        activations, kept = (x + y, y + dx), y
    elif isinstance(layer, Dropout):
        activations = x + y, y + dx
    else:  # ReLU and tanh need y, LRN needs x: as large as dx
        activations = x + y, y + x + dx
    forward, backward = (word * count for count in activations)
    forward += WORD * kept
    backward += WORD * (kept + parameters)
    return Work(operations, forward), Work(operations * (1 + input_gradient), backward)


def layers_work(net, batch, word=WORD) -> dict[str, tuple[Work, Work]]:
    """By layer name, forward and backward; the layers that move nothing are left out."""
    shape, found = net.input_shape, {}
    for place, layer in enumerate(net):
        passes = work(layer, shape, batch, place > 0, word)
        if passes[0].moved:
            found[layer.name] = passes
        shape = layer.output_shape(shape)
    return found


def sgd_work(net) -> Work:
    """The update: every parameter, gradient and velocity once; the few operations left out."""
    return Work(0, WORD * SGD_WORDS * sum(p.value.size for p in net.parameters()))


def step_work(net, batch, fused=True, word=WORD) -> list[Work]:
    """Every pass of a training step. fused: ReLU and dropout cost nothing beside their layer."""
    passes = [
        one
        for name, both in layers_work(net, batch, word).items()
        for one in both
        if not (fused and isinstance(net[name], FREE_WHEN_FUSED))
    ]
    return [*passes, sgd_work(net)]


def total(passes, machine) -> float:
    """Seconds that a step takes at least, pass after pass."""
    return sum(one.seconds(machine) for one in passes)


def machines_table() -> str:
    """Each machine's two rates and where they balance, and below their sources."""
    rows = []
    for name, (flops, bandwidth, *_) in MACHINES.items():
        rates = f"{flops / 1e12:,.3g}", f"{bandwidth / 1e9:,.4g}", f"{flops / bandwidth:.0f}"
        rows.append([name, *rates])
    sources = "\n".join(f"- {name}: {machine.source}." for name, machine in MACHINES.items())
    return f"{table(['machine', 'TFLOP/s', 'GB/s', 'operations a byte'], rows)}\n\n{sources}"


def sums(passes) -> tuple[int, int]:
    """Operations and bytes of several passes."""
    return sum(one.operations for one in passes), sum(one.moved for one in passes)


def layers_table(net) -> str:
    """Work and floors of each layer, forward and backward together."""
    update = {"SGD": (sgd_work(net),)}
    found = {word: layers_work(net, BATCH, word) | update for word in (WORD, HALF)}
    rows = []
    for name, passes in found[WORD].items():
        operations, moved = sums(passes)
        floors = []
        for machine in MACHINES.values():
            here = found[machine.word][name]
            bound = "".join(sorted({one.bound(machine) for one in here}))
            floors.append(f"{1e3 * total(here, machine):,.3f} {bound}")
        per_byte = f"{operations / moved:,.0f}" if operations else ""
        giga = f"{operations / 1e9:,.1f}" if operations else ""
        megabytes = (f"{sums(found[word][name])[1] / 1e6:,.1f}" for word in (WORD, HALF))
        rows.append([name, giga, *megabytes, per_byte, *floors])
    header = ["layer", "GFLOP", "MB", "MB, BF16", "FLOP / byte", *(f"{m}, ms" for m in MACHINES)]
    return table(header, rows)


def step_seconds(net, batch, fused=True) -> list[float]:
    """The floor of a step on each machine."""
    passes = {word: step_work(net, batch, fused, word) for word in (WORD, HALF)}
    return [total(passes[machine.word], machine) for machine in MACHINES.values()]


def totals_table(net) -> str:
    """A step's floors, with and without ReLU and dropout."""
    rows = []
    for title, fused in (("layer by layer", False), ("ReLU and dropout free", True)):
        seconds = step_seconds(net, BATCH, fused)
        rows.append([f"{title}, ms", *(f"{1e3 * took:,.2f}" for took in seconds)])
        rows.append([f"{title}, images/s", *(f"{BATCH / took:,.0f}" for took in seconds)])
    return table(["a step of 128 images", *MACHINES], rows)


def growth_table(what, cases) -> str:
    """cases: (title, net, batch)."""
    rows = []
    for title, net, batch in cases:
        operations, moved = sums(step_work(net, batch))
        rates = (f"{batch / took:,.0f}" for took in step_seconds(net, batch))
        rows.append([title, f"{operations / 1e9:,.1f}", f"{moved / 1e9:,.2f}", *rates])
    return table([what, "GFLOP", "GB", *(f"{m}, images/s" for m in MACHINES)], rows)


def tables() -> dict[str, str]:
    """By name, the parts of docs/limits.md that are printed here."""
    net = sized()
    batches = [(f"{n:,}", net, n) for n in (1, 8, 32, 128, 512, 2048)]
    sizes = [(f"{n}", sized(image_size=n), BATCH) for n in (64, 96, 128, 224, 448)]
    widths = [(f"{n:g}", sized(width=n), BATCH) for n in (0.125, 0.25, 0.5, 1, 2)]
    return {
        "machines": machines_table(),
        "layers": layers_table(net),
        "totals": totals_table(net),
        "batch": growth_table("batch size", batches),
        "image size": growth_table("image size", sizes),
        "width": growth_table("width", widths),
    }


def filled(text: str, parts: dict[str, str]) -> str:
    """The document with each part between its marks. ValueError for a mark that is missing."""
    for name, part in parts.items():
        start, end = f"<!-- printed: {name} -->\n", "<!-- end -->"
        before, found, after = text.partition(start)
        if not found or end not in after:
            raise ValueError(f"docs/limits.md has no place for {name!r}")
        text = f"{before}{start}{part}\n{end}{after.partition(end)[2]}"
    return text


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="into docs/limits.md")
    options = parser.parse_args(arguments)
    parts = tables()
    for name, part in parts.items():
        print(f"{name}\n\n{part}\n")
    if options.write:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(filled(text, parts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
