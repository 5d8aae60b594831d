"""Word-level tokenizers: what is a word, which words are kept, what is counted, and that they load without us."""

import json
import subprocess
import sys
import tracemalloc
import types
from collections import Counter

import numpy as np
import pytest
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

from hf_rat.data.vocabulary import KINDS, segment, word_tokenizer


def tokens(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The film, it WAS good.", "the film , it was good ."),
        ("I don't; she CAN’T, isn't it?", "i do n't ; she ca n't , is n't it ?"),
        ("it's we'll they're I've I'd I'm", "it 's we 'll they 're i 've i 'd i 'm"),
        ("the 'quoted' boys' nt 'sound", "the ' quoted ' boys ' nt ' sound"),
        ("3.5% of 1,000, in 1999. 2nd", "3.5 % of 1,000 , in 1999 . 2nd"),
        ("bad...<br /><br/>good", "bad . . . good"),
        ("ＦＵＬＬ café cafe\u0301\tnaïve", "full café café naïve"),
        ("@user_name #tag :-)", "@ user_name # tag : - )"),
    ],
)
def test_english_words(text, words):
    tokenizer, _ = word_tokenizer([text])
    assert tokens(tokenizer, text) == words.split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("我爱iPhone12！你好", "我 爱 iphone12 ! 你 好"),
        ("价格是3.5％，WiFi6好", "价 格 是 3.5 % , wifi6 好"),
        ("カタ ひら 𠀀𠀁 人々", "カ タ ひ ら 𠀀 𠀁 人 々"),
        ("한국어 e-mail", "한국어 e - mail"),
    ],
)
def test_chinese_characters_stand_alone_and_other_scripts_stay_whole(text, words):
    tokenizer, _ = word_tokenizer([text], kind="characters")
    assert tokens(tokenizer, text) == words.split()


def test_case_can_be_kept():
    tokenizer, _ = word_tokenizer(["Apple apple"], lowercase=False)
    assert tokens(tokenizer, "Apple apple APPLE") == ["Apple", "apple", "<unk>"]


def test_words_are_numbered_by_falling_count_and_then_by_their_characters():
    texts = ["b b b a c", "d a c", "e b"]
    by_hand = {"<pad>": 0, "<unk>": 1, "b": 2, "a": 3, "c": 4, "d": 5, "e": 6}
    for order in (texts, texts[::-1]):
        tokenizer, counts = word_tokenizer(order)
        assert tokenizer.get_vocab() == by_hand
        assert counts.tolist() == [0, 0, 4, 2, 2, 1, 1]


def test_rare_words_and_those_beyond_the_size_are_unknown_and_counted_there():
    texts = ["b b b a a c c d"]
    tokenizer, counts = word_tokenizer(texts, min_count=2)
    assert (len(tokenizer), counts.tolist()) == (5, [0, 1, 3, 2, 2])
    tokenizer, counts = word_tokenizer(texts, max_size=4)
    assert sorted(tokenizer.get_vocab()) == ["<pad>", "<unk>", "a", "b"]
    assert counts.tolist() == [0, 3, 3, 2]
    assert tokens(tokenizer, "a c b") == ["a", "<unk>", "b"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end_token", [False, True])
def test_the_counts_are_those_of_the_encoded_texts(kind, end_token):
    generator = np.random.default_rng(0)
    parts = [
        "don't",
        "Good",
        "<unk>",
        "x<unk>y",
        "我们",
        "3.5",
        "...",
        "<eos>",
        "n't",
        " ",
        "<br />",
        "it's",
        "<",
        "好a",
    ]
    texts = [" ".join(generator.choice(parts, size=generator.integers(0, 30))) for _ in range(60)]
    tokenizer, counts = word_tokenizer(iter(texts), kind=kind, min_count=2, max_size=12, end_token=end_token)
    seen = Counter(row for text in texts for row in tokenizer(text)["input_ids"])
    assert {row: n for row, n in enumerate(counts.tolist()) if n} == dict(seen)
    assert len(counts) == len(tokenizer) == tokenizer.vocab_size <= 12


def test_special_tokens():
    tokenizer, _ = word_tokenizer(["a b"])
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id) == (0, 1, None)
    tokenizer, _ = word_tokenizer(["a b"], end_token=True)
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.bos_token_id) == ("<eos>", 2, 2)
    assert tokens(tokenizer, "b a") == ["b", "a", "<eos>"]
    assert tokenizer("a", "b")["input_ids"] == [3, 2, 4, 2]
    assert tokenizer("a a a a", truncation=True, max_length=3)["input_ids"] == [3, 3, 2]
    assert tokenizer.decode([3, 4, 2], skip_special_tokens=True) == "a b"


