"""Mark an exercise of examples/exercises: write kernels, and a machine says what is wrong.

tinyconv exercise              the list of exercises
tinyconv exercise 4            mark the fourth, examples/exercises/04_max_pool.py
tinyconv exercise my_copy.py   mark a file
"""

import argparse
import ast
import runpy
from pathlib import Path

from tinyconv.lab.exercise import exercises_in

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "exercises"


def options(parser: argparse.ArgumentParser) -> None:
    """Give the command's arguments to its parser."""
    parser.add_argument("exercise", nargs="?", metavar="N", help="a number, or a file")


def main(options: argparse.Namespace) -> int:
    """Run the exercise's file, which marks itself: 0 if it is passed, else 1; or list them all.

    ValueError for an exercise that is not there.
    """
    files = {int(file.name[:2]): file for file in exercises_in(FOLDER)}
    by_number = options.exercise is None or options.exercise.isdecimal()
    if by_number and not files:
        raise ValueError(f"{FOLDER} has no exercises: they are in a clone; install it with -e")
    if options.exercise is None:
        for number, file in files.items():
            title = (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]
            print(f"{number:2}  {title.partition('. ')[2]:68} {file.name}")
        print("mark one: python -m tinyconv exercise 1")
        return 0
    file = Path(options.exercise)
    if options.exercise.isdecimal():
        if int(options.exercise) not in files:
            raise ValueError(f"exercises are numbered 1 to {max(files)}: {FOLDER}")
        file = files[int(options.exercise)]
    elif not file.is_file():
        raise ValueError(f"there is no exercise {options.exercise}: a number, or a file")
    try:
        runpy.run_path(str(file), run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            raise ValueError(ended.code) from None
        return int(ended.code or 0)
    except SyntaxError as error:
        raise ValueError(f"{file}:{error.lineno}: {error.msg}") from None
    raise ValueError(f"{file} marks nothing: it has to end with mark(...)")
