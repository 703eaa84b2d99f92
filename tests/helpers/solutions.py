"""Solutions of the exercises, and typical wrong ones with what the marker must say of them."""

import re
import textwrap
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "exercises"
FILES = {int(file.name[:2]): file for file in sorted(FOLDER.glob("[0-9][0-9]_*.py"))}

SOLUTIONS = {
    1: ["max(x[i], x.dtype.type(0))"],
    2: ["if i < x.size:\n    y[i] = x[i] * x[i]"],
    3: [
        "index % x.shape[3]",
        "index // x.shape[3] % x.shape[2]",
        "index // (x.shape[3] * x.shape[2]) % x.shape[1]",
        "index // (x.shape[3] * x.shape[2] * x.shape[1])",
    ],
    4: [
        "x[n, p * STRIDE, q * STRIDE, c]",
        """
        for h in range(p * STRIDE, p * STRIDE + SIZE):
            for w in range(q * STRIDE, q * STRIDE + SIZE):
                best = max(best, x[n, h, w, c])
        """,
    ],
    5: [
        "max(0, (h - SIZE) // STRIDE + 1), min(dy.shape[1], h // STRIDE + 1)",
        "max(0, (w - SIZE) // STRIDE + 1), min(dy.shape[2], w // STRIDE + 1)",
        "if winner[n, p, q, c] == h * width + w:\n    total += dy[n, p, q, c]",
    ],
    6: [
        """
        total = x.dtype.type(0)
        for j in range(max(0, i - HALF), min(x.shape[1], i + HALF + 1)):
            total += x[row, j] * x[row, j]
        y[row, i] = x[row, i] * (K + ALPHA * total) ** -BETA
        """
    ],
    7: [
        """
        total = x.dtype.type(0)
        for j in range(max(0, i - HALF), min(x.shape[1], i + HALF + 1)):
            total += dy[row, j] * y[row, j] / scale[row, j]
        dx[row, i] = dy[row, i] * scale[row, i] ** -BETA - TWO_ALPHA_BETA * x[row, i] * total
        """
    ],
    8: [
        """
        distance = BLOCK // 2
        while distance > 0:
            cuda.syncthreads()
            if t < distance:
                tile[t] += tile[t + distance]
            distance //= 2
        """
    ],
    9: [
        """
        if row < x.shape[0] and column < x.shape[1]:
            tile[ty, tx] = x[row, column]
        cuda.syncthreads()
        i, j = cuda.blockIdx.y * TILE + tx, cuda.blockIdx.x * TILE + ty
        if i < x.shape[0] and j < x.shape[1]:
            y[j, i] = tile[tx, ty]
        """
    ],
    10: [
        """
        for r in range(w.shape[1]):
            for s in range(w.shape[2]):
                h, v = p + r - PAD, q + s - PAD
                if 0 <= h < x.shape[1] and 0 <= v < x.shape[2]:
                    for c in range(x.shape[3]):
                        total += x[n, h, v, c] * w[k, r, s, c]
        """
    ],
    11: [
        """
        total = dx.dtype.type(0)
        for r in range(weight.shape[1]):
            for s in range(weight.shape[2]):
                p, q = h - r + PAD, w - s + PAD
                if 0 <= p < dy.shape[1] and 0 <= q < dy.shape[2]:
                    for k in range(dy.shape[3]):
                        total += dy[n, p, q, k] * weight[k, r, s, c]
        dx[n, h, w, c] = total
        """
    ],
    12: [
        """
        total = dw.dtype.type(0)
        for n in range(dy.shape[0]):
            for p in range(dy.shape[1]):
                for q in range(dy.shape[2]):
                    h, w = p + r - PAD, q + s - PAD
                    if 0 <= h < x.shape[1] and 0 <= w < x.shape[2]:
                        total += dy[n, p, q, k] * x[n, h, w, c]
        dw[k, r, s, c] = total
        """
    ],
    13: [
        """
        for cell in range(ty * BLOCK + tx, WIDE * WIDE, BLOCK * BLOCK):
            i, j = cell // WIDE, cell % WIDE
            h, v = top + i, left + j
            if 0 <= h < x.shape[0] and 0 <= v < x.shape[1]:
                tile[i, j] = x[h, v]
            else:
                tile[i, j] = 0
        cuda.syncthreads()
        h, v = top + 1 + ty, left + 1 + tx
        if h < y.shape[0] and v < y.shape[1]:
            total = y.dtype.type(0)
            for r in range(3):
                for s in range(3):
                    total += tile[ty + r, tx + s] * weights[r, s]
            y[h, v] = total
        """
    ],
    14: [
        """
        a[0], a[1] = x[g, t], x[g + 8, t]
        a[2], a[3] = x[g, t + 4], x[g + 8, t + 4]
        b[0], b[1] = w[t, g], w[t + 4, g]
        mma_tf32(a, 0, b, 0, sums, 0)
        y[g, 2 * t], y[g, 2 * t + 1] = sums[0], sums[1]
        y[g + 8, 2 * t], y[g + 8, 2 * t + 1] = sums[2], sums[3]
        """
    ],
    15: ["dy * (self.s + self.x * self.s * (1 - self.s))"],
    16: [
        """
        if i < w.size:
            weight = w[i]
            velocity = momentum * v[i] - lr * decay * weight - lr * gradient[i]
            v[i] = velocity
            w[i] = weight + velocity
        """
    ],
    17: [],
}
"""What fills the gaps of each, in order."""

