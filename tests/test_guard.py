"""The gRPC door behind TLS and keys: handshakes with real certificates, made by openssl."""

import asyncio
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from voxrec.errors import ConfigError, Overloaded, Unauthorized, Unavailable, VoxrecError
from voxrec.serve.guard import Guard, Tls
from voxrec.serve.speech import connect_speech, recognize, running_speech
from voxrec.speech.v1.speech_pb2 import Config
from voxrec.voice.audio import RATE, chunks, read_audio
from voxrec.voice.transcribe import Ask, Recognizer, Transcript

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates")
ROOT = Path(__file__).resolve().parent.parent
SPOKEN = np.concatenate(
    [read_audio(ROOT / "data_samples/summon_maintenance.wav"), np.zeros(RATE, np.float32)]
)
KEY = "k+/=y-of-a-site"  # must be quoted in a URL


class Yes(Recognizer):
    def transcribe_batch(self, asks: Sequence[Ask]) -> list[Transcript | VoxrecError]:
        return [Transcript(text="yes") for _ in asks]


def openssl(*args: str | Path) -> None:
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)


class Authority:
    "Signs certificates for 127.0.0.1."

    def __init__(self, folder: Path):
        folder.mkdir()
        self.folder, self.ca = folder, folder / "ca.pem"
        new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=authority")
        openssl(*new, "-keyout", folder / "ca.key", "-out", self.ca)

    def certificate(self, name: str) -> tuple[Path, Path]:
        "A certificate and its private key."
        cert, key, asked = (self.folder / f"{name}.{kind}" for kind in ("pem", "key", "csr"))
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", asked)
        names = self.folder / "names"
        names.write_text("subjectAltName=IP:127.0.0.1")
        by = ("-CA", self.ca, "-CAkey", self.folder / "ca.key", "-CAcreateserial", "-days", "2")
        openssl("x509", "-req", "-in", asked, *by, "-extfile", names, "-out", cert)
        return cert, key


async def spoken(url: str, tenant: str = "") -> list[str]:
    async with asyncio.timeout(20), connect_speech(url) as stub:
        config = Config(sample_rate=RATE, tenant=tenant)
        return [r.text async for r in recognize(stub, config, chunks(SPOKEN, 200))]


def heard(url: str, tenant: str = "") -> list[str]:
    return asyncio.run(spoken(url, tenant))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours") / "ca")


@needs_openssl
def test_tls(ours: Authority, tmp_path: Path) -> None:
    cert, key = ours.certificate("service")
    with running_speech(Yes(), tls=Tls(certificate=cert, private_key=key)) as address:
        assert heard(f"grpcs://{address}?ca={ours.ca}") == ["yes"]
        other = Authority(tmp_path / "other")
        for wrong in (address, f"grpcs://{address}", f"grpcs://{address}?ca={other.ca}"):
            with pytest.raises(Unavailable):
                heard(wrong)


@needs_openssl
def test_only_clients_with_a_certificate_of_ours(ours: Authority, tmp_path: Path) -> None:
    cert, key = ours.certificate("service-mutual")
    mine, my_key = ours.certificate("bridge")
    other = Authority(tmp_path / "other")
    theirs, their_key = other.certificate("stranger")
    tls = Tls(certificate=cert, private_key=key, clients=ours.ca)
    with running_speech(Yes(), tls=tls) as address:
        url = f"grpcs://{address}?ca={ours.ca}"
        assert heard(f"{url}&cert={mine}&cert_key={my_key}") == ["yes"]
        for wrong in (url, f"{url}&cert={theirs}&cert_key={their_key}"):
            with pytest.raises(Unavailable):
                heard(wrong)


@needs_openssl
def test_a_certificate_is_renewed_without_a_restart(ours: Authority, tmp_path: Path) -> None:
    "New connections see the new one; a broken one is not taken."
    cert, key = tmp_path / "now.pem", tmp_path / "now.key"

    def put(by: Authority, name: str) -> None:
        for made, place in zip(by.certificate(name), (cert, key), strict=True):
            shutil.copy(made, place)

    put(ours, "first")
    new = Authority(tmp_path / "new")
    with running_speech(Yes(), tls=Tls(certificate=cert, private_key=key)) as address:
        assert heard(f"grpcs://{address}?ca={ours.ca}") == ["yes"]
        put(new, "second")
        assert heard(f"grpcs://{address}?ca={new.ca}") == ["yes"]
        with pytest.raises(Unavailable):
            heard(f"grpcs://{address}?ca={ours.ca}")
        cert.write_text("torn")
        assert heard(f"grpcs://{address}?ca={new.ca}") == ["yes"]


@needs_openssl
def test_files_that_are_no_pair(ours: Authority) -> None:
    (one, own), (_, other) = ours.certificate("one"), ours.certificate("two")
    locked = own.with_suffix(".locked")
    openssl("rsa", "-aes128", "-passout", "pass:secret", "-in", own, "-out", locked)
    for cert, key in ((one, other), (own, own), (one, locked)):
        wrong = Tls(certificate=cert, private_key=key)
        with pytest.raises(ConfigError, match="PEM"), running_speech(Yes(), tls=wrong):
            pass


@needs_openssl
def test_keys_and_how_often(ours: Authority) -> None:
    cert, key = ours.certificate("service-keys")
    guard, tls = Guard({KEY: "site-7"}, per_minute=2), Tls(certificate=cert, private_key=key)
    with running_speech(Yes(), guard=guard, tls=tls) as address:

        def url(shown: str) -> str:
            return f"grpcs://{quote(shown, safe='')}{'@' if shown else ''}{address}?ca={ours.ca}"

        for tenant in ("acme", "other"):
            assert heard(url(KEY), tenant) == ["yes"]
        with pytest.raises(Overloaded, match="over 2 requests a minute") as told:
            heard(url(KEY), "made-up")  # the key counts, whatever tenant it names
        assert 30 < told.value.retry_after_s <= 60
        for shown, why in (("", "a key is needed"), ("another", "no key that we know")):
            with pytest.raises(Unauthorized, match=why):
                heard(url(shown))


def test_keys_without_tls() -> None:
    "Other clients may send one in the clear, behind a proxy; without one nobody comes in."
    with running_speech(Yes(), guard=Guard({KEY: "site-7"})) as address, pytest.raises(Unauthorized):
        heard(address)
