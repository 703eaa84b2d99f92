"""`python -m tinyconv COMMAND`, the same as `tinyconv COMMAND`."""

from tinyconv.tools.command_line import run

if __name__ == "__main__":
    run()
