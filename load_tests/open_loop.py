"""The judge of tails: requests sent when they are due, whatever the service does; latency counts from then.

    python load_tests/open_loop.py --requests FILE --rate 1000 --seconds 30 --out run.npz

FILE has a request a line: method, path and, where there is one, body, with tabs between. Line after line is
sent, and again from the first. The sending is done by open_loop.c, compiled at first use; it takes some 40
µs of CPU a request, nearly all of it the kernel's, so it can run beside the service on the same cores. Of
ready tools none did: wrk2 counts from the schedule but keeps a histogram only; oha pairs no path with its
body; neither lets requests arrive by chance (Poisson).
"""

import argparse
import hashlib
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec
import numpy as np
from loopback import refusal
from numpy.typing import NDArray

from voxrec.errors import ConfigError, DataError, InputError, Unavailable

SOURCE = Path(__file__).with_suffix(".c")
OUTCOMES = {0: "unanswered", -1: "connection broken", -2: "no HTTP answer"}  # else the HTTP status
RECORD = np.dtype(
    [("due", "i8"), ("sent", "i8"), ("done", "i8"), ("bytes", "i4"), ("status", "i2"),
     ("degraded", "?"), ("empty", "?")]
)  # fmt: skip
Arrivals = Literal["poisson", "even"]


class Shot(NamedTuple):
    "A request to send."

    method: str
    path: str
    body: bytes = b""

    def frame(self, host: str, headers: Mapping[str, str]) -> bytes:
        "Its length and its bytes, as open_loop.c reads them."
        told = {"Host": host, "Content-Type": "application/json", "Content-Length": len(self.body)} | headers
        head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        raw = f"{self.method} {self.path} HTTP/1.1\r\n{head}\r\n".encode() + self.body
        return len(raw).to_bytes(4, sys.byteorder) + raw


def read_shots(path: Path) -> list[Shot]:
    "The requests of a file. DataError for a line that is none, and for a file without any."
    shots = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        method, _, rest = line.partition(b"\t")
        where, _, body = rest.partition(b"\t")
        if not (method.isalpha() and where.startswith(b"/")):
            raise DataError(f"{path}, line {number} is no request", hint="method, tab, /path, tab, body")
        shots.append(Shot(method.decode(), where.decode(), body))
    if not shots:
        raise DataError(f"{path} has no request", hint="method, tab, /path, tab, body: a line each")
    return shots


def write_shots(shots: Sequence[Shot], path: Path) -> None:
    "As `read_shots` reads them. A body is JSON in one line."
    path.write_bytes(b"".join(b"%b\t%b\t%b\n" % (s.method.encode(), s.path.encode(), s.body) for s in shots))


def schedule(rate: float, seconds: float, arrivals: Arrivals, seed: int) -> NDArray[np.int64]:
    "When rate x seconds requests are due, ns: evenly, or as Poisson arrivals of that number fall."
    if not 0.5 <= rate * seconds < 1e9 or seconds <= 0:
        raise InputError(f"{rate} requests a second for {seconds} s", hint="ask for 1 to a thousand million")
    n = round(rate * seconds) or 1
    at = np.sort(np.random.default_rng(seed).random(n)) if arrivals == "poisson" else np.arange(n) / n
    return (at * seconds * 1e9).astype(np.int64)


