"""Endpointing held to its properties: however a stream is cut, and whatever the network says of it."""

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxrec.voice.audio import RATE, Samples, level_db, mix_noise, read_audio
from voxrec.voice.endpoint import (
    FRAME,
    FRAME_MS,
    Ended,
    EndpointConfig,
    EndpointState,
    Event,
    Segmenter,
    Started,
    Vad,
    endpoint_step,
    frames_of,
    speech_probability,
    utterances,
)

CLIPS = Path(__file__).resolve().parent.parent / "data_samples"
SECOND = np.zeros(RATE, np.float32)


@cache
def vad() -> Vad:
    return Vad()


def clip(name: str) -> Samples:
    return read_audio(CLIPS / f"{name}.wav")


def fold(probs: list[float], config: EndpointConfig, state: EndpointState | None = None) -> list[Event]:
    "The events of frames whose samples are their own numbers."
    state = state or EndpointState()
    events = []
    for i, prob in enumerate(probs, start=state.position // FRAME):
        state, more = endpoint_step(state, np.full(FRAME, i, np.float32), prob, config)
        events += more
    return events


def ended(events: list[Event]) -> list[Ended]:
    return [e for e in events if isinstance(e, Ended)]


def same(some: list[Event], others: list[Event]) -> bool:
    return len(some) == len(others) and all(
        type(a) is type(b)
        and a.start_ms == b.start_ms
        and (
            isinstance(a, Started)
            or (
                (a.end_ms, a.speech_end_ms, a.reason) == (b.end_ms, b.speech_end_ms, b.reason)
                and np.array_equal(a.samples, b.samples)
            )
        )
        for a, b in zip(some, others, strict=True)
    )


PROBS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.2, 0.34, 0.36, 0.49, 0.5, 0.8, 1.0]), st.integers(1, 30)), max_size=30
).map(lambda runs: [p for p, n in runs for _ in range(n)])
CONFIGS = st.builds(
    EndpointConfig,
    start_ms=st.integers(1, 200),
    pre_roll_ms=st.integers(0, 400),
    silence_ms=st.integers(1, 900),
    post_roll_ms=st.integers(0, 400),
    max_ms=st.integers(700, 3_000),
)