REPAIRED = ("v = 0.9 * v - 0.5 * gradient\n            w = w + v",
            "v *= 0.9\n            v -= 0.5 * gradient\n            w += v")  # fmt: skip
"""The bug of exercise 17, and the same line without it."""

WRONG = [
    # number, what is replaced in the solution, by what, what the marker says
    (1, "max(x[i], x.dtype.type(0))", "min(x[i], x.dtype.type(0))", ["wrong at y[0]: expected"]),
    (1, "y[i] = max(x[i]", "y[i - 1] = max(x[i]", ["index: IndexError: y[-1]", "negative index"]),
    (1, "y[i] = max(x[i]", "y[i // 2] = max(x[i]", ["race: y[0]", "let one thread own each"]),
    (1, "y[i] = max(x[i], ", "y[i] = max(x[i] * 0.1, ", ["wrong at y[1]: expected"]),
    (
        1,
        "max(x[i]",
        "max(x[127 - i % 128]",
        ["wrong at y[1]", "that is what y[126] has to be: is an index shifted?"],
    ),
    (1, "cuda.grid(1)", "cuda.threadIdx.x", ["race: y[0]", "cuda.grid(1) over all of them"]),
    (
        1,
        "y[i] = max(x[i], x.dtype.type(0))",
        "if x[i] > 0:\n        y[i] = x[i]",
        ["missing: y[0]", "or a branch skips the write"],
    ),
    (1, "y[i] = max(", "x[i] = max(", ["missing: y[0]", "it writes x, which is an input"]),
    (2, "if i < x.size:\n        ", "", ["index: IndexError: x[1]", "return before they"]),
    (2, "i < x.size", "i <= x.size", ["index: IndexError: x[1] of shape (1,)"]),
    (2, "i < x.size", "i < x.size - 1", ["missing: y[0]", "no thread owns these outputs"]),
    (2, "x[i] * x[i]", "x[i] + x[i]", ["wrong at y[0]", "(1 of 1 elements"]),
    (
        2,
        "x[i] * x[i]",
        "[a for a in [x[i]]][0] * x[i]",
        ["compile: the compiler makes no code for a GPU"],
    ),
    (3, "c = index % x.shape[3]", "c = index % x.shape[2]", ["race", "n, h, w and c"]),
    (
        3,
        "index // x.shape[3] % x.shape[2]",
        "index // x.shape[3]",
        ["index: IndexError", "the guard is right", "its index leaves axis"],
    ),
    (
        3,
        "index // x.shape[3] % x.shape[2]",
        "index / x.shape[3] % x.shape[2]",
        ["compile: the compiler", "// gives one, / gives a float"],
    ),
    (3, "mean[c]", "mean[w]", ["wrong at y[0, 0, 0, 1]", "mean[0]"]),
    (3, "index // (x.shape[3] * x.shape[2]) % x.shape[1]", "0", ["race: y[0, 0, 0, 0]"]),
    (
        3,
        "c = index % x.shape[3]\n    w = index // x.shape[3] % x.shape[2]\n"
        "    h = index // (x.shape[3] * x.shape[2]) % x.shape[1]\n",
        "w = index % x.shape[2]\n    h = index // x.shape[2] % x.shape[1]\n"
        "    c = index // (x.shape[2] * x.shape[1]) % x.shape[3]\n",
        ["right on 3 inputs", "goal: 100%: NOT YET", "sectors for each", "exercise 3: not yet"],
    ),
    (
        3,
        "w = index // x.shape[3] % x.shape[2]\n"
        "    h = index // (x.shape[3] * x.shape[2]) % x.shape[1]\n",
        "h = index // x.shape[3] % x.shape[1]\n"
        "    w = index // (x.shape[3] * x.shape[1]) % x.shape[2]\n",
        ["right on 3 inputs", "goal: 100%: NOT YET", "exercise 3: not yet"],
    ),
    (4, "x[n, p * STRIDE, q * STRIDE, c]\n", "x.dtype.type(0)\n", ["wrong at y[", "got 0"]),
    (
        4,
        "range(p * STRIDE, p * STRIDE + SIZE)",
        "range(p * STRIDE, p * STRIDE + SIZE - 1)",
        ["wrong at y[", "after it had read", "x[0, 0, 0, 0]"],
    ),
    (
        4,
        "range(p * STRIDE, p * STRIDE + SIZE)",
        "range(p * STRIDE, p * STRIDE + SIZE + 1)",
        ["index: IndexError: x[0, 3, 0, 0] of shape (1, 3, 3, 1)"],
    ),
    (4, "p * STRIDE", "p", ["wrong at y[0, 1, 0, 1]", "x[0, 1, 0, 1]"]),
    (4, "    if index >= y.size:\n        return\n", "", ["index: IndexError"]),
    (
        5,
        "    total = dx.dtype.type(0)\n",
        "    total = dx.dtype.type(1)\n",
        ["wrong at dx[0, 0, 0"],
    ),
    (5, "h // STRIDE + 1)", "h // STRIDE)", ["wrong at dx["]),
    (
        5,
        "max(0, (h - SIZE) // STRIDE + 1), min(dy.shape[1], h // STRIDE + 1)",
        "dy.shape[1]",
        ["right on 3 inputs", "goal: 3 times: NOT YET"],
    ),
    (
        5,
        "max(0, (h - SIZE) // STRIDE + 1)",
        "(h - SIZE) // STRIDE + 1",
        ["IndexError: winner[0, -1"],
    ),
    (5, "min(dy.shape[1], h // STRIDE + 1)", "h // STRIDE + 1", ["IndexError: winner["]),
    (
        5,
        "                total += dy[n, p, q, c]\n",
        "                dx[n, h - h % 2, w, c] += dy[n, p, q, c]\n",
        ["race: dx[", "it gathers"],
    ),
    (6, "max(0, i - HALF)", "i - HALF", ["index: IndexError: x[0, -2]"]),
    (6, "min(x.shape[1], i + HALF + 1)", "i + HALF + 1", ["index: IndexError"]),
    (6, "i + HALF + 1", "i + HALF", ["wrong at y[0, 0]", "x[0, 0]"]),
    (6, "** -BETA\n", "** BETA\n", ["wrong at y[0, 0]"]),
    (6, "x[row, j] * x[row, j]", "x[row, j]", ["wrong at y[0, 0]"]),
    (7, "/ scale[row, j]", "/ scale[row, i]", ["wrong at dx[0, 0]", "scale[0, 0]"]),
    (7, "TWO_ALPHA_BETA * x[row, i] * total", "TWO_ALPHA_BETA * total", ["wrong at dx[0, 0]"]),
    (7, "- TWO", "+ TWO", ["wrong at dx[0, 0]"]),
    (7, "dx[row, i] =", "dx[row, 0] =", ["race: dx[0, 0]"]),
    (7, "min(x.shape[1], i + HALF + 1)", "min(x.size, i + HALF + 1)", ["IndexError: dy[0, 2]"]),
    (
        8,
        "        cuda.syncthreads()\n",
        "",
        ["race: [", "of the shared array", "cuda.syncthreads()"],
    ),
    (
        8,
        "if t < distance:\n",
        "if t < distance:\n            cuda.syncthreads()\n",
        ["barrier: ", "every thread of a block has to reach"],
    ),
    (8, "distance = BLOCK // 2", "distance = BLOCK // 4", ["wrong at total[0]"]),
    (8, "tile[t + distance]", "tile[t + distance + 1]", ["hint: ", "shared array"]),
    (
        8,
        "distance = BLOCK // 2\n    while distance > 0:\n        cuda.syncthreads()\n"
        "        if t < distance:\n            tile[t] += tile[t + distance]\n"
        "        distance //= 2\n",
        "distance = 1\n    while distance < BLOCK:\n        cuda.syncthreads()\n"
        "        if 2 * distance * t < BLOCK:\n"
        "            tile[2 * distance * t] += tile[2 * distance * t + distance]\n"
        "        distance *= 2\n    cuda.syncthreads()\n",
        ["right on 2 inputs", "lanes in a queue at one bank  goal: none: NOT YET"],
    ),
    (9, "tile[tx, ty]", "tile[ty, tx]", ["unwritten: [", "of the shared array of line"]),
    (9, "    cuda.syncthreads()\n", "", ["race: ", "a barrier, cuda.syncthreads()"]),
    (
        9,
        "(TILE, PITCH), float32",
        "(TILE, TILE), float32",
        ["right on 2 inputs", "32 lanes in a queue at one bank  goal: none: NOT YET"],
    ),
    (9, "i < x.shape[0] and j < x.shape[1]", "j < x.shape[1]", ["index: IndexError: y[0, 33]"]),
    (
        9,
        "y[j, i] = tile[tx, ty]",
        "y[j, i] = x[i, j]",
        ["sectors for each read of x", "goal: 100%: NOT YET"],
    ),
    (10, "0 <= h < x.shape[1] and ", "h < x.shape[1] and ", ["index: IndexError: x[0, -1, 0, 0]"]),
    (
        10,
        "if 0 <= h < x.shape[1] and 0 <= v < x.shape[2]:",
        "if h >= 0 and v >= 0:",
        ["IndexError"],
    ),
    (10, "p + r - PAD", "p + r", ["wrong at y["]),
    (10, "range(x.shape[3])", "range(x.shape[3] - 1)", ["wrong at y["]),
    (10, "        total += ", "        total = ", ["wrong at y[0, 0, 0, 0]", "b[0]"]),
    (11, "h - r + PAD", "h + r - PAD", ["wrong at dx["]),
    (11, "if 0 <= p < dy.shape[1] and 0 <= q < dy.shape[2]:", "if True:", ["IndexError: dy[0, "]),
    (11, "weight[k, r, s, c]", "weight[k, 2 - r, 2 - s, c]", ["wrong at dx["]),
    (11, "range(dy.shape[3])", "range(dx.shape[3])", ["wrong at dx["]),
    (11, "    dx[n, h, w, c] = total", "", ["missing: dx[0, 0, 0, 0]"]),
    (12, "range(dy.shape[0])", "range(1)", ["wrong at dw[", "dy[0, "]),
    (12, "dw[k, r, s, c] = total", "dw[k, r, s, 0] = total", ["race: dw["]),
    (12, "p + r - PAD", "p - r + PAD", ["wrong at dw["]),
    (12, "if 0 <= h < x.shape[1] and 0 <= w < x.shape[2]:", "if True:", ["IndexError: x[0, -1"]),
    (12, "dw[k, r, s, c] = total", "dw[k, r, c, s] = total", ["IndexError: dw["]),
    (13, "    cuda.syncthreads()\n", "", ["race: ", "a barrier, cuda.syncthreads()"]),
    (
        13,
        "WIDE * WIDE, BLOCK * BLOCK",
        "BLOCK * BLOCK, BLOCK * BLOCK",
        ["unwritten: [", "fill all"],
    ),
    (13, "            tile[i, j] = 0", "            pass", ["unwritten: [", "fill all"]),
    (
        13,
        "tile[i, j] = 0\n    cuda.syncthreads()\n    h, v",
        "tile[i, j] = 0\n    if top + 1 + ty >= y.shape[0]:\n        return\n"
        "    cuda.syncthreads()\n    h, v",
        ["barrier: ", "no return before it"],
    ),
    (
        13,
        "tile[ty + r, tx + s]",
        "tile[ty + r + 1, tx + s]",
        ["wrong at y[0, 0]", "9 elements of the shared array"],
    ),
    (14, "x[g, t + 4], x[g + 8, t + 4]", "x[g + 8, t], x[g + 8, t + 4]", ["wrong at y["]),
    (14, "w[t, g], w[t + 4, g]", "w[g, t], w[g, t + 4]", ["wrong at y["]),
    (14, "sums[2], sums[3]", "sums[3], sums[2]", ["wrong at y[8, 0]", "that is what y[8, 1]"]),
    (14, "    mma_tf32(", "    if g < 4:\n        mma_tf32(", ["barrier: ", "every thread"]),
    (
        14,
        "y[g + 8, 2 * t], y[g + 8, 2 * t + 1]",
        "y[g, 2 * t], y[g, 2 * t + 1]",
        ["missing: y[8, 0]"],
    ),
    (15, " + self.x * self.s * (1 - self.s)", "", ["by the", "product rule"]),
    (15, "(1 - self.s)", "(1 + self.s)", ["product rule"]),
    (15, "return dy * (", "return (", ["x"]),
    (15, "self.x * self.s * (1", "self.s * (1", ["x"]),
    (15, "return dy * (self", "return dy + (self", ["x"]),
    (
        16,
        "if i < w.size:\n        weight = w[i]",
        "if True:\n        weight = w[i]",
        ["IndexError: w[1]"],
    ),
    (16, "- lr * gradient[i]", "+ lr * gradient[i]", ["wrong at w[0]"]),
    (16, "weight + velocity", "weight - velocity", ["wrong at w[0]"]),
    (16, "        v[i] = velocity\n", "", ["wrong at v[0]"]),
    (16, "lr * decay * weight", "decay * weight", ["wrong at w[0]"]),
    (17, "", "", ["not one bit of it changes"]),
    (17, REPAIRED[0], REPAIRED[1].replace("-= 0.5", "+= 0.001"), ["it rises"]),
    (17, REPAIRED[0], REPAIRED[1].replace("0.5", "1e300"), ["isn't finite from step"]),
    (17, REPAIRED[0], REPAIRED[1].replace("0.5", "0.001"), ["it falls, but slowly"]),
    (17, REPAIRED[0], REPAIRED[0].replace("w = w + v", "w += v"), ["goal: 0.1"]),
]


def filled(number: int) -> str:
    """The file of an exercise with its gaps filled."""
    text = FILES[number].read_text(encoding="utf-8")
    end = text.index('"""\n', 3) + 4
    task, code = text[:end], text[end:]
    for gap in SOLUTIONS[number]:
        block = textwrap.dedent(gap).strip()
        found = re.search(r"(?m)^( *)\.\.\.$|\.\.\.", code)
        indent = found[1] or ""
        code = code[: found.start()] + textwrap.indent(block, indent) + code[found.end() :]
    assert "..." not in code.replace("0, 1, 2, ...", "")
    if number == 9:
        code = code.replace("PITCH = TILE ", "PITCH = TILE + 1 ", 1)
    if number == 17:
        assert REPAIRED[0] in code
        code = code.replace(*REPAIRED)
    return task + code


def wronged(number: int, old: str, new: str) -> str:
    """The same with one thing wrong."""
    text = filled(number)
    if number == 17:
        return FILES[17].read_text(encoding="utf-8").replace(old, new)
    begin = text.find("@cuda.jit")
    begin = text.index('"""\n', 3) if begin < 0 else begin
    assert old in text[begin:], (number, old, text[begin:])
    return text[:begin] + text[begin:].replace(old, new)
