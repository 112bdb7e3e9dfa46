"""Rewrites text in the style of WikiText and other tokenised corpora, with spaced punctuation.

WikiText was split into words before publication (Merity et al. 2016, with the tokeniser of Moses,
Koehn et al. 2007). It has " ," and " @-@ " where text from the web has "," and "-".
"""

import re

_ABBREVIATIONS = (
    *("[A-Za-z]", "No", "St", "Mt", "Mr", "Ms", "Mrs", "Dr", "Jr", "Sr", "Lt", "Col", "Sgt"),
    *("Gen", "Gov", "Prof", "vs", "Vol"),
)
_NOT_ABBREVIATED = "".join(rf"(?<!\b{word})" for word in _ABBREVIATIONS)

_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[\u201c\u201d\u201e]", '"'),
        (r"[\u2018\u2019]", "'"),
        (r"([;!?()\[\]\"\u2013\u2014]|(?<!@),(?!(?<=\d,)\d)|:(?!//))", r" \1 "),
        # Within a number or a compound the @ signs allow the parts to be joined again.
        (r"(?<=\d)([,.])(?=\d)", r" @\1@ "),
        (r"(?<=\w)-(?=\w)", " @-@ "),
        (r"(?<=\w)'(?=[^\W\d_]|\s|$)", " '"),
        (r"(?<!\.)(\.{2,})", r" \1 "),
        # The end of a sentence: the next word, if any, does not begin in lower case.
        (rf"(?<=[^\s.]){_NOT_ABBREVIATED}\.(?=\s+[^\sa-z]|\s*$)", " . "),
        (r"\s+", " "),
    )
)


def in_wikitext_style(text: str) -> str:
    """Rewrite a text as WikiText would have it; lines stay lines.

    Punctuation marks stand between spaces, those within numbers and compounds as " @,@ ", " @.@ "
    and " @-@ ". Suffixes begin at their apostrophe ("it 's"), quotation marks are straight, and a
    line begins and ends with a space. Moses knows more abbreviations, so here a full stop after an
    abbreviation is sometimes taken for the end of a sentence.
    """
    return "\n".join(map(_styled_line, text.split("\n")))


def _styled_line(line: str) -> str:
    if not line.strip():
        return line
    for pattern, replacement in _RULES:
        line = pattern.sub(replacement, line)
    return f" {line.strip()} "
