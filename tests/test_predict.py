"""Prediction of pictures and videos, compared with evaluate.py and with pictures made by hand."""

import re
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cityseg.data.images import read_header
from cityseg.data.pictures import Frame, find_sources, read_frames, read_picture
from cityseg.errors import CitysegError, ConfigError, DataError, FileProblem
from cityseg.labels import custom_label_space, label_space
from cityseg.runs import prediction
from cityseg.runs.evaluation import evaluate
from cityseg.runs.prediction import Prediction, Results, predict
from cityseg.runs.server import check_server_input
from tests.conftest import ROOT
from tests.data.layouts import bomb

pytestmark = pytest.mark.slow  # a network is trained, and run by commands

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def checkpoint(trained, run_tiny):
    """One run for all tests: only the first trains."""
    if not list(trained.iterdir()):
        (run_tiny() / "checkpoints/last.ckpt").rename(trained / "last.ckpt")
    return trained / "last.ckpt"


@pytest.fixture
def scenes(trained):
    """A cache that holds one set of scenes: in the shared one, those of other tests lie beside it."""
    return trained / "scenes"


@pytest.fixture
def predict_tiny(checkpoint, tmp_path, compose_config):
    def predicted(source, *overrides, output="out"):
        keys = [f"ckpt={checkpoint}", f"input='{source}'", f"output={tmp_path / output}", "trainer.accelerator=cpu"]
        predict(compose_config([*keys, *overrides], tmp_path / output, "predict"))
        return tmp_path / output

    return predicted


def picture(path, height=32, width=48, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def read(path):
    return np.asarray(Image.open(path))


def results(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("extra", [(), ("data.scale=0.5",), ("inference=sliding", "window=48", "tta=flip")])
def test_label_ids_equal_those_of_evaluate(extra, checkpoint, predict_tiny, tmp_path, compose_config, scenes):
    # One photo at a time, as prediction does: some processors round larger batches in another way.
    keys = [f"ckpt={checkpoint}", "predictions=true", "panels=0", f"data.cache_dir={scenes}"]
    keys.append("data.eval_batch_size=1")
    evaluate(
        compose_config([*keys, *extra, "trainer.accelerator=cpu"], tmp_path / "scored", "evaluate"), tmp_path / "scored"
    )
    written = sorted((tmp_path / "scored/label_ids").iterdir())
    (folder,) = {path.parents[1] for path in scenes.rglob("leftImg8bit/val/*/*.png")}
    output = predict_tiny(folder, *extra)
    assert len(written) == 3
    for path in written:
        (ours,) = (output / "label_ids").rglob(path.name.replace("_pred_labelIds", "_leftImg8bit"))
        np.testing.assert_array_equal(read(ours), read(path))


@pytest.fixture
def other(trained, checkpoint):
    """A second checkpoint of the same network, with other weights."""
    content = torch.load(checkpoint, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for weight in content["state_dict"].values():
        if weight.is_floating_point():
            weight *= 1 + 0.5 * torch.rand(weight.shape, generator=generator)
    torch.save(content, trained / "other.ckpt")
    return trained / "other.ckpt"


def test_an_ensemble_predicts_what_evaluate_scores(checkpoint, other, predict_tiny, tmp_path, compose_config, scenes):
    both = f"ckpt=[{checkpoint},{other}]"
    keys = [both, "predictions=true", "panels=0", f"data.cache_dir={scenes}", "data.eval_batch_size=1"]
    evaluate(compose_config([*keys, "trainer.accelerator=cpu"], name="evaluate"), tmp_path / "scored")
    (folder,) = {path.parents[1] for path in scenes.rglob("leftImg8bit/val/*/*.png")}
    together, alone = predict_tiny(folder, both, output="both"), predict_tiny(folder, output="alone")
    differ = 0
    for path in (tmp_path / "scored/label_ids").iterdir():
        (ours,) = (together / "label_ids").rglob(path.name.replace("_pred_labelIds", "_leftImg8bit"))
        np.testing.assert_array_equal(read(ours), read(path))
        differ += np.sum(read(ours) != read(alone / ours.relative_to(together)))
    assert differ
    with pytest.raises(ConfigError, match="holds predictions of another checkpoint_sha256"):
        predict_tiny(folder, output="both")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda own: own["label_space"].update(class_names=["street", *own["label_space"]["class_names"][1:]]),
            "of the same classes",
        ),
        (lambda own: own["config"]["data"].update(scale=0.5), "found data.scale=0.5 and 1.0, expected one"),
    ],
)
def test_checkpoints_that_do_not_fit_are_no_ensemble(change, message, checkpoint, predict_tiny, tmp_path):
    picture(tmp_path / "in/a.png")
    content = torch.load(checkpoint, weights_only=True)
    change(content["cityseg"])
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CitysegError, match=message):
        predict_tiny(tmp_path / "in", f"ckpt=[{checkpoint},{tmp_path}/other.ckpt]")


