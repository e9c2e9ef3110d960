"""The notebook: every cell runs anew, and says what it says in the repository."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from harness.commands import ROOT

NOTEBOOK = ROOT / "experiments" / "from-calculus-to-mnist.ipynb"

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")

for needed in ("nbformat", "nbclient", "ipykernel", "pandas"):
    reason = f"{needed} is not installed: it comes with pip install -e '.[notebook]'"
    pytest.importorskip(needed, reason=reason)

import nbformat  # noqa: E402
from nbclient import NotebookClient  # noqa: E402


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def codes(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def has_picture(cell: Any) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def text(cell: Any) -> str:
    """What a cell prints."""
    return "".join(output.get("text", "") for output in cell.outputs)


def is_fixed(cell: Any) -> bool:
    """Whether it prints the same on every machine, with any of the data sets."""
    return "varies" not in cell.metadata.get("tags", [])


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A copy of it, run in another folder, and on no settings but its own.

    It trains on MNIST where that is at hand. Nothing is downloaded: else minitrain
    draws its digits, as it does wherever there is no network.
    """
    data = os.environ.get("MINITRAIN_DATA", "")
    if not (data and (Path(data) / "MNIST").is_dir()):
        monkeypatch.setenv("MINITRAIN_DATA", str(tmp_path))
    for protocol in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(protocol, "http://127.0.0.1:9")
    for folder in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(folder, str(tmp_path))
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    notebook = read()
    for cell in codes(notebook):
        cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=120, resources=resources).execute()
    return notebook


def test_every_cell_says_what_it_says_in_the_repository(executed: Any) -> None:
    """Word for word; its numbers differ by roundings of another machine at most."""
    for kept, new in zip(codes(read()), codes(executed), strict=True):
        assert not any(output.get("name") == "stderr" for output in new.outputs)
        assert has_picture(kept) == has_picture(new)
        if not is_fixed(kept):
            continue
        assert NUMBER.sub("#", text(new)) == NUMBER.sub("#", text(kept))
        numbers, expected = (
            [float(number) for number in NUMBER.findall(text(cell))]
            for cell in (new, kept)
        )
        assert numbers == pytest.approx(expected, rel=0.02, abs=0.011)
        assert "False" not in text(new)


def test_it_is_kept_executed_and_tells_nothing_of_a_machine() -> None:
    notebook = read()
    counts = [cell.execution_count for cell in codes(notebook)]
    assert counts == [*range(1, len(counts) + 1)]
    kinds = {output.output_type for cell in codes(notebook) for output in cell.outputs}
    assert kinds == {"stream", "execute_result"}  # no error, and no bar
    assert sum(has_picture(cell) for cell in codes(notebook)) >= 4
    assert NOTEBOOK.stat().st_size < 1_500_000
    for cell in codes(notebook):
        for output in cell.outputs:
            output.get("data", {}).pop("image/png", None)
    words = nbformat.writes(notebook)
    places = [str(Path.home()), str(ROOT), "/tmp/", "/home/", "/Users/", "-packages"]
    assert [place for place in places if place in words] == []


def test_the_results_of_the_repository_are_those_of_mnist() -> None:
    """The documented command was run where MNIST is at hand."""
    printed = "".join(map(text, codes(read())))
    (accuracy,) = re.findall(r"^mnist: test accuracy ([\d.]+)%.* 1876 s", printed, re.M)
    assert float(accuracy) > 97
