"""The choice between two tiles: the rule, and files that are not a table. What a table does is
tested in `test_tensor_core.py`."""

from types import SimpleNamespace

import pytest

from layers.fast.conv import tile_table

GPUS = {"H200": ("sm_90", 132), "RTX 4090": ("sm_89", 128), "RTX 5090": ("sm_120", 170)}


@pytest.mark.parametrize(
    ("gpu", "filters", "rows", "tile"),
    [
        ("H200", 128, 1000, "128x128"),
        ("H200", 96, 1000, "128x128"),  # 128 columns in either
        ("H200", 192, 1000, "128x64"),  # 192 columns instead of 256
        ("H200", 48, 1000, "128x64"),
        ("H200", 128, 66, "128x64"),  # half of the multiprocessors would have no block
        ("H200", 128, 67, "128x128"),  # two small blocks for one large, on most of them
        # 338 large blocks of conv5: 1.28 waves in either tile, or 1.32 and 2.64, or 0.99 and 1.99.
        ("H200", 128, 338, "128x128"),
        ("RTX 4090", 128, 338, "128x64"),
        ("RTX 5090", 128, 338, "128x128"),
    ],
)
def test_the_rule(gpu, filters, rows, tile, monkeypatch):
    monkeypatch.setattr(tile_table, "_gpu", lambda: GPUS[gpu])
    assert tile_table.choose_tile("no layer's", filters, rows) == tile


@pytest.mark.parametrize(
    ("architecture", "tile", "expected"),
    [
        # 49 and 37 KB of 228, 164 and 100; the registers allow two and four.
        ("sm_90", "128x128", (2, 43)),
        ("sm_90", "128x64", (4, 65)),
        ("sm_80", "128x64", (4, 91)),
        ("sm_89", "128x128", (2, 98)),
        ("sm_120", "128x64", (2, 74)),
    ],
)
def test_blocks_of_a_multiprocessor_and_the_share_of_shared_memory(architecture, tile, expected):
    assert tile_table.resident_blocks(tile, architecture) == expected


def test_the_driver_is_asked_for_that_share(monkeypatch):
    kernel = SimpleNamespace(targetoptions={})
    monkeypatch.setattr(tile_table, "_gpu", lambda: GPUS["RTX 4090"])
    monkeypatch.setattr(tile_table, "SIMULATED", False)
    tile_table.ask_for_shared_memory(kernel, "128x64")
    assert kernel.targetoptions == {"shared_memory_carveout": 74}
    kernel.targetoptions.clear()
    monkeypatch.setattr(tile_table, "CARVEOUT", False)
    tile_table.ask_for_shared_memory(kernel, "128x64")
    assert kernel.targetoptions == {}


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
