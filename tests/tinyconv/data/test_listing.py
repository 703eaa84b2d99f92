"""What decides the digest of a listing, and what does not."""

import dataclasses

import numpy as np

from tinyconv.data.listing import Found, Listing, Photo, some, trouble_with_size

FOUND = Found("a/x.png", "/one/a/x.png", 0, 10, 5)
LISTING = Listing("k", "n", ("a", "b"), ("A", "B"), [Photo("train", 0, FOUND)])


def test_everything_but_the_place_decides_the_digest():
    photos = [
        Photo("val", 0, FOUND),
        Photo("train", 1, FOUND),
        *(
            Photo("train", 0, FOUND._replace(**change))
            for change in (
                {"name": "a/y.png"},
                {"name": "a/\udce9.png"},
                {"offset": 1},
                {"size": 11},
                {"stamp": 6},
                {"trouble": "empty file"},
            )
        ),
    ]
    listings = [dataclasses.replace(LISTING, photos=[photo]) for photo in photos]
    for changes in ({"kind": "x"}, {"class_ids": ("a", "c")}, {"class_names": ("A", "C")}):
        listings.append(dataclasses.replace(LISTING, **changes))
    for value in (0, 1):
        listings.append(dataclasses.replace(LISTING, raw=np.full((1, 2, 2, 3), value, np.uint8)))
    digests = {LISTING.digest(), *(listing.digest() for listing in listings)}
    assert len(digests) == 1 + len(listings)
    moved = FOUND._replace(path="/two/a/x.png")
    assert dataclasses.replace(LISTING, photos=[Photo("train", 0, moved)]).digest() in digests


def test_words():
    assert some(["x"]) == "'x'" and some(["x\n", "y", "z"]) == r"'x\n' and 2 more"
    assert trouble_with_size(0) == "empty file" and trouble_with_size(10**9) == ""
    assert trouble_with_size(10**9 + 1) == "1,000,000,001 bytes are no photo"
