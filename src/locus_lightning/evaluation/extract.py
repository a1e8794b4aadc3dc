"""Extracting a letter, or yes or no, from what a model wrote.

The extractors of lmms-eval and VLMEvalKit, and the benchmarks' own scripts, differ in what they accept. Ours reads the answer block where there
is one and follows one order, stated at :func:`extract_letter` (our choice). It never guesses: an answer that names no option, or several, is
unread and counts as wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from locus_lightning.tasks.parsing import extract_answer

_MARKUP = re.compile(r"\\(?:boxed|text|mathrm|textbf)\s*\{([^{}]*)\}")
_FULL_WIDTH = str.maketrans("（）［］。，：；！", "()[].,:;!")
_QUOTES = "\"'`“”‘’«»$*_ \t"


def extract_letter(text: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer names, or None where it names none or several.

    Markup, ``\\boxed{}``, quotes and full-width punctuation are taken off first. Then the first of these decides:

    1. The answer is one letter, also in lower case or brackets.
    2. It begins with a letter in brackets, or a capital before ``,`` ``.`` ``:`` ``-`` ``)`` or the end of its line, unless it is a list of
       options.
    3. The last "answer is X", "option X", "I choose X" and the like, with a capital, a letter in brackets, or a lower-case letter
       that ends the phrase.
    4. It is the words of one option, or holds the words of one option alone. The lines of a restated option list do not count.
    """
    answer = _plain(extract_answer(text))
    letters = "".join(options) or "ABCDEFGH"
    either = letters + letters.lower()
    alone = re.fullmatch(rf"[(\[]?([{either}])[)\]]?[.,:;!]?", answer)
    if alone:
        return alone[1].upper()
    listed = re.findall(rf"(?m)^\s*[(\[]?([{letters}])[)\].:]\s*\S", answer)
    if len(set(listed)) < 2:
        leading = re.match(rf"[(\[]([{either}])[)\]]|([{letters}])\s*(?:[,.:\-–—)]|$)", answer, re.MULTILINE)
        if leading:
            return (leading[1] or leading[2]).upper()
    stated = _stated(answer, letters, either)
    if stated:
        return stated
    rest = answer if len(set(listed)) < 2 else re.sub(rf"(?m)^\s*[(\[]?[{letters}][)\].:].*$", "", answer)
    return _by_words(rest.strip(), options)


def _stated(answer: str, letters: str, either: str) -> str | None:
    """The letter of the last statement such as "the answer is B"."""
    verb = r"\b(?:answer|option|choice|pick|choose|select|go with)(?:ed|s)?\b"
    link = r"(?:\s+(?:is|was|be|would be|should be|must be|as|:))?\s*[:=]?\s*(?:option|choice|letter)?\s*"
    letter = rf"(?:[(\[]([{either}])[)\]]|([{letters}])(?![\w'-])(?!\s+(?!because\b|since\b|as\b|due\b)[a-z])|([{letters.lower()}])(?=\s*(?:[.,;!]|$)))"
    stated_letters = re.findall(rf"(?i:{verb}{link}){letter}", answer, re.MULTILINE)
    return "".join(stated_letters[-1]).upper() if stated_letters else None


def _by_words(answer: str, options: Mapping[str, str]) -> str | None:
    plain = answer.casefold().rstrip(".")
    same = [letter for letter, option in options.items() if option.casefold().rstrip(".") == plain]
    held = [letter for letter, option in options.items() if re.search(rf"\b{re.escape(option.casefold().rstrip('.'))}\b", plain)]
    chosen = same or held
    return chosen[0] if len(chosen) == 1 else None


def extract_yes_no(text: str) -> str | None:
    """yes or no, or None where an answer says neither or both. Its first word counts before the rest."""
    answer = _plain(extract_answer(text)).casefold()
    first = re.match(r"\W*(yes|no)\b", answer)
    if first:
        return first[1]
    words = set(re.findall(r"\b(yes|no)\b", answer))
    return words.pop() if len(words) == 1 else None


def official_yes_no(text: str) -> str:
    """POPE's own rule: only the first sentence counts; ``no`` or ``not`` among its words means no, everything else means yes."""
    words = _plain(extract_answer(text)).split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def _plain(text: str) -> str:
    """Without markup, quotes and full-width punctuation."""
    while (bare := _MARKUP.sub(r"\1", text)) != text:  # one may stand inside another
        text = bare
    text = text.translate(_FULL_WIDTH)
    return re.sub(r"\*\*|__|`|\$", "", text).strip(_QUOTES + "\n")
