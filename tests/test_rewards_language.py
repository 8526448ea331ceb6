"""Language consistency: languages told apart, mixtures measured, and everything that is no language left out."""

import json
import random
import re
import statistics
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.errors import RewardError
from r1jax.rewards import RewardPool, language_consistency, language_share
from r1jax.rewards.language import _LETTERS, _SCRIPTS, LANGUAGES

DATA = Path(__file__).parents[2] / "shared" / "data"

THOUGHTS = {
    "en": "First I work out how many apples Tom has. He buys three bags of four apples each, so twelve. He eats "
    "two and ten remain. Wait, I have to check the discount.",
    "fr": "D'abord, je calcule combien de pommes Tom possède. Il achète trois sacs de quatre pommes, donc douze. "
    "Il en mange deux et il en reste dix. Attends, je dois vérifier la remise.",
    "de": "Zuerst berechne ich, wie viele Äpfel Tom hat. Er kauft drei Tüten mit je vier Äpfeln, also zwölf. "
    "Davon isst er zwei, bleiben zehn. Warte, ich muss noch den Rabatt prüfen.",
    "es": "Primero calculo cuántas manzanas tiene Tomás. Compra tres bolsas de cuatro manzanas, así que tiene "
    "doce. Se come dos y le quedan diez. Espera, debo comprobar el descuento.",
    "it": "Prima calcolo quante mele ha Tom. Compra tre sacchetti da quattro mele, quindi dodici. Ne mangia due "
    "e ne restano dieci. Aspetta, devo controllare lo sconto.",
    "pt": "Primeiro calculo quantas maçãs o Tom tem. Ele compra três sacos de quatro maçãs, portanto doze. Come "
    "duas e restam dez. Espera, preciso verificar o desconto.",
    "ru": "Сначала посчитаем, сколько яблок у Тома. Он купил три пакета по четыре яблока, то есть двенадцать. "
    "Два он съел, осталось десять. Подождите, нужно проверить скидку.",
    "uk": "Спочатку порахуємо, скільки яблук у Тома. Він купив три пакети по чотири яблука, тобто дванадцять. "
    "Два він з'їв, залишилося десять. Зачекайте, треба перевірити знижку.",
    "zh": "首先计算汤姆有多少个苹果。他买了三袋，每袋四个，所以一共十二个。他吃了两个，还剩十个。等等，我需要检查"
    "一下折扣。",
    "ja": "まずトムがリンゴを何個持っているか計算します。四個入りの袋を三つ買ったので、合計十二個です。二個食べる"
    "と十個残ります。待って、割引を確認する必要があります。",
    "ko": "먼저 톰이 가진 사과가 몇 개인지 계산합니다. 그는 사과 네 개가 든 봉지를 세 개 샀으므로 모두 열두 "
    "개입니다. 두 개를 먹으면 열 개가 남습니다.",
    "ar": "أولاً أحسب عدد التفاح الذي يملكه توم. يشتري ثلاثة أكياس في كل منها أربع تفاحات، أي اثنتا عشرة تفاحة. "
    "يأكل اثنتين وتبقى عشر.",
    "hi": "पहले मैं गिनता हूँ कि टॉम के पास कितने सेब हैं। वह चार सेबों वाले तीन थैले खरीदता है, यानी बारह सेब। वह दो खा लेता है।",
}


def score(completion, language):
    return language_consistency(["p"], [completion], [language], answer=["8"])[0]


@pytest.mark.parametrize("language", THOUGHTS)
def test_each_language_is_itself_and_no_other(language):
    for target in THOUGHTS:
        assert score(f"<think>{THOUGHTS[language]}</think>8", target) == float(target == language), target
        short = " ".join(re.split(r"(?<=[.。।])", THOUGHTS[language])[:2])
        assert score(short, target) == float(target == language), target


@pytest.mark.parametrize(
    "text, language, share",
    [
        ("Let me think 首先 we compute 然后 the sum", "en", 7 / 11),
        ("Let me think 首先 we compute 然后 the sum", "zh", 4 / 11),
        ("我们用 then 计算 the sum", "zh", 5 / 8),
        ("우리는 먼저 compute the sum 합니다", "ko", 3 / 6),
        ("Считаем сумму, then divide", "ru", 2 / 4),
        ("Wir zählen die Äpfel. 然后我们相加。", "de", 4 / 10),
        ("そうですね。So we add the numbers.", "ja", 5 / 10),
    ],
)
def test_words_of_another_script_are_counted_one_by_one(text, language, share):
    assert score(text, language) == pytest.approx(share)


def test_a_sentence_of_another_language_of_the_script_is_found():
    english, french = THOUGHTS["en"], "Donc il faut d'abord multiplier le prix par le nombre de sacs achetés. "
    mixed = f"{english} {french}{english}"
    words = len(re.findall(r"[\w']{2,}", english)) * 2
    assert score(mixed, "en") == pytest.approx(words / (words + 12), abs=0.02)
    assert score(mixed, "fr") == pytest.approx(12 / (words + 12), abs=0.02)


