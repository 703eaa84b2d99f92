"""benchmarks/winograd_error.py: a whole run with few channels."""

import re

import winograd_error

from layers.fast.host import winograd


def test_errors_are_those_of_float32_and_larger_in_larger_tiles(capsys):
    chosen = winograd.tile_side
    assert winograd_error.main(["--channels", "16"]) == 0
    assert winograd.tile_side is chosen
    printed = capsys.readouterr().out
    rows = [re.split(r" *\| *", line)[1:-1] for line in printed.splitlines() if line[:3] != "|--"]
    found = {
        tuple(row[:3]): [float(x) for x in row[3:]] for row in rows if row[2:3] and row[3] != "y"
    }
    assert len(found) == len(winograd_error.TILES) + 2
    for errors in found.values():
        assert all(1e-8 < error < 1e-5 for error in errors)
    for r, sizes in (("3×3", "67"), ("5×5", "678")):  # of y
        errors = [next(e[0] for key, e in found.items() if key[::2] == (n, r)) for n in sizes]
        assert errors == sorted(errors) and errors[0] < errors[-1]
    assert max(found["im2col", "", "3×3"]) < min(found["7", "5", "3×3"])
