"""Layers of the files at the top and of scripts/ (import-linter sees eamb/ alone); the drawing; warnings."""

import runpy
import warnings

import pytest
from small import ROOT

drawing = runpy.run_path(str(ROOT / "scripts" / "draw_layers.py"))


@pytest.fixture(scope="module")
def edges():
    return drawing["read_edges"](ROOT)


def test_no_arrow_leads_upwards(edges):
    assert {"main", "EAMBNet", "datasets", "losses", "metrics", "scripts", "eamb.network"} <= {*edges}
    assert {"eamb.network"} <= edges["EAMBNet"]  # the imports are really read
    assert drawing["wrong_edges"](edges) == []


@pytest.mark.parametrize("box", ["EAMBNet", "eamb.network", "eamb.weights"])
def test_what_a_hub_loads_imports_no_name_that_other_packages_bear_too(box, edges):
    assert not drawing["reachable"](edges, {box}) & {"datasets", "losses", "metrics", "main"}


def test_imports_inside_functions_count_and_those_for_type_checkers_alone_do_not(tmp_path):
    file = tmp_path / "part.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import datasets\nelse:\n    import losses\n"
        "def late():\n    if late:\n        from eamb.network import fast\n"
    )
    assert {*drawing["imported"](file)} == {"typing.TYPE_CHECKING", "losses", "eamb.network.fast"}


def test_an_arrow_that_leads_upwards_is_named(tmp_path, capsys):
    (tmp_path / "losses.py").write_text("import metrics\n")
    (tmp_path / "metrics.py").write_text("import main\n")
    (tmp_path / "main.py").write_text("import torch\n")
    edges = drawing["read_edges"](tmp_path)
    assert drawing["wrong_edges"](edges) == [("losses", "metrics"), ("metrics", "main")]


def test_the_drawing_is_made(edges, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(drawing["main"].__globals__, "read_edges", lambda root: edges)
    assert drawing["main"](["--output", str(tmp_path / "layers.png")]) == 0, capsys.readouterr().err
    assert (tmp_path / "layers.png").stat().st_size > 50_000


OURS = [path.stem for folder in (ROOT, ROOT / "tests") for path in folder.glob("*.py")]


@pytest.mark.parametrize("module", [*OURS, "eamb.files", "scripts.export", "tests.stress.images"])
def test_a_warning_in_our_own_modules_is_an_error(module):
    with pytest.raises(DeprecationWarning):
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=module)


@pytest.mark.parametrize("module", ["torch.nn", "matplotlib._mathtext", "datasets_of_others", "PIL.main"])
def test_a_warning_in_other_peoples_modules_is_none(module, recwarn):
    warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=module)
    assert len(recwarn) == 1
