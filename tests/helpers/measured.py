"""A launch measured, and its lines picked out, for the tests of traffic."""

import textbook

from layers import simulator
from layers.simulator.trace import SHARED
from tinyconv.lab.traffic import measure


def traffic_of(kernel, grid, block, *args, operations=None):
    with simulator.record() as traces:
        kernel[grid, block](*args)
    return measure(traces[0], operations)


def textbook_traffic(name, **settings):
    kernel, grid, block, args, _ = textbook.TEXTBOOK[name](**settings)
    return traffic_of(kernel, grid, block, *args)


def the_line(traffic, op, array):
    """The one load or store of `array`, or of the only shared array."""
    (line,) = (
        line
        for line in traffic.lines
        if line.op == op and (line.array == array or array == SHARED == line.space)
    )
    return line


def sectors(line):
    return line.requests, line.sectors, line.ideal_sectors


def wavefronts(line):
    return line.requests, line.wavefronts, line.conflict_ways
