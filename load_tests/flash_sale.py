"""A flash sale: one shopkeeper changes promotions without pause while everybody looks at what is on sale.

    locust -f load_tests/flash_sale.py --headless --rate 200 --promos 50 --run-time 1m

The shopkeeper is one Locust user and sends --promos promotions a second, for offers of the `SALE` products
most looked at: on sale, sold out, back again. The other options: shopping.py.
"""

import argparse

from locust import events, task
from shopping import Client, Visitor, positive

from voxrec.recs.catalog import offers_of

SALE = 50  # products


@events.init_command_line_parser.add_listener
def _options(parser: argparse.ArgumentParser) -> None:
    meaning = "Promotions a second, on top of --rate"
    parser.add_argument("--promos", type=positive, default=20.0, env_var="LOCUST_PROMOS", help=meaning)


class Shopkeeper(Client):
    fixed_count = 1

    @property
    def beat(self) -> float:
        return 1 / float(self.environment.parsed_options.promos)

    @task
    def change(self) -> None:
        catalog, on_sale = self.population.catalog, self.population.products[:SALE]
        product, _ = on_sale[self.rng.integers(len(on_sale))]
        offers = offers_of(catalog, catalog.index[product])
        if not len(offers):
            return
        props = {"flash_sale": bool(self.rng.random() < 0.5), "out_of_stock": bool(self.rng.random() < 0.1)}
        props["boost"] = round(1 + float(self.rng.random()), 2)
        self.tell("promo", pid=catalog.pids[self.rng.choice(offers)], props=props)


class Bargaining(Visitor):
    asking = 0.8

    def look(self) -> None:
        on_sale = self.population.products[:SALE]
        self.product, self.category = on_sale[self.rng.integers(len(on_sale))]

    @task(5)
    def related(self) -> None:
        self.look()
        self.ask("related", master_id=self.product)

    @task(3)
    def sponsored(self) -> None:
        self.arrive()
        self.ask("sponsored")

    @task(2)
    def next_product(self) -> None:
        self.look()
        self.view()
