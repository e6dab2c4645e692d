"""What ``data.labels`` of the paired layout chooses between, from the files to a scored checkpoint."""

import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.cluster import MiniBatchKMeans

from cityseg.checkpoints import load_checkpoint
from cityseg.data import pairs
from cityseg.data.blends import BlendDecoder
from cityseg.data.pairs import PairsDataModule
from cityseg.data.samples import Samples
from cityseg.data.splits import Stratified
from cityseg.errors import ConfigError, DataError
from cityseg.labels import label_space
from cityseg.runs.evaluation import evaluate
from tests.data.layouts import OPTIONS, config_problems, photo, save, seed_of, write_pairs

COLORS = np.array([(128, 64, 128), (70, 130, 180), (0, 0, 142), (107, 142, 35), (250, 240, 10), (0, 0, 0)])


def write_own_colors(root, counts=(("train", 12), ("val", 2))):
    """Composites of noisy colours; the later ones have more of them."""
    for split, count in counts:
        for number in range(1, count + 1):
            rng = np.random.default_rng(seed_of(split, number))
            shares = rng.dirichlet(np.where(np.arange(6) < number / 2, 5, 0.1))
            label = COLORS[rng.choice(6, (32, 32), p=shares)] + rng.normal(0, 9, (32, 32, 3))
            composite = np.concatenate([photo(32, 32, seed_of(split, number)), np.clip(label, 0, 255)], axis=1)
            save(composite, root / split / f"{number}.png")
    return root


@pytest.fixture
def root(tmp_path):
    return write_own_colors(tmp_path / "own")


def kmeans(root, **options):
    return PairsDataModule(str(root), labels="kmeans", **{"clusters": 4, **OPTIONS, **options})


def label_pixels(root, numbers):
    return np.concatenate([np.asarray(Image.open(root / f"train/{i}.png"))[:, 32:].reshape(-1, 3) for i in numbers])


def scikit_centers(pixels, clusters=4, seed=42):
    fitted = MiniBatchKMeans(n_clusters=clusters, random_state=seed).fit(pixels)
    return {tuple(center) for center in np.rint(fitted.cluster_centers_).astype(int).tolist()}


def test_clusters_are_those_of_scikit_learn_on_the_training_label_pixels(root):
    centers = {tuple(color) for color in kmeans(root).fit_labels()["centers"]}
    assert centers == scikit_centers(label_pixels(root, range(1, 13)))


def test_clusters_are_found_in_the_samples_that_the_training_split_has(root, monkeypatch):
    def part(numbers):
        files = [f"train/{i}.png" for i in numbers]
        data = kmeans(root)
        monkeypatch.setattr(data, "samples", {"train": Samples.from_paths(root, files, files)}.__getitem__)
        return {tuple(color) for color in data.fit_labels()["centers"]}

    early, late = range(1, 7), range(7, 13)
    assert part(early) == scikit_centers(label_pixels(root, early))
    assert part(late) == scikit_centers(label_pixels(root, late))
    assert part(early) != part(late)


def test_a_pixel_is_the_nearest_rounded_center_and_none_is_void(root):
    data = kmeans(root)
    centers = np.array(data.fit_labels()["centers"])
    samples = data.samples("val")
    colors = np.asarray(Image.open(root / "val/2.png"))[:, 32:].astype(int)
    expected = np.square(colors[:, :, None] - centers).sum(-1).argmin(-1)
    np.testing.assert_array_equal(data.reader(samples.photo(1), samples.label(1)).target, expected)


def test_given_centers_make_the_same_classes_without_a_fit(root, tmp_path):
    fitted = kmeans(root)
    centers = fitted.fit_labels()["centers"]
    path = write_own_colors(tmp_path / "elsewhere", (("val", 3),)) / "val/3.png"
    rebuilt = kmeans(tmp_path / "elsewhere", centers=centers)
    assert rebuilt.fit_labels() == {}
    assert rebuilt.label_space == fitted.label_space
    np.testing.assert_array_equal(rebuilt.reader(path, path).target, fitted.reader(path, path).target)
    assert pickle.dumps(rebuilt.reader) == pickle.dumps(fitted.reader)


def test_until_clusters_are_found_there_is_their_number_but_no_target(root):
    data = kmeans(root)
    assert data.label_space.num_classes == 4
    assert data.reader(root / "val/1.png", root / "val/1.png").target is None
    data.fit_labels()
    assert data.fit_labels() == {}
    assert data.label_space.name == "kmeans4"


def test_classes_that_are_still_to_be_found_cannot_balance_folds(root):
    with pytest.raises(ConfigError, match="cv=stratified balances the pixels of classes"):
        kmeans(root).divide(Stratified(folds=2), 0)


def test_doubled_and_lost_classes_are_logged_when_clusters_are_found(tmp_path, caplog):
    kmeans(write_pairs(tmp_path, ending="png"), clusters=2).fit_labels()  # road, sky, a small car, a tiny void corner
    assert "no cluster is nearest to car (3.12 %), void (0.39 %)" in caplog.text
    caplog.clear()
    for number in range(4):
        label = np.where(np.arange(32)[:, None, None] < 16, (128, 64, 128), (110, 80, 110)) * np.ones((32, 32, 1))
        save(np.concatenate([photo(32, 32), label], axis=1), tmp_path / f"grey/train/{number}.png")
    kmeans(tmp_path / "grey", clusters=2).fit_labels()
    assert "of the clusters 2 are nearest to road" in caplog.text


