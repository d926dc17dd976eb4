"""The report of the demonstration, made from the run's folder alone."""

import pathlib
from typing import Any

from experiments.harness import runs
from experiments.harness.page import (
    bullets,
    escape,
    folded,
    image,
    page,
    percent,
    plural,
    prose,
    table,
)

NAME = "report.html"

Row = dict[str, Any]

_METHODS = {"synflow": "SynFlow", "magnitude": "Magnitude", "random": "Random"}


def write(folder: pathlib.Path) -> pathlib.Path:
    """Writes the report of a run beside its logs.

    Args:
      folder: a finished run of `experiments.demo`: config.json, metrics.jsonl, figures.

    Returns:
      The path of the page, which needs no other file.
    """
    record, rows = runs.read(folder)
    masks = [row for row in rows if row.get("part") == "initialisation"]
    small = [row for row in rows if row.get("part") == "training"]
    trained = [row for row in rows if row["kind"] == "trained"]
    (about,) = (row for row in rows if row["kind"] == "data")
    (done,) = (row for row in rows if row["kind"] == "done")
    parts = [
        _introduction(record, masks, about),
        _outcome(masks, small, trained, about),
        _initialisation(record, masks),
        image(folder / "layers.png", _LAYERS),
        _every_layer(masks),
        _training(record, about, small, trained),
        image(folder / "accuracy.png", _ACCURACY, width="34rem"),
        _lessons(about),
        _making(record, done),
    ]
    path = folder / NAME
    path.write_text(page("Which weights can go before training?", parts), "utf-8")
    return path


# --- the sections -------------------------------------------------------------------------


def _introduction(record: Row, masks: list[Row], about: Row) -> str:
    size, depth = masks[0]["size"], len(masks[0]["layers"])
    smoke = (
        '<p class="note">This is the smoke form of the demonstration: it shows that the '
        "code works; its numbers mean nothing.</p>"
    )
    return (
        "<p>Pruning at initialisation chooses, before any training, which weights of a "
        "network to keep; the others are zero for good. The danger is "
        "<em>layer-collapse</em>: a method that takes every weight of one layer has cut "
        "the network, and no training repairs it. This page compares three methods on "
        f"{escape(masks[0]['network'])} ({size:,} prunable weights in {depth} layers), and "
        f"then trains a small network on {escape(about['data'])} with what each method "
        f"leaves of it.</p>{smoke if record['config']['smoke'] else ''}"
    )


def _outcome(masks: list[Row], small: list[Row], trained: list[Row], about: Row) -> str:
    points = [_how_far(masks, method) for method in _METHODS]
    points += [_one_a_layer(row) for row in masks if row["label"] == "N/L"]
    points += [_hardest(small, trained, about)]
    return f'<div class="box"><p><b>What came out</b></p>{bullets(points)}</div>'


def _initialisation(record: Row, masks: list[Row]) -> str:
    config = record["config"]
    cells = []
    for label in _labels(masks):
        for i, row in enumerate(row for row in masks if row["label"] == label):
            cells.append(
                [
                    ("" if i else prose(label), ""),
                    ("" if i else f"{row['kept']:,}", ""),
                    (_METHODS[row["method"]], "left"),
                    _emptied(row),
                    _flow(row["log10_flow_before"]),
                    _flow(row["log10_flow"]),
                ]
            )
    headings = ["compression", "weights kept", "method", "layers emptied"]
    headings += ["log<sub>10</sub> R before", "after"]
    methods = [
        f"<b>SynFlow</b>, {plural(config['rounds'], 'round')}: feeds an image of ones "
        "through the network with every weight replaced by its absolute value, keeps the "
        "weights that carry most of the flow, and measures the flow anew in every round. A "
        "round that would leave no path is taken in smaller steps.",
        "<b>Magnitude</b>, 1 round: keeps the largest weights.",
        "<b>Random</b>, 1 round: keeps a uniformly random set.",
    ]
    return (
        f"<h2>1. {escape(masks[0]['network'])} at initialisation</h2>"
        f"<p>The network has {plural(config['num_classes'], 'output')}. All methods start "
        f"from the same random weights (seed {config['seed']}) and see no data. Each ranks "
        "all convolution and dense weights of the network together and keeps exactly the "
        "number in the table; biases and batch normalisation are not pruned.</p>"
        f"{bullets(methods)}"
        "<p>R is the total flow: the sum, over all paths from an input to an output, of "
        "the product of the absolute values of the weights on the path. If no path is "
        "left, R is zero and the network's output no longer depends on its input.</p>"
        f"{table(headings, cells, left=(2, 3))}"
        '<p class="note">Compression is the number of weights over the number kept. N/L '
        "is the highest at which each of the L layers can keep one of the N weights.</p>"
    )


