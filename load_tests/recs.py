"""People browsing a shop, as load on the recommendation service: a Locust scenario.

    locust -f load_tests/recs.py                    # a web page at http://127.0.0.1:8089
    locust -f load_tests/recs.py --headless --rate 200 --run-time 1m --samples samples.csv

A Locust user is one visitor after another. On the home page a new one comes, looks at products (the service
is told, so that its lists change while it answers), sees related ones, fills a cart. Who comes is drawn
evenly, and what is looked at by Zipf's law, from a seed. The catalogue is the one that VOXREC_CATALOG names:
give Locust the service's settings. --host names the service (default: http://127.0.0.1:8080).

A user sends on a beat of its own, at a phase drawn by chance, whatever the others wait for. So a stall hides
no request from the figures unless it is longer than the beat, which is users / (requests a second).
"""

import argparse
import csv
import ipaddress
import random
import time
import uuid
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import gevent
import msgspec
import numpy as np
from locust import FastHttpUser, events, task
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import LocalRunner

from voxrec.config import load_settings
from voxrec.recs.catalog import Catalog
from voxrec.recs.shop import Zipf, open_catalog

SHARES = {"related": 50, "homepage": 20, "cart": 10, "view": 20}  # of 100 requests
ASKING = 1 - SHARES["view"] / sum(SHARES.values())  # the share that asks for recommendations
SHOPPERS = 600  # u0001 to u0600; a simulated history knows the first 500
COLUMNS = ("second", "name", "ms", "ok")  # sent at (epoch), widget or view, time to the answer, 1 or 0


def positive(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)


@events.init_command_line_parser.add_listener
def _options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(num_users=200, spawn_rate=100.0, run_time="60s", stop_timeout="10s")
    parser.set_defaults(web_host="127.0.0.1")
    for name, kind, default, meaning in (
        ("rate", positive, 200.0, "Recommendations a second, all users together; views come on top"),
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
    if environment.host and (refusal := refused(environment, environment.host)):
        raise SystemExit(refusal)
    catalog = open_catalog(load_settings())

    def begin(**_: Any) -> None:
        options = environment.parsed_options
        random.seed(options.seed)  # Locust chooses tasks by it
        Visitor.population = Population(catalog, options.seed)
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


def refused(environment: Environment, url: str) -> str:
    "Why the load may not go to `url`; empty when it may."
    host = urlsplit(url).hostname or ""
    try:
        near = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        near = False
    allowed = near or environment.parsed_options.remote
    return "" if allowed else f"{url} is not this machine. Say --remote if it is yours to load."


class Answer(msgspec.Struct):
    "What an answer must have to count: nothing missing, at least one item."

    degraded: Annotated[list[str], msgspec.Meta(max_length=0)]
    items: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]


class Receipt(msgspec.Struct):
    "What the receipt of an event must say to count."

    accepted: Annotated[int, msgspec.Meta(ge=1)]


class Visitor(FastHttpUser):
    host = "http://127.0.0.1:8080"
    network_timeout = connection_timeout = 5.0
    population: Population

    def __init__(self, environment: Environment):
        super().__init__(environment)
        if refusal := refused(environment, self.host):  # the web page can name another host
            raise StopTest(refusal)
        self.rng = self.population.chance()

    def on_start(self) -> None:
        self.arrive()
        self.due = time.perf_counter() + self.rng.random() * self.beat
        gevent.sleep(self.due - time.perf_counter())

    @property
    def beat(self) -> float:
        "Seconds between two requests of this user, so that all users together keep the rate."
        users, rate = self.environment.runner.target_user_count, self.environment.parsed_options.rate
        return users * ASKING / rate

    def wait_time(self) -> float:
        "locust.constant_throughput, with a phase: that one would let all users send at the same moment."
        self.due = max(self.due + self.beat, time.perf_counter())
        return self.due - time.perf_counter()

    def arrive(self) -> None:
        "Another visitor takes this user's place."
        self.shopper, self.visit = f"u{self.rng.integers(SHOPPERS) + 1:04}", uuid.uuid4().hex
        self.cart: list[str] = []
        self.look()

    def look(self) -> None:
        products = self.population.products
        self.product, self.category = products[self.population.zipf.rank(self.rng, len(products))]

    def send(self, path: str, name: str, body: dict[str, Any], kind: type[msgspec.Struct]) -> None:
        "An error status has failed, and so has an answer that is not of its kind."
        with self.client.post(path, json=body, name=name, catch_response=True) as response:
            if response.status_code in (200, 202):
                try:
                    msgspec.json.decode(response.content, type=kind)
                except msgspec.DecodeError as e:
                    response.failure(str(e))

    def ask(self, widget: str, **more: Any) -> None:
        body = {"user_id": self.shopper, "widget": widget, **more}
        self.send("/v1/recommendations", widget, body, Answer)

    @task(SHARES["homepage"])
    def homepage(self) -> None:
        self.arrive()
        self.ask("homepage")

    @task(SHARES["view"])
    def view(self) -> None:
        self.look()
        where = {"session_id": self.visit, "master_id": self.product, "category_id": self.category}
        body = {"event_id": uuid.uuid4().hex, "type": "view", "ts": time.time_ns() // 1_000_000}
        self.send("/v1/events", "view", body | {"user_id": self.shopper} | where, Receipt)

    @task(SHARES["related"])
    def related(self) -> None:
        self.ask("related", master_id=self.product)

    @task(SHARES["cart"])
    def into_cart(self) -> None:
        self.cart.append(self.product)
        self.ask("cart", master_id=self.product, exclude=self.cart)
