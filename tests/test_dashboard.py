"The page, run as Streamlit runs it, against the real service that it starts."

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

PAGE = Path(__file__).resolve().parent.parent / "dashboards/app.py"


def texts(page: AppTest) -> list[str]:
    return [m.value for m in page.markdown]


@pytest.fixture(scope="module")
def page() -> AppTest:
    shown = AppTest.from_file(str(PAGE), default_timeout=60).run()
    assert not shown.exception and not shown.error
    return shown


def test_it_shows_cards_that_say_why(page: AppTest) -> None:
    assert len([b for b in page.button if b.label == "Look"]) == 8
    assert any("sells well" in text for text in texts(page))


def test_a_look_changes_the_list_and_a_sale_leads_it(page: AppTest) -> None:
    looks = [b for b in page.button if b.label == "Look"]
    page = looks[1].click().run()
    assert not page.exception and "looked at" in page.success[0].value
    assert any("like what was seen" in text for text in texts(page))
    sale = [b for b in page.button if b.label == "Flash sale"][5]
    master = sale.key.removeprefix("Flash sale-")
    page = sale.click().run()
    assert not page.exception
    assert next(b for b in page.button if b.label == "Look").key == f"look-{master}"
    assert any("flash sale +2.0" in text for text in texts(page))


def test_a_service_that_is_gone_is_told_on_the_page() -> None:
    page = AppTest.from_file(str(PAGE), default_timeout=60)
    import sys

    before, sys.argv = sys.argv, ["app.py", "--recs-url", "http://127.0.0.1:9"]
    try:
        shown = page.run()
    finally:
        sys.argv = before
    assert not shown.exception and "does not answer" in shown.error[0].value
