"""IFEval's instructions: followed and not, strict and loose, and every prompt of the published set."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.errors import DataError
from r1jax.evaluation.benchmarks import BENCHMARKS
from r1jax.evaluation.benchmarks.ifeval import followed
from r1jax.evaluation.benchmarks.ifeval_instructions import INSTRUCTIONS, count_sentences, count_words, detect_language

DATA = Path(__file__).parents[2] / "shared" / "data" / "ifeval"
IFEVAL = BENCHMARKS["ifeval"]

# instruction id, its arguments, responses that follow it, responses that do not
CASES = [
    (
        "keywords:existence", {"keywords": ["river", "C++"]},
        ["C++ by the River", "rivers and c++17"],
        ["by the river", "C by the river", ""],
    ),
    (
        "keywords:frequency", {"keyword": "war", "frequency": 2, "relation": "at least"},
        ["War and war", "warm wars"],
        ["war", "raw"],
    ),
    (
        "keywords:frequency", {"keyword": "war", "frequency": 2, "relation": "less than"},
        ["war", "peace"],
        ["war, WAR"],
    ),
    (
        "keywords:forbidden_words", {"forbidden_words": ["rock", "c++"]},
        ["rocks and rockets", "bedrock", "c+"],
        ["a rock.", "ROCK", "in c++, say"],
    ),
    (
        "keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"},
        ["Quite quick", "qq"],
        ["quite", ""],
    ),
    (
        "keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "less than"},
        ["# one", "none"],
        ["# one\n# two"],
    ),
    (
        "language:response_language", {"language": "de"},
        ["Der Hund läuft heute schnell durch den Wald, und die Katze schläft."],
        ["The dog runs quickly through the wood today, and the cat sleeps.", "123", ""],
    ),
    (
        "length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"},
        ["One. Two! Three?", "Mr. Li came. He sat. He left.", "One. Two. And a third"],
        ["One. Two.", "Mr. Li came e.g. at 3.5 p.m. sharp. He sat.", "One, two, three"],
    ),
    (
        "length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"},
        ["One. Two.", "Dr. J. Smith left. Good."],
        ["One. Two. Three."],
    ),
    (
        "length_constraints:number_paragraphs", {"num_paragraphs": 2},
        ["a\n***\nb", "a *** b", "***\na\n***\nb\n***"],
        ["a", "a\n\nb", "a\n***\nb\n***\nc", "a\n***\n***\nb"],
    ),
    (
        "length_constraints:number_words", {"num_words": 3, "relation": "at least"},
        ["one two three", "it's so"],
        ["one two", "- - - -"],
    ),
    (
        "length_constraints:number_words", {"num_words": 3, "relation": "less than"},
        ["one two", "हिन्दी भाषा"],
        ["one two three"],
    ),
    (
        "length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "it"},
        ["a\n\nIt is", 'a\n\n\n"It, is"', "a\n\nit"],
        ["a\n\nItem is", "it\n\na", "a\n\nb\n\nit is", "it is", "a\nit is"],
    ),
    (
        "detectable_content:number_placeholders", {"num_placeholders": 2},
        ["[name] of [the town]", "[a][b][c]"],
        ["[name]", "name", "[a\nb] [c]"],
    ),
    (
        "detectable_content:postscript", {"postscript_marker": "P.S."},
        ["Bye.\nP.S. one more", "bye\np. s. one more"],
        ["Bye. PS one more", "Bye.", "stop.s. one"],
    ),
    (
        "detectable_content:postscript", {"postscript_marker": "P.P.S"},
        ["Bye.\nP.P.S. more", "p.p.s more", "P. P. S. more"],
        ["P.S. more"],
    ),
    (
        "detectable_format:number_bullet_lists", {"num_bullets": 2},
        ["* a\n* b", "Text:\n - a\n - b\nend", "* a\n- b"],
        ["* a", "* a\n* b\n* c", "**a**\n* b", "a * b\n* c"],
    ),
    (
        "detectable_format:constrained_response", {},
        ["My answer is yes.", " My answer is maybe. \n"],
        ["yes", "My answer is yes", "my answer is no."],
    ),
    (
        "detectable_format:number_highlighted_sections", {"num_highlights": 2},
        ["*a* and *b c*", "**a** and *b*", "*a*\n**b**"],
        ["*a*", "**a**", "* * and *a*", "****", "*a\nb* c *d*"],
    ),
    (
        "detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb", "SECTION1: a SECTION2: b SECTION3: c"],
        ["SECTION 1\na", "Section 1\na\nSection 2\nb", "SECTION\na\nSECTION\nb"],
    ),
    (
        "detectable_format:json_format", {},
        ['{"a": [1, 2]}', '```json\n{"a": 1}\n```', "```\n[1]\n```", ' {"a": null} \n'],
        ["{'a': 1}", 'Here: {"a": 1}', '{"a": 1', "", "```json\n{\n```"],
    ),
    (
        "detectable_format:title", {},
        ["<<Ode to joy>>\ntext", "text <<a>>"],
        ["<Ode>", "<< >>", "<<\nOde>>", "Ode"],
    ),
    (
        "combination:two_responses", {},
        ["one\n******\ntwo", "******one******two******"],
        ["one", "one\n******\none", "one******two******three", "one\n******\n******\ntwo", "one\n***\ntwo"],
    ),
    (
        "combination:repeat_prompt", {"prompt_to_repeat": "Write a haiku."},
        ["Write a haiku.\n\nOld pond", " write a haiku. Old pond"],
        ["Old pond", '"Write a haiku."', "Sure. Write a haiku."],
    ),
    (
        "startend:end_checker", {"end_phrase": "Any questions?"},
        ["Done. Any questions?", 'Done. any questions?" \n'],
        ["Any questions? Done.", "Any questions", "Any questions?!"],
    ),
    (
        "startend:quotation", {},
        ['"All of it."', ' "a" and "b" '],
        ["All of it.", '"All of it.', '"', "“All”", "'All'"],
    ),
    (
        "change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"},
        ["NASA and ESA", "WELL-KNOWN U.S"],
        ["NASA and Esa", "WELL-KNOWN"],
    ),
    (
        "change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"},
        ["NASA", "none"],
        ["NASA ESA"],
    ),
    (
        "change_case:english_capital", {},
        ["THE DOG RUNS QUICKLY THROUGH THE WOOD, AND THE CAT SLEEPS IN 2 BOXES."],
        ["The dog runs quickly.", "DER HUND LÄUFT HEUTE SCHNELL DURCH DEN WALD UND DIE KATZE SCHLÄFT.", "12"],
    ),
    (
        "change_case:english_lowercase", {},
        ["the dog runs quickly through the wood, and the cat sleeps in 2 boxes."],
        ["The dog runs quickly.", "der hund läuft heute schnell durch den wald und die katze schläft.", "12"],
    ),
    (
        "punctuation:no_comma", {},
        ["No such mark; none."],
        ["One, two", "1,000"],
    ),
]  # fmt: skip


def test_every_instruction_has_cases():
    assert {case[0] for case in CASES} == set(INSTRUCTIONS) and len(INSTRUCTIONS) == 25


@pytest.mark.parametrize(("name", "arguments", "yes", "no"), CASES)
def test_instruction(name, arguments, yes, no):
    for response in yes:
        assert followed(response, [name], [arguments]) == [True], response
    for response in no:
        assert followed(response, [name], [arguments]) == [False], response


LANGUAGES = {
    "ar": "الطقس جميل اليوم، وذهب الأطفال إلى الحديقة للعب مع أصدقائهم.",
    "bg": "Времето днес е хубаво и децата отидоха в парка, за да играят с приятелите си.",
    "bn": "আজ আবহাওয়া সুন্দর, তাই শিশুরা বন্ধুদের সাথে খেলতে পার্কে গেছে।",
    "de": "Das Wetter ist heute schön, und die Kinder gingen in den Park, um mit ihren Freunden zu spielen.",
    "en": "The weather is fine today, and the children went to the park to play with their friends.",
    "fa": "هوا امروز خوب است و بچه‌ها برای بازی با دوستانشان به پارک رفتند.",
    "fi": "Sää on tänään kaunis, ja lapset menivät puistoon leikkimään ystäviensä kanssa.",
    "gu": "આજે હવામાન સરસ છે, તેથી બાળકો મિત્રો સાથે રમવા બગીચામાં ગયા.",
    "hi": "आज मौसम अच्छा है, इसलिए बच्चे अपने दोस्तों के साथ खेलने के लिए पार्क गए हैं।",
    "it": "Oggi il tempo è bello e i bambini sono andati al parco per giocare con i loro amici.",
    "kn": "ಇಂದು ಹವಾಮಾನ ಚೆನ್ನಾಗಿದೆ, ಆದ್ದರಿಂದ ಮಕ್ಕಳು ಸ್ನೇಹಿತರೊಂದಿಗೆ ಆಡಲು ಉದ್ಯಾನಕ್ಕೆ ಹೋದರು.",
    "ko": "오늘은 날씨가 좋아서 아이들이 친구들과 놀려고 공원에 갔습니다.",
    "mr": "आज हवामान छान आहे, म्हणून मुले आपल्या मित्रांसोबत खेळायला बागेत गेली आहेत.",
    "ne": "आज मौसम राम्रो छ, त्यसैले केटाकेटीहरू आफ्ना साथीहरूसँग खेल्न पार्कमा गएका छन्।",
    "pa": "ਅੱਜ ਮੌਸਮ ਚੰਗਾ ਹੈ, ਇਸ ਲਈ ਬੱਚੇ ਆਪਣੇ ਦੋਸਤਾਂ ਨਾਲ ਖੇਡਣ ਲਈ ਪਾਰਕ ਗਏ ਹਨ।",
    "pt": "O tempo está bom hoje, e as crianças foram ao parque para brincar com os seus amigos.",
    "ru": "Сегодня хорошая погода, и дети пошли в парк играть со своими друзьями.",
    "sw": "Hali ya hewa ni nzuri leo, na watoto walikwenda kwenye bustani kucheza na marafiki zao.",
    "ta": "இன்று வானிலை நன்றாக உள்ளது, எனவே குழந்தைகள் நண்பர்களுடன் விளையாட பூங்காவிற்குச் சென்றனர்.",
    "te": "ఈ రోజు వాతావరణం బాగుంది, కాబట్టి పిల్లలు స్నేహితులతో ఆడుకోవడానికి పార్కుకు వెళ్లారు.",
    "th": "วันนี้อากาศดี เด็กๆ จึงไปเล่นกับเพื่อนที่สวนสาธารณะ",
    "ur": "آج موسم اچھا ہے، اس لیے بچے اپنے دوستوں کے ساتھ کھیلنے پارک گئے ہیں۔",
    "vi": "Hôm nay thời tiết đẹp, nên bọn trẻ đã đến công viên để chơi với bạn bè.",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages(language):
    text = LANGUAGES[language]
    assert detect_language(text) == detect_language(f"{text}\n\n* 1. {text}") == language
    assert followed(text, ["language:response_language"], [{"language": language}]) == [True]
    other = "en" if language != "en" else "de"
    assert followed(text, ["language:response_language"], [{"language": other}]) == [False]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("   ", 0),
        ("one", 1),
        ("One.", 1),
        ("One... two", 1),
        ("One... Two", 2),
        ("He said “Go.” She went.", 2),
        ("Really?! Yes!", 2),
        ("The U.S. is big.", 1),
        ("It is 3.14 or so.", 1),
        ("See www.a.com. Then go.", 2),
        ("Mrs. Lee, Ph.D., met Prof. A. B. Chen.", 1),
        ("Meet me at 5 p.m. at home.", 1),
        ("I am here. You are not.", 2),
        ("So do I. You do not.", 2),
        ("**Bold end.** Next one.", 2),
        ("今天很好。我们走吧！", 2),
        ("आज मौसम अच्छा है। चलो।", 2),
    ],
)
def test_count_sentences(text, count):
    assert count_sentences(text) == count


def test_count_words():
    texts = {"": 0, "one": 1, "it's well-known": 4, "a_b 12": 2, "हिन्दी भाषा": 2, "e\u0301te\u0301": 1, "...": 0}
    assert {text: count_words(text) for text in texts} == texts


def test_strict_and_loose():
    names = ["detectable_format:json_format", "startend:quotation", "punctuation:no_comma"]
    arguments = [{}, {}, {}]
    response = 'Sure, here it is:\n"**bold**"'
    assert followed(response, names, arguments) == [False, False, False]
    # Each instruction by itself may be followed by another variant: the last line alone is JSON, quoted, without comma.
    assert followed(response, names, arguments, loose=True) == [True, True, True]
    assert followed('"x"\nHope it helps', ["startend:quotation"], [{}], loose=True) == [True]
    assert followed('Sure:\n"x"\nHope it helps', ["startend:quotation"], [{}], loose=True) == [True]
    assert followed('**"x"**', ["startend:quotation"], [{}]) == [False]
    assert followed('**"x"**', ["startend:quotation"], [{}], loose=True) == [True]
    # What is left once lines are gone may be nothing, and nothing follows no instruction.
    assert followed("One, two", ["punctuation:no_comma"], [{}], loose=True) == [False]
    assert (
        followed("", ["punctuation:no_comma"], [{}]) == followed(" \n", ["punctuation:no_comma"], [{}], True) == [False]
    )


@given(st.text(max_size=60), st.sampled_from(CASES))
def test_loose_follows_whatever_strict_does(response, case):
    name, arguments, yes, no = case
    for text in (response, *yes, *no):
        strict, loose = followed(text, [name], [arguments])[0], followed(text, [name], [arguments], loose=True)[0]
        assert isinstance(strict, bool) and (loose or not strict)


def test_scores_and_summary():
    def columns(*names):
        return {"instruction_id_list": list(names), "kwargs": [{} for _ in names]}

    from r1jax.evaluation.benchmarks.base import Problem

    problems = [
        Problem("a", "p", columns("punctuation:no_comma", "startend:quotation")),
        Problem("b", "p", columns("punctuation:no_comma")),
    ]
    completions = [['<think>a, b</think>"Yes."', '**"Yes."**'], ["a, b", "<think>cut off"]]
    scores = [
        IFEVAL.score(["p"] * 2, texts, **{name: [value] * 2 for name, value in problem.columns.items()})
        for problem, texts in zip(problems, completions, strict=True)
    ]
    assert scores == [[1.0, 0.0], [0.0, 0.0]]
    assert IFEVAL.summarise(problems, completions, scores) == {
        "prompt_strict": 0.25,
        "instruction_strict": 0.5,
        "prompt_loose": 0.5,
        "instruction_loose": pytest.approx(4 / 6),
    }


def test_rows_that_cannot_be_used(tmp_path):
    import json

    row = {"key": 1, "prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"x": None}]}
    bad = [
        (
            {"instruction_id_list": ["punctuation:no_semicolon"]},
            "instruction id 'punctuation:no_semicolon': use one of",
        ),
        ({"kwargs": []}, "0 kwargs for 1 instructions: give one for each"),
        ({"kwargs": [{"num_words": 3}]}, "got an unexpected keyword argument 'num_words'"),
        ({"instruction_id_list": ["startend:end_checker"]}, "missing a required argument: 'end_phrase'"),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 3, "relation": "most"}],
            },
            "relation='most': use 'at least' or 'less than'",
        ),
    ]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    (problem,) = IFEVAL.load(str(path), 0)
    assert problem.id == "ifeval/1" and problem.columns["kwargs"] == [{}]  # the hub fills arguments up with null
    for fields, told in bad:
        path.write_text(json.dumps(row | fields))
        with pytest.raises(DataError) as error:
            IFEVAL.load(str(path), 0)
        assert told in str(error.value) and "a.jsonl, row 1" in str(error.value)


def test_time_is_linear_in_the_response():
    """The published pattern for placeholders takes minutes for some of these; all take three seconds together."""
    start = time.perf_counter()
    for text in ("a. ", ". ", '"', "Mr. ", "*", "[ ", "<<", "\n", '("', "<<a", "\n ", ". )", "**a ", "*a", "```", "A."):
        for name, arguments, *_ in CASES:
            followed(text * (120_000 // len(text)) + "x", [name], [arguments])
    assert time.perf_counter() - start < 15


@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not here")
def test_the_published_prompts():
    problems = IFEVAL.load(str(DATA), 0)
    assert len(problems) == 541 and sum(len(problem.columns["kwargs"]) for problem in problems) == 834
    assert {name for problem in problems for name in problem.columns["instruction_id_list"]} == set(INSTRUCTIONS)
    scores = [
        IFEVAL.score([p.prompt], ["A short answer."], **{k: [v] for k, v in p.columns.items()})[0] for p in problems
    ]
    assert set(scores) == {0.0, 1.0}