def test_every_output_says_the_same(predict_tiny, checkpoint, tmp_path):
    photo = picture(tmp_path / "in/a.png", 33, 47)
    output = predict_tiny(tmp_path / "in", "save=[label_ids,train_ids,color,overlay,confidence,soft]", "alpha=0.25")
    space = prediction.load_checkpoint(checkpoint).label_space
    train_ids = read(output / "train_ids/a.png")
    soft = np.load(output / "soft/a.npz")
    assert soft["probabilities"].shape == (space.num_classes, 33, 47)
    assert tuple(soft["classes"]) == space.class_names
    np.testing.assert_allclose(soft["probabilities"].sum(axis=0, dtype=int), 255, atol=space.num_classes / 2)
    chosen = np.take_along_axis(soft["probabilities"], train_ids[None], 0)[0]
    np.testing.assert_array_equal(chosen, soft["probabilities"].max(axis=0))
    np.testing.assert_array_equal(read(output / "confidence/a.png"), chosen)
    np.testing.assert_array_equal(read(output / "label_ids/a.png"), space.to_label_ids(train_ids))
    np.testing.assert_array_equal(read(output / "color/a.png"), space.colorize(train_ids))
    mixed = 0.75 * photo + 0.25 * space.colorize(train_ids)
    np.testing.assert_allclose(read(output / "overlay/a.png"), mixed, atol=0.51)


def test_pictures_of_every_mode_become_rgb(tmp_path):
    rgb = RNG.integers(0, 256, (6, 8, 3), np.uint8)
    grey, alpha = rgb[..., 0], rgb[..., 1]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "alpha.png")
    Image.fromarray(np.dstack([grey, alpha]), "LA").save(tmp_path / "grey_alpha.png")
    Image.fromarray(grey.astype(np.uint16) * 256 + 99).save(tmp_path / "grey16.png")
    cv2.imwrite(str(tmp_path / "rgb16.png"), rgb[..., ::-1].astype(np.uint16) * 256 + 99)
    Image.fromarray(255 - np.dstack([rgb, np.full_like(grey, 255)]), "CMYK").save(tmp_path / "cmyk.tif")
    indexed = Image.fromarray(grey // 64, "P")
    indexed.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    indexed.save(tmp_path / "palette.png", transparency=bytes([0, 9, 255]))
    colors = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]])
    wanted = {"alpha.png": rgb, "rgb16.png": rgb, "cmyk.tif": rgb, "palette.png": colors[grey // 64]}
    wanted |= dict.fromkeys(("grey.png", "grey_alpha.png", "grey16.png"), np.dstack([grey] * 3))
    for name, pixels in wanted.items():
        np.testing.assert_array_equal(read_picture(tmp_path / name), pixels, err_msg=name)
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(FileProblem, match="found mode 'F'"):
        read_picture(tmp_path / "float.tif")


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_pictures_are_turned_as_a_viewer_shows_them(tmp_path, ending):
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer turns the stored pixels clockwise
    options = {"lossless": True} if ending == "webp" else {}
    pixels = picture(tmp_path / f"turned.{ending}", 6, 8, exif=exif, **options)
    np.testing.assert_array_equal(read_picture(tmp_path / f"turned.{ending}"), np.rot90(pixels, -1))


def test_bad_files_are_named_and_the_rest_is_predicted(tmp_path, predict_tiny):
    folder = tmp_path / "in"
    picture(folder / "deep/er/good.jpg")
    picture(folder / "one.png", 1, 1)
    picture(folder / "cut.jpg", 64, 64)
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:900])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").touch()
    (folder / "clip.mp4").write_bytes(b"no video" * 99)
    (folder / "bomb.png").write_bytes(bomb(20_000, 20_000))
    (folder / "large.png").write_bytes(bomb(10_000, 10_000))
    (folder / "notes.txt").write_text("passed over")
    with pytest.raises(DataError) as error:
        predict_tiny(folder, "save=color")
    message = str(error.value)
    for name in (
        "cut.jpg: ",
        "text.png: ",
        "empty.png: 0 bytes",
        "clip.mp4: ",
        "bomb.png: ",
        "large.png: found 10000x10000",
    ):
        assert name in message
    assert "expected at most 89478485 pixels" in message
    assert "raise max_pixels" in message
    assert not any(name in message for name in ("good", "one", "notes"))
    assert results(tmp_path / "out") == ["color/deep/er/good.png", "color/one.png", "prediction.json"]
    assert read(tmp_path / "out/color/one.png").shape == (1, 1, 3)


