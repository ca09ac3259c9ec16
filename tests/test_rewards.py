"""A completion, and what each rule makes of it."""

import re
from types import SimpleNamespace

import pytest

from lib.data.letters import parse_answer
from lib.train.rewards import accuracy_reward, consistency_reward, format_reward


def released(completion: str, solution: str) -> float:
    """The released reward as its steps read: any exception leaves 0."""
    match = re.search(r"<answer>(.*?)</answer>", completion, re.DOTALL)
    try:
        return float(match.group(1).strip()[0] == solution)
    except (AttributeError, IndexError):
        return 0.0


# Whole completions: the letter of the released reward, which sees the first character
# in the first tag and knows neither brackets nor case; and to a patient reader.
WHOLE = [
    ("<think>x</think><answer>B.</answer>", "B", "B"),
    ("<think>x</think>\n<answer> B </answer>\n", "B", "B"),
    ("<answer>\nB\n</answer>", "B", "B"),
    ("<answer>B\ntake cereal bag</answer>", "B", "B"),
    ("<answer>A. take bag\nB. open cupboard</answer>", "A", None),
    ("<answer>Add water</answer>", "A", None),
    ("<answer>Answer: B</answer>", "A", "B"),
    ("<answer>(B)</answer>", None, "B"),
    ("<answer>b. take cereal bag</answer>", None, "B"),
    ("".join(f"<answer>{x}</answer>" for x in "ABCD"), "A", "A"),
    ("<answer></answer><answer>B</answer>", None, None),
    ("<answer>?</answer> so <answer>B</answer>", None, None),
    ("<answer><answer>B</answer></answer>", None, None),
    ("<answer>", None, None),
    ("B</answer>", None, None),
    ("< answer>B</answer>", None, None),
    ("<think>It is A.</think>", None, None),
    ("The options are A, B, C, D", None, None),
    ("It could be A or D", None, None),
    ("Add water", None, None),
    ("A man takes the cup", None, None),
    ("I would take a", None, None),
    ("Then the cup.", None, None),
    ("", None, None),
    ("   \n ", None, None),
    ("<answer></answer>", None, None),
    ("<answer>   </answer>", None, None),
    ("<think>I write <answer>C</answer>?</think><answer>B</answer>", "C", "C"),
    ("<answer>B", None, "B"),
    ("<think>x</think><answer>B. take ce", None, "B"),
    ("<ANSWER>B</ANSWER>", None, "B"),
    ("<Answer>Option B</Answer>", None, "B"),
    ("<answer>b</ANSWER> and more", None, "B"),
    ("<think>It is A.</THINK><Answer>B", None, "B"),
    ("B", None, "B"),
    ("B. take cereal bag", None, "B"),
    ("<answer>\u200f\u2067B\u2069.\u200e</answer>", None, "B"),
    ("<answer>B\u00ad</answer>", "B", "B"),
    ("answer:B", None, "B"),
    ("The tap runs, so I take B.", None, "B"),
    ("Reasoning with A. and C. in it.\n\nB", None, "B"),
    ("Reasoning\nAnswer: B\n", None, "B"),
    ("<think>It is A.</think>B", None, "B"),
]


@pytest.mark.parametrize(("completion", "first_letter", "lenient"), WHOLE)
def test_both_rules(completion, first_letter, lenient):
    assert parse_answer(completion, "first_letter") == first_letter
    assert parse_answer(completion, "lenient") == lenient
    check_released(completion)


def check_released(completion):
    for gold in "ABCDE":
        assert accuracy_reward(completion, gold) == released(completion, gold)


