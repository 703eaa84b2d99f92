"""Commands of `python -m tinyconv` that look at a net or a machine."""
