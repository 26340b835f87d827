"""Progress: a bar on a terminal, a line every 30 seconds in a log, nothing on standard output."""

import io
import sys

import pytest
import tqdm.std

from eamb.runtime.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, which passes as a test says."""
    now = [1000.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    return now


def timed(items, clock, seconds):
    for item in items:
        clock[0] += seconds
        yield item


def test_a_log_has_a_line_every_30_seconds_and_one_at_the_end(capsys, clock):
    shown = progress(timed(range(100), clock, 1), desc="epoch 1/4", total=100, unit="step")
    assert list(shown) == list(range(100))
    output, error = capsys.readouterr()
    lines = error.splitlines()
    assert [line.partition("|")[0] for line in lines] == [f"epoch 1/4:{n:4d}%" for n in (30, 60, 90, 100)]
    assert "30/100 [00:30<01:10" in lines[0] and error.isascii() and "\r" not in error and output == ""


def test_what_ends_within_30_seconds_leaves_a_log_silent(capsys, clock):
    with progress(total=20) as bar:
        for _ in timed(range(20), clock, 1):
            bar.update()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar_on_standard_error_unless_it_is_hidden(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress("ab", disable=True)) == ["a", "b"] and sys.stderr.getvalue() == ""
    assert list(progress("ab", desc="predict")) == ["a", "b"]
    assert "\rpredict: 100%" in sys.stderr.getvalue() and capsys.readouterr().out == ""