# What a patient reader takes from an answer in its tag, and what from none.
READ = {
    "A": r"""
        A. A man walks by ¦ Answer: A. cup ¦ a
        A is right. ¦ A put cup into sink ¦ A because the bag is open ¦ A, use plan B
        A - take vitamin C ¦ (A)plug it into socket D. ¦ A) plug it into socket D
        A是正确的 ¦ \text{A} ¦ Clearly, A.
        """,
    "B": r"""
        B. take cereal bag ¦ B) take cereal bag ¦ B: take cereal bag ¦ B. A man walks by
        Answer: B. take bag ¦ ( B ) ¦ [B] ¦ **B** ¦ **B.** ¦ **(B)** ¦ **B**. take bag
        **B.** take bag ¦ 'B' ¦ "B". ¦ (B) take cereal bag ¦ (b) take cereal bag ¦ b
        b. ¦ option B ¦ Option B. ¦ option (b) ¦ The answer is B
        The answer is option B. ¦ The correct option is (B). ¦ answer: **B**
        **Answer:** B
        B - take the cup ¦ B – take the cup ¦ B; take the cup ¦ B.take the cup
        [B]take the cup ¦ B take the cup ¦ B. take vitamin C ¦ B. connect A to C
        The answer is B, take the cup ¦ The answer is B because C is done ¦ B for sure
        B (take the cup) ¦ The answer is **B** (take the cup).
        B, because the lid is open ¦ I would choose B, take the cup. ¦ I'd go with B
        My guess: B ¦ That's B! ¦ Most likely B. ¦ Next: (B) ¦ take the cup (B)
        The tap does not run, so B. ¦ No, B. ¦ Ｂ．take the cup ¦ 【B】 ¦ “B” ¦ 我选B
        答案：Ｂ ¦ 正确答案为B，打开 ¦ 答えはBです ¦ $\boxed{\text{B}}$
        The answer is \boxed{B}.
        """,
    "C": "Choice C",
    "E": "E",
    None: r"""
        A cup ¦ Answer: A cup ¦ Answer: B, not A ¦ A, B, C, D ¦ A. B. C. D. ¦ A/B
        Dry the cup ¦ Because the tap runs ¦ BB ¦ F ¦ (F) ¦ 1 ¦ Б ¦ take cereal bag
        a cup ¦ e.g. the bag ¦ optionB ¦ the choice of a cup ¦ take vitamin C
        I don't know ¦ (A) or (B) ¦ The answer is A, B ¦ A. take bag B. open cupboard
        Not B. ¦ It is not B ¦ It isn’t B ¦ That can't be B, take the cup
        Neither B nor D. ¦ B is wrong ¦ B is certainly not right. ¦ B, which is wrong
        B isn't it ¦ B cannot be next ¦ B was excluded ¦ (B) is incorrect ¦ B: wrong
        Option B is ruled out ¦ I would rule out B. ¦ I would not choose B.
        The answer is not B ¦ everything but B ¦ unlikely B ¦ 不是B ¦ B是错的 ¦ A or B
        A, B ¦ A and/or B ¦ B & C ¦ B; C ¦ B C ¦ B, then C ¦ B - C ¦ B or maybe C
        both B and C ¦ B vs C ¦ Ａ、Ｂ ¦ A. take cup, B. open lid
        A) take cup B) open lid ¦ B. open lid or C. wash pan ¦ The answer is B and C
        I would choose B or C ¦ B? C? ¦ Is it B? ¦ A can of soup ¦ C-clamp
        D.C. power ¦ E-mail ¦ plug it into socket D ¦ vitamin B and C ¦ b c ¦ take a
        None of the above ¦ Cannot tell ¦ Both are possible ¦ A (small) cup ¦ B (or C)
        """,
}


def rows(table):
    """(text, letter) of texts that stand by their letter."""
    split = {letter: re.split("[¦\n]", lines) for letter, lines in table.items()}
    texts = [(text.strip(), letter) for letter, own in split.items() for text in own]
    return [row for row in texts if row[0]]


READ = rows(READ)


@pytest.mark.parametrize(("text", "letter"), READ)
def test_what_a_patient_reader_takes_from_an_answer(text, letter):
    tagged = f"<think>It is C, not D.</think><answer>{text}</answer>"
    assert parse_answer(tagged, "lenient", "ABCDE") == letter
    check_released(tagged)


LAST_LINES = {
    "B": """
        The tap runs, so that leaves B ¦ The tap does not run, so I take B.
        There is no cup so it must be B. ¦ That points to (B) ¦ B. take vitamin C
        A man takes the cup, so B.
        """,
    None: """
        The tap runs, so it cannot be B. ¦ So it is definitely not B ¦ This rules out B
        It is neither A nor B. ¦ I see anything but B ¦ instead of B ¦ A B C D
        It is not the case that the answer is B.
        """,
}


@pytest.mark.parametrize(("text", "letter"), rows(LAST_LINES))
def test_what_a_patient_reader_takes_from_a_last_line(text, letter):
    assert parse_answer(text, "lenient", "ABCD") == letter
    assert parse_answer(f"I see no lid.\n{text}", "lenient", "ABCD") == letter


WITH_OPTIONS = {
    "A": "A fresh cup ¦ a Fresh  cup. ¦ The answer is A fresh cup",
    "B": "B, use A and D cells",
    "C": "C fresh cup",
    None: """
        A use A and D cells ¦ A cup ¦ fresh cup ¦ not A fresh cup
        It is not true that the answer is A use A and D cells
        """,
}


@pytest.mark.parametrize(("text", "letter"), rows(WITH_OPTIONS))
def test_an_article_is_told_from_a_letter_by_the_options(text, letter):
    options = ("fresh cup", "use A and D cells", "open lid", "")
    answer = f"<answer>{text}</answer>"
    assert parse_answer(answer, "lenient", "ABCD", options) == letter


