"""Hostile settings of the layers: sides that all differ and that nothing divides.

The formula tests hold each tier against an oracle on them, `test_agreement.py` one against the
other.
"""

SHAPE = (2, 6, 7, 5)

# image (N, H, W, C), filters, window, stride, padding, groups
CONV = {
    "plain": ((2, 6, 7, 5), 4, 3, 1, 0, 1),
    "stride 2, padding only after": ((2, 6, 7, 5), 4, 3, 2, (0, 2), 1),
    "stride 2, padding only before": ((2, 7, 6, 3), 5, 3, 2, (3, 0), 1),
    "stride 3 over a window of 2": ((2, 6, 7, 5), 3, 2, 3, 1, 1),
    "1x1": ((2, 5, 3, 7), 4, 1, 1, 0, 1),
    "1x1, stride 3": ((2, 5, 8, 3), 4, 1, 3, 0, 1),
    "window as large as the padded image": ((3, 3, 3, 2), 4, 5, 2, 1, 1),
    "window as high as the padded image": ((2, 3, 6, 2), 4, 4, 1, (1, 0), 1),
    "last rows and columns do not fit": ((2, 8, 9, 2), 3, 3, 4, 0, 1),
    "windows that lie in the padding": ((2, 3, 4, 2), 3, 2, 1, (3, 2), 1),
    "one pixel": ((3, 1, 1, 7), 4, 3, 1, 1, 1),
    "two groups, stride 2": ((2, 6, 5, 4), 6, 3, 2, (2, 1), 2),
    "three groups": ((2, 4, 5, 6), 9, 3, 1, 1, 3),
    "a group for each channel": ((1, 5, 4, 6), 6, 3, 1, 1, 6),
    "one filter": ((3, 4, 5, 3), 1, 2, 1, 0, 1),
    "one number": ((1, 1, 1, 1), 1, 1, 1, 0, 1),
}

# image, size, k, alpha, beta, groups; with the paper's α = 1e-4 a wrong window would pass unseen.
LRN = {
    "α 0.5": (SHAPE, 5, 2.0, 0.5, 0.75, 1),
    "the paper's α": (SHAPE, 5, 2.0, 1e-4, 0.75, 1),
    "size 1": (SHAPE, 1, 2.0, 0.5, 0.75, 1),
    "size 3": (SHAPE, 3, 1.0, 0.5, 0.75, 1),
    "β above 1": (SHAPE, 3, 0.5, 0.9, 1.3, 1),
    "β 0": (SHAPE, 3, 2.0, 0.5, 0.0, 1),
    "window wider than the channels": (SHAPE, 13, 2.0, 0.5, 0.75, 1),
    "one channel": ((2, 4, 3, 1), 5, 2.0, 0.5, 0.75, 1),
    "two groups": ((2, 4, 3, 6), 5, 2.0, 0.5, 0.75, 2),
    "a group for each channel": ((2, 3, 2, 5), 3, 2.0, 0.5, 0.75, 5),
    "groups smaller than the window": ((1, 3, 4, 6), 7, 2.0, 0.5, 0.75, 3),
    "rows of numbers": ((3, 11), 5, 2.0, 0.5, 0.75, 1),
}

# image (N, H, W, C), window, stride
POOL = {
    "overlapping, as in AlexNet": ((2, 7, 9, 5), 3, 2),
    "the last row does not fit": ((2, 6, 7, 5), 3, 2),
    "one window": ((1, 3, 3, 1), 3, 2),
    "more channels than threads in a block": ((1, 8, 4, 130), 3, 2),
    "stride 1": ((2, 5, 4, 3), 3, 1),
    "gaps between the windows": ((2, 6, 9, 3), 2, 3),
    "a window of one pixel": ((2, 3, 4, 2), 1, 1),
    "one pixel in every third": ((2, 7, 5, 2), 1, 3),
    "window as high as the image": ((3, 4, 6, 1), 4, 1),
    "a window of four, stride 3": ((1, 10, 8, 7), 4, 3),
}

# Windows that hang over the right and bottom edge; and none that would begin outside.
POOL_CEIL = {
    "over both edges": ((2, 6, 8, 5), 3, 2),
    "over the right edge": ((2, 7, 10, 3), 3, 2),
    "one pixel inside": ((1, 5, 4, 130), 4, 3),
    "nothing hangs over": ((2, 7, 9, 5), 3, 2),
    "gaps: the last window would begin outside": ((2, 8, 9, 2), 2, 3),
    "one pixel in every third": ((2, 6, 5, 2), 1, 3),
}

# images, in, out
LINEAR = [(3, 7, 5), (1, 7, 5), (4, 1, 3), (4, 3, 1), (70, 3, 33)]
