"""Folders and archives give the same answers."""

import os
import sys

import pytest
from photo_bytes import put
from tar_bytes import tar_of

from tinyconv.data.listing import SourceError
from tinyconv.data.trees import open_tree

FILES = {
    "b/x": b"1",
    "a-b/y": b"2",
    "a/z/deep": b"3",
    "a/é": b"4",
    "a/.hidden/file": b"5",
    "a/z.jpg": b"6",
    "loose": b"7",
    ".DS_Store": b"8",
    "a/z/._deep": b"9",
}


@pytest.fixture(params=["folder", "archive", "archive in another order"])
def tree(request, tmp_path):
    if request.param == "folder":
        for name, content in FILES.items():
            put(tmp_path / "t" / name, content)
        return open_tree(tmp_path / "t")[0]
    files = FILES if request.param == "archive" else dict(reversed(FILES.items()))
    return open_tree(put(tmp_path / "t.tar", tar_of(files)))[0]


def test_names_and_order(tree):
    assert tree.folders() == ["a", "a-b", "b"]
    assert [each.name for each in tree.loose()] == ["loose"]
    # As a walk through folders goes: "z/deep" before "z.jpg", though "." is less than "/".
    assert [each.name for each in tree.below("a").files()] == ["a/z/deep", "a/z.jpg", "a/é"]
    assert [each.name for each in tree.files()][-2:] == ["b/x", "loose"]
    assert tree.below("a").folders() == ["z"]
    assert [each.name for each in tree.below("a").below("z").loose()] == ["a/z/deep"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX links")
def test_links_are_followed_and_rings_end(tmp_path):
    put(tmp_path / "elsewhere/x.png", b"x")
    folder = tmp_path / "top"
    put(folder / "1.png", b"")
    (folder / "ring").symlink_to(folder, target_is_directory=True)
    (folder / "twice").symlink_to(folder, target_is_directory=True)
    (folder / "to").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "nowhere").symlink_to(tmp_path / "gone")
    (folder / "self").symlink_to(folder / "self")
    os.mkfifo(folder / "pipe")
    troubles = {each.name: each.trouble for each in open_tree(folder)[0].files()}
    assert troubles == {
        "1.png": "empty file",
        "nowhere": "a link that leads nowhere",
        "pipe": "not an ordinary file",
        "self": "a link that leads nowhere",
        "to/x.png": "",
    }


def test_names_that_lead_out_are_left_out_and_named(tmp_path):
    files = {f"../{k}": b"x" for k in range(12)} | {"/etc/passwd": b"x", "fine/x": b"x"}
    tree, notes = open_tree(put(tmp_path / "a.tar", tar_of(files)))
    assert tree.folders() == ["fine"] and [each.name for each in tree.files()] == ["fine/x"]
    assert len(notes) == 11 and notes[-1] == "left out: 3 more such names"
    assert notes[0] == "left out: '../0': its name leads out of the archive"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pipe")
def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="neither a folder nor an ordinary file"):
        open_tree(tmp_path / "pipe")
