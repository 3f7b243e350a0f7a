from __future__ import annotations

import pytest

from u2export.benchmarks.tables.markdown import escaped, table


def test_a_table_of_github_markdown() -> None:
    assert table(("name", "ms"), [("a", "1"), ("b|c", "2")], "lr") == (
        "| name | ms |\n| :-- | --: |\n| a | 1 |\n| b\\|c | 2 |"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\r\nor three", "two lines or three"),
        ("`code` and a*b*c", "\\`code\\` and a\\*b\\*c"),
        ("<!-- table: end -->", "&lt;!-- table: end -->"),
        ("<script>", "&lt;script>"),
        ("&lt; and R&D", "&amp;lt; and R&D"),
        ("a\\|b", "a\\\\\\|b"),
        ("[text](https://example.org)", "[text]\\(https://example.org)"),
        ("EPYC [6f3a] (2 cores), https://example.org/a_b", "EPYC [6f3a] (2 cores), https://example.org/a_b"),
    ],
)
def test_text_is_shown_as_it_is(text: str, shown: str) -> None:
    assert escaped(text) == shown


@pytest.mark.parametrize(("rows", "align"), [([("a",)], "ll"), ([("a", "b")], "l")])
def test_every_row_has_all_columns(rows: list[tuple[str, ...]], align: str) -> None:
    with pytest.raises(ValueError, match="needs 2 cells"):
        table(("x", "y"), rows, align)
