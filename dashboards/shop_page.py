"""Shop: be somebody, look at products, and see the list change and say why."""

import atexit
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pieces
import streamlit as st

from voxrec.config import load_settings
from voxrec.demo.shop_story import Shop, moves, shop_window, why_words
from voxrec.errors import VoxrecError
from voxrec.recs.rerank import Item, in_short

COLUMNS = 4
WIDGETS = {"homepage": "Homepage", "related": "Beside a product", "sponsored": "Sponsored", "cart": "Cart"}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def close(opened: tuple[Any, httpx.Client]) -> None:
    opened[0].__exit__(None, None, None)


@st.cache_resource(show_spinner="Opening the shop ...", on_release=close)
def open_shop(url: str) -> tuple[Any, httpx.Client]:
    "A client of the service at `url`, or of one that is started here over an invented past."
    if url:
        client = httpx.Client(base_url=url, timeout=5)
        return client, client
    window = shop_window(load_settings(), now_ms())
    return window, window.__enter__()[0]


atexit.register(open_shop.clear)


@st.cache_data(show_spinner=False)
def product(_shop: Shop, master_id: str) -> dict[str, str]:
    found = _shop.product(master_id)
    return {"title": found.title, "category": found.category_id}


def tell(shop: Shop, said: str, kind: str, **facts: object) -> None:
    "An event, and a word about it; the answers of before stay to compare with."
    shop.tell(kind, **facts)
    st.session_state.said = said


def card(shop: Shop, place: int, item: Item, move: str) -> None:
    facts = product(shop, item.master_id)
    with st.container(border=True, height="stretch"):
        colour = {"▲": "green", "▼": "red", "n": "blue"}.get(move[:1], "gray")
        badge = f" :{colour}-badge[{move}]" if move.strip("·") else ""
        st.markdown(f"**{place}** · {item.price:.2f}{badge}")
        st.markdown(f"**{facts['title']}**  \n:gray[{facts['category']}]")
        why = [f":violet-badge[{word}]" for word in why_words(item)]
        st.markdown(" ".join(why + [f":orange-badge[{in_short(rule)}]" for rule in item.rules]))
        st.caption(f"score {item.score:.4g}")
        title = facts["title"]
        left, right = st.columns(2)
        left.button(
            "Look", key=f"look-{item.master_id}", width="stretch", on_click=look, args=(shop, item, title)
        )
        with right.popover("Promote", width="stretch"):
            st.caption("What the shop can do with this offer")
            for label, props in (
                ("Flash sale", {"flash_sale": True}),
                ("Boost x1.5", {"boost": 1.5}),
                ("Out of stock", {"out_of_stock": True}),
                ("Back to normal", {}),
            ):
                st.button(
                    label,
                    key=f"{label}-{item.master_id}",
                    width="stretch",
                    on_click=promote,
                    args=(shop, item, label, props, title),
                )


def look(shop: Shop, item: Item, title: str) -> None:
    with told():
        said = f"{shop.user_id} looked at {title}"
        tell(shop, said, "view", user_id=shop.user_id, master_id=item.master_id)
        st.session_state.page_of = item.master_id


def promote(shop: Shop, item: Item, label: str, props: dict[str, object], title: str) -> None:
    with told():
        offers = shop.product(item.master_id).offers
        everywhere = label in ("Out of stock", "Back to normal")
        for pid in [offer.pid for offer in offers] if everywhere else [item.pid]:
            tell(shop, f"{label}: {title}", "promo", pid=pid, props=props)


def show(url: str) -> None:
    st.title("What would you show me?")
    left, middle, right = st.columns([2, 2, 1])
    user = left.text_input("I am", value="mia", max_chars=64, help="any name; u0001 to u0300 have a past")
    widget = middle.selectbox("on the", list(WIDGETS), format_func=WIDGETS.get)
    k = right.select_slider("items", [4, 8, 12, 20], value=8)
    with told():
        shop = Shop(open_shop(url)[1], user or "somebody", now_ms())
        where = {"widget": widget}
        if widget == "related" and "page_of" in st.session_state:
            where["master_id"] = st.session_state.page_of
            st.caption(f"Beside {product(shop, st.session_state.page_of)['title']}")
        answer = shop.recommended(k, **where)
        draw(shop, answer.items, (user, widget, k))
        degraded = f" · degraded: {', '.join(answer.degraded)}" if answer.degraded else ""
        st.caption(f"answer {answer.rec_id[:8]} · model {answer.model} · arm {answer.arm}{degraded}")


def draw(shop: Shop, items: list[Item], view: tuple[str, str, int]) -> None:
    "The cards, each with how it moved since the list shown last on the same view."
    masters = [item.master_id for item in items]
    last_view, before = st.session_state.get("shown", (None, []))
    moved = moves(before, masters) if last_view == view else [""] * len(masters)
    st.session_state.shown = (view, masters)
    if said := st.session_state.pop("said", ""):
        gone = [m for m in before if m not in masters] if last_view == view else []
        left = f" {len(gone)} left the list." if gone else ""
        st.success(f"{said}.{left}", icon=":material/bolt:")
    for first in range(0, len(items), COLUMNS):
        row = zip(st.columns(COLUMNS), items[first : first + COLUMNS], strict=False)
        for offset, (column, item) in enumerate(row):
            with column:
                card(shop, first + offset + 1, item, moved[first + offset])


@contextmanager
def told() -> Iterator[None]:
    "What goes wrong with the service is told on the page, not thrown at the reader."
    try:
        yield
    except httpx.HTTPError as e:
        pieces.problem("The shop does not answer.", str(e), icon=":material/power_off:")
        st.button("Try again")
    except VoxrecError as e:
        pieces.problem(e.message, e.hint)
        st.button("Try again")