def test_no_type_ids_and_the_stated_length():
    tokenizer, _ = word_tokenizer(["a b"], max_length=3)
    assert list(tokenizer("a")) == ["input_ids", "attention_mask"]
    assert tokenizer("a " * 9, truncation=True)["input_ids"] == [2, 2, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_empty_texts_give_no_tokens_and_can_be_padded(kind):
    tokenizer, _ = word_tokenizer(["", "a b", " \t "], kind=kind)
    for empty in ("", " \n ", "\u3000"):
        assert tokenizer(empty)["input_ids"] == []
    batch = tokenizer(["", "b a"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[0, 0], [3, 2]]
    assert batch["attention_mask"].tolist() == [[0, 0], [1, 1]]
    rows = [dict(tokenizer(text)) for text in ("a", "")]
    assert DataCollatorWithPadding(tokenizer)(rows)["input_ids"].tolist() == [[2], [0]]
    assert not DataCollatorWithPadding(tokenizer)(rows[1:])["input_ids"].is_floating_point()


def test_saved_tokenizers_load_in_an_interpreter_that_cannot_import_us(tmp_path):
    text, expected = "I don't know: 我们 3.5 zzz <unk>", []
    for kind in KINDS:
        tokenizer, _ = word_tokenizer([text[:-10]], kind=kind, max_length=7, end_token=True)
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        tokenizer.save_pretrained(tmp_path / kind)
        segmentation = "jieba" if kind == "jieba" else None
        expected.append([dict(tokenizer(text, truncation=True)), len(tokenizer), segmentation])
    code = (
        "import json, sys; sys.modules['hf_rat'] = None\n"
        "from transformers import AutoTokenizer, PreTrainedTokenizerFast\n"
        "for kind in sys.argv[2:]:\n"
        "    tokenizer = AutoTokenizer.from_pretrained(kind)\n"
        "    assert isinstance(tokenizer, PreTrainedTokenizerFast)\n"
        "    kept = tokenizer.init_kwargs.get('segmentation')\n"
        "    print(json.dumps([dict(tokenizer(sys.argv[1], truncation=True)), len(tokenizer), kept]))"
    )
    command = [sys.executable, "-c", code, text, *KINDS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected


def test_memory_does_not_grow_with_the_number_of_texts():
    def peak(number):
        tracemalloc.start()
        word_tokenizer(f"word{text % 7} " * 1000 for text in range(number))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(2)  # imports and caches
    assert peak(60) < 2 * peak(6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "bytes"}, "kind='bytes' is none of words, spaces, characters, jieba"),
        ({"min_count": 0}, "min_count=0 must be at least 1"),
        ({"min_count": 5}, "min_count=5 leaves no word: the most frequent one occurs 2 times"),
        ({"max_size": 2}, "max_size=2 leaves no room beside <pad>, <unk>"),
        ({"max_size": 3, "end_token": True}, "max_size=3 leaves no room"),
        ({"texts": ["", "  "]}, "there is no word in the 2 texts"),
        ({"texts": []}, "there is no word in the 0 texts"),
        ({"texts": ["a", None]}, "text 1 is None, which is not text"),
    ],
)
def test_errors_of_one_line(arguments, message):
    with pytest.raises(ValueError, match="vocabulary") as error:
        word_tokenizer(**({"texts": ["a a b"]} | arguments))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_jieba_words_come_before_the_tokenizer(monkeypatch):
    jieba = types.ModuleType("jieba")
    jieba.setLogLevel = lambda level: None
    jieba.cut = lambda text: [text[start : start + 2] for start in range(0, len(text), 2)]
    monkeypatch.setitem(sys.modules, "jieba", jieba)
    texts = ["我们喜欢  电影", "", "好"]
    assert list(segment(texts)) == ["我们 喜欢 电影", "", "好"]
    tokenizer, counts = word_tokenizer(segment(texts), kind="jieba")
    assert tokens(tokenizer, next(segment(["电影我们不不"]))) == ["电影", "我们", "<unk>"]
    assert counts.tolist() == [0, 0, 1, 1, 1, 1]


def test_a_tokenizer_of_jieba_s_words_cuts_texts_by_itself(tmp_path):
    """The most probable way by hand: p(ab) = 3/12 > p(a) p(b) = 2/144, and p(abc) = 1/12 > p(ab) p(c) = 1/24."""
    counts = {"甲乙": 3, "甲": 2, "乙": 1, "丙": 2, "甲乙丙": 1, "丁": 3}
    texts = [" ".join([word] * count) for word, count in counts.items()]
    tokenizer, _ = word_tokenizer(texts, kind="jieba")
    tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text, words in (("丁甲乙丁", "丁 甲乙 丁"), ("甲乙丙丁", "甲乙丙 丁"), ("乙甲甲乙，", "乙 甲 甲乙 <unk>")):
        assert tokens(tokenizer, text) == tokens(loaded, text) == words.split()


def test_without_jieba_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(ValueError, match=r"pip install 'hf-rat\[jieba\]'"):
        segment(["我们"])


def test_the_words_are_those_that_jieba_finds():
    pytest.importorskip("jieba")
    texts = ["我来到北京清华大学", "我们喜欢这部电影", "小明硕士毕业于中国科学院计算所，后在日本京都大学深造"]
    tokenizer, _ = word_tokenizer(segment(texts), kind="jieba")
    for text, words in zip(texts, segment(texts), strict=True):
        assert tokens(tokenizer, text) == words.replace("，", ",").split()


def test_the_real_jieba_finds_words():
    pytest.importorskip("jieba")
    assert list(segment(["我来到北京清华大学"])) == ["我 来到 北京 清华大学"]
