"""The wall-clock time of a whole run of examples/train_alexnet.py.

    python benchmarks/training_run.py                     # the main job
    python benchmarks/training_run.py --data photos --width 0.5 --image-size 128 --epochs 30

Arguments are passed to train_alexnet.py. With --cold as the first one Numba's cache starts empty,
as on a fresh machine: the first run compiles the host loops. Prints the command, the time, and the
accuracy it reached.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine

SCRIPT = Path(__file__).parents[1] / "examples" / "train_alexnet.py"


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    cold = arguments[:1] == ["--cold"]
    arguments = arguments[1:] if cold else arguments
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ)
        if cold:
            environment["NUMBA_CACHE_DIR"] = str(Path(folder) / "cache")
        out = Path(folder) / "run"
        started = time.perf_counter()
        command = [sys.executable, str(SCRIPT), *arguments, "--out", str(out)]
        status = subprocess.run(command, env=environment).returncode
        seconds = time.perf_counter() - started
        if status:
            return status
        lines = (out / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    rates = sorted(json.loads(line)["images_per_second"] for line in lines)
    print(f"\n{machine('numba', 'numpy')}")
    print("\n| arguments | seconds | epochs | images/s (median) | top-1 | top-5 |")
    print("|---|---|---|---|---|---|")
    shown = " ".join(arguments).replace(str(Path.home()), "~") or "(none)"
    print(
        f"| {shown}{', cold cache' if cold else ''} | {seconds:.0f} | {len(lines)} | "
        f"{rates[len(rates) // 2]:,.0f} | {last['val_top1']:.1%} | {last['val_top5']:.1%} |"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
