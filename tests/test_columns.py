"Ids and texts in growing arrays, held to a dict and a list; hashes that collide, tables that wrap around."

import zlib
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import voxrec.recs.columns as module
from voxrec.errors import DataError
from voxrec.recs.columns import Columns, Index, Rows, Texts, new_table

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@given(st.lists(st.tuples(TEXT, st.booleans())), st.sampled_from([1, 3, 2**31, 2**32]))
def test_an_index_is_a_dict_that_numbers(steps: list[tuple[str, bool]], hashes: int) -> None:
    "With few different hashes most ids share a home slot; those above 2^31 start near the end and wrap."
    model: dict[str, int] = {}
    columns = Columns()
    index = Index(columns, "id")
    low = 0 if hashes > 3 else 2**32 - hashes
    with patch.object(module, "crc32", lambda key: low + zlib.crc32(key) % hashes):
        for name, again in steps:
            assert index.get(name) == model.get(name) and (name in index) == (name in model)
            assert index.add(name) == model.setdefault(name, len(model))
            if again:  # written and opened again
                index.tidy()
                columns = Columns(*columns.packed())
                index = Index(columns, "id")
        assert dict(index) == model and list(index.names) == list(model)
        assert all(index[name] == number for name, number in model.items())
    assert index.get("\ud800") is None and 7 not in index
    with pytest.raises(KeyError):
        index["longer than any"]


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 9)), unique=True), st.data())
def test_a_table_made_at_once_is_as_good_as_one_filled(
    pairs: list[tuple[int, int]], data: st.DataObject
) -> None:
    entries = [hashed << 32 | number for hashed, number in pairs]
    slots = data.draw(st.integers(len(entries) + 1, 3 * len(entries) + 2))
    table = new_table(np.array(entries, np.uint64), slots).tolist()
    assert sorted(filter(None, table)) == sorted(entries)
    for entry in entries:
        slot = (entry >> 32) * slots >> 32
        while table[slot] != entry:
            assert table[slot], "an empty slot before it would end the search"
            slot = (slot + 1) % slots


@given(st.data())
def test_texts_are_a_list(data: st.DataObject) -> None:
    columns, model = Columns(), list[str]()
    texts = Texts(columns, "t")
    for step in data.draw(st.lists(st.sampled_from(["append", "set", "tidy", "again"]))):
        if step == "append" or not model:
            model.append(data.draw(TEXT))
            texts.append(model[-1])
        elif step == "set":
            i = data.draw(st.integers(0, len(model) - 1))
            texts[i] = model[i] = data.draw(TEXT)
        elif step == "tidy":
            texts.tidy()
            assert texts.data.n == len("".join(model).encode())
        else:
            columns = Columns(*columns.packed())
            texts = Texts(columns, "t")
        assert list(texts) == model and len(texts) == len(model)
        assert texts[-1] == model[-1] and texts[1:] == model[1:] and texts[::-1] == model[::-1]
    for i in (len(model), -len(model) - 1):
        with pytest.raises(IndexError):
            texts[i]


def test_what_is_at_hand_is_bounded_and_never_stale() -> None:
    columns = Columns()
    index = Index(columns, "id")
    with patch.object(module, "NEAR", 3):
        for n in range(10):
            index.add(f"a{n}")
            assert all(index[f"a{m}"] == m and index.names[m] == f"a{m}" for m in range(n + 1))
            assert len(index._near) <= 3 and len(index.names._near) <= 3


def test_rows_move_seldom() -> None:
    rows, moves, room = Rows(np.zeros(0, np.int32)), 0, -1
    for n in range(100_000):
        rows.append(n)
        moves, room = moves + (room != len(rows.room)), len(rows.room)
    assert rows.used.tolist() == list(range(100_000)) and moves < 30


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"id_size": None}, "no array 'id_size'"),
        ({"id_size": np.zeros(40, np.int64)}, "id_size"),
        ({"id_start": np.zeros((40, 1), np.int64)}, "id_start"),
        ({"id_data": np.zeros(1, np.uint8)}, "id_data"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict, told: str) -> None:
    columns = Columns()
    Index(columns, "id").add("kettle")
    arrays, used = columns.packed()
    arrays = {name: a for name, a in (arrays | change).items() if a is not None}
    with pytest.raises(DataError, match=told):
        Index(Columns(arrays, used), "id")


@pytest.mark.parametrize(
    ("name", "n", "told"), [("id_start", 0, "0 starts"), ("id_table", 1, "1 slots"), ("id_size", -1, "-1")]
)
def test_counts_that_do_not_fit_are_refused(name: str, n: int, told: str) -> None:
    columns = Columns()
    Index(columns, "id").add("kettle")
    arrays, used = columns.packed()
    with pytest.raises(DataError, match=told):
        Index(Columns(arrays, used | {name: n}), "id")
