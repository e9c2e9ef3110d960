"""The data sets that the built-in experiment knows by name."""

from pathlib import Path

import pytest

from minitrain.datasets import digits, mnist
from minitrain.experiment import builtin

LOADERS = {
    "mnist": (mnist, "mnist"),
    "fashion-mnist": (mnist, "fashion_mnist"),
    "digits": (digits, "digits"),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("given", [True, False])
def test_load_finds_the_set_by_name_in_the_root_or_else_the_default_root(
    name: str, given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MINITRAIN_DATA", str(tmp_path / "default"))
    monkeypatch.setattr(*LOADERS[name], lambda root: root)
    root = tmp_path / "given" if given else None
    assert builtin.load_data(name, root) == (root or tmp_path / "default")