def test_fewer_colours_in_the_training_labels_than_clusters(tmp_path):
    data = kmeans(write_pairs(tmp_path, ending="png"), clusters=5)
    with pytest.raises(DataError, match=r"data\.clusters=5: the training labels have only 4 different colours"):
        data.fit_labels()


def test_a_composite_that_breaks_is_named(root):
    data = kmeans(root)
    data.index(["train"])
    (root / "train/7.png").write_text("no picture")
    with pytest.raises(DataError, match=r"train/7\.png: not a picture"):
        data.fit_labels()


def test_clusters_may_have_any_colours(tmp_path):
    for number in range(4):
        save(np.concatenate([photo(32, 32), photo(32, 32, seed=9)], axis=1), tmp_path / f"train/{number}.png")
    assert len(kmeans(tmp_path).fit_labels()["centers"]) == 4


@pytest.mark.parametrize("reject", [True, False])
def test_palette_blend_decodes_blends(tmp_path, reject):
    root = write_pairs(tmp_path, ending="jpg")
    data = PairsDataModule(str(root), labels="palette_blend", reject_ambiguous=reject, **OPTIONS)
    samples = data.samples("train")
    colors = np.asarray(Image.open(root / "train/1.jpg"))[:, 32:]
    expected = BlendDecoder(label_space("cityscapes19"), reject)(colors)
    np.testing.assert_array_equal(data.reader(samples.photo(0), samples.label(0)).target, expected)
    assert data.label_space == label_space("cityscapes19")


@pytest.mark.parametrize("labels", ["palette", "palette_blend"])
def test_other_colours_than_the_palette_are_refused(tmp_path, labels):
    for number in range(4):
        save(np.concatenate([photo(32, 32), photo(32, 32, seed=9)], axis=1), tmp_path / f"train/{number}.png")
    with pytest.raises(DataError, match=r"painted in other colours.*\n(.*\n)*.*data\.labels=kmeans"):
        PairsDataModule(str(tmp_path), labels=labels, **OPTIONS).index(["train"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 1}, r"data\.clusters: found 1, expected a whole number from 2 to 255"),
        ({"kmeans_seed": -1}, r"data\.kmeans_seed: found -1"),
        ({"centers": [[1, 2, 3]]}, r"data\.centers: found 1 colours, expected 4"),
        ({"centers": [[1, 2, value] for value in range(253, 257)]}, r"found \[256\] as a colour"),
        ({"centers": [[1, 2, 3]] * 4}, "colours stand for two classes"),
        ({"max_distance": 30}, r"data\.max_distance: found 30, but data\.labels=kmeans does not use it"),
        ({"labels": "palette", "clusters": 20}, r"data\.clusters: found 20.*\n.*Fix: data\.labels=kmeans"),
        ({"labels": "palette", "clusters": 10, "centers": [[1, 2, 3]]}, r"data\.centers: .*labels=palette"),
        ({"labels": "kmean"}, r"data\.labels: found 'kmean', expected 'palette', 'palette_blend', 'kmeans'"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        PairsDataModule(None, **{"labels": "kmeans", "clusters": 4, **OPTIONS, **options})


def test_values_of_other_types_are_refused_with_the_config():
    typed = config_problems("pairs.PairsDataModule", clusters=2.5, labels="kmean", centers=[[1, 2]])
    assert "data.clusters: found 2.5, expected int" in typed
    assert "data.labels: found 'kmean', expected Literal['palette', 'palette_blend', 'kmeans']. Did you mean" in typed
    assert "data.centers: found [[1, 2]]" in typed


RUN = ("data=pairs", "data.labels=kmeans", "data.clusters=6", "callbacks.images=null", "logger=none")


def test_clusters_travel_with_the_checkpoint(run_tiny, compose_config, tmp_path):
    root = write_own_colors(tmp_path / "own")
    folder = run_tiny(*RUN, f"data.root={root}", "model.pretrained=false")
    final = json.loads((folder / "metrics.json").read_text())
    checkpoint = load_checkpoint(folder / "checkpoints/best.ckpt")
    expected = scikit_centers(label_pixels(root, range(1, 13)), clusters=6)
    assert {tuple(color) for color in checkpoint.config["data"]["centers"]} == expected
    assert final["label_space"] == checkpoint.label_space.name == "kmeans6"
    moved = shutil.move(folder / "checkpoints/best.ckpt", tmp_path / "network.ckpt")
    shutil.rmtree(folder)
    shutil.rmtree(root / "train")  # there is nothing left to find clusters in
    evaluate(compose_config([f"ckpt={moved}", "predictions=true"], name="evaluate"), tmp_path / "scored")
    again = json.loads((tmp_path / "scored/metrics.json").read_text())
    differing = {key for key in again.keys() & final.keys() if again[key] != final[key]}
    assert differing <= {"seconds"}
    predicted = np.asarray(Image.open(tmp_path / "scored/label_ids/1_pred_labelIds.png"))
    assert set(np.unique(predicted)) <= set(checkpoint.label_space.label_ids)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_clusters(run_tiny, monkeypatch):
    folder = run_tiny(*RUN)
    centers = load_checkpoint(folder / "checkpoints/last.ckpt").config["data"]["centers"]
    assert len(centers) == 6
    monkeypatch.setattr(pairs, "find_centers", None)
    run_tiny(f"resume={folder}", "trainer.max_epochs=2")
    assert load_checkpoint(folder / "checkpoints/last.ckpt").config["data"]["centers"] == centers
