"""Tables of results: Markdown and HTML of the same cells."""

from experiments.harness.tables import Table, document, folded, markdown

TABLE = Table("What is <kept> at 10^2", ["layer", "weights"], [["a", "1"], ["b&c", "10^3"]])


def test_markdown_aligns_the_first_column_left_and_numbers_right():
    assert markdown(TABLE) == "| layer | weights |\n|---|---:|\n| a | 1 |\n| b&c | 10^3 |"


def test_a_document_has_each_table_under_its_title():
    text = document([TABLE, TABLE._replace(title="Again")])
    titles = [text.index(title) for title in (TABLE.title, markdown(TABLE), "Again")]
    assert titles == sorted(titles) and text.count(markdown(TABLE)) == 2


def test_html_is_escaped_and_sets_powers_high():
    text = folded(TABLE)
    assert "<summary>What is &lt;kept&gt; at 10<sup>2</sup></summary>" in text
    assert '<td class="left">b&amp;c</td><td class="">10<sup>3</sup></td>' in text
    assert '<th class="left">layer</th><th class="">weights</th>' in text