def program() -> Path:
    "The compiled generator, made beside Python's own compiled files. ConfigError where it cannot be."
    text = SOURCE.read_bytes()
    made = SOURCE.parent / f"__pycache__/open_loop-{hashlib.sha256(text).hexdigest()[:12]}"
    if made.exists():
        return made
    if (compiler := shutil.which("cc")) is None:
        raise ConfigError("no C compiler (cc) on the PATH", hint="Debian: apt-get install gcc libc6-dev")
    made.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:
        command = [compiler, "-O2", "-o", f"{folder}/open_loop", str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode:
            hint = "it needs Linux 5.11, glibc 2.35 and its headers (Debian: apt-get install libc6-dev)"
            raise ConfigError(f"cannot compile {SOURCE.name}: {done.stderr[-500:]}", hint=hint)
        Path(folder, "open_loop").rename(made)
    return made


@dataclass(frozen=True)
class Run:
    """What became of each request, in the order due: `records` of RECORD [n], times in ns from the start.

    `began_ns`: the start, as `time.monotonic_ns` tells it. `late`: sent over 1 ms after they were due, for
    want of a free connection or of CPU. `broken`: connections lost.
    """

    records: NDArray[Any]
    began_ns: int
    cpu_s: float
    wall_s: float
    broken: int
    late: int

    @property
    def ok(self) -> NDArray[np.bool_]:
        "Answered with 200 or 202, nothing degraded, items where there should be some."
        r = self.records
        return np.isin(r["status"], (200, 202)) & ~r["degraded"] & ~r["empty"]

    @property
    def ms(self) -> NDArray[np.float64]:
        "From when it was due to the answer's last byte; of one that failed, infinite."
        return np.where(self.ok, (self.records["done"] - self.records["due"]) / 1e6, np.inf)

    def outcomes(self) -> dict[str, int]:
        "How many requests ended how."
        r = self.records
        told = {OUTCOMES.get(s, str(s)): n for s, n in sorted(Counter(r["status"].tolist()).items())}
        return told | {"degraded": int(r["degraded"].sum()), "empty": int(r["empty"].sum())}

    def percentile(self, p: float) -> float:
        return float(np.quantile(self.ms, p / 100, method="higher"))

    @property
    def per_second(self) -> float:
        "Good answers a second, from the start to the last of them."
        return float(self.ok.sum() / (self.records["done"][self.ok].max(initial=1) / 1e9))


def fire(
    url: str,
    shots: Sequence[Shot],
    rate: float,
    seconds: float,
    *,
    arrivals: Arrivals = "poisson",
    seed: int = 0,
    connections: int = 64,
    timeout_s: float = 5.0,
    headers: Mapping[str, str] | None = None,
    remote: bool = False,
) -> Run:
    """Send `shots` in order, again from the first when they are used up, and wait for the answers.

    InputError for another machine's URL unless `remote`, Unavailable where nothing listens, ConfigError
    without a compiler.
    """
    if told := refusal(url, remote):
        raise InputError(told)
    if not shots or connections < 1:
        raise InputError(f"{len(shots)} requests, {connections} connections", hint="at least one of each")
    where = urlsplit(url)
    host, port = where.hostname or "", where.port or 80
    address = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    due = schedule(rate, seconds, arrivals, seed)
    with tempfile.TemporaryDirectory(prefix="open_loop-") as folder:
        frames, times, records = (Path(folder, name) for name in ("requests", "schedule", "records"))
        frames.write_bytes(b"".join(shot.frame(f"{host}:{port}", headers or {}) for shot in shots))
        due.tofile(times)
        words = [address, port, frames, times, records, connections, round(timeout_s * 1000)]
        command = [program(), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 2 * timeout_s + 30)
        if done.returncode:
            raise Unavailable(f"no load on {url}: {done.stderr.strip()}", hint="is the service up?")
        return Run(np.fromfile(records, RECORD), **msgspec.json.decode(done.stdout))


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--requests", type=Path, required=True, help="a request a line: method, path, body")
    parser.add_argument("--rate", type=float, default=1000.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--arrivals", choices=("poisson", "even"), default="poisson")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds until a request has failed")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE")
    parser.add_argument("--out", type=Path, help="file (.npz) for the raw records")
    parser.add_argument("--remote", action="store_true", help="let the load go to another machine, yours")
    o = parser.parse_args(words)
    headers = dict(h.split(":", 1) for h in o.header)
    run = fire(o.url, read_shots(o.requests), o.rate, o.seconds, arrivals=o.arrivals, seed=o.seed,
               connections=o.connections, timeout_s=o.timeout, headers=headers, remote=o.remote)  # fmt: skip
    if o.out:
        np.savez_compressed(o.out, records=run.records)
    told = {f"p{p:g}": round(run.percentile(p), 3) for p in (50, 90, 99, 99.9, 100)}
    cpu = {"cpu_us": round(1e6 * run.cpu_s / len(run.records), 1), "late": run.late, "broken": run.broken}
    print(msgspec.json.encode({"per_second": run.per_second, **told, **cpu, **run.outcomes()}).decode())
    return 0 if run.ok.all() else 1


if __name__ == "__main__":
    sys.exit(main())
