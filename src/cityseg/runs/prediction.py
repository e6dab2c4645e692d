"""Predicting pictures and videos with a checkpoint: one after the other, each file whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image
from rich.markup import escape
from rich.progress import Progress

from cityseg import __version__
from cityseg.checkpoints import Checkpoint, load_checkpoint, load_weights
from cityseg.data.decoded import View
from cityseg.data.pictures import Frame, Source, find_sources, read_ahead
from cityseg.data.samples import Pair
from cityseg.errors import ConfigError, DataError, FileProblem, Problems, did_you_mean
from cityseg.files import refusals_named, write_json
from cityseg.inference import Ensemble, Inference
from cityseg.labels import ByteArray, LabelSpace
from cityseg.runs.config import check_keys
from cityseg.runs.evaluation import build_inference, check_alike, checkpoint_paths, evaluation_config
from cityseg.runs.objects import build_network, build_trainer
from cityseg.runs.output import quiet_libraries
from cityseg.runs.server import check_server_input, write_server_archive

log = logging.getLogger(__name__)

KINDS = {**dict.fromkeys(("label_ids", "train_ids", "color", "overlay", "confidence"), ".png"), "soft": ".npz"}
"""What can be saved, and the folders it goes to.

Label ids, train ids and confidence (the highest probability times 255) are grey PNGs, colours and overlays RGB PNGs.
``soft`` is an npz with ``probabilities`` ``(C, H, W)`` uint8, times 255, and ``classes``, their names. Of a video,
colours and overlays are videos, and the rest is a folder ``NAME.frames`` with a file for each frame.
"""
FILMED = ("color", "overlay")
SETTINGS = "prediction.json"


@dataclass(frozen=True)
class Prediction:
    """What a network says of one photo, at the photo's size: ``(H, W)``, ``(H, W)`` and ``(C, H, W)`` uint8.

    The confidence and the probabilities of the classes are times 255, and None if they were not wanted.
    """

    train_ids: ByteArray
    confidence: ByteArray | None = None
    soft: ByteArray | None = None


class Predictor:
    """The segmentation networks of checkpoints, of an adversarial one the generator alone, on their device.

    Several are taken for their ensemble. `config` is the prediction config, `kinds` is what is wanted of :data:`KINDS`.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], config: DictConfig, kinds: tuple[str, ...]) -> None:
        asked = OmegaConf.create({**OmegaConf.masked_copy(config, ["data", "trainer", "trusted"]), "fold": None})
        runs = [evaluation_config(checkpoint, asked, Path(config.output)) for checkpoint in checkpoints]
        members = list(zip(checkpoints, runs, strict=True))
        check_alike(members, ("scale",))
        networks = [build_network(run, checkpoint.label_space) for checkpoint, run in members]
        for network, checkpoint in zip(networks, checkpoints, strict=True):
            load_weights(network, checkpoint, prefix="network.")
        whole = networks[0] if len(networks) == 1 else Ensemble(networks)
        self.space, self.kinds = checkpoints[0].label_space, kinds
        self.trainer = build_trainer(runs[0])  # has the device and the precision, those of evaluate.py
        self._network = self.trainer.precision_plugin.convert_module(whole).to(self.trainer.strategy.root_device).eval()
        self._scale: float = runs[0].data.get("scale", 1.0)
        self._inference, self._large = build_inference(config), config.large
        sliding = build_inference(cast(DictConfig, OmegaConf.merge(config, {"inference": "sliding"})))
        self._by_windows = replace(sliding, buffer=torch.device("cpu"))
        self._told: set[tuple[int, int]] = set()

    def __call__(self, photo: ByteArray) -> Prediction:
        """Predict a photo ``(H, W, 3)`` uint8 RGB.

        Raises:
            ValueError: if the network does not take its size.
        """
        scaled = View(self._scale)(Pair(photo, None)).photo
        inference = self._choose(scaled.shape[0], scaled.shape[1])
        with self.trainer.precision_plugin.forward_context(), torch.inference_mode():
            tensor = torch.from_numpy(scaled.transpose(2, 0, 1).copy())[None].to(self.trainer.strategy.root_device)
            logits = inference(self._network, tensor, (photo.shape[0], photo.shape[1]))[0]
            train_ids = logits.argmax(dim=0).to(torch.uint8).cpu().numpy()
            if not {"confidence", "soft"} & set(self.kinds):
                return Prediction(train_ids)
            soft = np.empty(logits.shape if "soft" in self.kinds else (0, 0, 0), np.uint8)
            confidence = np.empty_like(train_ids)
            for row in range(0, len(train_ids), 256):  # in strips: all probabilities at once would double the memory
                strip = logits[:, row : row + 256].float().softmax(dim=0)
                confidence[row : row + 256] = (strip.amax(dim=0) * 255).round().to(torch.uint8).cpu().numpy()
                if soft.size:
                    soft[:, row : row + 256] = (strip * 255).round().to(torch.uint8).cpu().numpy()
        return Prediction(train_ids, confidence, soft)

    def _choose(self, height: int, width: int) -> Inference:
        """By windows where the network would see more pixels than ``large``, whatever is asked for."""
        if self._large is None or max(h * w for h, w in self._inference.network_sizes(height, width)) <= self._large:
            return self._inference
        if (height, width) not in self._told:
            self._told.add((height, width))
            log.info("photos of %dx%d are above large=%d pixels: %s", width, height, self._large, self._by_windows)
        return self._by_windows


