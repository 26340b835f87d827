"""README and docs: links lead somewhere, figures are those of results/, the worked examples work."""

import re
import runpy
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from PIL import Image
from small import ROOT, UNTRAINED, WORDS, read_csv, write_pictures

from eamb.inference import predict
from eamb.inference.scorer import Scorer
from eamb.selection import picks
from main import main
from tests.stress.training import forkserver

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += [ROOT / "checkpoints" / "README.md", ROOT / "results" / "README.md", *(ROOT / "docs").glob("*.md")]


@cache
def prose(page: Path) -> str:
    """Its text without blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """What GitHub names the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_files_that_the_pages_name_exist():
    for page in PAGES:
        if page.name == "CHANGELOG.md":  # names files that are gone
            continue
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"(?<![\w/.-])(?:eamb|scripts|configs|tests|results|docs)/[\w/.-]*\.\w+", text)
        modules = re.findall(r"python -m ((?:eamb|tests|scripts)\.[\w.]+)", text)
        named += [module.replace(".", "/") + ".py" for module in modules]
        missing = {name for name in named if not (ROOT / name).exists()}
        missing -= {"eamb/readers/aadb_lists.py", "configs/sets/mine.yaml"}  # examples of what a reader adds
        assert not missing, page


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_bytes()
    assert len(text.splitlines()) <= 250
    assert len(text) <= 15_000


def test_the_figures_in_the_readme_are_those_of_the_results():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [row for row in read_csv(ROOT / "results/tables/para_224.csv") if row["subset"] == "all"]
    means = {(row["row"], row["metric"]): float(row["mean"]) for row in rows if row["mean"]}
    names = ("EAMB-Net Lite (shipped)", "shipped recipe, 3 seeds", "first recipe")
    for run in (*names, "same backbone, linear head (NIMA style)"):
        figures = [f"| {means[run, name]:.3f} (".replace("0.", ".", 1) for name in ("srcc", "plcc")]
        figures += [f"| {100 * means[run, name]:.1f} % (" for name in ("accuracy", "accuracy_inclusive")]
        assert any(all(figure in line for figure in figures) for line in lines), (run, figures)


def test_the_version_is_that_of_the_last_change():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\S+)$", changes, re.M)[0]
    assert (citation["version"], str(citation["date-released"])) == (version, date)


def requirements(name: str) -> list[str]:
    lines = (ROOT / f"requirements{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith(("#", "-r "))]


def test_the_lowest_and_the_tested_versions_are_those_of_everything_required():
    required = [line for name in ("", "-photos", "-cluster", "-dev") for line in requirements(name)]
    assert [line.replace(">=", "==") for line in required] == requirements("-lowest")
    tested = {line.split("==")[0].lower() for line in requirements("-tested")}
    assert {line.split(">=")[0].lower() for line in required} == tested


def run_program(program: Path, words: list[str], log: Path) -> None:
    """Runs the main.py of a copy, in a process that has imported the original."""
    for name in [*sys.modules]:
        if (ROOT / name.partition(".")[0]).exists() or (ROOT / f"{name}.py").exists():
            del sys.modules[name]
    sys.path.insert(0, str(program))
    with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        sys.exit(import_module("main").main(words))


def test_the_worked_examples_of_development_work(tmp_path):
    """A copy of the program with a new data set, backbone and loss trains on 12 pictures."""
    program, data = tmp_path / "program", tmp_path / "aadb"
    shutil.copytree(ROOT / "eamb", program / "eamb", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", program / "configs")
    for file in ROOT.glob("*.py"):
        shutil.copy(file, program)
    text = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    for language, name, block in re.findall(r"^```(python|diff)\n# (\S+)\n(.*?)^```", text, re.M | re.S):
        if language == "python":
            (program / name).write_text(block)
            continue
        lines = block.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        after = "".join(line[1:] for line in lines if line[0] != "-")
        code = (program / name).read_text()
        assert code.count(before) == 1, f"{name} does not have once: {before}"
        (program / name).write_text(code.replace(before, after))
    (data / "imgListFiles_label").mkdir(parents=True)
    names = write_pictures(data / "images", 12)
    for place, split in enumerate(("Train", "Validation", "TestNew")):
        rows = [f"{names[i]} {(i + 1) / 13:.2f}\n" for i in range(4 * place, 4 * place + 4)]
        (data / "imgListFiles_label" / f"imgList{split}Regression_score.txt").write_text("".join(rows))
    words = ["train", "--dataset", "aadb_lists", "--data-root", str(data), "--output", str(tmp_path / "run")]
    words += [*WORDS, "model.backbone=tiny", "loss.of_scores=huber", UNTRAINED]
    process = forkserver().Process(target=run_program, args=(program, words, tmp_path / "log"))
    process.start()
    process.join()
    printed = (tmp_path / "log").read_text()
    assert process.exitcode == 0, printed
    assert "aadb_lists train: 4 pictures (imgListTrainRegression_score.txt)" in printed
    assert (tmp_path / "run" / "best.pt").is_file()


def test_the_commands_of_the_page_for_photographers_print_what_it_says(tmp_path, monkeypatch, capfd):
    text = (ROOT / "docs" / "photographers.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    Path("make.py").write_text(code, encoding="utf-8")
    runpy.run_path("make.py")
    scorer = cache(Scorer)  # its weights are read once for all commands
    for module in (predict, picks):
        monkeypatch.setattr(module, "Scorer", scorer)
    steps = re.findall(r"^```\npython main.py (.*)\n```\n\n```\n((?:.*\n)*?)```", text, re.M)
    for words, expected in steps:
        if words.endswith((" adobe", " --resume")):  # for time; other tests have them
            continue
        assert main(words.split()) == 0
        printed = capfd.readouterr()
        assert {*expected.splitlines()} - {"..."} <= {*(printed.out + printed.err).splitlines()}, words
    assert [words.split()[1] for words, _ in steps] == ["card"] * 4 + ["rated", "card"]


def test_the_worked_examples_of_python_work(tmp_path, monkeypatch, capsys):
    shutil.copy(ROOT / "docs" / "page.jpg", tmp_path / "photo.jpg")
    (tmp_path / "EAMB-Net").symlink_to(ROOT)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    first, tensors, _ = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(first.splitlines()) == 10
    names = {}
    exec(first, names)  # noqa: S102 - our own page
    best, *rows = capsys.readouterr().out.splitlines()
    scored = Scorer("lite", device="cpu").score("photo.jpg")
    assert best == f"{scored.score:.2f} of {scored.score_min:g} to {scored.score_max:g}, {scored.emotion}"
    assert [float(row) for row in rows] == pytest.approx(
        [scored.score] * 2, abs=0.1
    )  # one of them at a scale
    with Image.open("map.png") as saved:
        assert saved.size == scored.emotion_map.shape[::-1]
    exec(tensors, names)  # noqa: S102
    assert names["emotion_logits"].shape == (1, len(scored.emotions))
    assert names["emotion_map"].shape == (1, 1, *scored.emotion_map.shape)
