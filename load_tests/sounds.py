"""Sounds in which nobody speaks to us, made from a seed: silence, hum, machines, music, breaths, knocks.

And babble, in which everybody speaks at once: it is given voices. Nothing here is a recording.

Every maker takes a random generator and seconds, and gives float64 at 16 kHz, at no level in particular: see
`level`. `minute` strings the makers of one kind together.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.signal import butter, fftconvolve, lfilter, sosfilt

from voxrec.voice.audio import RATE, Samples, resample

Wave = NDArray[np.float64]
Maker = Callable[[Generator, float], Wave]


def level(samples: NDArray, db: float) -> Samples:
    "At `db` dBFS on average, clipped where that is too loud."
    scaled = samples / max(1e-9, float(np.sqrt(np.mean(samples**2)))) * 10 ** (db / 20)
    return np.clip(scaled, -1, 1).astype(np.float32)


def clock(seconds: float) -> Wave:
    return np.arange(int(seconds * RATE)) / RATE


def shaped(rng: Generator, seconds: float, power: float = 1) -> Wave:
    "Noise whose power falls with frequency to this power, above 3 Hz: 0 white, 1 pink, 2 brown."
    n = int(seconds * RATE)
    spectrum = np.fft.rfft(rng.normal(size=n))
    return np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 10 / 3 * seconds) ** (power / 2), n)


def band(rng: Generator, seconds: float, low: float, high: float) -> Wave:
    noise = rng.normal(size=int(seconds * RATE))
    return sosfilt(butter(2, (low, high), "band", fs=RATE, output="sos"), noise)


def slow(rng: Generator, seconds: float, every_s: float) -> Wave:
    "A curve through normal numbers, one every so many seconds."
    knots = np.arange(0, seconds + 2 * every_s, every_s)
    return np.interp(clock(seconds), knots, rng.normal(size=len(knots)))


def at_times(rng: Generator, seconds: float, make: Callable[[], Wave], gaps: tuple[float, float]) -> Wave:
    "Sounds of `make()` one after another, with gaps of so many seconds between their beginnings."
    out, at = np.zeros(int(seconds * RATE)), 0.0
    while (at := at + rng.uniform(*gaps)) < seconds:
        part = out[int(at * RATE) :]
        sound = make()[: len(part)]
        part[: len(sound)] += sound
    return out


def decaying(frequency: float, seconds: float) -> Wave:
    t = clock(0.5)
    return np.sin(2 * np.pi * frequency * t) * np.exp(-t / seconds)


# ---- silence, as digital and as rooms and cheap microphones have it


def zeros(rng: Generator, seconds: float) -> Wave:
    return np.zeros(int(seconds * RATE))


def offset(rng: Generator, seconds: float) -> Wave:
    return np.full(int(seconds * RATE), rng.uniform(-0.1, 0.1))


def last_bit(rng: Generator, seconds: float) -> Wave:
    return rng.integers(-1, 2, int(seconds * RATE)) / 2**15


def hiss(rng: Generator, seconds: float) -> Wave:
    return level(rng.normal(size=int(seconds * RATE)), rng.uniform(-75, -45)).astype(float)


def room(rng: Generator, seconds: float) -> Wave:
    "Air and far traffic, now a little louder, now a little less."
    tone = shaped(rng, seconds, rng.uniform(1, 2)) * 10 ** (slow(rng, seconds, 2) / 10)
    return level(tone, rng.uniform(-70, -48)).astype(float)


def converter_clicks(rng: Generator, seconds: float) -> Wave:
    "The last bit, and a single sample that is far off now and then."
    out = last_bit(rng, seconds)
    at = rng.integers(0, len(out), max(1, int(seconds * rng.uniform(0.5, 8))))
    out[at] += rng.uniform(-0.3, 0.3, len(at))
    return out


# ---- hum of the mains


def hum(rng: Generator, seconds: float) -> Wave:
    "The mains and its harmonics; its frequency drifts a little."
    mains = rng.choice([50, 60]) * (rng.uniform(0.99, 1.01) + 0.002 * slow(rng, seconds, 5))
    phase = 2 * np.pi * np.cumsum(mains) / RATE
    return sum(rng.uniform() * np.sin(k * phase + k) / k for k in range(1, 12))


def rectified(rng: Generator, seconds: float) -> Wave:
    "A cheap power supply: the mains' absolute value, with a ripple of noise at its peaks."
    wave = np.abs(np.sin(np.pi * 2 * rng.choice([50, 60]) * clock(seconds)))
    return wave - wave.mean() + rng.uniform(0, 0.3) * wave**8 * rng.normal(size=len(wave))


def buzz(rng: Generator, seconds: float) -> Wave:
    "A lamp or a ground loop: all harmonics up to high frequencies, in a resonance."
    saw = (rng.choice([50, 60, 100, 120]) * clock(seconds)) % 1 - 0.5
    low = rng.uniform(300, 1500)
    return saw + sosfilt(butter(1, (low, 2 * low), "band", fs=RATE, output="sos"), saw) * rng.uniform(0, 6)


# ---- machines


def pink(rng: Generator, seconds: float) -> Wave:
    return shaped(rng, seconds, rng.uniform(0, 2))


def clatter(rng: Generator, seconds: float) -> Wave:
    "A conveyor: a rumble, hum, clacks."
    every, rumble = rng.uniform(0.1, 0.7), shaped(rng, seconds, 2)
    t = clock(seconds)
    clack = rng.normal(size=len(t)) * np.exp(-(t % every) * rng.uniform(30, 120))
    return rumble / rumble.std() + 0.5 * hum(rng, seconds) + rng.uniform(0.5, 3) * clack


def motor(rng: Generator, seconds: float) -> Wave:
    "Harmonics of a rotation that speeds up and slows down, swelling with the load."
    speed = rng.uniform(20, 160) * 2 ** (0.4 * slow(rng, seconds, rng.uniform(1, 6)))
    phase = 2 * np.pi * np.cumsum(speed) / RATE
    tones = sum(rng.uniform() * np.sin(k * phase + rng.uniform(0, 6)) / k**0.7 for k in range(1, 25))
    swell = 1 + rng.uniform(0, 0.8) * np.sin(phase / rng.uniform(4, 40))
    return swell * tones + rng.uniform(0.1, 1) * pink(rng, seconds) * 20


def compressor(rng: Generator, seconds: float) -> Wave:
    "Strokes of a piston for some seconds, then a valve that blows off."
    t = clock(seconds)
    strokes = np.maximum(0, np.sin(2 * np.pi * rng.uniform(4, 18) * t)) ** 3
    on = (t % rng.uniform(3, 9)) < rng.uniform(2, 5)
    puff = at_times(
        rng, seconds, lambda: band(rng, 0.6, 1500, 6000) * np.exp(-clock(0.6) * rng.uniform(4, 20)), (2, 7)
    )
    rough = band(rng, seconds, rng.uniform(40, 200), rng.uniform(500, 3000))
    return on * strokes * rough / rough.std() + 3 * puff


def rattle(rng: Generator, seconds: float) -> Wave:
    "A loose sheet of metal: bursts, 8 to 30 a second, ringing."
    ring = [rng.uniform(400, 4000) for _ in range(4)]
    hit = sum(decaying(f, rng.uniform(0.003, 0.03)) for f in ring)
    hits = at_times(rng, seconds, lambda: hit * rng.uniform(0.2, 1), (1 / 30, 1 / 8))
    return hits * (slow(rng, seconds, 1) > -0.3) + 0.05 * rng.normal(size=len(hits))


def fan(rng: Generator, seconds: float) -> Wave:
    blades = 1 + 0.4 * np.sin(2 * np.pi * rng.uniform(8, 60) * clock(seconds))
    return blades * band(rng, seconds, rng.uniform(60, 300), rng.uniform(600, 5000))


def beeps(rng: Generator, seconds: float) -> Wave:
    "A truck that goes backwards."
    t, every = clock(seconds), rng.uniform(0.5, 1.2)
    on = (t % every) < every * rng.uniform(0.3, 0.6)
    return 0.02 * shaped(rng, seconds) + on * np.sign(np.sin(2 * np.pi * rng.uniform(700, 1500) * t))


def crowd(rng: Generator, seconds: float) -> Wave:
    "A crowd far away: noise in the bands of speech that swells as often as syllables come."
    lows = (200, 500, 1200, 2500)
    return sum(band(rng, seconds, low, 2 * low) * np.abs(slow(rng, seconds, 0.15)) for low in lows)


# ---- music


def tone(rng: Generator, frequency: float, seconds: float) -> Wave:
    t = clock(seconds)
    phase = 2 * np.pi * frequency * t + rng.uniform(0, 0.3) * np.sin(2 * np.pi * 5.5 * t)
    wave = sum(np.sin(k * phase) / k ** rng.uniform(1, 2) for k in range(1, 7))
    return wave * np.minimum(1, t / 0.02) * np.exp(-t / rng.uniform(0.3, 2))


def pitch(rng: Generator) -> float:
    return float(220 * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 11, 12]) / 12) * rng.choice([0.5, 1, 2]))


def strung(seconds: float, make: Callable[[], Wave]) -> Wave:
    "Sounds of `make()` one right behind the other."
    parts: list[Wave] = []
    while sum(map(len, parts)) < seconds * RATE:
        parts.append(make())
    return np.concatenate(parts)[: int(seconds * RATE)]


def chords(rng: Generator, seconds: float) -> Wave:
    def chord() -> Wave:
        root = pitch(rng)
        return sum(tone(rng, root * r, 1.0) for r in (1, rng.choice([1.19, 1.26]), 1.5))

    return strung(seconds, chord)


def melody(rng: Generator, seconds: float) -> Wave:
    return strung(seconds, lambda: tone(rng, pitch(rng), rng.choice([0.15, 0.3, 0.6])))


def beat(rng: Generator, seconds: float) -> Wave:
    step = rng.uniform(0.35, 0.6)
    drum = at_times(rng, seconds, lambda: decaying(60, 0.1), (step, step))
    snare = rng.normal(size=2000) * np.exp(-np.arange(2000) / 300)
    hats = at_times(rng, seconds, lambda: snare * rng.uniform(0.3, 1), (step / 2, step / 2))
    return drum + hats + 0.3 * melody(rng, seconds)


VOWELS = {"a": (800, 1200), "e": (450, 2000), "i": (300, 2300), "o": (450, 800), "u": (320, 800)}


def singing(rng: Generator, seconds: float) -> Wave:
    "A voice that sings vowels: a buzz with the vowels' resonances."

    def note() -> Wave:
        f, t = pitch(rng) * rng.choice([0.5, 1]), clock(rng.choice([0.3, 0.45, 0.6]))
        wave = (f * t + 0.02 * np.sin(2 * np.pi * 5.5 * t)) % 1 - 0.5  # a sawtooth with vibrato
        for formant in VOWELS[rng.choice(list(VOWELS))]:
            r, angle = np.exp(-np.pi * 90 / RATE), 2 * np.pi * formant / RATE
            wave = lfilter([1 - r], [1, -2 * r * np.cos(angle), r * r], wave)
        return wave / wave.std() * np.minimum(1, np.minimum(t, t[::-1]) / 0.03)

    return strung(seconds, note)


def song(rng: Generator, seconds: float) -> Wave:
    parts = [make(rng, seconds) for make in (beat, chords, singing)]
    return sum(rng.uniform(0.2, 1) * p / p.std() for p in parts)


# ---- breaths


def breaths(rng: Generator, seconds: float) -> Wave:
    "In and out, on the microphone."
    t = clock(seconds)
    swell = np.maximum(0, np.sin(2 * np.pi * t / rng.uniform(0.6, 2.5) + rng.uniform(0, 6))) ** 2
    return swell * band(rng, seconds, rng.uniform(150, 600), rng.uniform(1500, 5000))


def sniffs(rng: Generator, seconds: float) -> Wave:
    def sniff() -> Wave:
        length = rng.uniform(0.15, 0.5)
        rise = (clock(length) / length) ** rng.uniform(0.5, 2) * np.minimum(
            1, (length - clock(length)) / 0.03
        )
        return rise * band(rng, length, rng.uniform(500, 1500), rng.uniform(3000, 7000))

    return at_times(rng, seconds, sniff, (0.3, 2.5)) + 0.003 * rng.normal(size=int(seconds * RATE))


def mouth(rng: Generator, seconds: float) -> Wave:
    "Lips and tongue: clicks of a few milliseconds, and a breath behind them."
    click = lambda: decaying(rng.uniform(800, 3500), rng.uniform(0.001, 0.006)) * rng.uniform(0.2, 1)  # noqa: E731
    return at_times(rng, seconds, click, (0.05, 1.2)) + 0.02 * breaths(rng, seconds)


def blowing(rng: Generator, seconds: float) -> Wave:
    "Wind on the membrane: very low, in gusts."
    return shaped(rng, seconds, 2) * np.maximum(0, slow(rng, seconds, 0.4)) + 1e-4 * rng.normal(
        size=int(seconds * RATE)
    )


# ---- knocks


def hit(rng: Generator) -> Wave:
    "One knock on wood, metal or a desk: a few modes that die away, and the contact's click."
    modes = [(rng.uniform(60, 2500), rng.uniform(0.005, 0.09)) for _ in range(rng.integers(1, 6))]
    ring = sum(rng.uniform(0.2, 1) * decaying(f, seconds) for f, seconds in modes)
    ring[:200] += rng.normal(size=200) * np.exp(-np.arange(200) / 30) * rng.uniform(0, 1)
    return ring / np.abs(ring).max()


def knocks(rng: Generator, seconds: float) -> Wave:
    "Many, quickly."
    noise = 0.01 * rng.normal(size=int(seconds * RATE))
    return noise + at_times(rng, seconds, lambda: hit(rng) * rng.uniform(0.3, 1), (0.05, 0.8))


def one_knock(rng: Generator, seconds: float, rooms: Sequence[NDArray] = ()) -> Wave:
    "One, loud up to clipping, in a quiet room: in one whose response is given, or in one made up."
    t = clock(seconds)
    response = rng.normal(size=RATE // 2) * np.exp(-clock(0.5) * rng.uniform(10, 60)) * rng.uniform(0, 0.05)
    response[0] = 1
    if rooms and rng.random() < 0.7:
        response = rooms[rng.integers(len(rooms))]
    sound = fftconvolve(hit(rng), response)[: len(t)]
    out = 10 ** (rng.uniform(-75, -50) / 20) * rng.normal(size=len(t))
    at = rng.integers(0, max(1, len(t) - RATE))
    part = out[at : at + len(sound)]
    part += (sound / np.abs(sound).max() * rng.uniform(0.5, 1.5))[: len(part)]
    return np.clip(out, -1, 1)


# ---- minutes

KINDS: dict[str, tuple[Maker, ...]] = {
    "silence": (zeros, offset, last_bit, hiss, room, converter_clicks),
    "hum": (hum, rectified, buzz),
    "machine-noise": (clatter, motor, compressor, rattle, fan, beeps, pink, crowd),
    "music": (chords, melody, beat, singing, song),
    "breaths": (breaths, sniffs, mouth, blowing),
    "knock": (one_knock,),
}
AS_IT_IS = ("silence", "knock")  # kinds whose sounds have a level of their own


def seeded(kind: str, seed: int, number: int) -> Generator:
    "The generator of one minute."
    return np.random.default_rng([seed, zlib.crc32(kind.encode()), number])


def minute(kind: str, rng: Generator, more: Sequence[Maker] = ()) -> Samples:
    """A minute of a kind: its makers (and `more`) in any order, for 4 to 15 s each, from -45 to -6 dBFS.

    Between one and the next is a pause of up to 2 s, or none.
    """
    parts: list[Samples] = []
    makers = (*KINDS[kind], *more)
    while sum(map(len, parts)) < 60 * RATE:
        wave = makers[rng.integers(len(makers))](rng, rng.uniform(4, 15))
        parts.append(wave.astype(np.float32) if kind in AS_IT_IS else level(wave, rng.uniform(-45, -6)))
        parts.append(last_bit(rng, max(0, rng.uniform(-2, 2))).astype(np.float32))
    return np.concatenate(parts)[: 60 * RATE]


def babble(
    rng: Generator,
    voices: Sequence[Samples],
    seconds: float = 60,
    talkers: int = 8,
    rooms: Sequence[NDArray] = (),
) -> Samples:
    """So many talkers at once, each saying clips of `voices` in an order, at a pitch and speed of their own.

    They stand together: their levels differ by 6 dB at most. Every other time in one of the rooms.
    """
    total = np.zeros(int(seconds * RATE))
    for _ in range(talkers):
        speed = rng.uniform(0.85, 1.18)

        def said(speed: float = speed) -> Wave:
            clip = resample(voices[rng.integers(len(voices))], int(RATE * speed), RATE)
            return np.concatenate([level(clip, -20), np.zeros(int(rng.uniform(0, 0.5) * RATE))])

        late = int(rng.uniform(0, 3) * RATE)
        talk = strung(seconds + 3, said)[late : late + len(total)]
        total += talk * 10 ** (rng.uniform(-3, 3) / 20)
    if rooms and rng.random() < 0.5:
        total = fftconvolve(total, rooms[rng.integers(len(rooms))])[: len(total)]
    return level(total, rng.uniform(-35, -12))
