"""What a completion answers: the letter of an option, by two rules, side by side.

`first_letter` is the paper's (`grpo.py` and `infer.py` of the released code): the first
character, case and all, in the first `<answer>...</answer>`. So "Add water" counts as A
while "(A)" and "a." count as nothing. `lenient` is what a patient reader grants."""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

RULES = ("first_letter", "lenient")

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)

_NO_TAG = r"(?:(?!</?(?:think|answer)>).)*"  # of the four
FORMAT = re.compile(
    rf"\s*<think>{_NO_TAG}</think>\s*<answer>{_NO_TAG}</answer>\s*", re.DOTALL
)

# Soft hyphens, joiners, marks of the writing direction and blanks of no width.
_UNSEEN = "\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"
INVISIBLE = re.compile(f"[{_UNSEEN}]")

# What the lenient rule reads. Tags may be in any case. Stars, quotes, dollars, what is
# not seen and TeX are read through, as in \boxed{B}; the one of "isn't" stays.
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
OPENED = re.compile(r"<answer>", re.IGNORECASE)
THOUGHT = re.compile(r"</think>", re.IGNORECASE)
MARKS = re.compile(
    rf"[*_\"`“”‘«»「」『』${_UNSEEN}]|(?<!\w)'|'(?!\w)|\\[a-z]+\s*(?=\{{)|\\[()\[\]]"
)
ASCII = str.maketrans("’【】、。–—", "'(),.--")
_CJK = "\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af"

# A letter is ruled out by a denial in its own clause, or right behind it.
CLAUSE = re.compile(r"[,.;:!?\n]|\b(?:so|therefore|hence|thus|then)\b", re.IGNORECASE)
_DENIAL = (
    r"(?:\b(?:not|never|n?either|nor|(?:no|without)(?! doubt)|none|nobody|cannot|hardly"
    r"|unlikely|impossible|wrong|incorrect|false|mistake|except|\w*thing but"
    r"|(?:rul\w+|is|are|was) out|(?:exclud|eliminat|reject|refus|discard|dismiss)\w*"
    r"|(?:instead|in place) of|(?:rather|other) than)\b|n't\b|[不非错錯誤误])"
)
_VERB = (
    r"(?:(?:\w+ly )?(?:is|was|does|did|has|had|can|could|would|should|must|may|might"
    r"|seems|looks|appears|fits|makes|\w+n't)\b)"
)
DENIAL = re.compile(_DENIAL, re.IGNORECASE)
DENIED = re.compile(
    rf"\W*(?:(?:which |that |it )?{_VERB}[^,.;\n]*?)?{_DENIAL}|\w+n't\b"
    rf"|[{_CJK} ]*[不非错錯誤误]",
    re.IGNORECASE,
)

# What stands straight in front of a letter that is chosen, and what sets off its text.
_STATED = r"(?i:\b(?:answer|option|choice)\b(?: (?:is|option)){0,2} ?[:=-]?\s?)"
_CUE = (
    r"(?:[,;:.!=\n]|\b(?i:is|be|it's|that's|choos\w+|chose|pick|select|say|guess"
    rf"|go(?:ing)? (?:with|for)|I(?: \w+)? take|letter|so|then|thus|therefore|hence"
    rf"|maybe|perhaps|\w+ly)|[{_CJK}]|\s(?=[(\[{{]\w[)\]}}]\W*$))\s*"
)
_OPEN, _CLOSE = r"[(\[{<]* ?", r" ?[)\]}>]"
_ALONE = rf"(?:{_CLOSE})*[.,:;!]*"
_SET_OFF = rf"(?:(?:{_CLOSE})+[.:,]?\s?|[.:]\s|\n)"
_CAPITAL_SET_OFF = (
    rf"(?:(?:{_CLOSE})*(?: ?[,;]\s?| -+>? )|[.:](?=\w\w)| (?=[{_CJK}]|\([^()]*\)\W*$))"
)
# Of what begins with "A": a verb behind it tells the letter from the article.
_NO_ARTICLE = (
    rf"(?:(?<!A)|(?= (?!can |must )(?:{_VERB}|because|since|for|it\b|[{_CJK}]|"
    r"(?:put|take|get|open|pour|add|insert|remove|turn o(?:n|ff)|pick up)\b)))"
)


def parse_answer(
    completion: str, rule: str, letters: str = "ABCDE", options: Sequence[str] = ()
) -> str | None:
    """The option letter a completion gives, or None. Of several `<answer>` tags the
    first counts: counting any would pay a policy for listing every letter. `lenient`
    reads it in any case; if there is none, what follows an unclosed one; if there is
    none either, the last line. It accepts, in this order,
      at the start, or after answer, option or choice
        the letter alone, in any case:             B    (b)    **B**   \\boxed{B}
        set off from a text, in any case:          b. take bag   (B)take bag
        a capital and a text:                      B, take bag  B (take bag)  B is right
      behind a mark or a word that chooses it, a capital, alone or set off from a text:
                                                   After that, B.   I would choose B.
      without any tag, a capital as the last word: That leaves B
    and no text that names several letters ("A or B") or denies its letter ("not B").
    "A cup" begins with the article: "A" and a text are the letter only before a verb
    ("A is right"), or where the text is that of option A in `options`."""
    if rule == "first_letter":
        match = ANSWER.search(completion)
        first = match[1].strip()[:1] if match else ""
        return first if first and first in letters else None
    if rule == "lenient":
        return _lenient(completion, letters, options)
    raise ValueError(f"rule {rule!r} is unknown; it must be one of {list(RULES)}")


