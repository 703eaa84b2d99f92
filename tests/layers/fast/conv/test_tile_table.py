"""The choice between two tiles: the rule, and files that are not a table. What a table does is
tested in `test_tensor_core.py`."""

import pytest

from layers.fast.conv import tile_table


@pytest.mark.parametrize(
    ("filters", "blocks", "tile"),
    [
        (128, 1000, "128x128"),
        (96, 1000, "128x128"),  # 128 columns in either
        (192, 1000, "128x64"),  # 192 columns instead of 256
        (48, 1000, "128x64"),
        (128, 131, "128x64"),  # a multiprocessor without a block
        (128, 132, "128x128"),
    ],
)
def test_the_rule(filters, blocks, tile):
    assert tile_table.choose_tile("no layer's", filters, blocks) == tile


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", '{"sm_90": "128x128"}', '{"sm_90": {"a layer": "huge"}}',
        '{"sm_90": {"a layer": ["128x128"]}}', b"\xff",
    ],
)  # fmt: skip
def test_a_file_that_is_not_a_table_is_refused_in_one_line(text, tmp_path):
    path = tmp_path / "tiles.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"tiles\.json is not a table of tiles.*\{\}") as caught:
        tile_table.read(path)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_missing_is_refused_and_ours_is_there(tmp_path):
    with pytest.raises(ValueError, match="none.json is not a table of tiles"):
        tile_table.read(tmp_path / "none.json")
    assert isinstance(tile_table.read(), dict)
