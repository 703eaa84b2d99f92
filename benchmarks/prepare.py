"""How fast `python -m tinyconv prepare` makes an HDF5 file of photos.

    python benchmarks/prepare.py                  # 3,000 drawn JPEGs of 500×375 pixels
    python benchmarks/prepare.py --data photos    # a folder or tar of your own

Prints the machine, photos a second, and what that rate means for ImageNet's 1,331,167 photos: an
estimate, from these photos on this machine, with the file system's cache warm.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import machine
from PIL import Image

from tinyconv.data.store import PhotoStore

IMAGENET = 1_281_167 + 50_000


def draw(folder: Path, count: int) -> None:
    """Photo-like JPEGs: soft shapes with fine noise, about the size of ImageNet's (110 KB)."""
    rng = np.random.default_rng(0)
    fine = rng.normal(0, 14, (375, 500, 3))
    for k in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        soft = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.float64)
        photo = np.clip(soft + np.roll(fine, int(rng.integers(500)), axis=1), 0, 255)
        split = "val" if k % 20 == 0 else "train"
        path = folder / split / f"class{k // 20 % 10}" / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo.astype(np.uint8)).save(path, quality=90)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder or tar; default: drawn photos")
    parser.add_argument("--count", type=int, default=3000, help="drawn photos (default 3000)")
    parser.add_argument("--size", type=int, default=256, help="of the squares (default 256)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        source = options.data
        if source is None:
            source = Path(folder) / "photos"
            draw(source, options.count)
        out = Path(folder) / "out.h5"
        command = [sys.executable, "-m", "tinyconv", "prepare", str(source), str(out)]
        started = time.perf_counter()
        status = subprocess.run([*command, "--size", str(options.size)]).returncode
        seconds = time.perf_counter() - started
        if status:
            return status
        row = 3 * options.size**2
        with PhotoStore(out) as store:
            count = len(store.train) + len(store.val)
    rate = count / seconds
    print(f"\n{machine('pillow', 'numpy', 'h5py')}")
    print(f"\n{count:,} photos in {seconds:.1f} s, from start to end: {rate:,.0f} a second")
    print(
        f"ImageNet's {IMAGENET:,} at that rate: {IMAGENET / rate / 3600:.1f} hours, "
        f"{IMAGENET * row / 1e9:,.0f} GB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
