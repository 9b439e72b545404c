from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from neural_collapse.data.prepared import PreparedDataset
from neural_collapse.io.errors import UserError
from neural_collapse.training.recipe import SweepRecipe
from neural_collapse.training.selection import choose, held_out


def curves(**finals):
    """A table of candidates: rate=(error, loss) or rate=None for one that diverged."""
    rows = []
    for name, final in finals.items():
        rate = float(name.replace("r", "0.").replace("_", ""))
        diverged = final is None
        error, loss = final or (1.0, float("nan"))
        for split, shift in (("train", 0), ("test", 0), ("held_out", 0.5)):
            for statistic, value in (("error", error), ("loss", loss)):
                rows.append(
                    {
                        "dataset": "digits",
                        "architecture": "vgg",
                        "seed": 0,
                        "learning_rate": rate,
                        "epoch": 3 if diverged else 10,
                        "split": split,
                        "statistic": statistic,
                        "value": value if split != "held_out" else shift - value,
                        "diverged": diverged,
                    }
                )
    return pd.DataFrame(rows)


def test_the_lowest_error_wins_then_loss_then_rate():
    assert choose(curves(r1=(0.2, 1), r2=(0.1, 5)), 10, "test") == 0.2
    assert choose(curves(r1=(0.1, 2), r2=(0.1, 1)), 10, "test") == 0.2
    assert choose(curves(r2=(0.1, 1), r1=(0.1, 1)), 10, "test") == 0.1


def test_losses_that_are_not_defined_leave_the_errors_to_decide():
    nan = float("nan")
    assert choose(curves(r1=(0.2, nan), r2=(0.1, nan)), 10, "test") == 0.2
    assert choose(curves(r1=(0.1, nan), r2=(0.1, 5)), 10, "test") == 0.2


def test_selection_uses_the_errors_of_its_split():
    table = curves(r1=(0.1, 0.1), r2=(0.2, 0.2))
    assert choose(table, 10, "test") == 0.1
    assert choose(table, 10, "held_out") == 0.2


def test_divergent_ones_never_win():
    assert choose(curves(r1=None, r2=(0.9, 9)), 10, "test") == 0.2
    with pytest.raises(UserError, match="digits x vgg: every learning rate of the sweep diverged"):
        choose(curves(r1=None, r2=None), 10, "test")


@pytest.fixture
def data():
    labels = np.repeat(np.arange(3), [10, 20, 3])
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    fields = dict.fromkeys(PreparedDataset.__dataclass_fields__)
    return PreparedDataset(
        **fields
        | {
            "name": "toy",
            "num_classes": 3,
            "train_images": images,
            "train_labels": labels,
            "test_images": images[:1] + 100,
            "test_labels": labels[:1],
            "data_hash": "hash",
        }
    )


def test_held_out_images_are_train_images_that_training_does_not_see(data):
    split = held_out(data, 0.1, seed=0)
    train, test = (split.train_images.ravel().tolist(), split.test_images.ravel().tolist())
    assert sorted(train + test) == list(range(33))
    assert np.bincount(split.test_labels).tolist() == [1, 2, 1]
    for images, labels in ((train, split.train_labels), (test, split.test_labels)):
        assert np.array_equal(data.train_labels[images], labels)


def test_held_out_depends_only_on_the_seed(data):
    def drawn(seed):
        return held_out(data, 0.3, seed).test_images.ravel().tolist()

    assert drawn(1) == drawn(1) != drawn(2)
    assert held_out(data, 0.3, 1).data_hash not in {
        data.data_hash,
        held_out(data, 0.3, 2).data_hash,
    }


def test_a_class_of_one_image_cannot_be_split(data):
    labels = np.array([0, 0, 1, 1, 2])
    few = SimpleNamespace(name="toy", train_labels=labels, num_classes=3)
    with pytest.raises(UserError, match="class 2 has 1 train image"):
        held_out(few, 0.1, 0)


def test_held_out_fraction_changes_a_recipe_only_where_it_is_read():
    assert SweepRecipe(held_out_fraction=0.2) == SweepRecipe()
    chosen = SweepRecipe(selection="held_out_error", held_out_fraction=0.2)
    assert chosen.held_out_fraction == 0.2
