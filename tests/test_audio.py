"""Audio from outside: every broken file is a typed error or the right samples; frames survive the wire."""

import io
import os
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxrec.errors import InputError, TooLarge
from voxrec.voice.audio import (
    CODECS,
    MAX_PAYLOAD,
    RATE,
    RATE_CODES,
    Frame,
    Samples,
    chunks,
    level_db,
    mix_noise,
    pack_frame,
    pcm_to_samples,
    read_audio,
    samples_to_pcm,
    unpack_frame,
    write_wav,
)

SECOND = 0.4 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)


def tone(rate: int, seconds: float = 1.0) -> np.ndarray:
    return 0.4 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)


def wav(rows: np.ndarray, rate: int, width: int) -> bytes:
    "A WAV file of the channels `rows`, `width` bytes a sample."
    interleaved = np.atleast_2d(rows).T.ravel()
    if width == 1:
        data = np.rint(interleaved * 127 + 128).astype(np.uint8).tobytes()
    else:
        whole = np.rint(interleaved * (2 ** (8 * width - 1) - 1)).astype("<i4")
        data = whole.view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
    made = io.BytesIO()
    with wave.open(made, "wb") as out:
        out.setnchannels(np.atleast_2d(rows).shape[0])
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(data)
    return made.getvalue()


def encoded(container: str, codec: str, rate: int, sample_format: str = "s16") -> bytes:
    "A second of the tone, written by FFmpeg."
    made = io.BytesIO()
    with av.open(made, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            (tone(rate) * 32_767).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=sample_format)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return made.getvalue()


def assert_is_tone(samples: Samples, within: float, slack: int = 0) -> None:
    "A second of 440 Hz at the amplitude 0.4, whatever way it came."
    assert samples.dtype == np.float32 and abs(samples.size - RATE) <= slack
    assert abs(level_db(samples[2_000:14_000]) - level_db(SECOND[2_000:14_000])) < within
    spectrum = np.abs(np.fft.rfft(samples[2_000:14_000] * np.hanning(12_000)))
    assert abs(int(np.argmax(spectrum)) * RATE / 12_000 - 440) < 2


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_wav_is_the_same_second(rate: int, channels: int, width: int) -> None:
    assert_is_tone(read_audio(wav(np.tile(tone(rate), (channels, 1)), rate, width)), within=0.1, slack=1)


@pytest.mark.parametrize(
    ("container", "codec", "rate", "sample_format"),
    [
        ("wav", "pcm_mulaw", 8_000, "s16"),
        ("wav", "pcm_alaw", 8_000, "s16"),
        ("wav", "pcm_f32le", 16_000, "flt"),
        ("wav", "pcm_f64le", 44_100, "dbl"),
        ("wav", "adpcm_ima_wav", 22_050, "s16p"),
        ("flac", "flac", 44_100, "s16"),
        ("ogg", "libopus", 48_000, "s16"),
        ("webm", "libopus", 48_000, "s16"),
        ("mp3", "libmp3lame", 44_100, "s16p"),
        ("adts", "aac", 44_100, "fltp"),
        ("aiff", "pcm_s16be", 16_000, "s16"),
    ],
)
def test_any_codec_is_the_same_second(container: str, codec: str, rate: int, sample_format: str) -> None:
    slack = 0 if codec.startswith("pcm") else 2_400  # lossy codecs pad to whole blocks
    assert_is_tone(
        read_audio(encoded(container, codec, rate, sample_format)), within=0.5, slack=max(1, slack)
    )


def test_stereo_is_the_mean_and_not_the_left() -> None:
    left = tone(RATE)
    opposed = read_audio(wav(np.stack([left, -left]), RATE, 2))  # a cable that turns one channel over
    assert np.abs(opposed - left).max() < 1e-4
    half = read_audio(wav(np.stack([left, 0 * left]), RATE, 2))
    assert np.abs(half - left / 2).max() < 1e-4


WHOLE = wav(tone(RATE), RATE, 2)
FLAC = encoded("flac", "flac", RATE)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (b"", "not readable"),
        (b"R", "not readable"),
        (WHOLE[:20], "not readable"),
        (WHOLE[:44], "only a header"),
        (wav(np.empty(0), RATE, 2), "only a header"),
        (FLAC[:60], "not readable"),
        (b"one,two\n1,2\n" * 100, "no sound|not readable"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "no sound|not readable"),
        (np.random.default_rng(0).bytes(50_000), "no sound|not readable|header"),
        (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", "not readable"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "not readable"),
        (WHOLE[:24] + (1).to_bytes(4, "little") + WHOLE[28:], "claims 1 samples a second"),
        (WHOLE[:24] + (2**31 - 1).to_bytes(4, "little") + WHOLE[28:], "samples a second"),
    ],
)
def test_no_audio_is_a_typed_error(made: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says) as of_bytes:
        read_audio(made)
    assert of_bytes.value.hint
    (tmp_path / "file.wav").write_bytes(made)
    with pytest.raises(InputError, match=says):
        read_audio(tmp_path / "file.wav")


