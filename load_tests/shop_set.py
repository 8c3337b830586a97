"""A large invented shop for load tests: 200,000 masters, ten million clicks, a million users with a history.

    python load_tests/shop_set.py FOLDER      # minutes, once; it resumes

FOLDER is then a home (VOXREC_HOME) whose snapshots `voxrec serve recs` serves; shop_fill.py brings the
users and the live lists into Redis. All of it follows from the seed.

The masters stand on a ring, similar ones side by side; their dense numbers are shuffled, as a catalogue's
are. A category is an arc of the ring, a master's relations are its surroundings, a session walks along it
or jumps to what is popular (`make_clicks`), and a user's history is a stretch of the click log. So lists
overlap as real ones do, and memory is touched as widely. How good an answer is cannot be asked of it.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from open_loop import Shot

from voxrec.errors import InputError, NotFound
from voxrec.recs.catalog_store import current_catalog, publish_catalog
from voxrec.recs.events import Event, Offer, Product, Promo, RankedList, Update, encode_event
from voxrec.recs.relations import COSINE_STEP, SnapshotStore, append_rows, built_on, quantise
from voxrec.recs.sessions import build, make_clicks

BLOCK = 2000  # masters, or users, worked on at once
VIEWS = 20  # of a user's history
TOP_SOLD, TOP_RELATED = 50, 20  # of a category's lists
ADJECTIVES = (
    "solid",
    "travel",
    "compact",
    "classic",
    "smart",
    "slim",
    "folding",
    "cordless",
    "organic",
    "light",
)
WIDGETS = {"related": 0.5, "homepage": 0.25, "cart": 0.125, "sponsored": 0.125}


class Size(msgspec.Struct, frozen=True):
    "How large a shop is."

    masters: int = 200_000
    relations: int = 1000  # of each master
    categories: int = 2000
    sessions: int = 2_400_000  # of four clicks on average
    users: int = 1_000_000
    promos: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        if min(msgspec.structs.astuple(self)[:-1]) < 1 or self.masters < 8 * self.relations:
            hint = "everything is at least 1, and relations at most an eighth of the masters"
            raise InputError(f"a shop of {self}", hint=hint)


def told(what: str, done: int, of: int) -> None:
    "Progress, on stderr."
    print(f"\r{what}: {done:,} of {of:,}", end="\n" if done >= of else "", file=sys.stderr, flush=True)


class Ring:
    "Who stands where: `at` u32 [n], the master at a place; `place`, the way back; `arc`, a place's category."

    def __init__(self, size: Size):
        self.size, rng = size, np.random.default_rng([size.seed, 1])
        self.at = rng.permutation(size.masters).astype(np.uint32)
        self.place = np.argsort(self.at).astype(np.int64)
        begins = np.sort(rng.choice(np.arange(1, size.masters), size.categories - 1, replace=False))
        self.arc = np.searchsorted(begins, np.arange(size.masters), "right")
        self.category_of = self.arc[self.place]

    def near(self, masters: NDArray[Any], steps: NDArray[Any]) -> NDArray[np.uint32]:
        "The masters so many steps further."
        return self.at[(self.place[masters] + steps) % self.size.masters]


def master_id(master: int) -> str:
    return f"m{master:07d}"


def category_id(category: int) -> str:
    return f"c{category:05d}"


def user_id(user: int) -> str:
    return f"u{user:07d}"


def pid_of(master: int, offer: int) -> str:
    "The master's i-th offer; every master has a 0th."
    return f"p{master:07d}-{offer}"


def products(ring: Ring) -> Iterator[Product]:
    "The catalogue in order of its dense numbers: three offers a master on average, one in twelve sold out."
    rng, n = np.random.default_rng([ring.size.seed, 2]), ring.size.masters
    counts = 1 + rng.poisson(2.0, n)
    total = int(counts.sum())
    price = np.round(rng.lognormal(3.2, 1.0, total) + 0.5, 2).tolist()
    rating = np.round(rng.uniform(2.5, 5.0, total), 1).tolist()
    stock = np.where(rng.random(total) < 1 / 12, 0, rng.integers(1, 500, total)).tolist()
    first = 0
    for master, (count, category) in enumerate(zip(counts.tolist(), ring.category_of.tolist(), strict=True)):
        mine, seller = range(first, first + count), f"seller-{master % 997}"
        pids = [pid_of(master, i) for i in range(count)]
        offers = [Offer(p, seller, price[i], rating[i], stock[i]) for p, i in zip(pids, mine, strict=True)]
        first += count
        words = (
            ADJECTIVES[master % 10],
            ADJECTIVES[master // 10 % 10],
            f"thing of range {category}, no. {master}",
        )
        yield Product(master_id(master), " ".join(words), category_id(category), tuple(offers))


def relation_rows(ring: Ring, first: int, last: int) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    "Neighbours and scores, [masters, relations] each, best first: both sides of the ring by turns."
    size = ring.size
    rng, shape = np.random.default_rng([size.seed, 3, first]), (last - first, size.relations)
    steps = np.empty(shape, np.int64)
    for side in (0, 1):  # two in three of the surroundings are relations
        away = np.cumsum(rng.geometric(2 / 3, (shape[0], len(range(side, shape[1], 2)))), axis=1)
        steps[:, side::2] = away if side else -away
    index = ring.near(np.arange(first, last)[:, None], steps)
    fall = 0.95 - 0.6 * np.sqrt(np.arange(shape[1]) / shape[1])
    return index, quantise(fall * rng.uniform(0.7, 1.0, (shape[0], 1)), COSINE_STEP)


def build_relations(ring: Ring, store: SnapshotStore, meta: Mapping[str, Any]) -> None:
    "The snapshot `semantic`; it goes on where it was broken off."
    n, each = ring.size.masters, ring.size.relations
    with store.build("semantic", f"shop set {ring.size}") as snapshot:
        for first in range(max(0, snapshot.rows("start") - 1), n, BLOCK):
            last = min(first + BLOCK, n)
            index, score = relation_rows(ring, first, last)
            append_rows(snapshot, np.full(last - first, each), index.ravel(), score.ravel(), n)
            told("relations", last, n)
        snapshot.publish({"step": COSINE_STEP, "top": each, "job": "load test", **meta})


def build_sessions(ring: Ring, store: SnapshotStore, home: Path, meta: Mapping[str, Any]) -> None:
    "The click log, of which items and sessions' begins are kept, and the snapshot `sessions`."
    size = ring.size
    told("sessions", 0, size.sessions)
    session, place, time_ms = make_clicks(size.seed, size.sessions, size.masters)
    item = ring.at[place]
    np.save(home / "clicks.npy", item)
    np.save(home / "visits.npy", np.flatnonzero(np.diff(session, prepend=-1)))
    index = build(session, item, time_ms, n_items=size.masters)
    store.publish("sessions", index.arrays(), {"clicks": len(item), "job": "load test", **meta})
    told("sessions", len(index), size.sessions)


def build_set(home: Path, size: Size) -> "ShopSet":
    "All of it, or what is still missing. InputError where another set stands."
    home.mkdir(parents=True, exist_ok=True)
    told_size = home / "shop_set.json"
    if told_size.exists() and msgspec.json.decode(told_size.read_bytes(), type=Size) != size:
        raise InputError(f"{home} holds another set", hint="delete it, or name another folder")
    told_size.write_bytes(msgspec.json.encode(size))
    ring, store = Ring(size), SnapshotStore(home / "snapshots", keep=2)
    missing = [k for k in ("catalog", "semantic", "sessions") if store.current_version(k) is None]
    if "catalog" in missing:
        publish_catalog(store, products(ring), progress=lambda done: told("catalogue", done, size.masters))
    meta = built_on(current_catalog(store)) if missing else {}
    if "semantic" in missing:
        build_relations(ring, store, meta)
    if "sessions" in missing:
        build_sessions(ring, store, home, meta)
    return ShopSet(home)


class ShopSet:
    "A set that stands. NotFound where there is none."

    def __init__(self, home: Path):
        self.home, told_size = home, home / "shop_set.json"
        if not (told_size.exists() and (home / "visits.npy").exists()):
            raise NotFound(f"no load set in {home}", hint=f"python load_tests/shop_set.py {home}")
        self.size = msgspec.json.decode(told_size.read_bytes(), type=Size)
        self.ring = Ring(self.size)
        self.clicks, self.begun = (
            np.load(home / f"{name}.npy", mmap_mode="r") for name in ("clicks", "visits")
        )
        rng = np.random.default_rng([self.size.seed, 4])
        self.begins = rng.integers(len(self.clicks) - VIEWS, size=self.size.users)

    def views(self, users: NDArray[Any]) -> NDArray[np.uint32]:
        "What these users looked at, [users, VIEWS], the last one last."
        return np.asarray(self.clicks[self.begins[users][:, None] + np.arange(VIEWS)])

    def best_sellers(self) -> dict[int, NDArray[np.int64]]:
        "Each category's most clicked masters, the first first."
        counts = np.bincount(self.clicks, minlength=self.size.masters)
        order = np.lexsort((-counts, self.ring.category_of))
        ends = np.cumsum(np.bincount(self.ring.category_of, minlength=self.size.categories))
        return {c: part[:TOP_SOLD] for c, part in enumerate(np.split(order, ends[:-1]))}

    def lists(self, now_ms: int) -> Iterator[RankedList]:
        "Best sellers and co-viewed categories of every category."
        rng, n = np.random.default_rng([self.size.seed, 5]), self.size.categories
        for category, masters in self.best_sellers().items():
            scores = np.sort(rng.exponential(50.0, len(masters)))[::-1].round(2).tolist()
            items = tuple(zip(map(master_id, masters.tolist()), scores, strict=True))
            yield RankedList("cat:bestsellers", category_id(category), items, now_ms)
            steps = rng.choice(np.r_[-25:0, 1:26], min(TOP_RELATED, n - 1), replace=False)
            related = list(dict.fromkeys(((category + steps) % n).tolist()))
            scores = np.sort(rng.exponential(5.0, len(related)))[::-1].round(3).tolist()
            items = tuple(zip(map(category_id, related), scores, strict=True))
            yield RankedList("cat:co_view", category_id(category), items, now_ms, as_of=1)

    def promo(self, rng: np.random.Generator, now_ms: int) -> Promo:
        "A promotion for some master's first offer: boost and bid; one in ten on sale, one in ten sold out."
        flash, gone = bool(rng.random() < 0.1), bool(rng.random() < 0.1)
        boost, bid = (round(1 + float(x), 2) for x in rng.random(2))
        pid = pid_of(int(rng.integers(self.size.masters)), 0)
        return Promo(pid, boost, bid, flash, gone, now_ms // 1000 + 7 * 86400, now_ms)

    def shared(self, now_ms: int) -> Iterator[Update]:
        "All that every server mirrors."
        yield from self.lists(now_ms)
        rng = np.random.default_rng([self.size.seed, 6])
        for _ in range(self.size.promos):
            yield self.promo(rng, now_ms)

    def shots(self, n: int, seed: int) -> tuple[list[Shot], list[str]]:
        """Requests for recommendations, and the widget of each.

        Users are drawn evenly. Half the pages are of what lies near the user's last view, half of what is
        popular.
        """
        rng = np.random.default_rng([self.size.seed, 7, seed])
        users, near = rng.integers(self.size.users, size=n), rng.random(n) < 0.5
        last = self.clicks[self.begins[users] + VIEWS - 1]
        pages = np.where(near, self.ring.near(last, rng.integers(1, 20, n)), self.popular(rng, n))
        widgets = rng.choice(list(WIDGETS), n, p=list(WIDGETS.values())).tolist()
        bodies = []
        for user, page, widget in zip(users.tolist(), pages.tolist(), widgets, strict=True):
            asked = {"user_id": user_id(user), "widget": widget}
            if widget in ("related", "cart"):
                asked["master_id"] = master_id(page)
            bodies.append(msgspec.json.encode(asked))
        return [Shot("POST", "/v1/recommendations", body) for body in bodies], widgets

    def popular(self, rng: np.random.Generator, n: int) -> NDArray[np.uint32]:
        "Masters as they are clicked."
        return np.asarray(self.clicks[rng.integers(len(self.clicks), size=n)])

    def events(self, n: int, seed: int, now_ms: int) -> list[Shot]:
        "Views, each of a user's next product, a millisecond apart."
        rng = np.random.default_rng([self.size.seed, 8, seed])
        users = rng.integers(self.size.users, size=n)
        masters = self.ring.near(self.clicks[self.begins[users] + VIEWS - 1], rng.integers(1, 20, n))
        views = [
            Event(event_id=rng.bytes(16).hex(), type="view", ts=now_ms + i, user_id=user_id(user),
                  session_id=f"s{user}", master_id=master_id(master))
            for i, (user, master) in enumerate(zip(users.tolist(), masters.tolist(), strict=True))
        ]  # fmt: skip
        return [Shot("POST", "/v1/events", encode_event(view)) for view in views]

    def traffic(self, n: int, views: int, seed: int, now_ms: int) -> tuple[list[Shot], NDArray[np.str_]]:
        "Requests for recommendations and views among them, in no order; the widget of each, or view."
        shots, names = self.shots(n, seed)
        shots, names = shots + self.events(views, seed, now_ms), [*names, *["view"] * views]
        order = np.random.default_rng([self.size.seed, 11, seed]).permutation(n + views)
        return [shots[i] for i in order], np.array(names)[order]

    def visits(self, n: int, seed: int) -> list[Shot]:
        "Requests for what follows: the log's sessions, each up to one of its clicks."
        rng = np.random.default_rng([self.size.seed, 12, seed])
        which = rng.integers(len(self.begun) - 1, size=n)
        first, end = self.begun[which], self.begun[which + 1]
        last = first + 1 + (rng.random(n) * (end - first)).astype(np.int64)
        bodies = [
            {"items": list(map(master_id, self.clicks[a:b].tolist()))}
            for a, b in zip(first, last, strict=True)
        ]
        return [Shot("POST", "/v1/sessions/next", msgspec.json.encode(body)) for body in bodies]

    def touched(self, shots: Sequence[Shot]) -> set[int]:
        "The masters whose relations these requests read: of the page, and of the user's history."
        asked = [msgspec.json.decode(shot.body) for shot in shots]
        users = np.array([int(body["user_id"][1:]) for body in asked])
        pages = {int(body["master_id"][1:]) for body in asked if "master_id" in body}
        return pages | set(self.views(users).ravel().tolist())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    for field in msgspec.structs.fields(Size):
        parser.add_argument(f"--{field.name}", type=int, default=field.default, help=f"{field.default:,}")
    given = vars(parser.parse_args())
    home = given.pop("folder")
    build_set(home, Size(**given))
    print(f"{home} stands: VOXREC_HOME={home} voxrec serve recs")


if __name__ == "__main__":
    main()
