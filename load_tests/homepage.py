"""Everybody comes to the home page, known or never seen before, and its widgets are asked for together.

    locust -f load_tests/homepage.py --headless --rate 200 --run-time 1m

The most expensive page: several widgets a request, the longest histories, the rule of diversity. The
options: shopping.py. A batch counts as one of --rate.
"""

import uuid

from locust import task
from shopping import Answers, Visitor

WIDGETS = ("homepage", "sponsored", "cart")


class Opening(Visitor):
    @task(6)
    def known(self) -> None:
        self.arrive()
        self.ask("homepage")

    @task(2)
    def stranger(self) -> None:
        self.arrive()
        self.shopper = uuid.uuid4().hex
        self.ask("homepage")

    @task(2)
    def all_widgets(self) -> None:
        self.arrive()
        body = {"requests": [{"user_id": self.shopper, "widget": widget} for widget in WIDGETS]}
        self.send("/v1/recommendations:batch", "batch", body, Answers)
