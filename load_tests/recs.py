"""People browsing a shop, as load on the recommendation service: a Locust scenario.

    locust -f load_tests/recs.py                    # a web page at http://127.0.0.1:8089
    locust -f load_tests/recs.py --headless --rate 200 --run-time 1m --samples samples.csv

On the home page a new visitor comes, looks at products (the service is told, so that its lists change while
it answers), sees related ones, fills a cart. The options and what they mean: shopping.py.
"""

from locust import task
from shopping import Visitor

SHARES = {"related": 50, "homepage": 20, "cart": 10, "view": 20}  # of 100 requests


class Browsing(Visitor):
    asking = 1 - SHARES["view"] / sum(SHARES.values())

    @task(SHARES["homepage"])
    def homepage(self) -> None:
        self.arrive()
        self.ask("homepage")

    @task(SHARES["view"])
    def next_product(self) -> None:
        self.look()
        self.view()

    @task(SHARES["related"])
    def related(self) -> None:
        self.ask("related", master_id=self.product)

    @task(SHARES["cart"])
    def into_cart(self) -> None:
        self.cart.append(self.product)
        self.ask("cart", master_id=self.product, exclude=self.cart)