@pytest.mark.parametrize(
    "neutral",
    [
        "$x^2 + y^2 = r^2$",
        "$$\\sum_{i=1}^n the$$",
        r"\(\text{the total}\)",
        "\\[\n\\frac{a}{b} = \\text{total cost}\n\\]",
        "\\begin{align*}\n cost &= price \\\\\n\\end{align*}",
        "```python\nfor apple in range(10):\n    print('hello there')\n```",
        "`print(apples)`",
        "12, 3.5, 1,000 x 7",
        "https://example.org/where/the/words/are?q=some",
        "someone@example.org",
        "<answer>",
        '<a href="the link">',
        "x, y, z",
        "f(x) = sin(x) + log(n)",
        r"\alpha \boxed{12} \cdot",
        "3D x1 a_1 12km abc1 foo_bar2 _private item3a",
        "α, β, γ",
    ],
)
@pytest.mark.parametrize("language", ["zh", "en", "ru", "ja"])
def test_formulas_code_numbers_and_tags_are_neutral(neutral, language):
    for place in ("{1} {0}", "{0} {1}", "{0}\n{1}\n{0}"):
        assert score(place.format(THOUGHTS[language], neutral), language) == 1.0
    assert language_share(neutral, language) is None


def test_prices_are_no_formula():
    assert score("They cost $5 然后又付 $3 for it, and $8 in all", "en") == pytest.approx(7 / 11)
    assert score("They cost $x$ 然后又付 $3$ for it, and $8$ in all", "en") == pytest.approx(7 / 11)


def test_names_inside_another_script_are_neutral():
    assert score("Alice 和 Bob Smith 用 Python 计算，iPhone 一共有五个（GPU），NASA", "zh") == 1.0
    assert score("Алиса купила iPhone и Galaxy Note", "ru") == 1.0
    assert score("So The Whole Thought 好 Is In English And Capitals", "zh") < 0.2


def test_names_and_short_clauses_do_not_swing_it():
    text = f"Juan, Carlos, Pedro and Violeta Hernández buy tacos. Jean, Marie. Mr. Müller. Sí. OK. {THOUGHTS['en']} "
    assert score(text * 3, "en") == 1.0
    assert score("Dan plante 3 rosiers. Bert. Marie adore jardiner.", "fr") == 1.0


@pytest.mark.parametrize(
    "completion, language, expected",
    [
        ("<think>hello there my friend</think>你好，世界", "en", 1.0),
        ("<think>hello there my friend</think>你好，世界", "zh", 0.0),
        ("你好，世界</think>hello there my friend", "zh", 1.0),  # the prompt has opened the block
        ("<think>你好，世界", "zh", 1.0),  # cut off
        ("<think>hello there</think> and <think>你好</think>8", "en", 3 / 5),  # all but the last summary
        ("hello there my friend", "en", 1.0),  # no tags at all
        ("<think>7+5=12-2=10</think>10", "en", 1.0),  # nothing in another language
        ("<think>$x$</think>sentence", "zh", 1.0),
        ("<think></think>a summary", "en", 0.0),  # not to think is no way to be consistent
        ("<think> \n</think>a summary", "en", 0.0),
        ("", "en", 0.0),
        ("anything", None, None),
    ],
)
def test_what_is_the_chain_of_thought(completion, language, expected):
    value = score(completion, language)
    assert value is None if expected is None else value == pytest.approx(expected)


def test_codes_of_languages():
    assert language_consistency(["p"] * 2, [THOUGHTS["pt"], THOUGHTS["zh"]], ["pt-BR", "zh_Hans"]) == [1.0, 1.0]
    assert language_consistency(["p"] * 2, [THOUGHTS["en"], THOUGHTS["zh"]], "EN") == [1.0, 0.0]
    assert {"en", "zh", "ja", "ko", "ru", "fr", "de", "es"} < set(LANGUAGES)
    for code in ("xx", "english", ""):
        with pytest.raises(RewardError, match=f"language='{code}': use one of ar, bg"):
            score("hello", code)


def test_letters_belong_to_one_script():
    """Marks and joiners aside: a range that begins at a letter's lookalike has swallowed all of Korean before."""
    seen = {}
    for script, (letters, _) in _SCRIPTS.items():
        pattern = re.compile(f"[{letters}]")
        for point in (*range(0x3000), *range(0x3000, 0x10000, 7)):
            if pattern.match(chr(point)) and unicodedata.category(chr(point))[0] not in "MC":
                assert seen.setdefault(point, script) == script
                assert unicodedata.category(chr(point)) not in ("Nd", "Po", "Ps", "Pe"), hex(point)
    for language, text in THOUGHTS.items():
        others = [c for c in text if c.isalpha() and not re.match(f"[{_LETTERS}]", c)]
        assert not others, (language, others)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=80), st.sampled_from(["en", "zh", "ko", "ru"]))
