"""Messages and actions: the same on the embedded broker and on Mosquitto."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from voxrec.errors import ConfigError, TimedOut, Unavailable
from voxrec.mqtt import ACK, SUMMON, EmbeddedBroker, MqttClient, connect_mqtt, free_port
from voxrec.voice.actions import Actions, AuditLog, Board, open_actions, open_board
from voxrec.voice.decide import Action

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def until(true: Callable[[], object], within_s: float = 8.0) -> None:
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.01)


def summon(id: str = "a1", **more: str) -> Action:
    return Action(id=id, kind="summon", team="maintenance", tenant="north", device_id="watch-0", **more)


@pytest.fixture
async def clients(mqtt_broker: Any) -> AsyncIterator[tuple[MqttClient, MqttClient]]:
    async with connect_mqtt(mqtt_broker.url) as ours, connect_mqtt(mqtt_broker.url) as theirs:
        yield ours, theirs


async def test_messages_keep_their_order_and_bytes(clients: tuple[MqttClient, MqttClient]) -> None:
    ours, theirs = clients
    bodies = [bytes([n]) * (n * 700) for n in range(60)]
    async with ours.subscribe("a/+", "b/#") as inbox:
        for n, body in enumerate(bodies):
            await theirs.publish("a/x" if n % 2 else "b/c/d", body)
        assert [(await inbox.get(5)).payload for _ in bodies] == bodies
        await theirs.publish("other", b"not for us")
        with pytest.raises(TimedOut, match=r"a/\+ or b/#"):
            await inbox.get(0.1)


async def test_an_ended_subscription_hears_no_more(clients: tuple[MqttClient, MqttClient]) -> None:
    ours, theirs = clients
    async with ours.subscribe("a") as first:
        async with ours.subscribe("a") as second:
            await theirs.publish("a", b"1")
            assert (await first.get(5), await second.get(5)) == (("a", b"1"), ("a", b"1"))
        await theirs.publish("a", b"2")
        assert (await first.get(5)).payload == b"2"
    async with ours.subscribe("a") as third:
        await theirs.publish("a", b"3")
        assert (await third.get(5)).payload == b"3"


async def test_a_restart_is_an_interruption(mqtt_broker: Any, clients: tuple[MqttClient, MqttClient]) -> None:
    ours, theirs = clients
    async with ours.subscribe("a") as inbox:
        for n in range(2):
            await asyncio.to_thread(mqtt_broker.stop)
            with pytest.raises(TimedOut, match="could not publish on a"):
                await theirs.publish("a", b"lost", timeout_s=0.1)
            await asyncio.to_thread(mqtt_broker.start)
            await until(lambda n=n: min(ours.connections, theirs.connections) >= n + 2)
            await theirs.publish("a", b"%d" % n)
            assert (await inbox.get(5)).payload == b"%d" % n


async def test_a_message_waits_for_the_broker(
    mqtt_broker: Any, clients: tuple[MqttClient, MqttClient]
) -> None:
    ours, _ = clients
    await asyncio.to_thread(mqtt_broker.stop)
    publishing = asyncio.create_task(ours.publish("a", b"x", timeout_s=10))
    await asyncio.sleep(0.2)
    assert not publishing.done()
    await asyncio.to_thread(mqtt_broker.start)
    await publishing


async def test_no_broker_is_told() -> None:
    with pytest.raises(Unavailable, match=r"no MQTT broker at 127\.0\.0\.1"):
        async with connect_mqtt(f"mqtt://127.0.0.1:{free_port()}", timeout_s=0.3):
            pass


async def test_a_taken_port_is_told(mqtt_broker: Any) -> None:
    with pytest.raises(ConfigError, match="Choose another port"):
        EmbeddedBroker(int(mqtt_broker.url.rsplit(":", 1)[1])).start()


class Site:
    "Actions on one side, a board on the other."

    def __init__(self, actions: Actions, board: Board):
        self.actions, self.board = actions, board


@pytest.fixture
async def site(clients: tuple[MqttClient, MqttClient], tmp_path: Path) -> AsyncIterator[Site]:
    ours, theirs = clients
    async with AsyncExitStack() as stack:
        board = await stack.enter_async_context(open_board(theirs))
        actions = await stack.enter_async_context(open_actions(ours, tmp_path / "audit.jsonl", ack_s=0.4))
        yield Site(actions, board)


class Lossy:
    "A client that loses its first `n` messages."

    def __init__(self, mqtt: MqttClient, n: int):
        self.mqtt, self.n = mqtt, n

    async def publish(self, topic: str, payload: bytes) -> None:
        self.n -= 1
        if self.n < 0:
            await self.mqtt.publish(topic, payload)


async def test_a_lost_acknowledgement_is_asked_for_again(site: Site) -> None:
    site.board.mqtt = Lossy(site.board.mqtt, 2)  # type: ignore[assignment]
    outcome = await site.actions.perform(summon())
    assert (outcome.status, outcome.attempts, len(site.board.calls)) == ("done", 3, 1)


async def test_no_acknowledgement_at_all_is_told_and_may_be_tried_again(site: Site) -> None:
    site.board.mqtt, good = Lossy(site.board.mqtt, 3), site.board.mqtt  # type: ignore[assignment]
    assert (await site.actions.perform(summon())).status == "unacknowledged"
    site.board.mqtt = good
    again = await site.actions.perform(summon())
    assert (again.status, again.repeated, len(site.board.calls)) == ("done", False, 1)


async def test_the_same_id_is_performed_once(site: Site) -> None:
    first = await asyncio.gather(*(site.actions.perform(summon()) for _ in range(5)))
    later = await site.actions.perform(summon())
    assert len(site.board.calls) == 1 and [o.status for o in [*first, later]] == ["done"] * 6
    assert [o.repeated for o in first].count(False) == 1 and later.repeated


async def test_other_acknowledgements_do_not_count(
    site: Site, clients: tuple[MqttClient, MqttClient]
) -> None:
    site.board.mqtt = Lossy(site.board.mqtt, 10)  # type: ignore[assignment]
    performing = asyncio.create_task(site.actions.perform(summon()))
    for body in (
        b'{"id": "another"}',
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"x": ' + b"[" * 1_000_000,
        bytes(10_000_000),
    ):
        await clients[1].publish(SUMMON + ACK, body)
    assert (await performing).status == "unacknowledged"
    site.board.mqtt = clients[1]
    assert (await site.actions.perform(summon("a2"))).status == "done"


async def test_nonsense_does_not_keep_the_board_from_hearing(
    site: Site, clients: tuple[MqttClient, MqttClient]
) -> None:
    for body in b"", b"{", b'{"x": ' + b"[" * 1_000_000, b'{"id": 7}', b"\xff", b'{"team": "maintenance"}':
        await clients[0].publish(SUMMON, body)
    assert (await site.actions.perform(summon())).status == "done" and len(site.board.calls) == 1


async def test_a_retained_message_is_not_heard(
    mqtt_broker: Any, clients: tuple[MqttClient, MqttClient]
) -> None:
    ours, theirs = clients
    async with aiomqtt.Client("127.0.0.1", int(mqtt_broker.url.rsplit(":", 1)[1])) as careless:
        await careless.publish("a", b"yesterday", qos=1, retain=True)
    async with ours.subscribe("a") as inbox:
        await theirs.publish("a", b"today")
        assert (await inbox.get(5)).payload == b"today"


async def test_the_broker_restarts_while_it_is_under_way(mqtt_broker: Any, site: Site) -> None:
    site.actions.ack_s = 2.0
    await asyncio.to_thread(mqtt_broker.stop)
    performing = asyncio.create_task(site.actions.perform(summon()))
    await asyncio.sleep(0.2)
    await asyncio.to_thread(mqtt_broker.start)
    outcome = await performing
    assert (outcome.status, len(site.board.calls)) == ("done", 1)


async def test_a_caller_who_leaves_does_not_stop_it(site: Site) -> None:
    performing = asyncio.create_task(site.actions.perform(summon()))
    await asyncio.sleep(0)
    performing.cancel()
    await until(lambda: site.board.calls)
    assert (await site.actions.perform(summon())).repeated
    assert list(AuditLog(site.actions.audit.path).known()) == ["a1"]
