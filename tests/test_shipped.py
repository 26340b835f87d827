"""Which files --checkpoint means."""

from pathlib import Path

import pytest

from eamb.weights import shipped
from eamb.weights.shipped import SHIPPED, checkpoint_file, checkpoint_files


def test_lite_is_the_shipped_network_whatever_lies_in_the_folder_and_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lite").touch()
    assert checkpoint_file("lite") == SHIPPED[shipped.DEFAULT] and SHIPPED["lite"].is_file()
    assert SHIPPED["lite"].name == "eambnet_lite_para.safetensors"
    for path in ("./lite", "runs/lite", "lite.pt", Path("lite"), "Lite"):
        assert checkpoint_file(path) == Path(path)


def test_a_network_that_is_not_shipped_is_named_with_those_that_are(tmp_path, monkeypatch):
    monkeypatch.setitem(SHIPPED, "small", tmp_path / "none.safetensors")
    words = (
        r"^checkpoint: the network 'small' is not shipped with this version, which has lite; a file of that "
    )
    with pytest.raises(FileNotFoundError, match=words + r"name is \./small$"):
        checkpoint_files(["a.pt", "small"])


def test_one_or_several_files_each_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoint_files("a.pt") == checkpoint_files(Path("a.pt")) == [Path("a.pt")]
    assert checkpoint_files(("a.pt", Path("b.pt"), "lite")) == [Path("a.pt"), Path("b.pt"), SHIPPED["lite"]]
    for same in (tmp_path / "a.pt", "./a.pt"):
        with pytest.raises(
            ValueError, match=r"a\.pt is given twice, and each network counts once; leave one"
        ):
            checkpoint_files(["a.pt", "b.pt", same])
    with pytest.raises(ValueError, match="give at least one file of weights"):
        checkpoint_files([])
