"""Label spaces, their tables, and the decoders of painted labels, against loops and arithmetic by hand."""

import io
import json

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from cityseg.data.blends import BlendDecoder
from cityseg.data.clusters import cluster_space, distinct_colors, find_centers
from cityseg.data.color_labels import PaletteDecoder
from cityseg.data.statistics import CLASS_WEIGHT_SCHEMES, class_weights_from_counts
from cityseg.errors import ConfigError, DataError
from cityseg.labels import VOID, LabelSpace, custom_label_space, label_space

BYTES = st.integers(0, 255)
COLORS = st.tuples(BYTES, BYTES, BYTES)
NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp", "Cf")), min_size=1, max_size=12)
SIDES = st.integers(1, 9)


@st.composite
def spaces(draw, most=8):
    colors = draw(st.lists(COLORS, min_size=1, max_size=most, unique=True))
    names = draw(st.lists(NAMES, min_size=len(colors), max_size=len(colors), unique=True))
    return LabelSpace("drawn", tuple(names), tuple(colors))


def pictures(depth=3):
    return st.tuples(SIDES, SIDES).flatmap(lambda size: arrays.arrays(np.uint8, (*size, depth)))


@example(LabelSpace("grey", ("grey",), ((100, 100, 100),)), 2, 9.0)
@settings(max_examples=3)  # the table of a palette takes a tenth of a second
@given(space=spaces(most=4), seed=st.integers(0, 99), limit=st.none() | st.floats(0, 450) | st.floats(1, 30))
def test_the_nearest_colour_is_that_of_a_loop(space, seed, limit):
    random = np.random.default_rng(seed)
    painted = random.choice(np.array(space.colors), (20, 30)) + random.normal(0, random.choice([5, 100]), (20, 30, 3))
    picture = painted.clip(0, 255).astype(np.uint8)
    decoded = PaletteDecoder(space, limit)(picture)
    squares = np.square(picture.astype(int)[:, :, None] - np.array(space.colors)).sum(-1)
    nearest, near = squares.argmin(-1), squares.min(-1)
    kept = np.ones_like(near, bool) if limit is None else near <= limit**2 + 1e-6
    np.testing.assert_array_equal(decoded, np.where(kept, nearest, VOID))


@settings(max_examples=3)
@given(space=spaces(most=4), data=st.data())
def test_painted_classes_are_decoded_exactly_and_other_colours_are_named(space, data):
    ids = data.draw(arrays.arrays(np.uint8, st.tuples(SIDES, SIDES), elements=st.integers(0, space.num_classes - 1)))
    painted, decoder = space.colorize(ids), PaletteDecoder(space, 0)
    np.testing.assert_array_equal(decoder.decode_exact(painted), ids)
    assert decoder.mean_distance(painted) == 0
    foreign = data.draw(COLORS.filter(lambda color: color not in space.colors))
    painted[0, 0] = foreign
    with pytest.raises(DataError, match="found 1 RGB") as error:
        decoder.decode_exact(painted)
    assert f"{foreign} on 1 px;" in str(error.value)


@given(color=st.integers(0, 18), side=st.integers(1, 24), reject=st.booleans())
def test_blends_of_pure_colours_are_those_colours(color, side, reject):
    space = label_space("cityscapes19")
    ids = np.full((side, side), color, np.uint8)
    np.testing.assert_array_equal(BlendDecoder(space, reject)(space.colorize(ids)), ids)


@given(picture=pictures(), reject=st.booleans())
def test_blends_give_a_class_or_void_for_any_picture(picture, reject):
    decoded = BlendDecoder(label_space("cityscapes19"), reject)(picture)
    assert decoded.shape == picture.shape[:2]
    assert set(np.unique(decoded)) <= {*range(19), VOID}


