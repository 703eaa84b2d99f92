"""Trained nets in use: predictions and features, and files of other programs."""
