"""The documentation: what it tells people to write and to type works, and it builds without a warning."""

import pkgutil
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, TINY

pytestmark = pytest.mark.slow  # commands, and a build

EXTEND = (ROOT / "docs/howto/extend.md").read_text()
TRIALS = dict(re.findall(r"^\((\w+)\)=\n(.*?)(?=^\(|^## An optimizer|\Z)", EXTEND, flags=re.DOTALL | re.MULTILINE))
FILE = re.compile(r"```\{code-block\} \w+\n:caption: (\S+)\n\n(.*?)```", flags=re.DOTALL)
MAY_ADD = {
    "network": {"src/cityseg/models/tiny_net.py", "conf/model/tiny_net.yaml"},
    "loss": {"src/cityseg/log_cosh_dice.py", "conf/loss/log_cosh_dice.yaml"},
    "layout": {"src/cityseg/data/flat.py", "conf/data/flat.yaml"},
    "augmentation": {"conf/augment/night.yaml"},
    "logger": {"conf/logger/comet.yaml", "conf/logger/plain_csv.yaml"},
    "metric": {"src/cityseg/callbacks/kappa.py", "conf/callbacks/kappa.yaml"},
}


def shell_commands(text):
    blocks = re.findall(r"^```bash\n(.*?)```", text, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.startswith("python ")]


@pytest.fixture
def flat_root(tmp_path):
    """Photos and masks side by side, of two kinds of pixels that a network can tell apart."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        (tmp_path / "flat" / split).mkdir(parents=True)
        for number in range(count):
            mask = np.repeat(rng.integers(0, 2, (8, 8), np.uint8), 8, 0).repeat(8, 1)
            Image.fromarray(np.stack([mask * 200] * 3, 2)).save(tmp_path / f"flat/{split}/{number}.jpg")
            Image.fromarray(mask).save(tmp_path / f"flat/{split}/{number}_mask.png")
    return tmp_path / "flat"


def test_the_walks_through_the_code_name_what_there_is():
    walks = re.search("Three walks.*?\n\nTests mirror", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[0]
    names = re.findall(r"`((?:data|inference|losses|metrics|models|runs|tasks)\.[\w.]*\w)`", walks)
    assert len(names) >= 15
    for name in names:
        if "=" not in name and not name.startswith("metrics.json"):
            assert pkgutil.resolve_name(f"cityseg.{name}") is not None


@pytest.mark.parametrize("name", MAY_ADD)
def test_an_extension_is_the_files_of_its_page_and_nothing_else(name, tmp_path, cache_dir, flat_root):
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "src", clone / "src")
    shutil.copytree(ROOT / "conf", clone / "conf")
    shutil.copy(ROOT / "train.py", clone)
    files = FILE.findall(TRIALS[name])
    assert {path for path, _ in files} == MAY_ADD[name]
    for path, text in files:
        assert not (clone / path).exists()
        (clone / path).write_text(text)
    (command,) = shell_commands(TRIALS[name])
    typed = [word.replace("/data/flat", str(flat_root)) for word in command.split()[2:]]
    tiny = [key for key in TINY if name != "network" or not key.startswith(("model.", "+model."))]
    tiny = [key for key in tiny if name != "layout" or not key.startswith("data.scenes")]
    rest = ["model.pretrained=false"] if name == "layout" else []
    done = subprocess.run(
        [sys.executable, "train.py", *tiny, f"data.cache_dir={cache_dir}", *rest, *typed, "hydra.run.dir=run"],
        cwd=clone, env={"PYTHONPATH": str(clone / "src"), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mIoU" in done.stdout
    for path, _ in files:
        if path.endswith(".py"):
            assert str(clone) in subprocess.run(
                [sys.executable, "-c", f"import {path[4:-3].replace('/', '.')} as m; print(m.__file__)"],
                env={"PYTHONPATH": str(clone / "src"), "PATH": ""}, capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
        elif name == "metric":
            assert "val/kappa" in (clone / "run/history.csv").read_text().splitlines()[0]
        elif "plain_csv" in path:
            assert list((clone / "run/plain").rglob("metrics.csv"))


def test_the_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", tmp_path / "html"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    config = (tmp_path / "html/reference/config.html").read_text()
    for path in ROOT.glob("conf/*/*.yaml"):
        assert f"{path.parent.name}={path.stem}" in config


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), (page.name, target)
