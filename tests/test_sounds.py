"""load_tests/sounds.py: every maker gives what it promises, and no two minutes are alike."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from voxrec.voice.audio import RATE, level_db

sys.path.insert(0, str(Path(__file__).parents[1] / "load_tests"))
import sounds

MAKERS = sorted({m for makers in sounds.KINDS.values() for m in makers}, key=lambda m: m.__name__)


@pytest.mark.parametrize("make", MAKERS, ids=lambda m: m.__name__)
def test_a_maker_gives_so_many_finite_samples_and_the_same_for_the_same_seed(make):
    first, again, other = (make(np.random.default_rng(seed), 1.7) for seed in (1, 1, 2))
    assert first.shape == (int(1.7 * RATE),) and np.isfinite(first).all()
    assert np.array_equal(first, again)
    assert make is sounds.zeros or not np.array_equal(first, other)


@pytest.mark.parametrize("kind", sounds.KINDS)
def test_no_minute_is_like_another(kind):
    minutes = [sounds.minute(kind, sounds.seeded(kind, 0, number)) for number in range(3)]
    assert all(m.dtype == np.float32 and len(m) == 60 * RATE and np.abs(m).max() <= 1 for m in minutes)
    for a, b in pairwise(minutes):
        assert (a != b).mean() > 0.1
    assert np.array_equal(minutes[0], sounds.minute(kind, sounds.seeded(kind, 0, 0)))


def test_level_is_in_decibels_below_full_scale_and_clips():
    wave = np.random.default_rng(0).normal(size=RATE)
    assert level_db(sounds.level(wave, -20)) == pytest.approx(-20, abs=0.01)
    assert np.abs(sounds.level(wave, 0)).max() == 1


def test_babble_holds_as_many_talkers_as_asked_for():
    t = np.arange(RATE) / RATE
    whistles = [np.sin(2 * np.pi * f * t).astype(np.float32) for f in range(500, 4000, 250)]
    one, eight = (sounds.babble(sounds.seeded("babble", 0, 0), whistles, 4, talkers=n) for n in (1, 8))

    def heard(x):
        "How many pitches sound in the middle second."
        spectrum = np.abs(np.fft.rfft(x[RATE : 2 * RATE] * np.hanning(RATE)))
        loud = np.flatnonzero(spectrum > 0.05 * spectrum.max())
        return 1 + int((np.diff(loud) > 20).sum())

    assert heard(one) <= 3 < 6 <= heard(eight)
