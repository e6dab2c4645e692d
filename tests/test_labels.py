import numpy as np
import pytest

from cityseg.errors import ConfigError
from cityseg.labels import CITYSCAPES_LABELS, LabelSpace, custom_label_space, label_space

SPACES = ("cityscapes19", "cityscapes20", "cityscapes_categories", "cityscapes_ids")


def test_the_table_is_the_official_one():
    official = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    assert [tuple(label) for label in CITYSCAPES_LABELS] == [tuple(label) for label in official]


def test_19_classes_are_those_that_the_official_script_scores():
    space = label_space("cityscapes19")
    assert space.num_classes == 19
    assert space.class_names[0] == "road"
    assert space.class_names[18] == "bicycle"
    assert space.encode_table[7] == 0
    assert space.encode_table[0] == 255
    assert space.encode_table[200] == -1


def test_20_classes_have_void_as_a_class_of_its_own():
    space = label_space("cityscapes20")
    assert space.class_names[19] == "void"
    assert space.encode_table[0] == space.encode_table[9] == 19
    assert space.encode_table[33] == 18
    assert 255 not in space.encode_table.tolist()


def test_seven_categories_join_their_classes():
    space = label_space("cityscapes_categories")
    assert space.class_names == ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
    assert space.encode_table[7] == space.encode_table[8] == 0
    assert space.encode_table[26] == space.encode_table[33] == 6
    assert space.encode_table[9] == 255  # parking: ignored by the official evaluation


def test_all_label_ids_keep_their_numbers():
    space = label_space("cityscapes_ids")
    assert space.num_classes == 34
    assert space.encode_table[:34].tolist() == list(range(34))


@pytest.mark.parametrize("name", SPACES)
def test_label_ids_written_and_read_again_give_the_same_train_ids(name):
    space = label_space(name)
    train_ids = np.arange(space.num_classes, dtype=np.uint8)
    assert space.encode_table[space.to_label_ids(train_ids)].tolist() == train_ids.tolist()


def test_void_is_written_as_unlabelled():
    assert label_space("cityscapes19").to_label_ids(np.array([255], np.uint8)).tolist() == [0]


@pytest.mark.parametrize("name", SPACES)
def test_a_space_survives_the_way_through_plain_containers(name):
    import json

    space = label_space(name)
    assert LabelSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


def test_colorize_paints_each_class_in_its_colour():
    space = label_space("cityscapes19")
    assert space.colorize(np.array([[0, 255]], np.uint8)).tolist() == [[[128, 64, 128], [0, 0, 0]]]


def test_own_classes_take_train_ids_in_order_and_void_is_no_class():
    space = custom_label_space({"grass": [0, 255, 0], "void": [1, 2, 3], "path": [255, 0, 0]})
    assert space.class_names == ("grass", "path")
    assert space.aliases == (((1, 2, 3), 255),)
    assert space.encode_table[:3].tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"a": [0, 0, 300]}, "each 0 to 255"),
        ({"a": [0, 0]}, r"expected \[R, G, B\]"),
        ({"a": [0, 0, 1], "b": [0, 0, 1]}, "colours stand for two classes"),
        ({}, "found 0 classes"),
    ],
)
def test_impossible_classes_are_refused(classes, message):
    with pytest.raises(ConfigError, match=message):
        custom_label_space(classes)


def test_an_unknown_space_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'cityscapes19'"):
        label_space("cityscape19")
