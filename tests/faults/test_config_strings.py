"""Config strings as nobody would type them: each ends as a run, or as one message that says what to change."""

import contextlib
import gc
import io
import logging
import random
import runpy
import shutil
import signal
import sys
import traceback
from collections import Counter

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from cityseg.cli import quoted, rewritten
from cityseg.keys import dotted_keys, dotted_values
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

CONF = ROOT / "conf"
TRIED = {"train": 73, "evaluate": 31, "predict": 31}  # strings: 500 in all, 73 for each of six variants
SECONDS = 30  # that one string may take before it counts as hanging

BASE = (
    "--run", "hydra/job_logging=none", "hydra.output_subdir=null", "hydra.run.dir=run", "panels=0",
    "data.scenes={train: 4, val: 1, size: 64}", "data.crop=64", "data.batch_size=2", "data.workers=0",
    "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=1", "+trainer.limit_train_batches=1",
    "callbacks.images=null",
)  # fmt: skip
SMALL = {  # choices of model that a core trains in a moment, with what makes them small
    "unet": ("model.encoder=tu-test_resnet", "+model.decoder_channels=[8,8,8,8,8]"),
    "gan": ("generator=unet", "model.generator.encoder=tu-test_resnet", "model.discriminator.base_channels=4"),
    "fpn_aspp": ("model.encoder=test_resnet", "model.fpn_channels=8", "model.aspp_channels=8"),
}
NUMBERS = ("0", "1", "2", "-1", "0.5", "-0.5", "1.5", "1e-3", "1e30", "-1e30", "nan", ".nan", "inf", "-inf", "1" * 20)
WORDS = (
    "null", "true", "false", "''", "x", "auto", "none", "'a b'", "\"it's\"", "'say \"x\"'", "ünïcødé", "'a\nb'",
    "'<b>'", "'%s {0}'", "nowhere/to/be/found", "'../x'", "'a=b'", "a=b", "'50%'", "max", "val/miou", "class_balanced",
)  # fmt: skip
LISTS = ("[]", "{}", "[1]", "[1,2]", "[0.5,2]", "[1,2,3]", "[2,1]", "[-1,-2]", "[nan,nan]", "[null]", "[[1]]", "[a,b]",
         "{a: 1}", "{a: {b: c}}", "{_target_: x}", "[{}]", "{1: 2}")  # fmt: skip
SYNTAX = ("${nope}", "${seed}", "${nope:1}", "${oc.env:NO_SUCH_NAME}", "${", "???", "", "1,2", "range(1,3)", "[1,",
          "{a", "'", '"', "a b", ")", "int(x)", "\\", "${model}", "${data.crop}")  # fmt: skip
# Keys that ask for more work than a test has time for: from these values only.
BOUNDED = {
    "trainer.max_epochs": ("0", "1", "2", "x", "nan", "[1]", "1.5", "true"),
    "trainer.devices": ("1", "0", "x", "null", "[1,2", "nan", "{}", "''"),
    "trainer.num_nodes": ("1", "0", "x", "null", "nan"),
    "trainer.strategy": ("auto", "x", "null", "1", "[]", "{}", "{_target_: x}"),
    "trainer.accelerator": ("cpu", "x", "null", "1", "[]", "gpu"),
    "data.workers": ("0", "1", "-1", "x", "null", "nan", "[1]", "0.5", "true"),
    "data.eval_batch_size": ("1", "2", "0", "x", "null", "nan", "[1]"),
    "data.scenes.train": ("0", "1", "2", "3", "-1", "x", "null", "nan", "0.5", "[1]"),
    "data.scenes.val": ("0", "1", "2", "-1", "x", "null", "nan", "0.5", "[1]"),
    "data.scenes.size": ("0", "1", "16", "33", "-1", "x", "null", "nan", "0.5", "[1]"),
    "data.scenes": ("{}", "{train: x}", "{tran: 2}", "[1]", "x", "{train: 2, val: 1, size: 1}", "{train: 0}"),
    "compile": ("false", "x", "null", "[]", "0"),
    "task.discriminator_steps": ("1", "2", "0", "-1", "x", "null", "nan"),
}
OWN = {"hydra.verbose", "hydra.job.name", "hydra/launcher", "hydra/sweeper", "hydra.nope", "hydra.sweep.dir"}


