"""The tokenizers. Every word of the captions is one token. Other text becomes characters or bytes."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

from fluxexp.data.shapes.palette import BACKGROUND_KINDS, COLORS, SHAPES, SIZES, TEXTURES, TONES

TEXT_TOKENS = 32
"""Length of a tokenized prompt. The longest caption of a scene fits, with a period and the start and end tokens."""

_GRAMMAR = "a an and against at background bottom center gray grey in is left of on picture right the there top with"
_MARKS = ",.!?;:'\"-()/"
_CHARACTERS = [chr(code) for code in range(33, 127)]
_START, _END = "<|startoftext|>", "<|endoftext|>"


def words() -> list[str]:
    """All words that captions can contain, sorted."""
    return sorted({*COLORS, *SHAPES, *TEXTURES, *SIZES, *TONES, *BACKGROUND_KINDS, *_GRAMMAR.split()})


def clip_tokenizer() -> Any:
    """A `CLIPTokenizer` whose merges make each of `words` one token. Other text becomes bytes or pieces of words."""
    from transformers import CLIPTokenizer

    merges = _learn_merges(words())
    pieces = [first + second for first, second in merges]
    alphabet = _byte_alphabet()
    tokens = [*alphabet, *(character + "</w>" for character in alphabet), *pieces, _START, _END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_TOKENS)


def t5_tokenizer() -> Any:
    """A `T5Tokenizer` (unigram) with `words`, capitalized words, punctuation and single characters as tokens."""
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    whole = [("▁" + word, -4.0) for word in words()]
    capital = [("▁" + word.capitalize(), -4.0) for word in words()]
    marks = [(mark, -4.0) for mark in _MARKS]
    single = [("▁", -8.0), *((character, -8.0) for character in _CHARACTERS if character not in _MARKS)]
    return T5Tokenizer(vocab=special + whole + capital + marks + single, extra_ids=0, model_max_length=TEXT_TOKENS)


def _learn_merges(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding until every word is one piece. The most frequent pair comes first, then alphabetical order."""
    split = [[*word[:-1], word[-1] + "</w>"] for word in vocabulary]
    merges = []
    while any(len(pieces) > 1 for pieces in split):
        pairs = Counter(pair for pieces in split for pair in pairwise(pieces))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merge(pieces, best) for pieces in split]
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def _byte_alphabet() -> list[str]:
    """The printable characters that stand for the 256 bytes in GPT-2's byte-level pre-tokenizer."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
