"""The n-gram of the domain model, from the phrases that ship: assets/models/domain/ngram.arpa.gz.

Run it after changing assets/intent/phrases.txt, then `make export`; tests/test_rescore.py compares.
"""

import random
import re
from pathlib import Path

from voxrec.voice.intent import DIALOGUE, INTENTS
from voxrec.voice.intent_train import MARK, bucket, expand, phrases
from voxrec.voice.rescore import UNKNOWN, NGram, count_ngrams, write_arpa

NUMBERS = (  # noqa: SIM905
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
ASSET = Path(__file__).parents[1] / "assets/models/domain/ngram.arpa.gz"


def spoken(text: str) -> list[str]:
    "The words as the model writes them: letters alone, numbers as words."

    def number(m: re.Match[str]) -> str:
        n = int(m[0])
        return f" {NUMBERS[n] if n < len(NUMBERS) else ' '.join(NUMBERS[int(d)] for d in m[0])} "

    text = re.sub(r"\d+", number, text.lower().replace("'", "").replace("-", " "))
    return [UNKNOWN if word == "qqq" else word for word in re.sub("[^a-z ]", " ", text).split()]


def sentences(n: int = 60_000, seed: int = 0) -> list[list[str]]:
    """What the grammar says, each pattern of an intent as often as the next; invented names are `<unk>`.

    Left out: the patterns kept back for judging, and the lines that only imitate mishearing.
    """
    grammar = {
        name: [re.sub(r"<invented(last)?>", "qqq", line) for line in lines if not line.startswith("(doug|")]
        for name, lines in phrases().items()
    }
    rng, found = random.Random(seed), set[str]()
    shares = {intent: 0.3 if intent in DIALOGUE else 1.0 for intent in INTENTS}
    for intent, share in shares.items():
        patterns = [p for p in grammar[intent] if bucket(p, 10)]
        for i in range(int(n * share / sum(shares.values()))):
            pattern = patterns[i % len(patterns)]
            text = expand(pattern.removeprefix("~"), grammar, rng)
            if pattern.startswith("~") and rng.random() < 0.3:
                text = f"{expand(rng.choice(grammar['opening']), grammar, rng)} {text}"
            if intent != "GENERAL_QUERY" and rng.random() < 0.15:
                ending = (
                    "please" if intent in DIALOGUE else expand(rng.choice(grammar["ending"]), grammar, rng)
                )
                text = f"{text} {ending}"
            found.add(MARK.sub(lambda m: m[2], text))
    return [spoken(text) for text in sorted(found)]


def make() -> NGram:
    return count_ngrams(sentences())


if __name__ == "__main__":
    write_arpa(make(), ASSET)
    print(f"{ASSET}: {ASSET.stat().st_size:,} bytes")