class Results:
    """The files of a picture or video, or folders of its frames, which get their names when all of them are whole."""

    def __init__(self, targets: dict[str, Path], space: LabelSpace, alpha: float) -> None:
        self._targets, self._space, self._alpha = targets, space, alpha
        self._fresh = {kind: path.with_name(f".{os.getpid()}.new{path.suffix}") for kind, path in targets.items()}
        self._videos: dict[str, cv2.VideoWriter] = {}
        self._count = 0

    def add(self, frame: Frame, prediction: Prediction) -> None:
        """Write what is wanted of a picture, or of the next frame."""
        for kind, path in self._fresh.items():
            picture = self._picture(kind, frame.photo, prediction)
            with refusals_named(self._targets[kind]):
                path.parent.mkdir(parents=True, exist_ok=True)
                if frame.rate is None:
                    self._write(path, picture)
                elif kind in FILMED:
                    self._film(kind, path, picture, frame.rate)
                else:
                    path.mkdir(exist_ok=True)
                    self._write(path / f"{self._count:06d}{KINDS[kind]}", picture)
        self._count += 1

    def keep(self) -> None:
        """Give the files their names.

        Raises:
            WriteError: if the system refuses to, or has not written a whole video.
        """
        films = list(self._videos)
        self._close()
        for kind, path in self._fresh.items():
            with refusals_named(self._targets[kind]):
                # The writer of videos keeps to itself what the system refuses.
                if kind in films and cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) != self._count:
                    raise OSError("the video is not whole: probably the disk is full")
                if self._targets[kind].is_dir():
                    shutil.rmtree(self._targets[kind])
                os.replace(path, self._targets[kind])

    def discard(self) -> None:
        """Remove what has no name yet."""
        self._close()
        for path in self._fresh.values():
            with suppress(OSError):  # of the disk that could not be written to
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _close(self) -> None:
        for video in self._videos.values():
            video.release()
        self._videos.clear()

    def _picture(self, kind: str, photo: ByteArray, prediction: Prediction) -> ByteArray:
        if kind == "label_ids":
            return self._space.to_label_ids(prediction.train_ids)
        if kind not in FILMED:
            return cast(ByteArray, getattr(prediction, kind))
        colors = self._space.colorize(prediction.train_ids)
        share = self._alpha if kind == "overlay" else 1
        return np.asarray(cv2.addWeighted(photo, 1 - share, colors, share, 0), np.uint8)

    def _write(self, path: Path, picture: ByteArray) -> None:
        if path.suffix == ".npz":
            np.savez_compressed(path, probabilities=picture, classes=np.array(self._space.class_names))
        else:
            Image.fromarray(picture).save(path, compress_level=3)

    def _film(self, kind: str, path: Path, picture: ByteArray, rate: float) -> None:
        height, width = picture.shape[:2]
        if kind not in self._videos:
            size = width + width % 2, height + height % 2
            self._videos[kind] = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
            if not self._videos[kind].isOpened():
                raise OSError(f"OpenCV cannot write an mp4 of {width}x{height} here")
        # The codec takes even sizes only, and the writer would cut off what is odd.
        even = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        self._videos[kind].write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))


