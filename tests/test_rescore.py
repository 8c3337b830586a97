"""Rescoring: the sum over paths, the search, the shipped n-gram, each against a plainer way to get it."""

import itertools
import math
from pathlib import Path

import make_ngram
import numpy as np
import pytest

from voxrec.errors import ConfigError, DataError, InputError
from voxrec.voice import rescore
from voxrec.voice.audio import RATE
from voxrec.voice.rescore import (
    BEGIN,
    END,
    LABELS,
    Weights,
    Wording,
    count_ngrams,
    lexicon,
    open_rescored,
    read_arpa,
    read_head,
    search,
    sound_scores,
)
from voxrec.voice.transcribe import Ask


def spells(path: tuple[int, ...]) -> str:
    return "".join(LABELS[label] for label, _ in itertools.groupby(path) if label)


@pytest.mark.parametrize("seed", range(4))
def test_sound_scores_sum_all_paths(seed: int) -> None:
    labels = [0, 1, 2, 27]
    logprobs = np.full((5, 28), -60.0)
    logprobs[:, labels] = np.log(np.random.default_rng(seed).dirichlet(np.ones(4), 5))
    sums: dict[str, float] = {}
    for path in itertools.product(labels, repeat=5):
        p = math.exp(sum(logprobs[i, label] for i, label in enumerate(path)))
        sums[spells(path)] = sums.get(spells(path), 0.0) + p
    texts = [*sums, "aaaa"]  # four equal letters need seven positions
    found = np.exp(sound_scores(logprobs, texts))
    assert np.allclose(found, [sums.get(t, 0.0) for t in texts], atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_wide_search_finds_the_best_of_all_texts(seed: int) -> None:
    model = count_ngrams([["a", "ab"], ["a", "ab"], ["ab", "b"], ["b"]])
    logprobs = np.full((6, 28), -60.0)
    logprobs[:, [0, 1, 2, 27]] = np.log(np.random.default_rng(seed).dirichlet(np.ones(4), 6))
    wording, weights = Wording(model, []), Weights(least=-50, beam=1000, width=100_000, most=3)
    texts = [" ".join(w) for n in (1, 2, 3) for w in itertools.product(["a", "b", "ab"], repeat=n)]
    # the search may end in a space after the last word: a text is as likely as the likelier of the two
    sound = np.maximum(*(sound_scores(logprobs, [t + end for t in texts]) for end in ("", " ")))
    scores = [
        s + weights.wording * wording.score(t) + weights.search_words * len(t.split())
        for s, t in zip(sound, texts, strict=True)
    ]
    assert search(logprobs, lexicon(wording), wording, weights)[0] == texts[int(np.argmax(scores))]


def test_shipped_ngram_is_what_its_maker_makes(tmp_path: Path) -> None:
    made = make_ngram.make()
    make_ngram.write_arpa(made, tmp_path / "made.arpa.gz")
    shipped, again = read_arpa(make_ngram.ASSET), read_arpa(tmp_path / "made.arpa.gz")
    assert shipped.probs == again.probs and shipped.backoffs == again.backoffs
    words = [key[0] for key in shipped.probs if len(key) == 1 and key[0] != BEGIN]
    for before in ((BEGIN,), ("dock",), ("send", "maintenance")):
        assert math.isclose(sum(math.exp(shipped.logprob(before, w)) for w in words), 1, abs_tol=0.02)
    assert shipped.logprob(("dock",), "seven") > shipped.logprob(("dock",), "maintenance")
    assert shipped.logprob(("dock", "seven"), END) > shipped.logprob(("send",), END)


def test_site_words_do_not_stay_for_others() -> None:
    recognizer = open_rescored(threads=1)
    tone = (0.1 * np.sin(np.arange(RATE) * 0.2)).astype(np.float32)
    asks = [
        Ask(samples=tone, hotwords=("Zzyzx",)),
        Ask(samples=np.full(9, np.nan, np.float32)),
        Ask(samples=tone),
    ]
    first, bad, last = recognizer.transcribe_batch(asks)
    assert isinstance(bad, InputError) and first.rejected and last.rejected  # type: ignore[union-attr]
    theirs, ours = recognizer._worded(("zzyzx",)), recognizer._worded(())
    assert "zzyzx" in theirs[0].site and not ours[0].site
    assert theirs[1].next["z"].next["z"] is not None and "z" not in ours[1].next["z"].next


def test_wrong_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ctc_head"):
        read_head(tmp_path)
    with pytest.raises(ConfigError, match="n-gram"):
        read_arpa(tmp_path / "none.arpa.gz")
    (tmp_path / "ctc_head.npz").write_bytes(b"torn")
    with pytest.raises(DataError, match="ctc_head"):
        read_head(tmp_path)
    np.savez(tmp_path / "ctc_head.npz", W=np.zeros((3, 4)), b=np.zeros(3))
    with pytest.raises(DataError, match="labels"):
        read_head(tmp_path)


def test_what_is_kept_ready_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescore, "MOST_SEEN", 50)
    wording = Wording(count_ngrams([["send", "help"]]), ["okafor"])
    for n in range(500):
        assert wording.logprob((), f"w{n}") < 0 and len(wording._seen) <= 50