def choices(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
# Arguments that conf/ leaves out, and some that nothing has.
ADDED = (
    "trainer.limit_val_batches", "trainer.val_check_interval", "trainer.check_val_every_n_epoch", "trainer.profiler",
    "trainer.gradient_clip_algorithm", "trainer.overfit_batches", "trainer.enable_checkpointing", "trainer.nope",
    "model.encoder_depth", "model.decoder_channels", "model.encoder_options", "model.nope", "optimizer.maximize",
    "optimizer.nope", "scheduler.nope", "loss.nope", "data.nope", "augment.nope", "augment.pixel.x.p", "task.nope",
    "callbacks.best.nope", "callbacks.own._target_", "callbacks.own", "logger.own", "nope", "no.pe", "data.classes.x",
)  # fmt: skip
GARBAGE = ("=", "=1", "x", "--nope", "-x", "+", "~", "~nope", "+=1", "a.b.=1", ".a=1", "a..b=1", "seed==1", "seed = 1",
           "seed:1", "@x=1", "data@=pairs", "data@x=pairs", "+data@x=pairs", "data@data:model=pairs", "''=1", "é=1",
           "seed=1 fold=2", "1=2", "${seed}=1", "--config-name=nope", "--config-dir=nope", "--package", "resume=nope",
           "resume=.", "resume=", "+experiment=nope", "hydra=1", "generator=unet", "generator=nope")  # fmt: skip


class Strings:
    """Draws overrides from a seed."""

    def __init__(self, seed, name, chosen, own=()):
        self.draw = random.Random(f"{seed} {name}")
        self.chosen = list(chosen)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(name, [text for text in rewritten(chosen) if text[0] != "-"])
        self.defaults = dotted_values(OmegaConf.to_container(config))
        self.keys = sorted({*dotted_keys(config), *own} - {"run_dir"})
        self.name = name

    def overrides(self):
        typed = [self.one() for _ in range(self.draw.choice((1, 1, 2, 3)))]
        if self.draw.random() < 0.05:
            typed.append(typed[0])
        return typed

    def one(self):
        draw, kind = self.draw, self.draw.random()
        key = draw.choice(self.keys)
        if kind < 0.72:
            return f"{key}={self.value(key)}"
        if kind < 0.78:
            key = draw.choice(ADDED) if self.name == "train" else key
            return f"{draw.choice(('+', '+', '++'))}{key}={self.value(key)}"
        if kind < 0.82:
            return f"~{key}" + draw.choice(("", "=null", f"={self.value(key)}"))
        if kind < 0.88:
            place = draw.randrange(len(key))
            wrong = draw.choice((key[:place] + key[place + 1 :], key[:place] + "x" + key[place:], key.upper()))
            return f"{wrong}={self.value(key)}"
        if kind < 0.95 and self.name == "train":
            group = draw.choice(GROUPS)
            choice = draw.choice(("nope", "null", "", "[]", "[nope]", *choices(group)))
            if group in ("model", "experiment") or (group, choice) in HEAVY:
                choice = "nope"
            return f"{draw.choice(('', '', '', '+', '~', '/', '++'))}{group}={choice}"
        return draw.choice(GARBAGE)

    def value(self, key):
        if key in BOUNDED:
            return self.draw.choice(BOUNDED[key])
        if key in self.defaults and self.draw.random() < 0.3:
            return typed(self.defaults[key])
        default = self.defaults.get(key)
        fitting = NUMBERS if isinstance(default, int | float) else LISTS if isinstance(default, list) else WORDS
        return self.draw.choice(fitting if self.draw.random() < 0.4 else (*NUMBERS, *WORDS, *LISTS, *SYNTAX))


def typed(value):
    """A value as it is typed; the same as by default, so that such a string is sound."""
    return quoted(value) if isinstance(value, str) else str(value).replace("None", "null").replace("'", "")


HEAVY = {("trainer", "ddp"), ("trainer", "fsdp"), ("trainer", "debug")}


@contextlib.contextmanager
def limited(seconds):
    def late(*_):
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(script, overrides):
    """How a command ends: ``run``, ``error`` or ``defect``, and what is said."""
    said, log = io.StringIO(), logging.getLogger("cityseg")
    handler = logging.StreamHandler(said)
    log.addHandler(handler)
    argv, sys.argv = sys.argv, [script, *overrides]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), limited(SECONDS):
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return "run", said.getvalue()
    except SystemExit as end:
        return ("error" if end.code else "run"), said.getvalue()
    except BaseException:
        return "defect", traceback.format_exc()
    finally:
        sys.argv = argv
        log.removeHandler(handler)