def judged(
    completion: str, options: Sequence[str], gold: str, style: str = "think"
) -> dict:
    """What a completion says: first_letter and lenient (letters or None), correct and
    parsed by the first, correct_lenient by the second. Under the direct prompt the
    whole completion is the answer; the lenient rule still goes by tags of its own."""
    letters, answered = "ABCDE"[: len(options)], completion
    if style == "direct":
        answered = f"<answer>{completion}</answer>"
    first_letter = parse_answer(answered, "first_letter", letters)
    if OPENED.search(completion) or THOUGHT.search(completion):
        answered = completion
    lenient = parse_answer(answered, "lenient", letters, options)
    return {
        "first_letter": first_letter,
        "lenient": lenient,
        "correct": first_letter == gold,
        "correct_lenient": lenient == gold,
        "parsed": first_letter is not None,
    }


def folded(text: str) -> str:
    """`text` without what a reader does not see: case, blanks and Unicode's forms."""
    text = unicodedata.normalize("NFKC", INVISIBLE.sub("", text))
    return " ".join(text.casefold().split())


def _lenient(completion: str, letters: str, options: Sequence[str]) -> str | None:
    tagged = TAGGED.search(completion) or OPENED.search(completion)
    *_, text = ["", *THOUGHT.split(completion)[-1].strip().splitlines()]
    if tagged:
        text = tagged[1] if tagged.re is TAGGED else completion[tagged.end() :]
    text = _unmarked(text)
    own, *forms, last = _patterns(letters)
    match = own.fullmatch(text)
    if match and _is_option(match, options):
        rest = ""
    else:
        forms += [] if tagged else [last]
        match = next(filter(None, (form.fullmatch(text) for form in forms)), None)
        if match is None:
            return None
        rest = match["rest"] or ""
    letter, lead = match["letter"].upper(), text[: match.start("letter")]
    denied = DENIAL.search(CLAUSE.split(lead)[-1]) or DENIED.match(rest)
    others = _others(f"{lead}{letter}", rest, letters) - {letter}
    return None if denied or others else letter


@lru_cache
def _patterns(letters: str) -> tuple[re.Pattern, ...]:
    """The forms that `parse_answer` accepts, in its order, behind "letter, text"."""
    any_case, capital = f"(?P<letter>(?i:[{letters}]))", f"(?P<letter>[{letters}])"
    start, rest = rf"(?:.*{_STATED})?{_OPEN}", "(?P<rest>.*)"
    forms = (
        rf"{start}{any_case}[)\]}}>]?[\s.,:;-]+{rest}",
        rf"{start}{any_case}(?:{_ALONE}|{_SET_OFF}{rest})",
        rf"{start}{capital}(?:{_CAPITAL_SET_OFF}|{_NO_ARTICLE} (?=[^\W\d_])){rest}",
        rf".*{_CUE}{_OPEN}{capital}(?:{_ALONE}|(?:{_SET_OFF}|{_CAPITAL_SET_OFF}){rest})",
        rf".*\s{_OPEN}{capital}{_ALONE}(?P<rest>)",
    )
    return tuple(re.compile(form, re.DOTALL) for form in forms)


def _unmarked(text: str) -> str:
    """`text` without marks, in half width, with single blanks, and no empty line."""
    text = unicodedata.normalize("NFKC", text).translate(ASCII)
    text = re.sub(f"([{_CJK}])", r" \1 ", MARKS.sub("", text))
    lines = (" ".join(line.split()).lstrip("-•># ") for line in text.splitlines())
    return "\n".join(filter(None, lines))


def _is_option(match: re.Match, options: Sequence[str]) -> bool:
    """Whether the text behind the letter is the letter's option, word for word."""
    known = dict(zip("ABCDE", options, strict=False))
    option = known.get(match["letter"].upper())
    said = folded(match["rest"]).rstrip(".")
    return option is not None and said == folded(_unmarked(option)).rstrip(".")


def _others(lead: str, rest: str, letters: str) -> set[str]:
    """Capital letters that stand for an option and not for a word. In `lead`, before
    the letter: one that a mark, "or" or another letter follows. In `rest`, which may be
    an option's text ("take vitamin C"): one that begins it, or that a mark, "or" or the
    like precedes. "A man" holds the article."""
    joined = r"(?:or|and|nor|then|but|not|vs\.?)"
    after = rf"(?=\s*(?:[.,;:/&|+)\]}}]|$)|\s+(?:{joined}\s+(?:\w+ )?)?[(\[{{]?[A-E]\b)"
    before = (
        r"(?:^|[\n,;:/&|+.(\[{=\-和或与及跟]|\b(?i:or|and|nor|not|then|than|but|vs|also"
        r"|maybe|perhaps|possibly|either|both|answer|option|choice|is|be)\b)\s*[(\[{]?"
    )
    listed = re.findall(rf"(?<![\w'-])([{letters}]){after}", lead)
    option = rf"{before}([{letters}])(?![\w'-])(?:(?<!A)|(?! [^\W\d_]))"
    lettered = rf"\s([{letters}])(?:[)\]}}]|[.:] [a-z])"
    return {*listed, *re.findall(option, rest), *re.findall(lettered, rest)}
