"""Unequal classes and shuffled labels: counts by hand, the same images, mistakes in a sentence."""

from __future__ import annotations

import numpy as np
import pytest
from dataset_files import write_files

from neural_collapse.data.download import download_dataset
from neural_collapse.data.prepare import prepare_dataset, shuffled_labels
from neural_collapse.data.prepared import PreparedDataset
from neural_collapse.data.recipe import DataRecipe
from neural_collapse.io.errors import UserError


@pytest.fixture
def prepare(publish, tmp_path):
    """A small MNIST, 7 train images a class, prepared by a recipe's keys."""
    given = write_files(tmp_path / "given" / "mnist", publish("mnist").files)
    download_dataset("mnist", tmp_path / "raw", mirror=str(given.parent))

    def of(**keys) -> PreparedDataset:
        recipe = DataRecipe(**keys)
        prepare_dataset("mnist", tmp_path / "raw", tmp_path / recipe.name, recipe)
        return PreparedDataset.open(tmp_path / recipe.name)

    return of


def rows(data: PreparedDataset) -> dict[int, set[bytes]]:
    """The train images of each class."""
    images, labels = np.asarray(data.train_images), np.asarray(data.train_labels)
    return {c: {image.tobytes() for image in images[labels == c]} for c in range(10)}


def test_a_step_keeps_the_same_images_of_the_majority_and_some_of_the_minority(prepare):
    keys = {"examples_per_class": 6, "subset_seed": 3}
    whole = prepare(**keys)
    imbalance = {"ratio": 3, "minority_classes": [9, 2]}
    data = prepare(**keys, imbalance=imbalance)
    counts = [6, 6, 2, 6, 6, 6, 6, 6, 6, 2]
    assert np.bincount(data.train_labels).tolist() == counts
    assert data.card["counts"]["train"]["kept"] == counts
    for c, images in rows(data).items():
        assert images <= rows(whole)[c] and len(images) == counts[c]
    np.testing.assert_array_equal(data.test_labels, whole.test_labels)
    np.testing.assert_array_equal(data.test_images, whole.test_images)
    assert (data.mean, data.std) == (whole.mean, whole.std)


def test_exponential_counts_fall_by_one_factor_in_the_order_given():
    # 1024 / 4^k for k = 0, 1, ..., classes 0, 2 and 4 first, then 3 and 1
    imbalance = {"kind": "exponential", "ratio": 256, "minority_classes": [3, 1]}
    recipe = DataRecipe(examples_per_class=1024, imbalance=imbalance)
    assert recipe.train_counts([5000] * 5) == [1024, 4, 256, 16, 64]
    assert recipe.train_examples(25000, 5) == 1024 + 4 + 256 + 16 + 64


def test_without_a_count_each_class_loses_its_own_share():
    recipe = DataRecipe(imbalance={"ratio": 10, "minority_classes": [1]})
    assert recipe.train_counts([100, 77, 90]) == [100, 8, 90]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_random_labels_are_a_permutation_of_a_share_of_them(share):
    labels = np.repeat(np.arange(10), [300] * 5 + [20] * 5)
    shuffled = shuffled_labels(labels, 10, share, 7)
    np.testing.assert_array_equal(np.bincount(shuffled), np.bincount(labels))
    changed = (shuffled != labels).mean()
    kept_by_chance = ((np.bincount(labels) / len(labels)) ** 2).sum()
    assert changed == pytest.approx(share * (1 - kept_by_chance), abs=0.03)
    np.testing.assert_array_equal(shuffled, shuffled_labels(labels, 10, share, 7))
    assert share == 0 or (shuffled != shuffled_labels(labels, 10, share, 8)).any()
    np.testing.assert_array_equal(labels, np.sort(labels))  # the given ones stay


def test_random_labels_change_only_train_labels(prepare):
    whole, data = prepare(), prepare(random_labels=1)
    np.testing.assert_array_equal(data.train_images, whole.train_images)
    np.testing.assert_array_equal(data.test_labels, whole.test_labels)
    assert (data.train_labels != whole.train_labels).mean() > 0.5
    assert np.bincount(data.train_labels).tolist() == [7] * 10
    assert data.data_hash != whole.data_hash


def test_preparations_of_different_data_have_different_folders():
    step, minority = {"ratio": 10, "minority_classes": [1, 2]}, {"minority_classes": [2, 1]}
    other = [
        {},
        {"imbalance": step},
        {"imbalance": step | {"ratio": 10.5}},
        {"imbalance": step | {"kind": "exponential"}},
        {"imbalance": step | {"kind": "exponential"} | minority},
        {"random_labels": 0.5},
        {"random_labels": 1},
    ]
    names = [DataRecipe(**keys).name for keys in other]
    assert len(set(names)) == len(names) and names[0] == "as-published"
    assert DataRecipe(imbalance=step | minority).name == names[1]  # a step has no order


def test_folders_of_many_minority_classes_have_short_names_that_differ():
    def name(classes, **keys):
        return DataRecipe(imbalance={"ratio": 10, "minority_classes": classes} | keys).name

    assert name(range(5, 10)) == "imbalance-step-10-5-6-7-8-9"
    many, exponential = list(range(1, 100)), {"kind": "exponential"}
    names = {name(many), name(many[:-1]), name(many, **exponential), name(many[::-1])}
    names |= {name(many[::-1], **exponential), name(many, ratio=1 / 3e-9)}
    assert len(names) == 5  # a step has no order
    assert max(map(len, names)) < 100


def test_recipes_without_the_keys_are_written_as_before():
    assert not {"imbalance", "random_labels"} & DataRecipe().model_dump().keys()


def test_a_class_without_images_is_named(prepare):
    with pytest.raises(UserError) as error:
        prepare(imbalance={"ratio": 100, "minority_classes": [4]})
    assert str(error.value) == ("data.imbalance.ratio: 100 leaves class 4 without images; lower it")
