"""What a load benchmark stands on: Redis with the load set's users, the service, and what each process used.

Everything runs on this machine as processes that are started here and ended here. Used by the notebooks
benchmarks/recs_load and benchmarks/recs_cost.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import msgspec
import psutil
from live_updates import Told
from redis import Redis
from redis import exceptions as refused
from shop_fill import fill
from shop_set import ShopSet

from voxrec.errors import Unavailable

HERE = Path(__file__).parent
PROGRAM = "voxrec.commands.recs"  # what the servers run: a result is one of this code, too
FRESH_S = 12 * 3600  # histories older than this are written anew: shoppers' interests fade within days


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def end(process: subprocess.Popen[bytes], patience_s: float = 30.0) -> None:
    "As an operator would; killed when it does not listen."
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass
class Server:
    "A process that was started, where it is, and how long that took."

    url: str
    process: psutil.Process
    ready_s: float = 0.0
    workers: list[psutil.Process] = field(default_factory=list)
    jobs: list[psutil.Process] = field(default_factory=list)


@contextmanager
def redis_with(shop: ShopSet, port: int = 0) -> Iterator[Server]:
    """A Redis that holds the set's users and lists: loaded from the last time's dump, or filled, then dumped.

    Unavailable when it does not start.
    """
    folder, port = shop.home / "redis", port or free_port()
    dump, url = folder / "dump.rdb", f"redis://127.0.0.1:{port}"
    folder.mkdir(exist_ok=True)
    if dump.exists() and time.time() - dump.stat().st_mtime > FRESH_S:
        dump.unlink()
    words = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen([*words, "--logfile", str(folder / "redis.log")])
    try:
        with Redis.from_url(url, socket_timeout=600) as client:
            _await_redis(client, process)
            if not dump.exists():
                told = fill(shop, url)
                client.save()
                (folder / "filled.json").write_bytes(msgspec.json.encode(told))
        yield Server(url, psutil.Process(process.pid))
    finally:
        end(process)


def _await_redis(client: Any, process: subprocess.Popen[bytes]) -> None:
    "Returns when it has loaded its dump."
    for _ in range(1200):
        try:
            client.ping()
            return
        except (refused.ConnectionError, refused.BusyLoadingError):
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise Unavailable("redis-server does not start", hint="its log is redis.log in the set's folder redis")


def listening(process: psutil.Process, port: int) -> bool:
    "Whether the process takes connections on this port."
    found = process.net_connections("tcp")
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in found)


@contextmanager
def serving(
    command: Sequence[str],
    port: int,
    environment: Mapping[str, str],
    said: Path,
    workers: int = 1,
    wait_s: float = 180.0,
) -> Iterator[Server]:
    "A service from its start to its end, once all its workers are ready. Unavailable when they are not."
    plain = {k: v for k, v in os.environ.items() if not k.startswith("VOXREC_")}
    url, began = f"http://127.0.0.1:{port}", time.monotonic()
    with said.open("wb") as out:
        process = subprocess.Popen(command, env=plain | dict(environment), stdout=out, stderr=out)
    try:
        server = Server(url, psutil.Process(process.pid))
        while len(server.workers) < workers or not _ready(url):
            if process.poll() is not None or time.monotonic() - began > wait_s:
                raise Unavailable(f"it is not ready: {said.read_text()[-2000:]}", hint="see above")
            time.sleep(0.1)  # whoever asks all the time slows down what is starting
            everybody = [server.process, *server.process.children(recursive=True)]
            server.workers = [p for p in everybody if listening(p, port)]
        server.ready_s = time.monotonic() - began
        server.jobs = [p for p in everybody[1:] if p not in server.workers]
        yield server
    finally:
        end(process)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def voxrec(shop: ShopSet, redis: Server, workers: int, **settings: str) -> Iterator[Server]:
    "`voxrec serve recs` on the set's snapshots, its event log empty. `settings`: VOXREC_*, in lower case."
    with TemporaryDirectory(prefix="voxrec-load-") as home:
        Path(home, "snapshots").symlink_to((shop.home / "snapshots").resolve())
        port = free_port()
        environment = {"VOXREC_HOME": home, "VOXREC_REDIS_URL": redis.url}
        environment |= {f"VOXREC_{name.upper()}": value for name, value in settings.items()}
        command = [str(Path(sys.executable).with_name("voxrec")), "serve", "recs", "--port", str(port)]
        command += ["--workers", str(workers)]
        with serving(command, port, environment, shop.home / "service.txt", workers) as server:
            yield server


@contextmanager
def naive(redis: Server, said: Path) -> Iterator[Server]:
    "The reference service of naive.py."
    port = free_port()
    command = [sys.executable, str(HERE / "naive.py"), "--redis-url", redis.url, "--port", str(port)]
    with serving(command, port, {}, said) as server:
        yield server


@contextmanager
def updating(shop: ShopSet, redis: Server, rate: float, seconds: float, seed: int) -> Iterator[list[Told]]:
    "live_updates.py beside what is done inside; what it told is in the list afterwards. rate 0: none."
    told: list[Told] = []
    if not rate:
        yield told
        return
    words = ["--redis-url", redis.url, "--rate", str(rate), "--seconds", str(seconds), "--seed", str(seed)]
    command = [sys.executable, str(HERE / "live_updates.py"), str(shop.home), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout
    try:
        if process.stdout.readline() != b"ready\n":
            raise Unavailable("live_updates.py does not start", hint="its error is above")
        yield told
        said, _ = process.communicate(timeout=seconds + 60)
        told.append(msgspec.json.decode(said, type=Told))
    finally:
        end(process)


def machine_ticks() -> tuple[int, int, int]:
    "Idle, stolen and all ticks of all cores since boot."
    ticks = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], ticks[7], sum(ticks)


@dataclass
class Usage:
    "CPU seconds by group while it lasted; of all cores the share that was busy, and that was stolen."

    cpu_s: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    busy: float = 0.0
    stolen: float = 0.0


@contextmanager
def watching(**groups: Sequence[psutil.Process]) -> Iterator[Usage]:
    "What groups of processes use while what is inside is done."

    def spent() -> dict[str, float]:
        times = {name: [p.cpu_times() for p in group] for name, group in groups.items()}
        return {name: sum(t.user + t.system for t in group) for name, group in times.items()}

    usage, before, ticks, began = Usage(), spent(), machine_ticks(), time.monotonic()
    yield usage
    usage.seconds = time.monotonic() - began
    usage.cpu_s = {name: after - before[name] for name, after in spent().items()}
    idle, stolen, every = (b - a for a, b in zip(ticks, machine_ticks(), strict=True))
    usage.busy, usage.stolen = 1 - idle / max(1, every), stolen / max(1, every)


def memory(process: psutil.Process) -> dict[str, float]:
    "MiB of a process: resident, its share of what several have mapped (pss), its own alone (uss)."
    told = process.memory_full_info()
    return {name: getattr(told, name) / 2**20 for name in ("rss", "pss", "uss")}


def metrics(server: Server) -> dict[str, float]:
    "The service's counters and gauges as /metrics tells them."
    lines = httpx.get(f"{server.url}/metrics", timeout=10).text.splitlines()
    told = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in told}


def shared_lists(server: Server) -> tuple[float, float]:
    "Look-ups of shared lists so far: those that found one, and all."
    told = metrics(server)
    found, missed = (told.get(f'voxrec_recs_lists_total{{held="{held}"}}', 0.0) for held in ("yes", "no"))
    return found, found + missed


def load_average() -> str:
    return ", ".join(f"{value:.2f}" for value in os.getloadavg())


@contextmanager
def aside(call: Callable[..., Any], *args: Any, **words: Any) -> Iterator[Future[Any]]:
    "`call` on a thread of its own while what is inside is done; its result is there afterwards."
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call, *args, **words)
        yield future
        future.result()
