"""Reports: the table, and the versions that are written into metrics.json."""

import subprocess

import numpy as np

from eamb.evaluation.report import table, versions


def test_table_speaks_the_terms_of_the_field():
    values = {"n": 3000, "srcc": 0.84321, "rmse": 0.3, "accuracy": 0.85, "accuracy_inclusive": 0.86}
    values |= {"threshold": 3.0, "emd1": np.nan, "recall_awe": 0.5}
    intervals = {"srcc": (0.83, 0.85), "accuracy": (0.84, 0.86)}
    assert table(values, intervals).splitlines() == [
        "                         95 % interval",
        "pictures           3000",
        "SRCC             0.8432  0.8300 to 0.8500",
        "RMSE             0.3000",
        "accuracy (> 3)   0.8500  0.8400 to 0.8600",
        "accuracy (>= 3)  0.8600",
        "EMD (r = 1)         nan",
        "recall of awe    0.5000",
    ]
    pairs = {"pairs": 7, "accuracy": 0.5, "accuracy_0.50_0.60": 0.25}
    assert table(pairs).splitlines() == [
        "pairs                            7",
        "accuracy                    0.5000",
        "accuracy, 50% to 60% agree  0.2500",
    ]


def test_the_revision_is_that_of_the_folder_itself_and_says_whether_files_were_changed(tmp_path):
    repository, inside = tmp_path / "repository", tmp_path / "repository" / "inside"
    inside.mkdir(parents=True)
    (repository / "file.py").write_text("1")

    def git(*words):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(repository), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert versions(tmp_path)["revision"] == "unknown"
    git("init", "--quiet")
    assert versions(repository)["revision"] == "unknown"  # nothing is committed
    git("add", "file.py")
    git("commit", "--quiet", "--message", "one")
    head = git("rev-parse", "HEAD")
    (repository / "scores.csv").write_text("not the program's")
    found = versions(repository)
    assert (found["revision"], found["dirty"]) == (head, False)
    assert found["numpy"] == np.__version__
    (repository / "file.py").write_text("2")
    assert (versions(repository)["revision"], versions(repository)["dirty"]) == (head, True)
    # A program that was unpacked inside another repository is none of its files.
    assert versions(inside)["revision"] == "unknown"
    assert "dirty" not in versions(inside)