def test_what_is_left_of_a_torn_file_is_used(caplog: pytest.LogCaptureFixture) -> None:
    assert np.array_equal(
        read_audio(WHOLE[: 44 + 16_001]), read_audio(WHOLE)[:8_000]
    )  # half a sample is no sample
    torn = read_audio(FLAC[: -len(FLAC) // 5])
    assert 4_000 < torn.size < RATE and np.array_equal(torn, read_audio(FLAC)[: torn.size])
    assert "left out" in caplog.text


def test_samples_that_are_no_numbers_are_refused() -> None:
    floats = encoded("wav", "pcm_f32le", RATE, "flt")
    body = np.frombuffer(floats[-40_000:], "<f4").copy()
    body[5_000] = np.nan
    with pytest.raises(InputError, match="finite"):
        read_audio(floats[:-40_000] + body.tobytes())
    loud = read_audio(floats[:-40_000] + np.full(10_000, 1e30, "<f4").tobytes())
    assert np.abs(loud).max() == 1


def test_too_long_is_found_while_reading() -> None:
    with pytest.raises(TooLarge, match=r"longer than 0\.5 s"):
        read_audio(FLAC, max_s=0.5)
    assert read_audio(FLAC, max_s=1).size == RATE


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_file_never_raises_anything_else(data: st.DataObject) -> None:
    made = bytearray(data.draw(st.sampled_from([WHOLE, FLAC])))
    for _ in range(data.draw(st.integers(1, 20))):
        made[data.draw(st.integers(0, min(400, len(made) - 1)))] = data.draw(st.integers(0, 255))
    try:
        samples = read_audio(bytes(made[: data.draw(st.integers(0, len(made)))]), max_s=60)
    except InputError:
        return
    assert samples.dtype == np.float32 and samples.size and np.abs(samples).max() <= 1


def speech_data() -> Path:
    if not os.environ.get("VOXREC_DATA"):
        pytest.skip("VOXREC_DATA is not set")
    return Path(os.environ["VOXREC_DATA"]) / "speech"


@pytest.mark.parametrize("name", ["awful", "bad", "evil", "null"])
def test_published_broken_files(name: str) -> None:
    with pytest.raises(InputError):
        read_audio(speech_data() / f"malformed/{name}.wav")


def test_published_good_files() -> None:
    jfk = read_audio(speech_data() / "clips/jfk.flac")
    assert jfk.size == 11 * RATE and -30 < level_db(jfk) < -10


@given(st.binary(max_size=400).map(lambda b: b[: len(b) // 2 * 2]))
def test_pcm_round_trip_is_exact(pcm: bytes) -> None:
    assert samples_to_pcm(pcm_to_samples(pcm)) == pcm
    if pcm:
        assert samples_to_pcm(read_audio(write_wav(None, pcm_to_samples(pcm)))) == pcm


@given(st.integers(0, 5_000), st.integers(1, 700))
def test_chunks_lose_nothing(n: int, chunk_ms: int) -> None:
    samples = pcm_to_samples(np.arange(n, dtype="<i2").tobytes())
    sizes = [len(c) for c in chunks(samples, chunk_ms)]
    assert b"".join(chunks(samples, chunk_ms)) == samples_to_pcm(samples)
    assert all(s == chunk_ms * 32 for s in sizes[:-1])


@given(st.integers(1, 3_000), st.integers(1, 3_000), st.floats(-20, 40))
def test_noise_keeps_length_and_never_clips(n: int, m: int, snr_db: float) -> None:
    rng = np.random.default_rng(n)
    mixed = mix_noise(
        rng.normal(0, 0.2, n).astype(np.float32), rng.normal(0, 1, m).astype(np.float32), snr_db
    )
    assert mixed.size == n and mixed.dtype == np.float32 and np.abs(mixed).max() <= 1 + 1e-6


FRAMES = st.builds(
    Frame,
    codec=st.sampled_from(CODECS),
    start=st.booleans(),
    end=st.booleans(),
    rate=st.sampled_from(RATE_CODES),
    seq=st.integers(0, 2**32 - 1),
    payload=st.binary(max_size=200).map(lambda b: b[: len(b) // 2 * 2]),
)


@given(FRAMES)
def test_frames_survive_the_wire(frame: Frame) -> None:
    assert unpack_frame(pack_frame(frame)) == frame


@given(st.binary(max_size=40))
def test_any_bytes_are_a_frame_or_a_typed_error(message: bytes) -> None:
    try:
        frame = unpack_frame(message)
    except InputError as e:
        assert e.hint
    else:
        assert pack_frame(frame) == message


def test_frames_have_a_limit() -> None:
    assert unpack_frame(pack_frame(Frame(payload=bytes(MAX_PAYLOAD)))).payload == bytes(MAX_PAYLOAD)
    with pytest.raises(TooLarge):
        pack_frame(Frame(payload=bytes(MAX_PAYLOAD + 2)))
    with pytest.raises(InputError, match="no header can say"):
        pack_frame(Frame(seq=2**32))
