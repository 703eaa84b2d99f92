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
from functools import partial
from pathlib import Path
from statistics import median

from machine import machine
from measuring import seconds, table

SCRIPT = Path(__file__).parents[1] / "examples" / "train_alexnet.py"


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    cold = arguments[:1] == ["--cold"]
    arguments = arguments[cold:]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        environment = os.environ | ({"NUMBA_CACHE_DIR": f"{folder}/cache"} if cold else {})
        command = [sys.executable, str(SCRIPT), *arguments, "--out", str(out)]
        try:
            took = seconds(partial(subprocess.run, command, env=environment, check=True))
        except subprocess.CalledProcessError as error:
            return error.returncode
        epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    shown = " ".join(arguments).replace(str(Path.home()), "~") or "(none)"
    rate = median(epoch["images_per_second"] for epoch in epochs)
    accuracy = (f"{epochs[-1][name]:.1%}" for name in ("val_top1", "val_top5"))
    shown += ", cold cache" * cold
    row = [shown, f"{took:.0f}", f"{len(epochs)}", f"{rate:,.0f}", *accuracy]
    header = ["arguments", "seconds", "epochs", "images/s (median)", "top-1", "top-5"]
    print(f"\n{machine('numba', 'numpy')}\n\n{table(header, [row])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
