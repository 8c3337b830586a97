"""What a benchmark of hearing stands on: things said, the service as a process, callers who talk to it.

Used by the notebooks benchmarks/asr_latency, asr_memory and asr_long.
"""

import asyncio
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

import grpc
import numpy as np
import psutil
from msgspec import Struct, field
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families
from tqdm import tqdm
from whisper_of_size import SIZES, whisper_of_size

from voxrec.errors import Overloaded, Unavailable, VoxrecError
from voxrec.mqtt import free_port
from voxrec.serve.speech import recognize, running_speech
from voxrec.speech.v1.speech_pb2 import Config, Result
from voxrec.speech.v1.speech_pb2_grpc import SpeechStub
from voxrec.telemetry import new_registry
from voxrec.voice.audio import RATE, Samples, chunks, level_db, read_audio, resample, write_wav
from voxrec.voice.endpoint import FRAME_MS, EndpointConfig, frames_of
from voxrec.voice.speak import HibariVoice, Voice, open_voice
from voxrec.voice.transcribe import Ask, Gates, Transcript, WhisperRecognizer, open_recognizer

PIECE_MS = 100
PIECE = PIECE_MS * RATE // 1000  # samples
Hearing = Callable[[Sequence[Ask]], list[Transcript | VoxrecError]]
HISS = 10 ** (-62 / 20)  # rms; under everything, so that no silence is digital


# ---- What is said


def trimmed(samples: Samples) -> Samples:
    "From the first loud sample to the last, at -22 dBFS."
    at_level = samples * np.float32(10 ** ((-22 - level_db(samples)) / 20))
    loud = np.flatnonzero(np.abs(at_level) > 0.01)
    return at_level[loud[0] : loud[-1] + 1]


def spoken(texts: Sequence[str], home: Path) -> list[Samples]:
    "Each text, by two voices in turn; once, then kept in `home`."
    folder, voices = home / "bench_clips", list[Voice]()
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for i, text in enumerate(tqdm(texts, desc="speaking", mininterval=5)):
        name = hashlib.sha256(f"{i % 2} {text}".encode()).hexdigest()[:16]
        path = folder / f"{name}.wav"
        if not path.exists():
            voices = voices or [open_voice(), HibariVoice()]
            samples, rate = voices[i % 2].speak(text)
            write_wav(path, resample(samples, rate, RATE))
        found.append(trimmed(read_audio(path)))
    return found


def hiss(n: int, rng: np.random.Generator) -> Samples:
    return rng.normal(0, HISS, n).astype(np.float32)


# ---- What listens


def random_gates(model: str) -> Gates | None:
    """Gates for a model of random weights: it never ends by itself, so it gets about as many tokens as
    English speech has, and is believed whatever it says. None for a model that was trained."""
    if not model.endswith("-random"):
        return None
    return Gates(
        no_speech=2,
        least_logprob=-99,
        compression_ratio=99,
        echo=99,
        crumb_s=0,
        tokens_per_s=4,
        spare_tokens=2,
    )


def recognizer_of(
    model: str, home: Path, *, device: str = "cpu", compute_type: str | None = None
) -> WhisperRecognizer:
    "tiny.en, domain, a folder, a name that the hub knows; or SIZE-random, which is made in `home`."
    name: str = model
    gates, size = random_gates(model), model.removesuffix("-random")
    if gates and size in SIZES:
        folder = home / "bench_models" / model
        if not (folder / "tokenizer.json").exists():  # written last
            whisper_of_size(folder, size)
        name = str(folder)
    recognizer = open_recognizer(name, device=device, compute_type=compute_type)
    if gates:  # it would loop with any prompt, and be asked again without
        recognizer.gates, listening = gates, recognizer.engine.listening
        recognizer.engine.listening = replace(listening, prompts=False)
    return recognizer


class Server(Struct):
    "The service's address, the URL of its metrics, its process."

    address: str
    metrics_url: str
    process: psutil.Process
    pipe: subprocess.Popen[str]

    def counts(self) -> dict[str, float]:
        "What it has counted so far, by name and labels."
        with urlopen(self.metrics_url, timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return {" ".join([s.name, *s.labels.values()]): s.value for f in families for s in f.samples}

    def finals_cpu_ms(self) -> list[float]:
        "Of each final with word times since this was asked last: the process's CPU while it was heard."
        assert self.pipe.stdin and self.pipe.stdout
        self.pipe.stdin.write("\n")
        self.pipe.stdin.flush()
        found: list[float] = json.loads(self.pipe.stdout.readline())
        return found

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def speech_service(
    model: str, home: Path, *, device: str = "cpu", compute_type: str | None = None
) -> Iterator[Server]:
    "The service as a process of its own. Raises Unavailable, with what it said, when it does not start."
    port, metrics_port = free_port(), free_port()
    asked = {"model": model, "home": str(home), "device": device, "compute_type": compute_type}
    words = [sys.executable, __file__, str(port), str(metrics_port), json.dumps(asked)]
    with TemporaryDirectory(prefix="voxrec-speech-") as folder:
        said = Path(folder, "said.txt")
        with said.open("wb") as out:
            pipe = subprocess.PIPE
            process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=out, text=True)
        try:
            _await_service(f"127.0.0.1:{port}", process, said)
            metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
            yield Server(f"127.0.0.1:{port}", metrics_url, psutil.Process(process.pid), process)
        finally:
            end(process)


def _await_service(address: str, process: subprocess.Popen[str], said: Path) -> None:
    "Returns when it takes calls. Raises Unavailable when it does not."
    with grpc.insecure_channel(address) as channel:
        for _ in range(120):
            with suppress(grpc.FutureTimeoutError):
                grpc.channel_ready_future(channel).result(1)
                return
            if process.poll() is not None:
                break
    raise Unavailable(f"the service does not start: {said.read_text()[-2000:]}", hint="see above")


