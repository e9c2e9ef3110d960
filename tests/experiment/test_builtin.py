"""The data sets that the built-in experiment knows by name."""

from pathlib import Path

import pytest

from minitrain.experiment import builtin


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "digits"])
@pytest.mark.parametrize("given", [True, False])
def test_load_finds_the_set_by_name_in_the_root_or_else_the_default_root(
    name: str, given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert builtin.LOADERS[name].__name__ == name.replace("-", "_")
    monkeypatch.setenv("MINITRAIN_DATA", str(tmp_path / "default"))
    monkeypatch.setitem(builtin.LOADERS, name, lambda root: root)
    root = tmp_path / "given" if given else None
    assert builtin.load_data(name, root) == (root or tmp_path / "default")
