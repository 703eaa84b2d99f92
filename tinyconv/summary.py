"""The table of `print(net)`: layers, output shapes, parameters, multiply-adds per image."""

from typing import Any


def summary(net: Any, computed: bool = True) -> str:
    """The table of a Sequential.

    computed: add to each layer how it is computed, such as "(Winograd)", or "(in conv1)" for a
    layer fused into another one's step, and below the table kernels and precision, unless they are
    "fast" and fp32. With computed=False the table is the same on every device.
    """
    notes: dict[str, str] = {}
    for step in net.steps if computed else ():
        if hasattr(step, "notes"):  # a step of the fast tier, not a layer
            notes |= step.notes()
    shape = net.input_shape
    header = ("layer", "", "output", "parameters", "multiply-adds")
    rows = [("input", "", _times(shape), "", "")]
    parameters = operations = 0
    for layer in net.layers:
        count = sum(p.value.size for p in layer.parameters())
        work = layer.multiply_adds(shape) if shape else 0
        shape = layer.output_shape(shape) if shape else None
        parameters, operations = parameters + count, operations + work
        kind = f"{type(layer).__name__} {notes.get(layer.name, '')}".rstrip()
        rows.append((layer.name, kind, _times(shape), _number(count), _number(work)))
    rows.append(("total", "", "", _number(parameters), _number(operations)))
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(5)]
    lines = []
    for row in [header, *rows]:
        left = "  ".join(cell.ljust(w) for cell, w in zip(row[:3], widths, strict=False))
        right = "  ".join(cell.rjust(w) for cell, w in zip(row[3:], widths[3:], strict=True))
        lines.append(f"{left}  {right}".rstrip())
    if computed and net.kernels == "simple":
        lines.append("kernels simple: each layer as written in its file in layers/")
    if computed and net.precision != "fp32":
        emulated = ", emulated on the host" if net.device.name == "cpu" else ""
        lines.append(f"precision {net.precision}{emulated}")
    return "\n".join(lines)


def _times(shape: tuple[int, ...] | None) -> str:
    return "?" if shape is None else "×".join(str(side) for side in shape)


def _number(value: int) -> str:
    return f"{value:,}" if value else ""