def _every_layer(masks: list[Row]) -> str:
    headings = ["layer", "size"]
    headings += [f"{_METHODS[r['method']]}<br>{prose(r['label'])}" for r in masks]
    cells = []
    for i, (name, _, size) in enumerate(masks[0]["layers"]):
        kept = [row["layers"][i][1] for row in masks]
        numbers = [(f"{k:,}", "" if k else "gone") for k in kept]
        cells.append([(escape(name), "left"), (f"{size:,}", ""), *numbers])
    wide = f'<div class="wide">{table(headings, cells, left=(0,))}</div>'
    return folded("Weights kept in every layer", wide)


def _training(record: Row, about: Row, small: list[Row], trained: list[Row]) -> str:
    settings = record["config"]["training"]
    cut = [row for row in small if row["log10_flow"] is None]
    dead = {(row["method"], row["label"]) for row in cut}
    dense = _dense(trained)
    accuracy = f"the dense network: {percent(dense['accuracy'])}"
    cells = [[("1", ""), (f"{dense['k']:,}", ""), (accuracy, "across")]]
    for label in _labels(small):
        found = _trained_at(trained, label)
        numbers = [
            (percent(found[m]["accuracy"]), "gone" if (m, label) in dead else "")
            for m in _METHODS
        ]
        cells.append([(prose(label), ""), (f"{found['synflow']['k']:,}", ""), *numbers])
    layers = ", ".join(escape(name) for name, _, _ in small[0]["layers"])
    deaths = [
        f"{_METHODS[row['method']]} at {prose(row['label'])}: {_damage(row)}."
        for row in cut
    ]
    colour = 'Printed <span class="gone">like this</span>: no path was left. '
    return (
        "<h2>2. What the masks are worth in training</h2>"
        f"<p>A small convolutional network ({dense['k']:,} prunable weights in the layers "
        f"{layers}) is pruned at initialisation in the same way and then trained on "
        f"<b>{escape(about['data'])}</b>{_what_data(about['data'])}: "
        f"{about['train_images']:,} images of {'x'.join(map(str, about['input_shape']))} "
        f"to train, {about['test_images']:,} held out, {about['num_classes']} classes. "
        "Every network, the dense one too, starts from the same weights, sees the same "
        f"images in the same order for {plural(about['epochs'], 'epoch')} "
        f"({about['steps']:,} steps of {settings['batch']} images), and is measured after "
        f"the last one. SGD with Nesterov momentum {settings['momentum']:g}, weight decay "
        f"{settings['weight_decay']:g}, learning rate up to "
        f"{settings['learning_rate']:g} with a warm-up and a cosine schedule; no "
        "augmentation.</p>"
        f"{table(['compression', 'weights kept', *_METHODS.values()], cells)}"
        f"<p>Accuracy on the held-out images. {colour if cut else ''}Chance is "
        f"{percent(1 / about['num_classes'])}.</p>"
        f"{bullets(deaths)}"
        f"<p>{_exactness(trained)}</p>"
    )


def _lessons(about: Row) -> str:
    deviation = 50 / about["test_images"] ** 0.5
    lessons = [
        "The right <em>number</em> of weights is not enough: they have to lie on paths "
        "from the input to the output. Section 1 shows which methods see to that, and up "
        "to which compression.",
        "Repeated rounds are part of SynFlow: what is left of a thinned layer carries the "
        "flow of the whole layer, so its scores rise and the next round spares it.",
        "Training is short, and every accuracy is one run from one seed. With "
        f"{about['test_images']:,} held-out images the sampling error alone is up to "
        f"{deviation:.1f} points (one standard deviation): take small differences for "
        "none, and compare nothing here with the accuracies of long training.",
        "The pruned networks are computed as dense arrays with zeros in them; nothing is "
        "skipped. What is shown is which weights are needed, not a saving of time.",
    ]
    return (
        f"<h2>3. What to take from this</h2>{bullets(lessons)}"
        '<p class="note">The method: H. Tanaka, D. Kunin, D. Yamins, S. Ganguli, '
        "&ldquo;Pruning neural networks without any data by iteratively conserving "
        "synaptic flow&rdquo;, NeurIPS 2020, arXiv 2006.05467.</p>"
    )


def _making(record: Row, done: Row) -> str:
    settings = {k: v for k, v in record["config"].items() if k != "training"}
    settings |= {f"training.{k}": v for k, v in record["config"]["training"].items()}
    facts = {
        "command": f"<code>{escape(record['command'])}</code>",
        "time": f"{done['seconds']:.0f} seconds, compilation included",
        "started": escape(record["started"]),
        "device": escape(record["device"])
        + f", {plural(record['devices'], 'device')}, "
        + plural(record["cores"], "processor core"),
        "versions": escape(", ".join(f"{k} {v}" for k, v in record["versions"].items())),
        "commit": escape(record["commit"] or "not in a git repository"),
        "settings": "<br>".join(escape(f"{k} = {v}") for k, v in settings.items()),
    }
    return (
        "<h2>4. How it was made</h2>"
        f"{table([], [[(k, 'left'), (v, 'left')] for k, v in facts.items()])}"
        f'<p class="note">All numbers come from <code>{runs.METRICS}</code> in the folder '
        "of this page, one JSON object a line.</p>"
    )