@pytest.mark.filterwarnings("error")
def test_pictures_and_videos_may_have_as_many_pixels_as_the_key_says(tmp_path, predict_tiny):
    picture(tmp_path / "in/good.png", 32, 48)
    film(tmp_path / "in/clip.avi", 34, 46)
    with pytest.raises(DataError, match=r"(?s)clip.avi: found 46x34, expected at most 1536.*") as error:
        predict_tiny(tmp_path / "in", "save=color", "max_pixels=1536")
    assert "good" not in str(error.value)
    (tmp_path / "bomb.png").write_bytes(bomb(20_000, 20_000))  # more than Pillow alone would open
    assert read_header(tmp_path / "bomb.png", 20_000**2) == (20_000, 20_000)
    with pytest.raises(FileProblem, match=r"found 20000x20000, expected at most 399999999 pixels"):
        read_picture(tmp_path / "bomb.png", 20_000**2 - 1)


def test_a_second_run_does_what_is_missing_and_overwrite_all(tmp_path, predict_tiny, caplog):
    for name in "abc":
        picture(tmp_path / f"in/{name}.png")
    caplog.set_level("INFO")
    output = predict_tiny(tmp_path / "in", "save=[color]")
    before = {path.name: path.stat().st_mtime_ns for path in (output / "color").iterdir()}
    (output / "color/b.png").unlink()
    predict_tiny(tmp_path / "in", "save=[color]")
    after = {path.name: path.stat().st_mtime_ns for path in (output / "color").iterdir()}
    assert "1 predicted, 2 already there" in caplog.text
    assert [name for name in before if before[name] != after[name]] == ["b.png"]
    with pytest.raises(ConfigError, match=r"holds predictions of another tta.*overwrite=true"):
        predict_tiny(tmp_path / "in", "save=[color]", "tta=flip")
    predict_tiny(tmp_path / "in", "save=[color]", "tta=flip", "overwrite=true")
    assert "3 predicted, 0 already there" in caplog.text


def test_a_run_that_was_stopped_leaves_only_whole_files(tmp_path, predict_tiny, monkeypatch):
    for name in "ab":
        picture(tmp_path / f"in/{name}.png")
    add = prediction.Results.add

    def stop(results, frame, said):
        add(results, frame, said)
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction.Results, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        predict_tiny(tmp_path / "in")
    assert results(tmp_path / "out") == ["prediction.json"]


