"""Real servers for the tests that are marked so, each on a port of its own, ended by its pid; and Whisper."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class RedisServer:
    """A redis-server process without persistence; it can be killed, started again, paused and resumed."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.folder, self.url = folder, f"redis://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        "Returns when it answers."
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        log = self.folder / "redis.log"
        self._process = subprocess.Popen([*command, "--dir", str(self.folder), "--logfile", str(log)])
        for _ in range(200):
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as s:
                    s.sendall(b"PING\r\n")
                    if s.recv(5) == b"+PONG":
                        return
            except OSError:
                pass
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"redis-server did not start, see {log}")

    def kill(self) -> None:
        "Ends it as a power cut would; everything it held is lost."
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        "Its connections stay open and nothing answers."
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    @property
    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on the PATH (Debian: apt-get install redis-server)")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


class Mosquitto:
    "A mosquitto process without persistence, on a port that it keeps when it is started again."

    def __init__(self, folder: Path, program: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.folder, self.program, self.url = folder, program, f"mqtt://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        "Returns when it listens."
        config = self.folder / "mosquitto.conf"
        config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
        with (self.folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen([self.program, "-c", str(config)], stdout=log, stderr=log)
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.05)
            if self._process.poll() is not None:
                break
        raise RuntimeError(f"mosquitto did not start, see {self.folder / 'mosquitto.log'}")

    def stop(self) -> None:
        "Ends it as a power cut would."
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("no mosquitto on the PATH (Debian: apt-get install mosquitto)")
    server = Mosquitto(tmp_path, program)
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.mosquitto)])
def mqtt_broker(request: pytest.FixtureRequest) -> Iterator[Any]:
    "A broker with `url`, `start` and `stop`: amqtt in this process, or Mosquitto."
    if request.param == "real":
        yield request.getfixturevalue("mosquitto")
        return
    from voxrec.mqtt import EmbeddedBroker

    broker = EmbeddedBroker()
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def whisper() -> Any:
    "Whisper tiny.en, loaded once for all who only ask it."
    from voxrec.voice.transcribe import open_recognizer

    return open_recognizer()
