"""Names as they are heard: ambiguous, by alias, misspelt, with spoken numbers; and what must not match."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxrec.config import Person, Team, Tenant
from voxrec.voice.directory import Directory, Match, numbers_read, spoken

ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen"""
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
SITE = Directory(
    Tenant(
        id="north",
        people=(
            Person("John Kowalski", ("Johnny", "the boss")),
            Person("John Smith"),
            Person("Anna Schmidt"),
            Person("Stephen O'Brien"),
            Person("Łukasz Żak"),
            Person("Maria"),
        ),
        teams=(
            Team("maintenance", ("the fitters", "engineering")),
            Team("first aid", ("medics",)),
            Team("forklift team"),
            Team("IT"),
        ),
        places=("dock 7", "dock 17", "Dock-21", "aisle 112", "zone B", "zone C", "cold storage", "line 4"),
    )
)


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("zero", "0"),
        ("twenty", "20"),
        ("twenty-two", "22"),
        ("ninety nine", "99"),
        ("one hundred", "100"),
        ("three hundred and forty seven", "347"),
        ("three hundred seven", "307"),
        ("nine oh two", "9 0 2"),
        ("twelve eighty", "12 80"),
        ("twenty twenty", "20 20"),
        ("twenty ten", "20 10"),
        ("twenty zero", "20 0"),
        ("one two three", "1 2 3"),
        ("two hundred hundred", "200 hundred"),
        ("and a hundred", "and a hundred"),
        ("007", "7"),
    ],
)
def test_numbers(said: str, read: str) -> None:
    assert " ".join(spoken(said)) == read


@given(st.integers(0, 999))
def test_every_number_below_a_thousand_is_read(n: int) -> None:
    ones, tens = ONES.split(), ["", "", *TENS.split()]
    rest = n % 100
    words = [ones[n // 100], "hundred"] if n >= 100 else []
    if rest >= 20:
        words += [tens[rest // 10]] + ([ones[rest % 10]] if rest % 10 else [])
    elif rest or not words:
        words.append(ones[rest])
    assert numbers_read(words) == [str(n)]


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("dock seven", "dock 7"),
        ("Dock 7.", "dock 7"),
        ("the doc seven", "dock 7"),
        ("dock seventeen", "dock 17"),
        ("dock twenty one", "Dock-21"),
        ("aisle one hundred and twelve", "aisle 112"),
        ("isle one hundred twelve", "aisle 112"),
        ("zone be", "zone B"),
        ("zone see", "zone C"),
        ("line for", "line 4"),
        ("cold storage", "cold storage"),
        ("the cold storage please", "cold storage"),
    ],
)
def test_places(said: str, name: str) -> None:
    match = SITE.place(said)
    assert match is not None and match.name == name and match.sure, match


@pytest.mark.parametrize(
    "said", ["dock nine", "dock seventy", "dock 71", "zone D", "gate 7", "7 8 9", "line"]
)
def test_places_that_are_not_there(said: str) -> None:
    match = SITE.place(said)
    assert match is None or not match.sure, match


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("John Kowalski", "John Kowalski"),
        ("jon kowalsky", "John Kowalski"),
        ("Mr. Kowalski", "John Kowalski"),
        ("johnny", "John Kowalski"),
        ("the boss", "John Kowalski"),
        ("Steven O'Brian", "Stephen O'Brien"),
        ("Anna Shmidt", "Anna Schmidt"),
        ("Lukasz", "Łukasz Żak"),
        ("Hannah", "Anna Schmidt"),
    ],
)
def test_people(said: str, name: str) -> None:
    match = SITE.person(said)
    assert match is not None and match.name == name and match.sure, match


@pytest.mark.parametrize("said", ["John Brown", "Marta", "Mario", "Anna Kowalski", "Dave in receiving"])
def test_another_person_is_never_sure(said: str) -> None:
    match = SITE.person(said)
    assert match is None or not match.sure, match


def test_ambiguity_is_said() -> None:
    match = SITE.person("John")
    assert match is not None and match.candidates == ("John Kowalski", "John Smith") and not match.sure
    dock = SITE.place("the dock")
    assert dock is not None and dock.candidates == ("dock 7", "dock 17", "Dock-21")
    twins = Directory(Tenant(id="t", people=(Person("Kim Lee", ("Kimmy",)), Person("Kim Li", ("Kimmy",)))))
    kimmy = twins.person("Kimmy")
    assert kimmy is not None and set(kimmy.candidates) == {"Kim Lee", "Kim Li"}


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("maintenance", "maintenance"),
        ("the maintenance crew", "maintenance"),
        ("fitters", "maintenance"),
        ("medic", "first aid"),
        ("a forklift", "forklift team"),
        ("IT", "IT"),
        ("I.T.", "IT"),
    ],
)
def test_teams(said: str, name: str) -> None:
    match = SITE.team(said)
    assert match is not None and match.name == name, match


def test_a_team_misspelt_is_found_and_asked() -> None:
    assert SITE.team("maintainence") == Match("maintenance", SITE.team("maintainence").score)  # type: ignore[union-attr]
    assert SITE.team("security") is None and SITE.team("the team") is None


@given(st.text(max_size=200))
def test_any_text_is_taken(text: str) -> None:
    for match in (SITE.person(text), SITE.team(text), SITE.place(text)):
        assert match is None or (0.7 <= match.score <= 1 and len(match.candidates) != 1)


def test_a_large_site_and_a_long_text_are_quick() -> None:
    large = Directory(
        Tenant(id="big", people=tuple(Person(f"Name{i:04} Family{i % 97}") for i in range(2_000)))
    )
    began = time.process_time()
    assert large.person("word " * 10_000) is None
    large.person("Name nineteen Family")
    assert time.process_time() - began < 2
