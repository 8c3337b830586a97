"""Everybody looks at the same few products, and half of them from the same few accounts.

    locust -f load_tests/hot_keys.py --headless --rate 200 --run-time 1m

One user's keys in Redis, one category's lists and one row of every snapshot take nearly all requests; the
hot accounts' views are written while they are read. The options: shopping.py.
"""

from locust import task
from shopping import Visitor

PRODUCTS, ACCOUNTS = 3, 3


class Crowding(Visitor):
    asking = 0.7

    def arrive(self) -> None:
        super().arrive()
        if self.rng.random() < 0.5:
            self.shopper = f"hot-{self.rng.integers(ACCOUNTS)}"

    def look(self) -> None:
        if self.rng.random() < 0.1:
            super().look()
        else:
            self.product, self.category = self.population.products[self.rng.integers(PRODUCTS)]

    @task(5)
    def related(self) -> None:
        self.look()
        self.ask("related", master_id=self.product)

    @task(2)
    def homepage(self) -> None:
        self.arrive()
        self.ask("homepage")

    @task(3)
    def next_product(self) -> None:
        self.look()
        self.view()
