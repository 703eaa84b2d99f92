"""Whole archives, damaged ones, and hostile ones."""

import gzip
import io
import tarfile

import pytest
from photo_bytes import corrupted, put, refused
from tar_bytes import END, add, header, tar_of

from tinyconv.data.archives import list_archive, list_members
from tinyconv.data.listing import SourceError

LINK = "a link, and links in an archive are not followed"
SPECIAL = "not an ordinary file"


def listed(tmp_path, content):
    return list_archive(put(tmp_path / "100%s.tar", content))


def made_by(add_members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        add_members(archive)
    return stream.getvalue()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_they_are_said_to_be(tmp_path, kind, packed):
    longest = "deep/" * 19 + "ä.jpg"
    files = {"b/2": b"two" * 300, "a/1": b"one", "./c": b"sea" * 171, longest: b"long"}
    content = tar_of(files, format=kind)
    found = listed(tmp_path, gzip.compress(content) if packed else content)
    assert [each.name for each in found] == ["b/2", "a/1", "c", longest]
    assert [each.read() for each in found] == list(files.values())
    assert not any(each.problem for each in found)


def test_of_two_members_with_one_name_the_last_counts(tmp_path):
    def members(archive):
        for name, text in (("x", b"old"), ("y", b"other"), ("./x", b"new")):
            add(archive, name, text)

    found = listed(tmp_path, made_by(members))
    assert [(each.name, each.read()) for each in found] == [("y", b"other"), ("x", b"new")]


def test_what_is_no_ordinary_file_is_listed_with_the_reason(tmp_path):
    def members(archive):
        add(archive, "folder", kind=tarfile.DIRTYPE)
        add(archive, "sym", kind=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "hard", kind=tarfile.LNKTYPE, linkname="folder/x")
        add(archive, "pipe", kind=tarfile.FIFOTYPE)
        add(archive, "device", kind=tarfile.CHRTYPE)
        add(archive, "/etc/passwd", b"root")
        add(archive, "a/../../b", b"b")
        add(archive, "nothing")

    found = listed(tmp_path, made_by(members))
    assert {each.name: each.problem for each in found} == {
        "folder/": "",
        "sym": LINK,
        "hard": LINK,
        "pipe": SPECIAL,
        "device": SPECIAL,
        "etc/passwd": "",  # what is in the archive under this name
        "a/../../b": "",
        "nothing": "empty file",
    }
    assert {each.path for each in found} == {str(tmp_path / "100%s.tar")}
    assert [each.read() for each in found][5:7] == [b"root", b"b"]


def test_sparse_members_are_not_read(tmp_path):
    sparse = bytearray(header(b"holes", b"00000001000\0", b"S"))
    sparse[386:410] = b"00000000000\0" + b"00000001000\0"
    sparse[483:495] = b"00000010000\0"
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    (found,) = listed(tmp_path, bytes(sparse) + bytes(512) + END)
    assert found.problem == SPECIAL


def test_names_that_are_not_utf8_are_kept_apart(tmp_path):
    content = header(b"caf\xe9") + header(b"caf\xe8") + header("café".encode()) + END
    names = [each.name for each in listed(tmp_path, content)]
    assert names == ["caf\udce9", "caf\udce8", "café"]


@pytest.mark.parametrize("packed", [False, True])
def test_an_archive_in_an_archive(tmp_path, packed):
    inner = tar_of({"p": b"in the inner one", "q": b"also"})
    greedy = header(b"greedy", b"00000002000\0") + bytes(512)
    outer = tar_of({"first": b"x" * 700, "i.tar": inner, "g.tar": greedy, "secret": b"s" * 4096})
    members = listed(tmp_path, gzip.compress(outer) if packed else outer)
    found = list_members(members[1])
    assert [each.name for each in found] == ["i.tar/p", "i.tar/q"]
    assert [each.read() for each in found] == [b"in the inner one", b"also"]
    with refused("g.tar.*truncated"):  # cannot reach outside of itself
        list_members(members[2])


def test_every_truncation_is_noticed(tmp_path):
    whole = tar_of({"a": b"x" * 1000, "b": b"", "c": b"y" * 512}, format=tarfile.USTAR_FORMAT)
    end = 512 * (1 + 2 + 1 + 1 + 1)  # of the last member; then comes the end mark
    for length in [*range(0, end, 97), *range(0, end + 1, 512), end + 511]:
        with refused("truncated|not a tar"):
            listed(tmp_path, whole[:length])
    assert len(listed(tmp_path, whole[: end + 512])) == 3


def test_every_damaged_header_is_noticed(tmp_path):
    whole = tar_of({name: b"x" * 600 for name in "abc"}, format=tarfile.USTAR_FORMAT)
    for place in range(0, 3 * 1536, 1536):
        for byte in (0, 50, 124, 130, 150, 156, 257):
            damaged = bytearray(whole)
            damaged[place + byte] ^= 0x11
            with refused("damaged|not a tar"):
                listed(tmp_path, bytes(damaged))


@pytest.mark.parametrize(
    "content, message",
    [
        (header(size=b"\xff" * 11 + b"\x00"), "damaged"),  # -256 in base 256
        (header(b"a") + header(size=b"\xff" * 12), "damaged"),
        (header(size=b"\x80" + b"\xff" * 11), "damaged"),
        (header(size=b"77777777777\0"), "truncated"),
        (header(size=b"77777777777\0", kind=b"x"), "damaged"),  # would be read into memory
        (header(size=b"77777777777\0", kind=b"L"), "damaged"),
        (header(size=b"nonsense\0\0\0\0"), "damaged|not a tar"),
        (header(b"long", b"00000000001\0", b"L") + bytes(512), "not a tar"),
        ((header(b"l", b"00000000001\0", b"L") + b"a".ljust(512, b"\0")) * 3000, "damaged"),
        (
            header(size=b"00000000020\0", kind=b"x") + b"99999 size=1\n".ljust(512, b"\0"),
            "not a tar",
        ),
        (
            header(size=b"00000000014\0", kind=b"x")
            + b"12 size=-99\n".ljust(512, b"\0")
            + header(b"y"),
            "damaged|not a tar",
        ),
        (header(b"a") + b"garbage".ljust(512, b"!") + END, "damaged at byte 512"),
        (tar_of({"a": b"1"}) + tar_of({"b": b"2"}), "data after its end mark"),
        (b"", "not a tar archive"),
        (b"just a text\n" * 99, "not a tar archive; known layouts"),
        (b"short", "not a tar archive; known layouts"),
        (gzip.compress(b"x" * 999, mtime=0), "is truncated|not a tar"),
        (b"BZh" + bytes(600), "is compressed .bzip2.*unpack it, and give the folder"),
        (b"PK\x03\x04" + bytes(600), "is compressed .zip"),
    ],
)
def test_what_is_no_whole_archive_is_refused_in_one_line(tmp_path, content, message):
    with refused(message):
        listed(tmp_path, content + (END if message == "damaged" else b""))


def test_an_archive_of_nothing_is_whole(tmp_path):
    assert listed(tmp_path, END) == []


def test_a_member_too_large_for_a_photo(tmp_path, monkeypatch):
    monkeypatch.setattr("tinyconv.data.listing.MAX_PHOTO", 99)
    (found,) = listed(tmp_path, tar_of({"film": b"x" * 100}))
    assert found.problem == "too large for a photo (100 bytes)"


def test_random_corruption_is_an_error_or_harmless(tmp_path):
    whole = tar_of({f"{k}.png": b"x" * 700 for k in range(4)})
    for data in corrupted(whole, 300):
        try:
            for each in listed(tmp_path, data):
                assert len(each.read()) == each.size or each.problem
        except SourceError as error:
            assert "\n" not in str(error)


def test_unpacking_in_memory_is_bounded(tmp_path, monkeypatch):
    whole = gzip.compress(tar_of({"zeros": bytes(10**6)}), mtime=0)
    monkeypatch.setattr("tinyconv.data.archives.MAX_UNPACKED", 999_999)
    with refused("unpacks to over 999,999 bytes: unpack it, and give the folder"):  # a "bomb"
        listed(tmp_path, whole)
    with refused("truncated"):
        listed(tmp_path, whole[:500])
    with refused("cannot read"):
        listed(tmp_path, b"\x1f\x8b" + b"x" * 99)