@pytest.mark.parametrize("gold", ["b", "B.", "", "AB", "F", "B\n"])
def test_a_gold_that_is_no_letter_is_an_error(gold):
    with pytest.raises(ValueError, match="one capital letter"):
        accuracy_reward("<answer>B</answer>", gold)


def test_letters_bound_what_can_be_answered_and_another_rule_is_an_error():
    assert parse_answer("<answer>E</answer>", "first_letter", "ABCD") is None
    assert parse_answer("<answer>(e)</answer>", "lenient", "ABCD") is None
    with pytest.raises(ValueError, match="'strict' is unknown"):
        parse_answer("<answer>B</answer>", "strict")


FORMED = [
    *("<think>x</think><answer>B</answer>", "<think>x</think>\n\n<answer>B.</answer>"),
    "  <think>\nx\ny\n</think> <answer>\nB\n</answer>\n",
    *("<think></think><answer></answer>", "<think>a < b</think><answer>B</answer>"),
]
NOT_FORMED = [
    *("<answer>B</answer>", "<think>x</think>", "<think>x</think>B"),
    *("<answer>B</answer><think>x</think>", "so <think>x</think><answer>B</answer>"),
    "<think>x</think>so<answer>B</answer>",
    "<think>x</think><answer>B</answer> and more",
    "<think>x</think><answer>A</answer><answer>B</answer>",
    "<think>x</think><think>y</think><answer>B</answer>",
    "<think>x<think>y</think></think><answer>B</answer>",
    "<think>x <answer>A</answer></think><answer>B</answer>",
    *("<think>x<answer>B</answer>", "<think>x</think><answer>B"),
    *("<Think>x</Think><answer>B</answer>", ""),
]


@pytest.mark.parametrize("completion", FORMED + NOT_FORMED)
def test_format_reward(completion):
    assert format_reward(completion) == float(completion in FORMED)


def test_parsing_a_long_completion_is_no_burden():
    """A policy that babbles must not stall training: patterns stay near linear."""
    babble = "<think>" + "the answer is the option " * 4000
    assert format_reward(babble) == 0.0
    assert parse_answer(babble, "lenient") is None
    for mark in "(*).\n ,-B'不":
        assert parse_answer("B" + mark * 20000 + "x", "lenient") in (None, "B")
        assert parse_answer(mark * 20000 + "Bx", "lenient") is None


def consistent(completion, options):
    return consistency_reward(completion, SimpleNamespace(options=options))


OPTIONS = ("wash cup", "dry cup", "Open  fridge", "open fridge door")


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("<think>Next is dry cup.</think><answer>B</answer>", 1.0),
        ("<think>Next is dry cup.</think><answer>A</answer>", 0.0),
        # the last one named counts, whatever was named before
        ("<think>wash cup is done, so dry cup</think><answer>B</answer>", 1.0),
        ("<think>dry cup comes after wash cup</think><answer>B</answer>", 0.0),
        # case and white space do not matter, words do
        ("<think>WASH\n cup!</think><answer> A. </answer>", 1.0),
        ("<think>wash cups</think><answer>A</answer>", 0.0),
        ("<think>rewash cup</think><answer>A</answer>", 0.0),
        ("<think>wash the cup</think><answer>A</answer>", 0.0),
        # an option inside a longer one is not named
        ("<think>open fridge door</think><answer>D</answer>", 1.0),
        ("<think>open fridge door</think><answer>C</answer>", 0.0),
        ("<think>open fridge</think><answer>C</answer>", 1.0),
        # only the reasoning is read, and only the first
        ("<think>Hm.</think><answer>A. wash cup</answer>", 0.0),
        ("<think>dry cup</think><think>wash cup</think><answer>B</answer>", 1.0),
        ("So dry cup. <answer>B</answer>", 1.0),
        ("So wash cup. <answer>B</answer> dry cup", 0.0),
        # nothing to compare
        ("<think>dry cup</think>B", 0.0),
        ("<think>dry cup</think><answer>E</answer>", 0.0),
        ("<think>so B</think><answer>B</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_consistency_reward(completion, reward):
    assert consistent(completion, OPTIONS) == reward


def test_consistency_with_options_that_read_the_same():
    twice = ("take bag", "open bag", "Take bag")
    text = "<think>take bag</think><answer>{}</answer>"
    found = [consistent(text.format(letter), twice) for letter in "ABC"]
    assert found == [1.0, 0.0, 1.0]
    assert consistent(text.format("A"), ("", "")) == 0.0


def test_consistency_reads_options_as_text_and_not_as_a_pattern():
    options = ("put (a)", "put .*")
    assert consistent("<think>put (a)</think><answer>A</answer>", options) == 1
    assert consistent("<think>put (a)</think><answer>B</answer>", options) == 0
