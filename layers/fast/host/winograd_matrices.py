"""The matrices of Winograd's algorithm, exactly, from the points where polynomials are evaluated.

docs/winograd.md derives them. Two polynomials of m and r coefficients have a product of
n = m + r − 1. It is fixed by its values at n points, one of them infinity, where a polynomial's
value is its leading coefficient:

    A (n, m), G (n, r)   values of a polynomial of m (r) coefficients at the points
    E (n, n)             the same of n coefficients; E⁻¹ has the coefficients of the values

A product's coefficients are a full convolution; the transpose of that is what a convolution layer
computes: y[i] = Σ_j w[j] x[i + j] = Aᵀ[(G w) ⊙ (Bᵀ x)] with Bᵀ = (E⁻¹)ᵀ.
"""

from fractions import Fraction

HALF = Fraction(1, 2)
POINTS = (
    (1, -1, 0),
    (1, -1, 2, -2, 0),
    (1, -1, HALF, -HALF, 2, -2),
    (1, -1, HALF, -HALF, 2, -2, 0),
)
"""The points beside infinity for n = 4 (the worked example), 6, 7 and 8; pairs ±a first.

Small numbers and their reciprocals: powers of other points differ so much in size that float32
loses digits."""

Matrix = list[list[Fraction]]


def values(points: tuple, coefficients: int) -> Matrix:
    """Row i takes a polynomial's coefficients to its value at point i; the last, at infinity."""
    rows = [[Fraction(point) ** power for power in range(coefficients)] for point in points]
    return [*rows, [Fraction(power == coefficients - 1) for power in range(coefficients)]]


def inverse(matrix: Matrix) -> Matrix:
    """By Gauss and Jordan, exactly."""
    size = len(matrix)
    rows = [[*row, *(Fraction(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for i in range(size):
        pivot = next(k for k in range(i, size) if rows[k][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for k in range(size):
            if k != i:
                rows[k] = [a - rows[k][i] * b for a, b in zip(rows[k], rows[i], strict=True)]
    return [row[size:] for row in rows]


def matrices(m: int, r: int) -> dict[str, Matrix]:
    """A (n, m), G (n, r) and B (n, n) for m outputs and r weights. ValueError without points.

    Each column of B is divided, and the row of G multiplied, by the power of two nearest to the
    column's largest number, which is exact and keeps V and U of a like size.
    """
    points = next((some for some in POINTS if len(some) == m + r - 2), None)
    if points is None:
        raise ValueError(f"no points for m={m}, r={r}: m + r - 1 must be 4, 6, 7 or 8")
    a, g, b = values(points, m), values(points, r), inverse(values(points, m + r - 1))
    # b is E⁻¹, whose transpose is Bᵀ: so it is B.
    for i in range(len(b)):
        largest, scale = max(abs(row[i]) for row in b), Fraction(1)
        while scale * 3 / 2 < largest:
            scale *= 2
        while scale * 3 / 4 > largest:
            scale /= 2
        for row in b:
            row[i] /= scale
        g[i] = [value * scale for value in g[i]]
    return {"A": a, "G": g, "B": b}