_LAYERS = (
    "Fraction of each layer's weights that is kept, layers in order from input to output. "
    "Crosses in the grey strip are layers with no weight left. Dashed: the same fraction "
    "in every layer."
)
_ACCURACY = (
    "Accuracy on the held-out images after training. Open markers: networks with no path "
    "left from input to output."
)


# --- sentences made from the numbers ------------------------------------------------------


def _how_far(masks: list[Row], method: str) -> str:
    """Up to which compression a method left a path, and where it first left none."""
    own = [row for row in masks if row["method"] == method and row["label"] != "N/L"]
    own.sort(key=lambda row: row["compression"])
    name = f"<b>{_METHODS[method]}</b>"
    cut = next((row for row in own if row["log10_flow"] is None), None)
    if cut is None:
        emptied = sum(len(row["collapsed"]) for row in own)
        return (
            f"{name} left a path from input to output at every compression tried, up to "
            f"{prose(own[-1]['label'])} ({plural(own[-1]['kept'], 'weight')}), and emptied "
            f"{plural(emptied, 'layer') if emptied else 'no layer'}."
        )
    before = own[: own.index(cut)]
    still = f" still left a path at {prose(before[-1]['label'])} but" if before else ""
    return (
        f"{name}{still} cut the network at {prose(cut['label'])} "
        f"({plural(cut['kept'], 'weight')} kept): {_damage(cut)}."
    )


def _one_a_layer(row: Row) -> str:
    weights = plural(row["kept"], "weight")
    name = f"At N/L, {weights} for {len(row['layers'])} layers, <b>SynFlow</b>"
    if any(kept != 1 for _, kept, _ in row["layers"]):
        return f"{name} did not keep one in each: {_damage(row)}."
    path = "no path" if row["log10_flow"] is None else "a path from input to output"
    return f"{name} kept exactly one in each, and together they form {path}."


def _damage(row: Row) -> str:
    if row["collapsed"]:
        return f"{len(row['collapsed'])} of {len(row['layers'])} layers lost all weights"
    if row["log10_flow"] is None:
        return "every layer has weights left, but they do not join into a path"
    return "every layer has weights left"


def _hardest(small: list[Row], trained: list[Row], about: Row) -> str:
    """The accuracies at the highest compression that was trained."""
    label = max(small, key=lambda row: row["compression"])["label"]
    found = _trained_at(trained, label)
    numbers = [f"{name} {percent(found[m]['accuracy'])}" for m, name in _METHODS.items()]
    return (
        f"Trained at {prose(label)} ({plural(found['synflow']['k'], 'weight')}) on "
        f"{escape(about['data'])}: {', '.join(numbers)}; the dense network "
        f"{percent(_dense(trained)['accuracy'])}, chance "
        f"{percent(1 / about['num_classes'])}."
    )


def _exactness(trained: list[Row]) -> str:
    masked = [row for row in trained if row["method"] != "dense"]
    exact = [r for r in masked if r["nonzero_kept"] == r["k"] and not r["nonzero_pruned"]]
    share = "all" if len(exact) == len(masked) else f"{len(exact)} of the"
    return (
        f"After training, in {share} {len(masked)} masked networks the number of prunable "
        "weights that are not zero is exactly the number kept, and every pruned weight is "
        "exactly 0.0."
    )


def _what_data(name: str) -> str:
    return {
        "cifar10_20k": ", a part of CIFAR-10 (a result on it is not one on CIFAR-10)",
        "digits": ", the handwritten digits of scikit-learn",
    }.get(name, "")


# --- the rows -----------------------------------------------------------------------------


def _emptied(row: Row) -> tuple[str, str]:
    """Names of the emptied layers; neighbours are written as first-last."""
    names = [name for name, _, _ in row["layers"]]
    stretches: list[list[int]] = []
    for place in map(names.index, row["collapsed"]):
        if stretches and stretches[-1][-1] == place - 1:
            stretches[-1].append(place)
        else:
            stretches.append([place])
    texts = ["\u2013".join(dict.fromkeys((names[s[0]], names[s[-1]]))) for s in stretches]
    listed = f"{len(row['collapsed'])}: {', '.join(texts)}" if texts else "none"
    return escape(listed), "left"


def _flow(log10: float | None) -> tuple[str, str]:
    if log10 is None:
        return "no path left", "gone"
    return f"{log10:.1f}".replace("-", "\u2212"), ""


def _labels(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["label"] for row in rows))


def _trained_at(trained: list[Row], label: str) -> dict[str, Row]:
    return {row["method"]: row for row in trained if row["label"] == label}


def _dense(trained: list[Row]) -> Row:
    (row,) = (row for row in trained if row["method"] == "dense")
    return row