def test_names_stay_apart(tmp_path):
    for name in ("a.jpg", "a.png", "b.png", "sub/a.png", ".hidden.png", "out/color/b.png"):
        picture(tmp_path / name)
    base, sources = find_sources(str(tmp_path), [tmp_path / "out/color"])
    assert base == tmp_path
    assert [str(source.name) for source in sources] == ["a.jpg", "a.png", "b", "sub/a"]
    _, sources = find_sources(str(tmp_path / "**/a.png"))
    assert [str(source.name) for source in sources] == ["a", "sub/a"]
    picture(tmp_path / "a.jpg.png")
    with pytest.raises(ConfigError, match="would collide"):
        find_sources(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "override", "message"),
    [
        ("none", "alpha=0", r"none: no such file or folder; .* holds "),
        ("in", "save=[colour]", "Did you mean 'color'"),
        ("in", "alpha=2", "alpha: found 2, expected a number from 0 to 1"),
        ("in", "format=cityscape", "format: found 'cityscape', expected cityscapes"),
        ("in", "inference=slide", "inference: found 'slide'"),
        ("in/*/../../x.png", "alpha=0", r"'\.\.' behind a wildcard"),
    ],
)
def test_a_mistake_is_told_before_anything_is_predicted(source, override, message, tmp_path, predict_tiny):
    picture(tmp_path / "in/sub/a.png")
    picture(tmp_path / "x.png")
    with pytest.raises(CitysegError, match=re.compile(message, re.DOTALL)):
        predict_tiny(tmp_path / source, override)
    assert not (tmp_path / "out/label_ids").exists()


def test_a_large_picture_is_taken_by_windows(tmp_path, predict_tiny, caplog):
    picture(tmp_path / "in/a.png", 64, 96)
    caplog.set_level("INFO")
    whole = predict_tiny(tmp_path / "in", "window=32", "large=6144", output="whole")
    assert "sliding" not in caplog.text
    large = predict_tiny(tmp_path / "in", "window=32", "large=6143", output="large")
    assert "sliding window 32x32" in caplog.text
    asked = predict_tiny(tmp_path / "in", "window=32", "inference=sliding", output="asked")
    np.testing.assert_array_equal(read(large / "label_ids/a.png"), read(asked / "label_ids/a.png"))
    assert read(whole / "label_ids/a.png").shape == (64, 96)


def film(path, height, width, frames=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (width, height))
    for _ in range(frames):
        writer.write(RNG.integers(0, 256, (height, width, 3), np.uint8))
    writer.release()


def test_videos_become_videos_and_folders_of_frames(tmp_path, predict_tiny):
    film(tmp_path / "in/clip.avi", 34, 46)
    picture(tmp_path / "in/clip.png")
    output = predict_tiny(tmp_path / "in/*.avi", "save=[train_ids,color,overlay]")
    frames = [f"train_ids/clip.frames/{number:06d}.png" for number in range(4)]
    assert results(output) == ["color/clip.mp4", "overlay/clip.mp4", "prediction.json", *frames]
    (source,) = find_sources(str(output / "color/clip.mp4"))[1]
    written = list(read_frames(source))
    assert [(frame.rate, frame.photo.shape) for frame in written] == [(12.5, (34, 46, 3))] * 4
    assert read(output / frames[0]).shape == (34, 46)


def test_nothing_is_cut_off_videos_of_odd_size(tmp_path):
    space = label_space("cityscapes19")
    results = Results({"color": tmp_path / "odd.mp4"}, space, 0.5)
    results.add(Frame(np.zeros((35, 47, 3), np.uint8), 25.0), Prediction(np.full((35, 47), 13, np.uint8)))
    results.keep()
    (frame,) = read_frames(find_sources(str(tmp_path / "odd.mp4"))[1][0])
    assert frame.photo.shape == (36, 48, 3)
    np.testing.assert_allclose(frame.photo, np.broadcast_to(space.palette[13], (36, 48, 3)), atol=8)


def cityscapes_folder(folder, names, size=(2048, 1024)):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(folder / name)
    return folder