def predict(config: DictConfig) -> None:
    """Predict everything that the composed config asks for and that is not there yet.

    Raises:
        CitysegError: for what a user can mend; when all else is done, naming the files that could not be predicted.
    """
    quiet_libraries()
    check_keys(config)
    output = Path(config.output)
    kinds = _checked_kinds(config)
    checkpoints = [load_checkpoint(path) for path in checkpoint_paths(config)]
    base, sources = find_sources(str(config.input), [output / kind for kind in KINDS])
    if server := config.format == "cityscapes":
        check_server_input(base, sources, checkpoints[0].label_space)
    predictor = Predictor(checkpoints, config, kinds)
    settings = _keep_settings(config, [each.path for each in checkpoints], str(predictor.trainer.precision), base)
    targets = {source: _targets(source, output, kinds, server=server) for source in sources}
    since = settings.stat().st_mtime_ns
    todo = {
        source: missing
        for source, paths in targets.items()
        if (missing := {k: path for k, path in paths.items() if not path.exists() or path.stat().st_mtime_ns < since})
    }
    problems = Problems(f"input={config.input}: predicted all files but these")
    done = _predict_all(todo, predictor, config, base, problems)
    counts = done, len(sources) - len(todo), len(todo) - done
    log.info("%d predicted, %d already there, %d not predicted: %s", *counts, output)
    problems.raise_if_any(DataError)
    if server:
        write_server_archive(output, base.resolve().name, [paths["label_ids"] for paths in targets.values()])


def _checked_kinds(config: DictConfig) -> tuple[str, ...]:
    """What is to be saved."""
    wanted = [str(kind) for kind in (config.save if isinstance(config.save, ListConfig) else [config.save])]
    problems = Problems("the config")
    for kind in wanted:
        if kind not in KINDS:
            problems.add(f"save: found {kind!r}, expected some of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
    if not wanted:
        problems.add(f"save: found an empty list, expected some of {', '.join(KINDS)}")
    if not 0 <= config.alpha <= 1:
        problems.add(f"alpha: found {config.alpha!r}, expected a number from 0 to 1")
    for key in ("large", "max_pixels"):
        if config[key] is not None and config[key] < 1:
            problems.add(f"{key}: found {config[key]!r}, expected a number of pixels")
    if config.format not in (None, "cityscapes"):
        problems.add(f"format: found {config.format!r}, expected cityscapes, or null for files alone")
    problems.raise_if_any(ConfigError)
    server = ("label_ids",) if config.format == "cityscapes" else ()
    return tuple(dict.fromkeys((*server, *wanted)))


def _keep_settings(config: DictConfig, checkpoints: Sequence[Path], precision: str, base: Path) -> Path:
    """Note beside the results what they are of; results older than the note do not count."""
    path = Path(config.output) / SETTINGS
    keys = ["alpha", "inference", "large", "window", "stride", "blending", "tta", "scales", "data"]
    content = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.masked_copy(config, keys)))
    content["checkpoint_sha256"] = " ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoints)
    content |= {"precision": precision, "input": str(base.absolute())}
    if config.overwrite or not path.is_file():
        files = [str(checkpoint.absolute()) for checkpoint in checkpoints]
        write_json(path, {**content, "checkpoint": files, "cityseg": __version__})
        return path
    before = json.loads(path.read_text(encoding="utf-8"))
    if differing := [key for key in content if before.get(key) != content[key]]:
        what = f"output={config.output} holds predictions of another {', '.join(differing)} ({path.name})"
        raise ConfigError(f"{what}. Fix: another output, or overwrite=true to predict everything again")
    return path


def _targets(source: Source, output: Path, kinds: Sequence[str], *, server: bool) -> dict[str, Path]:
    """Where the results of a source go."""
    of_video = {kind: ".mp4" if kind in FILMED else ".frames" for kind in KINDS}
    endings = of_video if source.is_video else KINDS
    found = {kind: output / kind / f"{source.name}{endings[kind]}" for kind in kinds}
    if server:
        found["label_ids"] = output / "label_ids" / source.path.name.replace("_leftImg8bit", "_pred_labelIds")
    return found


def _predict_all(
    todo: dict[Source, dict[str, Path]], predictor: Predictor, config: DictConfig, base: Path, problems: Problems
) -> int:
    """Predict the sources; returns how many could be, and adds what is wrong with the others."""
    done = 0
    with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
        shown = bar.add_task("", total=len(todo))
        for source, frames in groupby(read_ahead(todo, config.max_pixels), key=itemgetter(0)):
            bar.update(shown, description=escape(source.path.name))
            results = Results(todo[source], predictor.space, config.alpha)
            try:
                for _, frame in frames:
                    if isinstance(frame, FileProblem):
                        raise frame
                    results.add(frame, _predicted(predictor, source, frame.photo))
                results.keep()
                done += 1
            except FileProblem as problem:
                log.warning("skipped: %s", problem)
                problems.add_file(problem, base)
            finally:
                results.discard()
            bar.advance(shown)
    return done


def _predicted(predictor: Predictor, source: Source, photo: ByteArray) -> Prediction:
    try:
        return predictor(photo)
    except (ValueError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        found = f"{photo.shape[1]}x{photo.shape[0]}: {str(error).splitlines()[0]}"
        fix = "inference=sliding, with a smaller window if need be"
        raise FileProblem(source.path, "picture that the network cannot take", found, fix) from error