VARIANTS = (
    SMALL["unet"],
    ("data=pairs", "cv=stratified", "loss=focal", "fold=0", "cv.folds=2", *SMALL["unet"]),
    ("data=folders", "loss=focal_dice", "scheduler=plateau", "optimizer=sgd", "augment=strong",
     "callbacks=[default,ema,freezing,early_stopping]", *SMALL["unet"]),
    ("model=gan", "scheduler=one_cycle", "loss=dice", "augment=standard", "logger=[csv]", *SMALL["gan"]),
    ("model=fpn_aspp", "data=pairs", "data.labels=kmeans", "data.clusters=4", "scheduler=cosine_restarts", "loss=ohem",
     "optimizer=adam", *SMALL["fpn_aspp"]),
    ("cv=grouped", "fold=0", "cv.folds=2", "cv.inner_val=0", "loss=ce_lovasz", "scheduler=cosine", *SMALL["unet"]),
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder, runs without pictures, and a collector that passes over what was there before."""
    monkeypatch.chdir(tmp_path)
    for name in ("plot_confusion", "plot_class_iou", "write_run_page"):
        monkeypatch.setattr(f"cityseg.runs.scoring.{name}", lambda *_: None)
    monkeypatch.setattr("cityseg.runs.training.plot_curves", lambda *_: None)
    gc.collect()
    gc.freeze()
    yield tmp_path
    gc.unfreeze()


def check(script, strings, fixed, count):
    """Try so many strings; each must end as a run, or as an error of one message."""
    outcomes, defects = Counter(), []
    for _ in range(count):
        overrides = strings.overrides()
        kind, said = outcome(script, [*fixed, *overrides])
        shutil.rmtree("run", ignore_errors=True)
        if kind == "error" and ("Traceback" in said or not said.strip()):
            kind = "defect"
        if kind == "defect":
            defects.append(f"{overrides}\n{said}")
        outcomes[kind] += 1
    print(script, dict(outcomes))
    assert not defects, "\n\n".join(defects)
    assert min(outcomes["run"], outcomes["error"]) >= count // 20


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_a_training_string_gives_a_run_or_an_error(folder, cache_dir, variant):
    fixed = (*BASE, *VARIANTS[variant], f"data.cache_dir={cache_dir}")
    check("train.py", Strings(variant, "train", fixed), fixed, TRIED["train"])


@pytest.mark.parametrize("script", ["evaluate", "predict"])
def test_a_string_for_a_checkpoint_gives_a_run_or_an_error(folder, run_tiny, script):
    checkpoint = run_tiny("panels=0", "callbacks.images=null", folder="trained") / "checkpoints/best.ckpt"
    Image.new("RGB", (64, 64), (90, 80, 70)).save("photo.png")
    where = {"evaluate": ("hydra.run.dir=run", "panels=0"), "predict": ("input=photo.png", "output=run")}[script]
    fixed = (*BASE[:3], f"ckpt={checkpoint}", *where)
    check(f"{script}.py", Strings(0, script, fixed), fixed, TRIED[script])
