"""Mark an exercise of examples/exercises."""

import argparse


def options(parser: argparse.ArgumentParser) -> None:
    """Give the command's arguments to its parser."""