@settings(max_examples=3)
@given(colors=arrays.arrays(np.uint8, st.tuples(st.integers(1, 60), st.just(3))), clusters=st.integers(1, 6))
def test_kmeans_classes_are_the_nearest_centres(colors, clusters):
    different = len(np.unique(colors, axis=0))
    if different < clusters:
        with pytest.raises(DataError, match=f"only {different} different"):
            find_centers(colors, clusters, 0)
        return
    centers = find_centers(colors, clusters, 0)
    assert len(set(centers)) == clusters
    space = cluster_space(centers)
    assert sorted(space.colors) == sorted(centers)
    decoded = PaletteDecoder(space, None)(colors[None])[0]
    squares = np.square(colors.astype(int)[:, None] - np.array(space.colors)).sum(-1)
    np.testing.assert_array_equal(squares[np.arange(len(colors)), decoded], squares.min(1))


@given(centers=st.lists(st.tuples(*[st.floats(0, 255)] * 3), min_size=1, max_size=20))
def test_rounded_centres_are_distinct_and_near(centers):
    rounded = distinct_colors(np.array([*centers, centers[0]]))  # two of them alike
    assert len(set(rounded)) == len(centers) + 1
    assert np.abs(np.array(rounded) - [*centers, centers[0]]).max() <= 6.5
    assert np.abs(np.array(rounded[0]) - centers[0]).max() <= 0.5


@given(space=spaces(most=30), data=st.data())
def test_a_label_space_survives_json_and_its_tables_are_inverse(space, data):
    ids = dict(zip(data.draw(st.permutations(range(256))), [*range(space.num_classes), VOID], strict=False))
    raw_of = {train: raw for raw, train in ids.items() if train != VOID}
    label_ids = tuple(raw_of[train] for train in range(space.num_classes))
    space = LabelSpace("drawn", space.class_names, space.colors, ids=ids, label_ids=label_ids)
    again = LabelSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space
    train_ids = np.arange(space.num_classes, dtype=np.uint8)
    np.testing.assert_array_equal(space.encode_table[space.to_label_ids(train_ids)], train_ids)
    assert set(np.flatnonzero(space.encode_table >= 0)) == set(ids)
    np.testing.assert_array_equal(space.colorize(train_ids), np.array(space.colors, np.uint8))


@given(classes=st.dictionaries(NAMES | st.just("void"), st.lists(st.integers(-2, 300), max_size=4), max_size=6))
def test_classes_of_ones_own_make_a_space_or_a_clear_error(classes):
    colors = [tuple(color) for color in classes.values()]
    sound = all(len(color) == 3 and all(0 <= value <= 255 for value in color) for color in colors)
    scored = [tuple(color) for name, color in classes.items() if name != "void"]
    if not sound or not scored or len(set(scored)) < len(scored):
        with pytest.raises(ConfigError):
            custom_label_space(classes)
        return
    space = custom_label_space(classes)
    assert space.colors == tuple(scored)
    assert [target for _, target in space.aliases] == [VOID] * ("void" in classes)


@given(count=st.integers(1, 258))
def test_up_to_255_classes_fit_beside_void(count):
    names, colors = [f"c{i}" for i in range(count)], [(i % 256, i // 256, 7) for i in range(count)]
    if count > VOID:
        with pytest.raises(ConfigError, match="expected 1 to 255"):
            LabelSpace("many", tuple(names), tuple(colors))
    else:
        space = LabelSpace("many", tuple(names), tuple(colors))
        assert space.encode_table[count - 1] == count - 1
        assert space.encode_table[VOID] == VOID


@given(ids=arrays.arrays(np.uint8, st.tuples(SIDES, SIDES)))
def test_label_ids_survive_png(ids):
    file = io.BytesIO()
    Image.fromarray(ids).save(file, "png")
    np.testing.assert_array_equal(np.asarray(Image.open(file)), ids)


@given(
    counts=st.lists(st.integers(0, 10**12), min_size=1, max_size=20), scheme=st.sampled_from(CLASS_WEIGHT_SCHEMES[1:])
)
def test_class_weights_fall_with_the_share_and_are_0_for_absent_classes(counts, scheme):
    assume(sum(counts))
    weights = class_weights_from_counts(np.array(counts), scheme).numpy()
    assert np.isfinite(weights).all()
    assert ((weights > 0) == (np.array(counts) > 0)).all()
    present = weights[np.array(counts) > 0][np.argsort([count for count in counts if count], kind="stable")]
    assert (np.diff(present) <= 1e-4 * present[:-1]).all()
