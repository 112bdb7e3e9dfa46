"""Text written as WikiText writes it."""

import difflib
import re
from pathlib import Path

import pytest

from pgprune_lightning.data.wikitext_style import in_wikitext_style


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes, it is: see (2).", "Yes , it is : see ( 2 ) ."),
        ("\u201cIt\u2019s mine,\u201d he said!", '" It \'s mine , " he said !'),
        ("1,234,567.5 dogs' well-known", "1 @,@ 234 @,@ 567 @.@ 5 dogs ' well @-@ known"),
        ("J. R. Smith of the U.S. Army, e.g. here", "J. R. Smith of the U.S. Army , e.g. here"),
        ("Dr. No fell. Then... he rose", "Dr. No fell . Then ... he rose"),
        ("at http://a.b/c?", "at http://a.b/c ?"),
        ("at 5:30 – or so", "at 5 : 30 – or so"),
    ],
)
def test_marks_of_punctuation_stand_alone(text: str, expected: str) -> None:
    assert in_wikitext_style(text) == f" {expected} "


def test_lines_stay_lines_and_blank_ones_blank() -> None:
    assert in_wikitext_style("One.\n\n  Two,  three\n") == " One . \n\n Two , three \n"


def test_what_is_spaced_already_stays() -> None:
    row = ' The " crusher " , up to 60 cm ( 24 in ) , has 1 @,@ 000 well @-@ rounded teeth . '
    assert in_wikitext_style(row) == row


def test_real_wikitext_comes_back(pgprune_data: Path) -> None:
    rows = (pgprune_data / "wikitext2" / "wiki.valid.raw").read_text().split("\n")
    text = [row.split() for row in rows if row.strip() and not row.startswith(" =")][:300]
    same = total = 0
    for words in text:
        again = in_wikitext_style(_joined(" ".join(words))).split()
        matcher = difflib.SequenceMatcher(None, words, again, autojunk=False)
        same += sum(block.size for block in matcher.get_matching_blocks())
        total += max(len(words), len(again))
    assert total > 20_000
    assert same / total > 0.998


def _joined(row: str) -> str:
    """A row of WikiText as it was before it was cut into words."""
    row = re.sub(r" @([-,.])@ ", r"\1", row)
    row = re.sub(r" ([,.;:!?)\]])", r"\1", row)
    row = re.sub(r"([(\[]) ", r"\1", row)
    row = re.sub(r" ('\w)", r"\1", row)
    return re.sub(r'" ([^"]*) "', r'"\1"', row)