@given(PROBS, CONFIGS)
def test_utterances_are_whole_frames_in_order_and_apart(probs: list[float], config: EndpointConfig) -> None:
    events = fold(probs, config)
    assert all(isinstance(e, Started) == (i % 2 == 0) for i, e in enumerate(events))
    last_ms = 0
    for started, e in zip(events[::2], ended(events), strict=False):
        assert started.start_ms == e.start_ms >= last_ms
        frames = e.samples[::FRAME].astype(int).tolist()
        assert (
            frames == list(range(e.start_ms // 32, e.end_ms // 32))
            and e.start_ms < e.speech_end_ms <= e.end_ms
        )
        last_ms = e.end_ms


@given(PROBS, CONFIGS)
def test_pre_roll_cap_and_silence_are_kept(probs: list[float], config: EndpointConfig) -> None:
    before, goes_on = 0, False
    for e in ended(fold(probs, config)):
        first, last = e.start_ms // 32, e.end_ms // 32
        run = first  # what follows a cap without a gap has begun already
        if not (goes_on and first == before):
            run = next(
                i
                for i in range(first, last)
                if all(p >= config.threshold for p in probs[i : i + frames_of(config.start_ms)])
            )
        assert run - first <= frames_of(config.pre_roll_ms)
        if before == 0:  # the first one has all the pre-roll there is
            assert run - first == min(run, frames_of(config.pre_roll_ms))
        assert last - first <= max(config.max_ms // 32, run - first + frames_of(config.start_ms) + 1)
        if e.reason == "silence":
            spoken = e.speech_end_ms // 32
            assert probs[spoken - 1] >= config.release
            assert max(probs[spoken : spoken + frames_of(config.silence_ms)]) < config.threshold
            assert last - spoken <= frames_of(config.post_roll_ms)
        before, goes_on = last, e.reason == "cap"


@given(PROBS, CONFIGS, st.integers(0, 900))
def test_a_fold_can_be_interrupted_and_leaves_its_state_alone(
    probs: list[float], config: EndpointConfig, cut: int
) -> None:
    state = EndpointState()
    for i, prob in enumerate(probs[:cut]):
        state, _ = endpoint_step(state, np.full(FRAME, i, np.float32), prob, config)
    rest = probs[min(cut, len(probs)) :]
    assert same(
        fold(rest, config, state), fold(rest, config, state)
    )  # the same state twice: nothing was changed
    assert same(fold(probs[:cut], config) + fold(rest, config, state), fold(probs, config))


def test_cap_loses_nothing_of_a_long_speech() -> None:
    config = EndpointConfig(max_ms=1_000)
    pieces = ended(fold([0.9] * 200, config))
    assert {e.reason for e in pieces} == {"cap"} and max(e.end_ms - e.start_ms for e in pieces) <= 1_000
    heard = np.concatenate([e.samples for e in pieces])[::FRAME].tolist()
    assert heard == list(range(len(heard))) and len(heard) > 200 - 31


def test_cap_cuts_at_the_quietest_place() -> None:
    state, config, told = EndpointState(), EndpointConfig(max_ms=3_000), list[Event]()
    for i in range(200):
        quiet = i % 40 in (28, 29, 30)
        state, events = endpoint_step(state, np.full(FRAME, 0.01 if quiet else 0.3, np.float32), 0.9, config)
        told += events
    cuts = [e.end_ms // 32 for e in told if isinstance(e, Ended)]
    assert len(cuts) == 2 and all(cut % 40 == 29 for cut in cuts)


@cache
def floor() -> Samples:
    "Two orders, a conveyor and small talk."
    names = ("summon_maintenance", "noise", "small_talk", "emergency_stop")
    return np.concatenate([x for n in names for x in (clip(n), SECOND)])


@cache
def at_once() -> list[Event]:
    segmenter = Segmenter(vad())
    return segmenter.push(floor()) + segmenter.finish()


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=40))
def test_any_chunking_gives_the_same_utterances(sizes: list[int]) -> None:
    segmenter, events, at = Segmenter(vad()), [], 0
    for i in range(len(floor())):
        if at >= len(floor()):
            break
        size = sizes[i % len(sizes)] + (i % len(sizes) == 0)  # never all zero
        events += segmenter.push(floor()[at : at + size])
        at += size
    assert len(ended(at_once())) == 3 and same(events + segmenter.finish(), at_once())


def test_streams_that_share_a_vad_do_not_hear_each_other() -> None:
    one, two = Segmenter(vad()), Segmenter(vad())
    events: list[Event] = []
    for i in range(0, len(floor()), 4_800):
        events += one.push(floor()[i : i + 4_800])
        two.push(clip("small_talk")[i : i + 4_800])
    assert same(events + one.finish(), at_once())


def test_pre_roll_keeps_the_first_word() -> None:
    "All that is louder than the room before the detection is in the utterance."
    for name in ("summon_maintenance", "summon_first_aid", "dial_maria", "report_spill", "question"):
        samples = clip(name)
        (heard,) = utterances(np.concatenate([SECOND, samples, SECOND]), vad())
        begin = heard.start_ms * 16 - RATE
        assert level_db(samples[: max(begin, 0)]) < -55, name  # the hiss has -62
        assert level_db(samples[heard.end_ms * 16 - RATE :]) < -45, name
        (bare,) = utterances(np.concatenate([SECOND, samples, SECOND]), vad(), EndpointConfig(pre_roll_ms=0))
        assert heard.start_ms < bare.start_ms


@pytest.mark.parametrize("ms", [0, 1, 32, 500, 1_000])
def test_finish_ends_at_once_and_the_stream_goes_on(ms: int) -> None:
    segmenter = Segmenter(vad())
    assert segmenter.finish() == []
    first = segmenter.push(np.concatenate([clip("dial_maria"), SECOND[: ms * 16]])) + segmenter.finish()
    assert [e.reason for e in ended(first)] == ["end" if ms < 500 else ended(first)[0].reason]
    assert segmenter.finish() == [] and not segmenter.state.speaking
    second = segmenter.push(np.concatenate([clip("emergency_stop"), SECOND])) + segmenter.finish()
    (again,) = ended(second)
    assert again.start_ms >= ended(first)[0].end_ms and again.reason == "silence"


def test_odd_ends_are_kept_to_the_sample() -> None:
    for extra in (0, 1, 511):
        samples = np.concatenate([clip("dial_maria")[: 40 * FRAME], clip("dial_maria")[: FRAME + extra]])
        (heard,) = utterances(samples, vad(), EndpointConfig(post_roll_ms=700))
        assert len(heard.samples) == len(samples) - heard.start_ms * 16


def test_loud_things_that_are_no_speech() -> None:
    rng = np.random.default_rng(0)
    white = rng.normal(0, 0.3, 5 * RATE).astype(np.float32)
    clicks = np.zeros(5 * RATE, np.float32)
    clicks[::8_000] = 1
    hum = (0.5 * np.sin(2 * np.pi * 100 * np.arange(5 * RATE) / RATE)).astype(np.float32)
    for name, noise in (("white", white), ("clicks", clicks), ("hum", hum), ("clip", clip("noise"))):
        assert utterances(noise, vad()) == [], name


def test_frames_agree_with_faster_whisper() -> None:
    from faster_whisper.vad import get_vad_model

    samples = floor()[: len(floor()) // FRAME * FRAME]
    theirs = get_vad_model()(samples).ravel()
    assert np.abs(theirs - speech_probability(samples, vad())).max() < 1e-5


def speech_data() -> Path:
    if not os.environ.get("VOXREC_DATA"):
        pytest.skip("VOXREC_DATA is not set")
    return Path(os.environ["VOXREC_DATA"]) / "speech"


def test_published_noises_start_little() -> None:
    "78 s of loud noise, -10 to -25 dBFS: noise5 starts one utterance of 1 s, which the gates must stop."
    found = [len(utterances(read_audio(f), vad())) for f in sorted(speech_data().glob("noise/*.wav"))]
    assert len(found) == 5 and sum(found) <= 1, found


def test_published_speech_is_found_whole() -> None:
    clips = sorted(speech_data().glob("barista/*.flac"))
    found = [len(utterances(read_audio(f), vad())) for f in clips[:20]]
    assert found == [1] * 20


def test_speech_is_found_in_published_noise() -> None:
    for noise in sorted(speech_data().glob("noise/*.wav")):
        mixed = mix_noise(clip("summon_maintenance"), read_audio(noise), 0)
        (heard,) = utterances(mixed, vad())
        assert heard.start_ms <= 400 and heard.end_ms >= 2_000


def test_one_frame_is_32_ms() -> None:
    assert FRAME_MS == 32 and frames_of(33) == 2