def end(process: subprocess.Popen[str]) -> None:
    "Close its standard input, at which it drains; killed when it does not end."
    try:
        process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def weighed(hear: Hearing, cpu_ms: list[float]) -> Hearing:
    "`hear`, and into `cpu_ms` what each final cost; only finals have word times, if they are asked for."

    def transcribe_batch(asks: Sequence[Ask]) -> list[Transcript | VoxrecError]:
        began = time.process_time()  # of all threads
        found = hear(asks)
        each = 1000 * (time.process_time() - began) / len(asks)
        cpu_ms.extend(each for ask in asks if ask.words)
        return found

    return transcribe_batch


def main() -> None:
    "Be the service until standard input closes; for each line there, a line with what the finals cost."
    from prometheus_client import start_http_server

    port, metrics_port, asked = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    home, registry = Path(asked.pop("home")), new_registry("speech")
    recognizer = recognizer_of(asked.pop("model"), home, **asked)
    cpu_ms = list[float]()
    recognizer.transcribe_batch = weighed(recognizer.transcribe_batch, cpu_ms)  # type: ignore[method-assign,assignment]
    start_http_server(metrics_port, "127.0.0.1", registry)
    with running_speech(recognizer, port=port, registry=registry):
        for _ in sys.stdin:
            told, cpu_ms[:] = json.dumps(cpu_ms), []
            print(told, flush=True)


# ---- Who talks


class Turn(Struct, kw_only=True):
    "One utterance as its caller saw it. Times are perf_counter's, in s."

    caller: int = 0
    clip: int = 0
    samples: Samples
    endpointed: bool = False
    sent: list[float] = field(default_factory=list)  # when each piece of 100 ms went out
    partials: list[tuple[float, Result]] = field(default_factory=list)
    final: tuple[float, Result] | None = None
    failed: str = ""
    retry_s: float = 0.0
    cpu_s: float = 0.0  # what the service had used by the final

    def sent_at(self, ms: float) -> float | None:
        "When the piece with the last sample before `ms` went out; None: it did not."
        piece = max(0, -(-round(ms * RATE / 1000) // PIECE) - 1)
        return self.sent[piece] if piece < len(self.sent) else None

    @property
    def endpoint(self) -> float | None:
        "When the service could first know that it is over: by the last sample, or by enough silence."
        if self.final is None:
            return None
        if not self.endpointed:
            return self.sent[-1]
        return self.sent_at(self.final[1].end_ms + DECIDED_MS)

    @property
    def wait_ms(self) -> float | None:
        "Endpoint to final."
        return None if self.endpoint is None or self.final is None else 1000 * (self.final[0] - self.endpoint)


_usual = EndpointConfig()
DECIDED_MS = (frames_of(_usual.silence_ms) - frames_of(_usual.post_roll_ms)) * FRAME_MS
"What the service has heard after the end that it tells, when it decides that it was the end."


async def talk(stub: SpeechStub, config: Config, turn: Turn, patience_s: float = 60) -> Turn:
    "Say it in real time; push to talk, or until the service tells the final by itself. What fails is told."
    over, began = asyncio.Event(), time.perf_counter()

    async def voice() -> AsyncIterator[bytes]:
        end = 0
        for pcm in chunks(turn.samples, PIECE_MS):
            end += len(pcm) // 2
            await asyncio.sleep(max(0.0, began + end / RATE - time.perf_counter()))
            if over.is_set():
                return
            turn.sent.append(time.perf_counter())
            yield pcm

    try:
        async with asyncio.timeout(patience_s):
            async for result in recognize(stub, config, voice()):
                if not result.is_final:
                    turn.partials.append((time.perf_counter(), result))
                elif turn.final is None:
                    turn.final = time.perf_counter(), result
                    over.set()
    except VoxrecError as e:
        turn.failed = type(e).__name__
        turn.retry_s = e.retry_after_s if isinstance(e, Overloaded) else 0.1
    except TimeoutError:
        turn.failed = "no answer"
    if turn.final is None and not turn.failed:
        turn.failed = "no final"
    return turn


def alone(turn: Turn) -> Turn:
    "The same words, to be said again."
    return replace(turn, sent=[], partials=[], final=None, failed="", retry_s=0.0, cpu_s=0.0)


# ---- What partials are worth


def words_of(text: str) -> list[str]:
    return [w for word in text.lower().split() if (w := word.strip(".,!?\"';:"))]


def same(a: Sequence[str], b: Sequence[str]) -> int:
    "How many words they have in common from the beginning."
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


class Flicker(Struct):
    "Words told in partials, how many of them the next result took back; and the same of the confirmed ones."

    told: int = 0
    taken_back: int = 0
    confirmed: int = 0
    confirmed_taken_back: int = 0


def flicker(turn: Turn) -> Flicker:
    "`stability` is the share of a partial's words that the one before it had, too: these are confirmed."
    found = Flicker()
    told = [result for _, result in (*turn.partials, *([turn.final] if turn.final else []))]
    for one, following in pairwise(told):
        words, later = words_of(one.text), words_of(following.text)
        sure, kept = round(one.stability * len(words)), same(words_of(one.text), later)
        found.told += len(words)
        found.taken_back += len(words) - kept
        found.confirmed += sure
        found.confirmed_taken_back += max(0, sure - kept)
    return found


def lags_ms(turn: Turn) -> list[float]:
    "Of each partial: from the piece that ends it to its coming."
    sent = ((at, turn.sent_at(result.end_ms)) for at, result in turn.partials)
    return [1000 * (at - then) for at, then in sent if then is not None]


def change(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


if __name__ == "__main__":
    main()
