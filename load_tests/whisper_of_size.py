"""A CTranslate2 Whisper of any size with random weights: as slow as a trained one, and as ignorant as noise.

    python load_tests/whisper_of_size.py base FOLDER [--multilingual]

For questions of speed alone. It never says that a sentence is over: every text is nonsense and goes on to the
token limit, so the gates reject it all. Who compares models sets the same limit for each.

Its tokenizer is tiny.en's; the multilingual one has that at a multilingual Whisper's ids. No torch.
"""

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs.model_spec import LayerSpec
from ctranslate2.specs.whisper_spec import WhisperSpec
from msgspec import Struct

from voxrec.voice.transcribe import model_folder


class Size(Struct, frozen=True):
    "The shape of encoder and decoder: width, layers of each, heads, mel channels."

    width: int
    layers: int
    heads: int
    mels: int = 80


SIZES = {"tiny": Size(384, 4, 6), "base": Size(512, 6, 8), "small": Size(768, 12, 12)}
"Radford and others (2022), table 1: 39M, 74M and 244M parameters."
AUDIO_CONTEXT, TEXT_CONTEXT, VOCABULARY, EOT = 1500, 448, 51_864, 50_256


def tokenizer_of(folder: Path, multilingual: bool) -> dict[str, Any]:
    "tokenizer.json as it is in `folder`, or with everything from <|endoftext|> on moved up by one."
    found: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if multilingual:
        words = found["model"]["vocab"]
        words[""] = words.pop("<|endoftext|>")  # what a multilingual Whisper has at 50256
        for token in found["added_tokens"]:
            token["id"] += 1
        found["post_processor"] = None  # names ids; nobody here asks it
    return found


def vocabulary_of(tokenizer: dict[str, Any], n: int) -> list[str]:
    "The token of each id; the last ones are times."
    names = {i: text for text, i in tokenizer["model"]["vocab"].items()}
    names |= {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    times = [f"<|{i * 0.02:.2f}|>" for i in range(n - len(names))]
    return [names[i] for i in range(len(names))] + times


class Dice:
    "Weights by chance, of such a size that what goes through them stays of one size."

    def __init__(self, seed: int):
        self._rng = np.random.default_rng(seed)

    def table(self, *shape: int, scale: float) -> np.ndarray:
        return self._rng.standard_normal(shape, np.float32) * np.float32(scale)

    def linear(self, spec: Any, rows: int, *columns: int) -> None:
        spec.weight = self.table(rows, *columns, scale=float(np.prod(columns)) ** -0.5)
        spec.bias = np.zeros(rows, np.float32)

    def attention(self, spec: Any, width: int) -> None:
        "Of a layer on itself: queries, keys and values in one. Across: keys and values in one."
        for linear, parts in zip(spec.linear, (3, 1) if len(spec.linear) == 2 else (1, 2, 1), strict=True):
            self.linear(linear, parts * width, width)

    def layer(self, spec: Any, width: int) -> None:
        self.attention(spec.self_attention, width)
        if hasattr(spec, "attention"):
            self.attention(spec.attention, width)
        self.linear(spec.ffn.linear_0, 4 * width, width)
        self.linear(spec.ffn.linear_1, width, 4 * width)


def level(spec: Any, width: int) -> None:
    "Layer norms, wherever they are, as training begins with them."
    for name, part in vars(spec).items():
        if name == "layer_norm":
            part.gamma, part.beta = np.ones(width, np.float32), np.zeros(width, np.float32)
        else:
            for inner in part if isinstance(part, list) else [part]:
                if isinstance(inner, LayerSpec):
                    level(inner, width)


def random_spec(size: Size, vocabulary: int, seed: int) -> WhisperSpec:
    "The model before it is quantised."
    spec, dice, width = WhisperSpec(*[size.layers, size.heads] * 2), Dice(seed), size.width
    encoder, decoder = spec.encoder, spec.decoder
    dice.linear(encoder.conv1, width, size.mels, 3)
    dice.linear(encoder.conv2, width, width, 3)
    encoder.position_encodings.encodings = dice.table(AUDIO_CONTEXT, width, scale=0.1)
    decoder.position_encodings.encodings = dice.table(TEXT_CONTEXT, width, scale=0.1)
    decoder.embeddings.weight = dice.table(vocabulary, width, scale=0.1)
    decoder.projection.weight = decoder.embeddings.weight  # tied, as Whisper's are
    decoder.projection.bias = np.zeros(vocabulary, np.float32)
    decoder.projection.bias[EOT + (vocabulary > VOCABULARY)] = -1e4  # else it would end by chance
    for layer in (*encoder.layer, *decoder.layer):
        dice.layer(layer, width)
    level(encoder, width)
    level(decoder, width)
    return spec


def parameters(spec: WhisperSpec) -> int:
    "How many numbers it has, of a spec that was not validated yet; the tied ones once."
    arrays = {id(v): v.size for v in spec.variables().values() if isinstance(v, np.ndarray)}
    return sum(arrays.values())


def whisper_of_size(
    folder: Path, size: str | Size = "base", *, multilingual: bool = False, seed: int = 0
) -> int:
    "Write the model, int8, into `folder`, which is made; gives the number of its parameters."
    shape = SIZES[size] if isinstance(size, str) else size
    known = model_folder("tiny.en")
    tokenizer, shift = tokenizer_of(known, multilingual), int(multilingual)
    spec = random_spec(shape, VOCABULARY + shift, seed)
    spec.register_vocabulary(vocabulary_of(tokenizer, VOCABULARY + shift))
    config = json.loads((known / "config.json").read_text(encoding="utf-8"))
    spec.config.suppress_ids = [i + shift * (i >= EOT) for i in config["suppress_ids"]]
    spec.config.suppress_ids_begin = [i + shift * (i >= EOT) for i in config["suppress_ids_begin"]]
    spec.config.lang_ids = [i + shift - 1 for i in config["lang_ids"]] + [max(config["lang_ids"]) + shift]
    half = range(shape.layers // 2, shape.layers)
    spec.config.alignment_heads = list(product(half, range(shape.heads)))  # what a converter takes, unasked
    n = parameters(spec)
    spec.validate()
    spec.optimize("int8")
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    return n


def main() -> None:
    parser = argparse.ArgumentParser(description="a CTranslate2 Whisper of random weights")
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--multilingual", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    n = whisper_of_size(asked.folder, asked.size, multilingual=asked.multilingual, seed=asked.seed)
    print(f"{asked.folder}: {n / 1e6:.0f}M parameters, int8")


if __name__ == "__main__":
    main()