def test_cityscapes_zip_is_as_the_server_wants_it(tmp_path, predict_tiny, monkeypatch):
    train_ids = (np.arange(1024 * 2048) % 19).reshape(1024, 2048).astype(np.uint8)
    monkeypatch.setattr(prediction.Predictor, "__call__", lambda self, photo: Prediction(train_ids))
    names = ["ulm/ulm_000000_000019_leftImg8bit.png", "bonn/bonn_000031_000019_leftImg8bit.png"]
    folder = cityscapes_folder(tmp_path / "leftImg8bit/test", names)
    output = predict_tiny(folder, "format=cityscapes", "save=[color]")
    assert len(list((output / "color").rglob("*.png"))) == 2
    with zipfile.ZipFile(output / "cityscapes_test.zip") as archive:
        listed = archive.namelist()
        assert sorted(listed) == ["bonn_000031_000019_pred_labelIds.png", "ulm_000000_000019_pred_labelIds.png"]
        for name in listed:
            with archive.open(name) as file:
                ids = read(file)
            official = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33], np.uint8)
            np.testing.assert_array_equal(ids, official[train_ids])
    Image.fromarray(np.full((1024, 2048), 34, np.uint8)).save(output / "label_ids" / listed[0])
    with pytest.raises(DataError, match=r"(?s)ids up to 34.*overwrite=true"):
        predict_tiny(folder, "format=cityscapes")


def test_cityscapes_refuses_other_classes(tmp_path):
    space = custom_label_space({"road": [1, 2, 3], "car": [4, 5, 6]})
    with pytest.raises(DataError, match="classes are not Cityscapes': car, road"):
        check_server_input(tmp_path, [], space)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("ulm/ulm_000000_000019_leftImg8bit.png", (64, 32), "another size than 2048x1024.*64x32"),
        ("ulm/bonn_000000_000019_leftImg8bit.png", (64, 32), "CITY_SEQUENCE_FRAME"),
        ("ulm_000000_000019_leftImg8bit.png", (64, 32), "CITY_SEQUENCE_FRAME"),
        ("ulm/ulm_0_19_leftImg8bit.png", (64, 32), "CITY_SEQUENCE_FRAME"),
    ],
)
def test_cityscapes_refuses_anything_else(name, size, message, tmp_path, predict_tiny):
    folder = cityscapes_folder(tmp_path / "leftImg8bit/test", [name], size)
    with pytest.raises(DataError, match=re.compile(message, re.DOTALL)):
        predict_tiny(folder, "format=cityscapes")


def test_the_generator_of_an_adversarial_checkpoint_is_used_alone(tmp_path, checkpoint, predict_tiny):
    picture(tmp_path / "in/a.png")
    content = torch.load(checkpoint, weights_only=True)
    config = content["cityseg"]["config"]
    discriminator = {"_target_": "cityseg.models.patchgan.PatchGan", "base_channels": 8}
    config["model"] = {"generator": config["model"], "discriminator": discriminator}
    content["state_dict"]["discriminator.layers.0.weight"] = torch.ones(3)
    torch.save(content, tmp_path / "adversarial.ckpt")
    predict_tiny(tmp_path / "in", "save=soft", output="plain")
    predict_tiny(tmp_path / "in", f"ckpt={tmp_path}/adversarial.ckpt", "save=soft", output="adversarial")
    plain, adversarial = (np.load(tmp_path / name / "soft/a.npz")["probabilities"] for name in ("plain", "adversarial"))
    np.testing.assert_array_equal(plain, adversarial)


def test_the_command_ends_with_code_1_where_a_file_is_bad(tmp_path, checkpoint):
    folder = tmp_path / "folder"
    picture(folder / "in/good.png")
    (folder / "in/bad.png").write_text("no picture")
    typed = [f"ckpt={checkpoint}", "input=in", "output=out", "save=overlay", "trainer.accelerator=cpu"]
    command = [sys.executable, str(ROOT / "predict.py"), *typed]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "1 predicted, 0 already there, 1 not predicted" in done.stdout
    assert "bad.png: it starts with b'no picture'" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert results(folder) == [
        "in/bad.png",
        "in/good.png",
        "out/overlay/good.png",
        "out/predict.log",
        "out/prediction.json",
    ]
