"""Text as tokenised corpora write it: a space around every mark of punctuation.

WikiText and other corpora of the time were cut into words before they were published (Merity et
al. 2016, by the tokeniser of Moses, Koehn et al. 2007). A model reads " ," and " @-@ " there, which
text from the web hardly ever has.
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
        # Within a number or a compound the mark is marked, so that it can be joined again.
        (r"(?<=\d)([,.])(?=\d)", r" @\1@ "),
        (r"(?<=\w)-(?=\w)", " @-@ "),
        (r"(?<=\w)'(?=[^\W\d_]|\s|$)", " '"),
        (r"(?<!\.)(\.{2,})", r" \1 "),
        # The end of a sentence: the next word, if any, does not begin in lower case.
        (rf"(?<=[^\s.]){_NOT_ABBREVIATED}\.(?=\s+[^\sa-z]|\s*$)", " . "),
        (r"\s+", " "),
    )
)


def spaced(text: str) -> str:
    """Write a text as WikiText would.

    Marks of punctuation stand between spaces, those within numbers and compounds as " @,@ ",
    " @.@ " and " @-@ "; suffixes begin at their apostrophe ("it 's"); quotation marks are straight;
    and a line begins and ends with a space. Fewer abbreviations are known than to Moses, so that a
    full stop now and then ends what is no sentence.

    Args:
        text: Any text; lines stay lines.
    """
    return "\n".join(map(_spaced_line, text.split("\n")))


def _spaced_line(line: str) -> str:
    if not line.strip():
        return line
    for pattern, replacement in _RULES:
        line = pattern.sub(replacement, line)
    return f" {line.strip()} "
