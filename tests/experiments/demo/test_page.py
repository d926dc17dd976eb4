"""The figures and the sentences of the demonstration, from hand-made rows."""

import pytest

from experiments.demo import figures, page

PNG = b"\x89PNG\r\n"


def mask_row(method, compression, kept, flow):
    return {
        "part": "initialisation",
        "method": method,
        "label": f"10^{compression:g}",
        "compression": compression,
        "kept": sum(kept),
        "layers": [[f"conv{i}", k, 100] for i, k in enumerate(kept, 1)],
        "collapsed": [f"conv{i}" for i, k in enumerate(kept, 1) if not k],
        "log10_flow": flow,
    }


def test_a_figure_of_one_panel_and_of_three_is_drawn(tmp_path):
    rows = [mask_row("synflow", c, (3, 2, 0), None) for c in (1.0, 2.0, 5.0)]
    figures.layers(rows[:1], tmp_path / "one.png")
    figures.layers(rows, tmp_path / "three.png")
    for name in ("one.png", "three.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    "rows, sentence",
    [
        (
            [mask_row("random", 1.0, (5, 5), 1.0), mask_row("random", 2.0, (1, 1), -1.0)],
            "left a path from input to output at every compression tried, up to "
            "10<sup>2</sup> (2 weights), and emptied no layer.",
        ),
        (
            [mask_row("random", 1.0, (5, 5), 1.0), mask_row("random", 2.0, (2, 0), None)],
            "still left a path at 10<sup>1</sup> but cut the network at 10<sup>2</sup> "
            "(2 weights kept): 1 of 2 layers lost all weights.",
        ),
        (
            [mask_row("random", 1.0, (1, 1), None)],
            "cut the network at 10<sup>1</sup> (2 weights kept): every layer has weights "
            "left, but they do not join into a path.",
        ),
    ],
)
def test_the_report_says_how_far_a_method_went(rows, sentence):
    assert page._how_far(rows, "random") == f"<b>Random</b> {sentence}"


def test_the_report_names_stretches_of_emptied_layers():
    row = mask_row("random", 1.0, (0, 0, 1, 0, 1, 0, 0, 0), None)
    assert page._emptied(row)[0] == "6: conv1\u2013conv2, conv4, conv6\u2013conv8"
    assert page._emptied(mask_row("random", 1.0, (1, 1), 0.0))[0] == "none"
