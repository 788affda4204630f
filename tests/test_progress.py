"""Bars name what they count and the time that is left, and other libraries' loading bars are hidden unless asked for."""

import pytest
from diffusers.utils import logging as diffusers_logging

from w2wpp.base.model import BaseModel
from w2wpp.common.progress import VERBOSE, track


def test_a_bar_says_what_it_counts_and_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    now = iter(range(0, 10_000, 2))
    monkeypatch.setattr("tqdm.std.time", lambda: next(now))
    assert list(track(range(3), "embed", "photos")) == [0, 1, 2]
    said = capsys.readouterr()
    assert "embed: 100%" in said.err and "3 of 3 photos" in said.err and "left" in said.err and said.out == ""


@pytest.mark.parametrize("verbose", ["", "1"])
def test_loading_bars_are_hidden_unless_asked_for(pico, capfd, monkeypatch, verbose):
    monkeypatch.setenv(VERBOSE, verbose)
    BaseModel.load(pico, device="cpu")
    assert ("Loading" in capfd.readouterr().err) == bool(verbose)
    assert diffusers_logging.is_progress_bar_enabled()  # as it was
