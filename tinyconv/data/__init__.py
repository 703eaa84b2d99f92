"""Photos: read from a folder, from a prepared file, or drawn."""

from tinyconv.data.folder import read_folder
from tinyconv.data.listing import Skipped
from tinyconv.data.photos import PhotoError, PhotoSet, decode_square
from tinyconv.data.synthetic import synthetic

__all__ = ["PhotoError", "PhotoSet", "Skipped", "decode_square", "read_folder", "synthetic"]
