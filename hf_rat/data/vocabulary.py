"""Word-level fast tokenizers built from the training texts, saved and loaded like any other.

tokenizer, counts = word_tokenizer(data["train"]["text"], kind="words", min_count=2, max_length=400)
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer
from tokenizers.models import Unigram, WordLevel
from tokenizers.normalizers import NFKC, Lowercase, Normalizer, Replace, Sequence
from tokenizers.pre_tokenizers import PreTokenizer, Split, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

PAD, UNK, EOS = "<pad>", "<unk>", "<eos>"
KINDS = ("words", "spaces", "characters", "jieba")

_NUMBER = r"\d+(?:[.,]\d+)*(?!\w)"
_ENDING = r"[nN]'[tT]\b|'(?:[sSmMdD]|[rRvV][eE]|[lL][lL])\b"
_EAST_ASIAN = r"\p{Han}\p{Hiragana}\p{Katakana}"
_PATTERNS = {
    # "don't" is "do" and "n't", "it's" is "it" and "'s", as in the Penn Treebank and so in GloVe's vocabularies.
    "words": rf"{_NUMBER}|(?:[^\WnN]|[nN](?!'[tT]\b))+|{_ENDING}|[^\s\w]",
    "characters": rf"{_NUMBER}|[{_EAST_ASIAN}]|[\w&&[^{_EAST_ASIAN}]]+|[^\s\w]",
}


_EAST_ASIAN_CHARACTER = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]")


def is_east_asian(texts: Iterable[str]) -> bool:
    """Whether most of the letters are Chinese or Japanese, which puts no spaces between words."""
    letters = "".join(character for text in texts for character in text if character.isalpha())
    return 2 * len(_EAST_ASIAN_CHARACTER.findall(letters)) > len(letters)


def _normalizer(lowercase: bool) -> Normalizer:
    """Compatible forms of Unicode, straight apostrophes, and a space for a line break of HTML (IMDB has them)."""
    parts: list[Normalizer] = [NFKC(), Replace("’", "'"), Replace(Regex(r"<br\s*/?>"), " ")]
    return Sequence([*parts, Lowercase()] if lowercase else parts)


def _splitter(kind: str) -> PreTokenizer:
    if kind in ("spaces", "jieba"):
        return WhitespaceSplit()
    return Split(Regex(_PATTERNS[kind]), behavior="removed", invert=True)


def segment(texts: Iterable[str]) -> Iterator[str]:
    """Chinese texts with spaces between jieba's words: what `kind="jieba"` counts its words in.

    Texts come one by one, in their order.

    Raises:
        ValueError: jieba is not installed.
    """
    try:
        import jieba
    except ImportError as error:
        raise ValueError("jieba words need the package jieba: pip install 'hf-rat[jieba]'") from error
    jieba.setLogLevel(logging.WARNING)
    return (" ".join(word for word in jieba.cut(text) if not word.isspace()) for text in texts)


def word_tokenizer(
    texts: Iterable[str],
    kind: str = "words",
    min_count: int = 1,
    max_size: int | None = None,
    lowercase: bool = True,
    max_length: int = 512,
    end_token: bool = False,
) -> tuple[PreTrainedTokenizerFast, np.ndarray]:
    """A tokenizer with one token for each word of the texts, which are read once; only the words' counts are kept.

    Token 0 is `<pad>`, 1 is `<unk>`, then the words by falling count, those of equal count in the order of their
    characters. No type ids; a text without words gives no tokens.

    A tokenizer that calls Python cannot be saved, so one for "jieba" does what jieba does: of all ways to cut a text
    into words that it knows it takes the most probable one, by their counts (Unigram). It reads texts as they are, and
    where it is used jieba is not needed. It says so in its `init_kwargs["segmentation"]`, also after loading.

    Args:
        texts: of the training split; for "jieba", what `segment` made of them.
        kind: "words" (punctuation apart, English endings as in GloVe), "spaces" (what stands between spaces, of texts
            that are cut into words already), "characters" (one token for each Chinese or
            Japanese character, words and numbers of other scripts whole), or "jieba" (words that jieba finds).
        min_count: words that occur less often are left to `<unk>`.
        max_size: size of the vocabulary at most, special tokens included; None: no limit.
        lowercase: whether case is dropped.
        max_length: the `model_max_length`, where `truncation=True` cuts.
        end_token: token 2 is `<eos>` and ends every text; for language models, where it also begins them, as in GPT-2.

    Returns:
        The tokenizer, and how often each of its tokens occurs in the texts, (vocabulary,) int64; what is left to
        `<unk>` counts there.

    Raises:
        ValueError: a bad argument, a text that is not a string, or no word at all.
    """
    special = [PAD, UNK, *([EOS] if end_token else [])]
    if kind not in KINDS:
        raise ValueError(f"vocabulary kind={kind!r} is none of {', '.join(KINDS)}")
    if min_count < 1:
        raise ValueError(f"vocabulary min_count={min_count} must be at least 1")
    if max_size is not None and max_size <= len(special):
        raise ValueError(f"vocabulary max_size={max_size} leaves no room beside {', '.join(special)}")
    normalizer, splitter = _normalizer(lowercase), _splitter(kind)
    counted, number = count_words(texts, normalizer, splitter, special)
    seen = {token: counted.pop(token, 0) for token in special}
    if not counted:
        raise ValueError(f"vocabulary: there is no word in the {number} texts")
    ordered = sorted(counted, key=lambda word: (-counted[word], word))
    kept = [word for word in ordered if counted[word] >= min_count]
    kept = kept if max_size is None else kept[: max_size - len(special)]
    if not kept:
        most = counted[ordered[0]]
        raise ValueError(
            f"vocabulary min_count={min_count} leaves no word: the most frequent one occurs {most} times; lower it, "
            "or take kind='characters' for texts without spaces between words"
        )
    seen[UNK] += sum(counted.values()) - sum(counted[word] for word in kept)
    if end_token:
        seen[EOS] += number
    vocabulary = {token: row for row, token in enumerate([*special, *kept])}
    if kind == "jieba":
        total = sum(counted[word] for word in kept)
        chances = [math.log(counted[word] / total) for word in kept]
        scores = [2 * min(chances)] * len(special) + chances  # the special tokens are never cut out of a text
        model: Any = Unigram(list(zip(vocabulary, scores, strict=True)), unk_id=vocabulary[UNK])
    else:
        model = WordLevel(vocabulary, unk_token=UNK)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    if end_token:
        tokenizer.post_processor = TemplateProcessing(
            single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, vocabulary[EOS])]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        pad_token=PAD,
        unk_token=UNK,
        **({"bos_token": EOS, "eos_token": EOS} if end_token else {}),
        **({"segmentation": "jieba"} if kind == "jieba" else {}),
    )
    return fast, np.array([*seen.values(), *(counted[word] for word in kept)], dtype=np.int64)


def count_words(
    texts: Iterable[str], normalizer: Normalizer, splitter: PreTokenizer, special: list[str]
) -> tuple[Counter[str], int]:
    """How often each word and special token occurs, as the tokenizer will cut the texts; and the number of texts."""
    marks = re.compile("|".join(map(re.escape, special)))
    counts: Counter[str] = Counter()
    number = 0
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise ValueError(f"vocabulary: text {number - 1} is {text!r}, which is not text")
        pieces = [text]
        if "<" in text:  # a special token written in a text, as <unk> in Penn Treebank's, is taken for that token
            counts.update(marks.findall(text))
            pieces = marks.split(text)
        for piece in pieces:
            counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(piece)))
    return counts, number
