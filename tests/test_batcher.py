"""Many callers, one recogniser: each gets its own answer, whoever else asks, gives up or does harm."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxrec.errors import InputError, Overloaded, Unavailable, VoxrecError
from voxrec.serve.batcher import Batcher, BatchLimits, Job, Kind
from voxrec.telemetry import new_registry, sample
from voxrec.voice.audio import RATE, Samples, resample
from voxrec.voice.speak import HibariVoice
from voxrec.voice.transcribe import Ask, Recognizer, Transcript

CALLERS = 32
ROOM = BatchLimits(waiting=10_000, pieces=10_000, pieces_at_once=4)


def sound(number: int) -> Samples:
    "Samples that say who sent them."
    return np.full(16, number, np.float32)


class Parrot(Recognizer):
    "Says what belongs to each; a prompt of `hostile` makes the whole batch fail, `wrong` itself alone."

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def transcribe_batch(self, asks: Sequence[Ask]) -> list[Transcript | VoxrecError]:
        self.sizes.append(len(asks))
        if any(ask.prompt.startswith("hostile") for ask in asks):
            raise MemoryError("a hostile one")
        return [
            InputError(ask.prompt)
            if ask.prompt.startswith("wrong")
            else Transcript(text=f"{ask.samples[0]:.0f} {ask.prompt} {' '.join(ask.hotwords)}")
            for ask in asks
        ]


def right(ask: Ask, answer: Future[Transcript]) -> bool:
    "Whether this is the answer to just this ask."
    try:
        text = answer.result(20).text
    except CancelledError:
        return True
    except MemoryError:
        return ask.prompt.startswith("hostile")
    except InputError as e:
        return e.message == ask.prompt
    return text == f"{ask.samples[0]:.0f} {ask.prompt} {' '.join(ask.hotwords)}"


Steps = list[tuple[Kind, str, bool]]
STEPS: st.SearchStrategy[list[Steps]] = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from(["final", "piece", "partial"]),
            st.sampled_from(["plain"] * 5 + ["wrong", "hostile"]),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    ),
    min_size=CALLERS,
    max_size=CALLERS,
)


@settings(max_examples=30, deadline=None)
@given(steps=STEPS, hostile=st.integers(0, CALLERS - 1))
def test_every_caller_gets_its_own_answers(steps: list[Steps], hostile: int) -> None:
    parrot = Parrot()
    parrot.at_once = 3  # threads of the batcher
    batcher = Batcher(parrot, new_registry("test"), ROOM)

    def caller(number: int) -> list[tuple[Ask, Future[Transcript]]]:
        asked = []
        for turn, (kind, mood, gives_up) in enumerate(steps[number]):
            if mood == "hostile" and number != hostile:
                mood = "plain"
            ask = Ask(
                samples=sound(number),
                prompt=f"{mood} {number}-{turn}",
                hotwords=(f"word{number}",) * (turn % 3),
            )
            answer = batcher.submit(Job(stream=str(number), ask=ask, kind=kind))
            if gives_up:
                answer.cancel()
            asked.append((ask, answer))
        return asked

    with ThreadPoolExecutor(CALLERS) as pool:
        for asked in pool.map(caller, range(CALLERS)):
            assert all(right(ask, answer) for ask, answer in asked)
    batcher.close()
    assert max(parrot.sizes, default=1) <= ROOM.pieces_at_once


class Waiting(Parrot):
    "A parrot that waits for its cue."

    def __init__(self) -> None:
        super().__init__()
        self.cue = threading.Event()

    def transcribe_batch(self, asks: Sequence[Ask]) -> list[Transcript | VoxrecError]:
        answers = super().transcribe_batch(asks)
        assert self.cue.wait(20)
        return answers


def test_what_waits_is_heard_together_and_too_many_are_refused() -> None:
    parrot, registry = Waiting(), new_registry("test")
    batcher = Batcher(parrot, registry, BatchLimits(waiting=8, pieces=3))

    def submit(kind: Kind, number: int) -> Future[Transcript]:
        return batcher.submit(Job(stream=str(number), ask=Ask(samples=sound(number)), kind=kind))

    answers = [submit("final", 0)]
    while not parrot.sizes:
        threading.Event().wait(0.001)
    answers += [submit("final", i) for i in range(1, 9)] + [submit("piece", i) for i in range(3)]
    for kind, waiting in (("final", 8), ("piece", 3)):
        with pytest.raises(Overloaded, match=f"{waiting} utterances wait") as told:
            submit(kind, 99)  # type: ignore[arg-type]
        assert told.value.retry_after_s >= 0.1
    assert answers[3].cancel() and submit("final", 50)  # who gives up makes room
    parrot.cue.set()
    for answer in answers[:3] + answers[4:]:
        answer.result(10)
    batcher.close()
    assert parrot.sizes[:5] == [1, 2, 2, 2, 2], parrot.sizes
    heard = sample(registry, "voxrec_speech_batch_size_sum", model="default", kind="final")
    assert heard == 9


def test_who_has_most_waiting_gives_way() -> None:
    parrot = Waiting()
    batcher = Batcher(parrot, new_registry("test"), BatchLimits(waiting=4, at_once=1))

    def submit(caller: str, number: int) -> Future[Transcript]:
        job = Job(stream=str(number), caller=caller, ask=Ask(samples=sound(number)), kind="final")
        return batcher.submit(job)

    first = submit("many", 0)
    while not parrot.sizes:
        threading.Event().wait(0.001)
    many = [submit("many", i) for i in range(1, 5)]
    with pytest.raises(Overloaded, match="4 utterances wait already"):
        submit("many", 5)
    few = [submit(name, 6 + i) for i, name in enumerate("ab")]
    refused = [answer.exception(1) for answer in many[2:]]
    assert [e.retry_after_s > 0 for e in refused if isinstance(e, Overloaded)] == [True, True]
    with pytest.raises(Overloaded):  # now two wait of "many", one of "a", one of "b"
        submit("a", 8)
    heard = list[str]()
    for answer in (first, *many[:2], *few):
        answer.add_done_callback(lambda done: heard.append(done.result().text.strip()))
    parrot.cue.set()
    wait([first, *many, *few], 10)
    batcher.close()
    assert heard == ["0", "1", "6", "7", "2"], "one of many, then the others, then the next of many"


def test_who_is_free_takes_a_share() -> None:
    parrot = Waiting()
    parrot.at_once = 2
    batcher = Batcher(parrot, new_registry("test"))
    answers = []
    for i in range(6):
        answers.append(batcher.submit(Job(stream=str(i), ask=Ask(samples=sound(i)), kind="final")))
        while len(parrot.sizes) < min(i + 1, 2):  # both are at work before one is done
            threading.Event().wait(0.001)
    parrot.cue.set()
    assert [answer.result(10).text.strip() for answer in answers] == [str(i) for i in range(6)]
    batcher.close()
    assert parrot.sizes[:2] == [1, 1] and max(parrot.sizes) == 2


def test_the_end_is_told_to_who_waits() -> None:
    parrot = Waiting()
    batcher = Batcher(parrot, new_registry("test"))
    first, second = (
        batcher.submit(Job(stream=name, ask=Ask(samples=sound(1)), kind="partial")) for name in ("a", "b")
    )
    while not parrot.sizes:
        threading.Event().wait(0.001)
    third = batcher.submit(Job(stream="c", ask=Ask(samples=sound(1)), kind="final"))
    threading.Timer(0.1, parrot.cue.set).start()
    batcher.close()
    batcher.close()  # as often as one likes
    assert isinstance(third.exception(1), Unavailable)
    assert first.done() and second.done()
    with pytest.raises(Unavailable):
        batcher.submit(Job(stream="d", ask=Ask(samples=sound(1)), kind="final"))


WORDS = [
    "Send the electricians to the cold store.",
    "Put me through to Okafor.",
    "Stop the line.",
    "Cancel that.",
]
SITES = [
    ("", ()),
    ("Conveyor, pallet, dock door, forklift.", ("Kowalski", "Okafor")),
    ("Bay nine.", ("Lindqvist",)),
]


@pytest.fixture(scope="module")
def spoken() -> list[Samples]:
    voice = HibariVoice()
    return [resample(*voice.speak(text), RATE) for text in WORDS]


def test_whisper_hears_each_as_if_it_were_alone(whisper: Recognizer, spoken: list[Samples]) -> None:
    "32 callers of three sites, one of whom sends what is no sound; nobody's text depends on the others."
    asks = [Ask(samples=clip, prompt=prompt, hotwords=words) for clip in spoken for prompt, words in SITES]
    alone = [whisper.transcribe_batch([ask])[0] for ask in asks]
    assert len({getattr(heard, "text", "") for heard in alone}) >= len(WORDS)
    bad = Ask(samples=np.full(RATE, np.nan, np.float32), prompt="forklift " * 400)
    batcher, told = Batcher(whisper, new_registry("test"), ROOM), list[tuple[int, Future[Transcript]]]()

    def caller(number: int) -> Callable[[], None] | None:
        which = number % (len(asks) + 1)
        ask = asks[which] if which < len(asks) else bad
        answer = batcher.submit(Job(stream=str(number), ask=ask, kind="final" if number % 3 else "piece"))
        told.append((which, answer))
        return None

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(caller, range(CALLERS)))
    for which, answer in told:
        if which == len(asks):
            assert isinstance(answer.exception(60), InputError)
        else:
            heard, known = answer.result(60), alone[which]
            assert isinstance(known, Transcript) and (heard.text, heard.rejected) == (
                known.text,
                known.rejected,
            )
    batcher.close()
