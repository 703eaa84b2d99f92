"""The notebook: stored without outputs, and every cell runs."""

import json
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "examples" / "alexnet_in_an_afternoon.ipynb"


def cells(kind):
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


def test_it_is_stored_without_outputs():
    assert len(cells("code")) > 10
    assert all(not c["outputs"] and c["execution_count"] is None for c in cells("code"))


@pytest.mark.full
def test_every_cell_runs(monkeypatch, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="pip install -e '.[test]' brings nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("greenlet")
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)  # the notebook sees to it
    monkeypatch.setenv("PYTHONPATH", str(FILE.parents[1]))
    notebook = nbformat.read(FILE, as_version=4)
    notebook.metadata.kernelspec.name = "python3"
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": tmp_path}}
    ).execute()
    printed = "".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/html", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    )
    assert "nothing found" in printed and "race: [" in printed  # the layer, and the faulty kernel
    assert "<iframe srcdoc=" in printed and "WRONG" in printed.upper()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 4
    accuracy = [
        float(line.split()[-1].rstrip("%")) for line in printed.splitlines() if "top-1" in line
    ]
    assert accuracy[-1] > 60 and sys.version_info >= (3, 10)
