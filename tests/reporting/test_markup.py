from html.parser import HTMLParser

import pytest

from pgprune_lightning.reporting.markup import Markup, element, joined


def test_text_is_escaped_and_markup_is_not() -> None:
    inner = element("b", "<script>alert('&')</script>")
    assert inner == "<b>&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;</b>"
    assert element("p", "1 < 2: ", inner) == f"<p>1 &lt; 2: {inner}</p>"
    assert joined("<", Markup("<br>"), None) == "&lt;<br>"


def test_text_that_was_changed_is_text_again() -> None:
    assert element("p", Markup("<br>") + "<i>") == "<p>&lt;br&gt;&lt;i&gt;</p>"


def test_an_attribute_cannot_be_left() -> None:
    hostile = '"><script>x</script>'
    made = element("a", "there", href=hostile, class_="soft", aria_label="a & b")
    seen = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append((tag, dict(attrs)))

    Parser().feed(made)
    assert seen == [("a", {"href": hostile, "class": "soft", "aria-label": "a & b"})]


def test_numbers_are_short_and_finite() -> None:
    assert element("rect", x=1.2345, y=3.0, width=7) == '<rect x="1.2" y="3" width="7"></rect>'
    with pytest.raises(AssertionError):
        element("rect", x=float("nan"))
