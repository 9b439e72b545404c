"""A figure of runs that are not of the paper's size says so, and one that are does not."""

import json

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from sample_tables import make_tables

from neural_collapse.figures import FIGURES, STUDIES
from neural_collapse.figures.sentences import size_sentence
from neural_collapse.results import paper
from neural_collapse.results.layout import Layout

CELLS = {"datasets": ("mnist", "fashion_mnist"), "architectures": ("vgg", "resnet")}
OF_THE_PAPER = [name for name in FIGURES if name not in STUDIES]
SMALL = "ResNet (1,1,1,1) width 8"


def papers_tables():
    """Tables whose runs are the paper's, as far as they tell."""
    tables = make_tables(**CELLS, last=20)
    protocols = [
        paper.PROTOCOL[tuple(c)] for c in tables["runs"][["dataset", "architecture"]].values
    ]
    tables["runs"] = tables["runs"].assign(
        network=[protocol.network for protocol in protocols],
        train_examples=[protocol.train_examples for protocol in protocols],
        recipe=[json.dumps(protocol.recipe) for protocol in protocols],
    )
    return tables


def reduced_tables():
    """The same with a narrow ResNet, and FashionMNIST of 14 pixels and 1000 images a class."""
    tables = papers_tables()
    runs = tables["runs"]
    runs.loc[runs.architecture == "resnet", "network"] = SMALL
    fashion = runs.dataset == "fashion_mnist"
    data = json.dumps({"data": {"average_pooling": 2, "padding_pixels": 0}})
    runs.loc[fashion, ["train_examples", "recipe"]] = [10_000, data]
    return tables


REDUCED = f"Not of the paper's size: FashionMNIST 1,000 images a class, 14 px; {SMALL}."


def texts(figure):
    return " ".join(" ".join(t.get_text().split()) for t in figure.findobj(Text))


def test_what_is_smaller_is_one_sentence():
    tables = reduced_tables()
    assert size_sentence(tables["runs"], Layout.of(tables["runs"])) == REDUCED
    runs = tables["runs"]
    runs.loc[(runs.architecture == "resnet") & (runs.dataset == "mnist"), "network"] = "ResNet18"
    assert size_sentence(runs, Layout.of(runs)).endswith(f"; {SMALL} (FashionMNIST).")


@pytest.mark.parametrize("network", ["ResNet18", "ResNet18 width 8"])
def test_another_stem_than_the_papers_is_named_with_the_network(network):
    tables = papers_tables()
    runs = tables["runs"]
    recipe = {"network": {"family": "resnet", "stem": "imagenet"}}
    runs.loc[runs.architecture == "resnet", ["network", "recipe"]] = [network, json.dumps(recipe)]
    said = f"Not of the paper's size: {network} with ImageNet's stem."
    assert size_sentence(runs, Layout.of(runs)) == said


def test_runs_of_the_papers_size_say_nothing():
    tables = papers_tables()
    assert size_sentence(tables["runs"], Layout.of(tables["runs"])) == ""


def test_own_and_reference_runs_are_told_apart():
    own, reference = papers_tables()["runs"], reduced_tables()["runs"].assign(origin="reference")
    runs = pd.concat([own, reference], ignore_index=True)
    assert size_sentence(runs, Layout.of(runs)) == REDUCED.replace("Not", "Reference runs not")


def test_a_dataset_that_is_not_the_papers_has_its_networks_named_alone():
    runs = make_tables(("digits",), ("vgg", "resnet"), last=5)["runs"]
    layout = Layout.of(runs)
    assert size_sentence(runs, layout) == "", "VGG11 and ResNet18 are published networks"
    changed = runs.replace({"network": {"VGG11": "my_networks:small", "ResNet18": SMALL}})
    assert size_sentence(changed, layout) == f"Not of the paper's size: {SMALL}."


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_every_figure_and_its_caption_say_it_and_the_note_overlaps_nothing(name):
    entry = FIGURES[name]
    for tables, said in [(papers_tables(), False), (reduced_tables(), True)]:
        runs, table = tables["runs"], tables[entry.table]
        if name == "figure_1":  # it shows one run
            table = table[(table.dataset == "fashion_mnist") & (table.architecture == "resnet")]
        layout = Layout.of(runs)
        figure = entry.function(table, runs, layout)
        assert (REDUCED in texts(figure)) == said
        assert (REDUCED in entry.caption(table, runs, layout=layout)) == said
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    # Boxes that touch differ by a hundredth of a pixel.
    legends = [legend.get_window_extent(renderer).padded(-0.5) for legend in figure.legends]
    others = [text.get_window_extent(renderer) for text in figure.texts]
    if name != "figure_1":  # whose axes in space reach farther than what is drawn in them
        others += [axes.get_tightbbox(renderer) for axes in figure.axes]
    assert legends and others
    for place, box in enumerate(legends):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in [*legends[place + 1 :], *others])
