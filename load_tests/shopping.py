"""What all Locust scenarios share: the options, who comes, how they ask, what counts as an answer.

A Locust user is one visitor after another, and sends on a beat of its own, at a phase drawn by chance,
whatever the others wait for. So a stall hides no request from the figures unless it is longer than the
beat, which is users / (requests a second). For tails that are to be trusted there is open_loop.py.

Who comes is drawn evenly, and what is looked at by Zipf's law, from a seed. The catalogue is the one that
VOXREC_CATALOG names: give Locust the service's settings. --host names the service.
"""

import argparse
import csv
import random
import time
import uuid
from pathlib import Path
from typing import Annotated, Any, ClassVar

import gevent
import msgspec
import numpy as np
from locust import FastHttpUser, events
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import LocalRunner
from loopback import refusal

from voxrec.config import load_settings
from voxrec.recs.catalog import Catalog
from voxrec.recs.shop import Zipf, open_catalog

SHOPPERS = 600  # u0001 to u0600; a simulated history knows the first 500
COLUMNS = ("second", "name", "ms", "ok")  # sent at (epoch), what was asked, time to the answer, 1 or 0


def positive(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)


@events.init_command_line_parser.add_listener
def _options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(num_users=200, spawn_rate=100.0, run_time="60s", stop_timeout="10s")
    parser.set_defaults(web_host="127.0.0.1")
    for name, kind, default, meaning in (
        ("rate", positive, 200.0, "Recommendations a second, all users together; events come on top"),
        ("seed", int, 0, "Chance begins here"),
        ("samples", str, "", "CSV file for a line a request; a test writes it anew"),
    ):
        env = f"LOCUST_{name.upper()}"
        parser.add_argument(f"--{name}", type=kind, default=default, env_var=env, help=meaning)
    meaning = "Let the load go to another machine, which should be yours"
    parser.add_argument("--remote", action="store_true", env_var="LOCUST_REMOTE", help=meaning)


class Population:
    "The catalogue's products, the most looked at first, and chance for those who look."

    def __init__(self, catalog: Catalog, seed: int):
        order = np.random.default_rng(seed).permutation(len(catalog))
        self.catalog = catalog
        self.products = [(catalog.master_ids[i], catalog.category(catalog.master_ids[i])) for i in order]
        self.zipf, self.seed, self.users = Zipf(len(order), 1.0), seed, 0

    def chance(self) -> np.random.Generator:
        "A generator for one more user."
        self.users += 1
        return np.random.default_rng([self.seed, self.users])


@events.init.add_listener
def _prepare(environment: Environment, **_: Any) -> None:
    if not isinstance(environment.runner, LocalRunner):
        raise SystemExit("--rate and --samples are for one process: run it without master and workers")
    if environment.host and (told := refusal(environment.host, environment.parsed_options.remote)):
        raise SystemExit(told)
    catalog = open_catalog(load_settings())

    def begin(**_: Any) -> None:
        options = environment.parsed_options
        random.seed(options.seed)  # Locust chooses tasks by it
        Client.population = Population(catalog, options.seed)
        if options.samples:
            _keep_samples(environment, options.samples)

    environment.events.test_start.add_listener(begin)
    gevent.sleep(0)  # else gevent's clock stands where the imports began, and the run ends too early


def _keep_samples(environment: Environment, path: str) -> None:
    "Write a line for each request of this test, failed ones too."
    file = Path(path).open("w", newline="", encoding="utf-8")  # noqa: SIM115 - `end` closes it
    lines = csv.writer(file)
    lines.writerow(COLUMNS)

    def keep(name: str, response_time: float, exception: object, start_time: float, **_: Any) -> None:
        lines.writerow((f"{start_time:.3f}", name, f"{response_time:.3f}", int(exception is None)))

    def end(**_: Any) -> None:
        environment.events.request.remove_listener(keep)
        environment.events.test_stop.remove_listener(end)
        file.close()

    environment.events.request.add_listener(keep)
    environment.events.test_stop.add_listener(end)


class Answer(msgspec.Struct):
    "What an answer must have to count: nothing missing, at least one item."

    degraded: Annotated[list[str], msgspec.Meta(max_length=0)]
    items: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]


class Answers(msgspec.Struct):
    "What the answers to a batch must have to count. A later widget may be left with nothing."

    answers: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]


class Receipt(msgspec.Struct):
    "What the receipt of an event must say to count."

    accepted: Annotated[int, msgspec.Meta(ge=1)]


class Client(FastHttpUser):
    "Whoever sends requests: on a beat, to this machine, counted as failed unless the answer is good."

    abstract = True
    host = "http://127.0.0.1:8080"
    network_timeout = connection_timeout = 5.0
    population: ClassVar[Population]

    def __init__(self, environment: Environment):
        super().__init__(environment)
        if told := refusal(self.host, environment.parsed_options.remote):  # the web page can name another
            raise StopTest(told)
        self.rng = self.population.chance()

    def on_start(self) -> None:
        self.due = time.perf_counter() + self.rng.random() * self.beat
        gevent.sleep(self.due - time.perf_counter())

    @property
    def beat(self) -> float:
        "Seconds between two requests of this user."
        raise NotImplementedError

    def wait_time(self) -> float:
        "locust.constant_throughput, with a phase: that one would let all users send at the same moment."
        self.due = max(self.due + self.beat, time.perf_counter())
        return self.due - time.perf_counter()

    def send(self, path: str, name: str, body: dict[str, Any], kind: type[msgspec.Struct]) -> None:
        "An error status has failed, and so has an answer that is not of its kind."
        with self.client.post(path, json=body, name=name, catch_response=True) as response:
            if response.status_code in (200, 202):
                try:
                    msgspec.json.decode(response.content, type=kind)
                except msgspec.DecodeError as e:
                    response.failure(str(e))

    def tell(self, kind: str, **more: Any) -> None:
        "Send an event."
        body = {"event_id": uuid.uuid4().hex, "type": kind, "ts": time.time_ns() // 1_000_000}
        self.send("/v1/events", kind, body | more, Receipt)


class Visitor(Client):
    "A shopper with something in view; another takes the place when a task calls `arrive`."

    abstract = True
    asking = 1.0  # the share of this scenario's requests that ask for recommendations

    def on_start(self) -> None:
        self.arrive()
        super().on_start()

    @property
    def beat(self) -> float:
        "So that all users together keep the rate."
        others = sum(kind.fixed_count for kind in self.environment.user_classes)
        users = self.environment.runner.target_user_count - others
        return users * self.asking / float(self.environment.parsed_options.rate)

    def arrive(self) -> None:
        "Another visitor takes this user's place."
        self.shopper, self.visit = f"u{self.rng.integers(SHOPPERS) + 1:04}", uuid.uuid4().hex
        self.cart: list[str] = []
        self.look()

    def look(self) -> None:
        products = self.population.products
        self.product, self.category = products[self.population.zipf.rank(self.rng, len(products))]

    def ask(self, widget: str, **more: Any) -> None:
        body = {"user_id": self.shopper, "widget": widget, **more}
        self.send("/v1/recommendations", widget, body, Answer)

    def view(self) -> None:
        self.tell("view", user_id=self.shopper, session_id=self.visit, master_id=self.product,
                  category_id=self.category)  # fmt: skip
