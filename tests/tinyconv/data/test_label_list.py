"""Lists of labels as people make them: separators, quotes, headers, numbers; and ambiguous ones."""

import pytest
from photo_bytes import corrupted, refused

from tinyconv.data.ilsvrc import labels_in
from tinyconv.data.label_list import indices_to_ids, parse_labels, three
from tinyconv.data.listing import SourceError

PAIRS = {"a.jpg": "cat", "b.jpg": "dog"}
NAMED = "columns 'filename' and 'label'"


@pytest.mark.parametrize(
    "text, labels, columns",
    [
        ("a.jpg cat\nb.jpg dog", PAIRS, ""),
        ("\n\n  x/y/a.jpg \t cat  \n\nb.jpg\tdog\n", PAIRS, ""),
        ("a.jpg   cat\r\nb.jpg   dog\r\n", PAIRS, ""),
        ("a.jpg, cat\nb.jpg,dog", PAIRS, ""),
        ("a.jpg;cat\nb.jpg;dog\n", PAIRS, ""),
        ('"a.jpg","cat"\n"b.jpg","dog"', PAIRS, ""),
        ("two words.jpg 7", {"two words.jpg": "7"}, ""),
        ("a.jpg golden retriever", {"a.jpg": "golden retriever"}, ""),
        ("my photo.jpg golden retriever", {"my photo.jpg": "golden retriever"}, ""),
        ('"a, b.jpg","say ""cheese"""', {"a, b.jpg": 'say "cheese"'}, ""),
        ("a.jpg\tgolden retriever, large", {"a.jpg": "golden retriever, large"}, ""),
        ("1005649 apple", {"1005649": "apple"}, ""),
        ("filename,label\na.jpg,cat\nb.jpg,dog", PAIRS, NAMED),
        ("label,x,filename\ncat,1,a.jpg\ndog,2,b.jpg", PAIRS, NAMED),
        ("id;filename;label\n1;a.jpg;cat\n2;b.jpg;dog", PAIRS, NAMED),
        ("filename label\na.jpg cat\nb.jpg dog", PAIRS, NAMED),
        ("Image_ID\tBreed\na.jpg\tcat\nb.jpg\tdog", PAIRS, "columns 'Image_ID' and 'Breed'"),
        ("id,kind of pet\na.jpg,cat\nb.jpg,dog", PAIRS, "columns 'id' and 'kind of pet'"),
        ("ImageId,PredictionString\na.jpg,cat 1 2 3 4\nb.jpg,dog 0 0 1 1 cat 0 0 1 1", PAIRS,
         "columns 'ImageId' and 'PredictionString'"),
    ],
)  # fmt: skip
def test_lists_that_can_be_understood(text, labels, columns):
    assert parse_labels(text, "list") == (labels, columns)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "list has no labels; expected lines of 'file-name label'"),
        ("filename,label\n", "has no labels"),
        ("a.jpg cat\nb.jpg\n", "line 2: expected a file name and a label, not 'b.jpg'$"),
        ("1\n2\n", "line 1: expected a file name and a label, not '1'$"),
        ("ImageId,PredictionString\nx\n", "line 2: 1 columns, and 2 in the first line"),
        ("a.jpg,cat,3\n", "line 1: .*, not 'a.jpg', 'cat', '3'; keep two columns, or add a header"),
        ("a.jpg,1,0,0\nb.jpg,0,1,0", "line 1: .*, not 'a.jpg', '1', '0', '0'; keep two"),
        (
            "image,cat,dog\na.jpg,1,0",
            "the columns 'image', 'cat', 'dog': .*a column for each class",
        ),
        ("filename,class,species\na,b,c", "'filename', 'class', 'species': expected one .* labels"),
        ("label,age\ncat,3", "the columns 'label', 'age': expected one with file names"),
        ("a.jpg cat\nx/a.jpg dog\n", "line 2: 'a.jpg' is 'dog' here and 'cat' further up"),
        ("a.jpg,\n", "line 1: the name or the label is empty"),
        ('a.jpg,"cat\nb.jpg,dog\n', "line 2: unexpected end of data"),
        ("a.jpg," + "x" * 200_000, "line 1: field larger than field limit"),
    ],
)
def test_lists_that_can_not(text, message):
    with refused(message):
        parse_labels(text, "list")


def test_the_first_three_pairs_are_shown():
    text = "filename,label\na\x1b[2J.jpg,cat\nb.jpg,dog\nc.jpg,e\u0301mu\nd.jpg,cat"
    assert labels_in(text, "l.csv", None).notes == [
        "labels: 'l.csv', columns 'filename' and 'label'; "
        r"'a\x1b[2J.jpg' is 'cat', 'b.jpg' is 'dog', 'c.jpg' is 'e\u0301mu'"
    ]
    assert three({"a": "x"}) == "'a' is 'x'"


IDS = ["ape", "bee", "cow"]


@pytest.mark.parametrize(
    "labels, first, found, note",
    [
        ("012", 0, IDS, ""),
        ("123", 1, IDS, ""),
        ("12", 0, ["bee", "cow"], "no label of list is 0: if 1 is the first of the sorted class"),
        ("12", 1, ["ape", "bee"], ""),
        (["ape", "1"], 0, ["ape", "1"], ""),
        ("123", 0, None, "from 1 to 3; expected 0 to 2, .* 3 sorted .*; .* give --labels-from 1$"),
        ("0123", 0, None, "from 0 to 3; expected 0 to 2, places in the 3 sorted class ids$"),
        ("1234", 0, None, "from 1 to 4; expected 0 to 2, places in the 3 sorted class ids$"),
        ("012", 1, None, "from 0 to 2; expected 1 to 3"),
    ],
)
def test_numbers_are_places_in_the_sorted_classes(labels, first, found, note):
    given = dict(enumerate(labels))
    if found is None:
        with refused(note):
            indices_to_ids(given, IDS, first, "list")
        return
    ids, said = indices_to_ids(given, IDS, first, "list")
    assert list(ids.values()) == found and note in said and bool(said) == bool(note)


def test_classes_may_have_numbers_for_names():
    assert indices_to_ids({"a": "7"}, ["10", "7"], 0, "list") == ({"a": "7"}, "")
    assert indices_to_ids({"a": "9" * 5000}, ["10", "7"], 0, "list")[0] == {"a": "9" * 5000}


def test_random_corruption_is_one_line_or_harmless():
    whole = 'filename,label,x\n"a.jpg","cat",1\nb.jpg,dog,2\n' * 3
    for data in corrupted(whole.encode(), 300):
        try:
            parse_labels(data.decode("latin-1"), "list")
        except SourceError as error:
            assert "\n" not in str(error)
