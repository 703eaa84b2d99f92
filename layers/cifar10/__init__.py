"""Layers, in the manner of the book, that only the 2012 authors' nets for CIFAR-10 have."""