def test_any_text_has_a_share(text, language):
    value = score(text, language)
    assert 0.0 <= value <= 1.0
    assert score(text, language) == value


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["en", "zh", "ko", "ru"]), min_size=1, max_size=6))
def test_shares_of_different_scripts_are_a_partition(languages):
    text = " ".join(THOUGHTS[language] for language in languages)
    shares = {language: score(text, language) for language in ("en", "zh", "ko", "ru")}
    assert sum(shares.values()) == pytest.approx(1)
    assert {language for language, share in shares.items() if share} == set(languages)


def test_megabytes_take_seconds():
    """Every construct that a careless pattern would look for anew from each of its starts."""
    start = time.perf_counter()
    for part in (
        "\\(",
        "$a",
        "`a",
        "<a ",
        "a@",
        "```a ",
        "a'",
        "\\begin{a}",
        "[asy]",
        "9",
        "a",
        "a(",
        "好",
        "\u0301\u0316",
    ):
        score(part * (1_000_000 // len(part)), "en")
    score((THOUGHTS["en"] + " ") * 3000, "en")
    assert time.perf_counter() - start < 60  # 5 s on an idle machine; quadratic would be hours


def test_in_a_worker_process():
    with RewardPool(["language_consistency"]) as pool:
        rows = [THOUGHTS["fr"], THOUGHTS["en"], THOUGHTS["en"]]
        batch = pool.submit(["p"] * 3, rows, {"language": ["fr", "fr", None]}).result()
    assert batch.rewards[:2, 0].tolist() == [1.0, 0.0] and batch.total[2] != batch.total[2]


# ---------------------------------------------------------------------------------------------------- on real data


def problems(language):
    return [
        line.split("\t")[0] for line in (DATA / f"mgsm/mgsm_{language}.tsv").read_text("utf-8").splitlines() if line
    ]


@pytest.mark.skipif(not (DATA / "mgsm").exists(), reason=f"{DATA / 'mgsm'} is not here")
@pytest.mark.parametrize("language", ["en", "zh", "fr", "ja"])
def test_problems_of_four_languages(language):
    texts = problems(language)
    assert len(texts) == 250
    for target in ("en", "zh", "fr", "ja", "de", "es", "ru", "ko"):
        shares = language_consistency(texts, texts, [target] * 250)
        if target == language:
            assert min(shares) > 0.95 and statistics.mean(shares) > 0.999
        else:
            assert statistics.mean(shares) < 0.002 and max(shares) < 0.3


@pytest.mark.skipif(not (DATA / "mgsm").exists(), reason=f"{DATA / 'mgsm'} is not here")
@pytest.mark.parametrize("first, second", [("en", "zh"), ("en", "fr"), ("fr", "en"), ("zh", "ja"), ("ja", "en")])
def test_the_share_follows_a_mixture(first, second):
    rng = random.Random(0)
    sentences = {
        language: [
            s for text in problems(language) for s in re.split(r"(?<=[.!?])\s+|(?<=[。！？])", text) if s.strip()
        ]
        for language in (first, second)
    }
    errors = []
    for _ in range(40):
        share = rng.random()
        chosen = [first if rng.random() < share else second for _ in range(12)]
        parts = [rng.choice(sentences[language]) for language in chosen]
        # Words as the reward counts them: a text in the language of its own is all of it.
        words = [sum(weight(part)) for part in parts]
        true = sum(w for w, language in zip(words, chosen, strict=True) if language == first) / sum(words)
        errors.append(score(" ".join(parts), first) - true)
    assert statistics.mean(map(abs, errors)) < 0.02 and abs(statistics.mean(errors)) < 0.01


def weight(text):
    """The words of a text: characters in Chinese and Japanese, else words of two letters or more."""
    text = re.sub(r"[0-9][0-9.,]*", " ", text)
    yield len(re.findall(r"[\u3005\u3006\u3040-\u3096\u30a1-\u30fa\u30fc\u4e00-\u9fff]", text))
    yield len(re.findall(r"[A-Za-zÀ-ÖØ-öø-ÿŒœ]{2,}(?:['’-][A-Za-zÀ-ÖØ-öø-ÿ]+)*", text))


@pytest.mark.skipif(not (DATA / "gsm8k").exists(), reason=f"{DATA / 'gsm8k'} is not here")
def test_solutions_full_of_numbers_are_english():
    lines = (DATA / "gsm8k/example_model_solutions.jsonl").read_text("utf-8").splitlines()[::10]
    models = [value for line in lines for value in json.loads(line).values() if isinstance(value, dict)]
    shares = [score(model["solution"], "en") for model in models]
    assert len(shares) == 528 and statistics.mean(shares) > 0.999 and min(shares) > 0.8
