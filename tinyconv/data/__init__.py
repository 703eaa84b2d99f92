"""Photos and where they come from: a folder of your own, or drawn on the spot."""

from tinyconv.data.folder import Skipped, read_folder
from tinyconv.data.photos import PhotoError, PhotoSet, decode_square
from tinyconv.data.synthetic import synthetic

__all__ = ["PhotoError", "PhotoSet", "Skipped", "decode_square", "read_folder", "synthetic"]
