"""The house rules that a program can hold: imports go one way, one place for each power, short functions."""

import ast
import sys
from pathlib import Path

import pytest
from small import ROOT, command

MODULES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("*.py"))}
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
FILES = {f"{name}.py": tree for name, tree in MODULES.items()} | {
    f"scripts/{path.name}": ast.parse(path.read_text(encoding="utf-8")) for path in SCRIPTS
}
# A module imports from the levels below its own; from its own level only what is named here.
LEVELS = [
    {"depthwise", "folding", "recompute", "decoding", "losses", "config", "distributed", "demo"}
    | {"spreadsheets"},
    {"backbones", "interruption"},
    {"EAMBNet"},
    {"series"},
    {"metrics", "datasets", "checkpoint"},
    {"engine", "pairs"},
    {"emotion_maps", "engines"},
    {"visualize"},
    {"panels"},
    {"evaluation", "predict"},
    {"training", "referee", "picks"},
    {"main"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
LEAVES = LEVELS[0]


def imported(tree: ast.AST) -> set[str]:
    """Names of all modules imported anywhere in a file, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "the modules lie flat; relative imports break `python main.py`"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def called(tree: ast.AST) -> set[str]:
    """What is called, in full: torch.load, body.load_state_dict, load_file."""
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def own(tree: ast.AST) -> set[str]:
    return imported(tree) & set(MODULES)


def test_the_walk_sees_imports_in_functions_and_calls():
    # A test of the tests: the two lazy imports and one loading that are known to be there.
    assert "demo" in own(MODULES["datasets"])
    assert "visualize" in own(MODULES["training"])
    assert "torch.load" in called(MODULES["checkpoint"])


def test_every_module_has_its_level():
    assert set(MODULES) == set(LEVEL)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name):
    wrong = {other for other in own(MODULES[name]) if LEVEL[other] >= LEVEL[name]}
    assert not wrong, f"{name} must not import {wrong}"


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_leaves_import_nothing_of_ours(name):
    assert own(MODULES[name]) == set()


def test_the_network_uses_backbones_only():
    assert own(MODULES["EAMBNet"]) == {"backbones", "folding"}


def test_the_engine_never_sees_the_parser_or_the_config():
    assert not own(MODULES["engine"]) & {"config", "main"}
    assert "argparse" not in imported(MODULES["engine"])


@pytest.mark.parametrize("name", [name for name in FILES if name != "distributed.py"])
def test_only_distributed_py_imports_torch_distributed(name):
    assert not {module for module in imported(FILES[name]) if module.startswith("torch.distributed")}
    assert not {module for module in imported(FILES[name]) if module.startswith("torch.nn.parallel")}
    assert not {call for call in called(FILES[name]) if call.startswith("torch.distributed.")}


LOADING = (
    *("torch.load", "safe_open", "load_file", "safetensors.torch.load_file", "pickle.load", "pickle.loads"),
    *("torch.hub.load_state_dict_from_url", "torch.hub.download_url_to_file", "load_state_dict_from_url"),
)


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("checkpoint.py", "backbones.py")])
def test_only_checkpoint_py_and_backbones_py_load_weights(name):
    # Optimizer and scaler of a resumed run are no weights; what is in them was read by checkpoint.py.
    allowed = {"self.optimizer.load_state_dict", "self.scaler.load_state_dict"}
    calls = called(FILES[name])
    loading = {call for call in calls if call in LOADING or call.endswith("load_state_dict")}
    assert loading - allowed == set()
    assert not {call for call in calls if call in ("torch.save", "save_file")}


@pytest.mark.parametrize("name", FILES)
def test_no_call_reads_a_file_that_could_run_code(name):
    loads = [
        n for n in ast.walk(FILES[name]) if isinstance(n, ast.Call) and ast.unparse(n.func) == "torch.load"
    ]
    for call in loads:
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert options["weights_only"] == "True"
    assert "yaml.load" not in called(FILES[name])


@pytest.mark.parametrize("name", [*MODULES, *(path.stem for path in SCRIPTS)])
def test_no_module_is_named_like_one_of_the_standard_library(name):
    assert name not in sys.stdlib_module_names


@pytest.mark.parametrize("name", FILES)
def test_no_function_is_longer_than_50_lines(name):
    functions = [n for n in ast.walk(FILES[name]) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {function.name: function.end_lineno - function.lineno + 1 for function in functions}
    assert {function: length for function, length in lengths.items() if length > 50} == {}


@pytest.mark.parametrize("name", FILES)
def test_every_file_opens_with_what_it_is(name):
    assert ast.get_docstring(FILES[name])


def executed(tree: ast.Module) -> list[ast.Call]:
    """Calls that run on import as statements of their own, outside functions, classes and `__main__`."""
    plain = [n for n in tree.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
    return [statement.value for statement in plain]


@pytest.mark.parametrize("name", FILES)
def test_importing_does_nothing(name):
    # Scripts may put the root on the path, so that they run from anywhere.
    assert [ast.unparse(call.func) for call in executed(FILES[name])] in ([], ["sys.path.insert"])
    assert not any(isinstance(n, ast.For | ast.While | ast.With) for n in FILES[name].body)


def shipped_texts() -> list[Path]:
    patterns = (
        "*.py",
        "*.md",
        "*.toml",
        "*.txt",
        "Makefile",
        "*.cff",
        "configs/*",
        "scripts/*.py",
        "tests/*.py",
    )
    return [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def test_nothing_names_the_machine_it_was_written_on():
    places = tuple(f"/{folder}/" for folder in ("work", "root", "tmp", "Users"))
    for path in shipped_texts():
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [line for line in lines if any(place in line for place in places)]
        assert not found, f"{path.name}: {found[0]}"


BY_PATH = """
import os, runpy, sys
ours, *scripts = sys.argv[1:]
path = sys.path[1:]
for script in scripts:
    for name in ours.split(","):
        sys.modules.pop(name, None)
    sys.path[:], sys.argv = [os.path.dirname(script), *path], [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, script
"""


def test_scripts_run_by_path(tmp_path):
    # In one process, so that torch is loaded once; each must find our modules by itself.
    done = command("-c", BY_PATH, ",".join(MODULES), *SCRIPTS, folder=tmp_path, PYTHONPATH="")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("usage: ") == len(SCRIPTS)


def test_scripts_run_by_name():
    # They all find the modules in the same way.
    done = command("-m", "scripts.keep_run", "--help", folder=ROOT, PYTHONPATH="")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: " in done.stdout
