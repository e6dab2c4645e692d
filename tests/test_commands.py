"""What a person types, as it is typed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


def command(*arguments, cwd=ROOT, code=0, timeout=300):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


TINY = (
    "data.crop=64",
    "data.batch_size=2",
    "data.workers=0",
    "model.encoder=resnet18",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "panels=1",
)
SCENES = "data.scenes={train: 4, val: 2, size: 64}"


def test_train_evaluate_resume_from_the_shell(tmp_path, cache_dir):
    data = (SCENES, f"data.cache_dir={cache_dir}")
    output = command(ROOT / "train.py", *TINY, *data, cwd=tmp_path)
    assert "mIoU" in output
    assert "32-true on 1 x cpu" in output
    assert "Traceback" not in output
    assert "Warning" not in output
    (run,) = (tmp_path / "outputs/unet-gtfine").iterdir()
    assert (run / ".hydra/config.yaml").is_file()
    assert "epoch 1/1" in (run / "train.log").read_text()

    output = command(ROOT / "train.py", f"resume={run}", "trainer.max_epochs=2", cwd=tmp_path)
    assert "epoch 2/2" in output
    assert len((run / "history.csv").read_text().splitlines()) == 3

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command(ROOT / "evaluate.py", f"ckpt={run}/checkpoints/best.ckpt", "predictions=true", cwd=elsewhere)
    (scored,) = (elsewhere / "outputs/evaluate").iterdir()
    ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (scored, run))
    assert ours["confusion_matrix"] == theirs["confusion_matrix"]
    assert ours["loss"] == theirs["loss"]
    names = sorted(path.name for path in (scored / "label_ids").iterdir())
    assert len(names) == 2
    assert all(re.fullmatch(r"[a-z]+_\d{6}_\d{6}_pred_labelIds\.png", name) for name in names)
    assert len(list((scored / "colors").iterdir())) == 2


def documented_commands(script):
    """Commands of the code blocks of README and docs that run a script, each once, without prompts and comments."""
    lines = {}
    for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/*/*.md"))):
        blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(), flags=re.DOTALL)
        if page.name != "extend.md":  # its commands need its files: tests/test_docs.py
            lines |= {line.split("  #")[0].strip(): None for block in blocks for line in block.splitlines()}
    return [line for line in lines if re.match(rf"python {script}( |$)", line)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache_dir):
    folder = tmp_path_factory.mktemp("trained")
    command(ROOT / "train.py", *TINY, SCENES, f"data.cache_dir={cache_dir}", f"hydra.run.dir={folder}/run")
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("line", documented_commands("train.py"))
def test_documented_training_commands_run(line, tmp_path, cache_dir, trained):
    typed = [re.sub(r"^data\.root=.*", "data.root=null", word) for word in shell_words(line)[2:]]
    if any(word.startswith("resume=") for word in typed):
        typed = [f"resume={trained}"]
        command(ROOT / "train.py", *typed, cwd=tmp_path)
        return
    # The keys typed in the README come last, so that they win; but for those that make a run long.
    long = ("trainer.max_epochs", "data.crop", "data.batch_size", "model.encoder", "trainer=")
    typed = [word for word in typed if not word.startswith(long)]
    own_encoder = any(word.startswith(("model=gan", "experiment=")) for word in typed)
    tiny = [word for word in TINY if not (own_encoder and word.startswith("model."))]
    scenes = SCENES.replace("train: 4", "train: 10") if any(word.startswith("fold=") for word in typed) else SCENES
    if any(word.startswith("fold=") for word in typed):  # the built-in scenes are of few cities, and folds take time
        typed = [*(re.sub(r"^fold=0,.*", "fold=0,1", word) for word in typed), "cv.folds=2"]
    if "hydra/launcher=joblib" in typed:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    flags = [word for word in typed if word.startswith("-")]  # Hydra takes them before the overrides
    typed = [word for word in typed if not word.startswith("-")]
    command(ROOT / "train.py", *flags, *tiny, scenes, f"data.cache_dir={cache_dir}", *typed, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("line", documented_commands("evaluate.py"))
def test_documented_evaluation_commands_run(line, tmp_path, trained):
    typed = [word for word in with_checkpoints(line, trained) if not word.startswith("data.root=")]
    if "official=true" in typed:
        pytest.importorskip("cityscapesscripts")
    command(ROOT / "evaluate.py", *typed, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("line", documented_commands("predict.py"))
def test_documented_prediction_commands_run(line, tmp_path, trained):
    city = tmp_path / "leftImg8bit" / "test" / "berlin"
    city.mkdir(parents=True)
    Image.new("RGB", (2048, 1024), (90, 80, 70)).save(city / "berlin_000000_000019_leftImg8bit.png")
    photos = re.sub(r"input=\S+", f"input={tmp_path}/leftImg8bit/test", line)
    command(ROOT / "predict.py", *with_checkpoints(photos, trained), cwd=tmp_path)
    (output,) = (word.partition("=")[2] for word in shell_words(line) if word.startswith("output="))
    assert [path for path in (tmp_path / output).rglob("*") if path.suffix in (".png", ".zip")]


@pytest.mark.slow
@pytest.mark.parametrize("line", documented_commands("export.py"))
def test_documented_export_commands_run(line, tmp_path, trained):
    pytest.importorskip("onnxruntime")
    command(ROOT / "export.py", *with_checkpoints(line, trained), cwd=tmp_path)
    assert list(tmp_path.glob("*.onnx"))


def with_checkpoints(line, trained):
    """The words of a command, with the checkpoints of a run that is there."""
    named = re.sub(r"\b(best|last)\.ckpt", rf"{trained}/checkpoints/\1.ckpt", line)
    return shell_words(named)[2:]


def shell_words(line):
    import shlex

    return shlex.split(line)


@pytest.mark.slow
def test_two_processes_train_and_one_writes_the_run_folder(tmp_path, cache_dir):
    run = tmp_path / "run"
    data = ("data.scenes={train: 8, val: 3, size: 64}", f"data.cache_dir={cache_dir}", "trainer.max_epochs=2")
    ddp = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.sync_batchnorm=false")
    command(ROOT / "train.py", *TINY, *data, *ddp, f"hydra.run.dir={run}", cwd=tmp_path, timeout=500)
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["images"] == 3
    assert len((run / "history.csv").read_text().splitlines()) == 3
    # The score of the last epoch, counted by two processes, is that of its checkpoint, counted by one.
    rows = (run / "history.csv").read_text().splitlines()
    scores = [float(line.split(",")[rows[0].split(",").index("val/miou")]) for line in rows[1:]]
    assert figures["miou"] == pytest.approx(max(scores), abs=1e-6)


@pytest.mark.slow
def test_two_processes_train_adversarially(tmp_path, cache_dir):
    run = tmp_path / "run"
    data = ("data.scenes={train: 8, val: 3, size: 64}", f"data.cache_dir={cache_dir}", "trainer.max_epochs=2")
    ddp = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.sync_batchnorm=false",
           "trainer.strategy=ddp_find_unused_parameters_true")  # fmt: skip
    gan = ("model=gan", "generator=unet", "model.generator.encoder=resnet18", "task.warmup_epochs=0")
    tiny = [word for word in TINY if not word.startswith("model.")]
    command(ROOT / "train.py", *tiny, *data, *ddp, *gan, f"hydra.run.dir={run}", cwd=tmp_path, timeout=500)
    rows = (run / "history.csv").read_text().splitlines()
    scores = [float(line.split(",")[rows[0].split(",").index("val/miou")]) for line in rows[1:]]
    assert json.loads((run / "metrics.json").read_text())["miou"] == pytest.approx(max(scores), abs=1e-6)


@pytest.mark.slow
def test_a_multirun_trains_each_value_in_a_folder_of_its_own(tmp_path, cache_dir):
    sweep = tmp_path / "sweep"
    command(
        ROOT / "train.py", "-m", *TINY, SCENES, f"data.cache_dir={cache_dir}", "seed=1,2", f"hydra.sweep.dir={sweep}",
        "hydra.sweep.subdir=seed_${seed}", cwd=tmp_path, timeout=500,
    )  # fmt: skip
    assert sorted(path.parent.name for path in sweep.glob("*/metrics.json")) == ["seed_1", "seed_2"]
