"""The wheel: what is installed without a clone works as the scripts of the clone do."""

import os
import subprocess
import sys
import sysconfig

import pytest

from tests.conftest import ROOT, TINY

pytestmark = pytest.mark.slow  # builds and installs


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_installed_package_trains_and_evaluates_in_an_empty_folder(tmp_path, cache_dir):
    pytest.importorskip("build")
    run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT)  # by way of the source archive
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    # The libraries are those of this environment; what it says of cityseg itself is not looked at.
    paths = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    with open(os.path.join(paths, "libraries.pth"), "w") as file:
        file.write(sysconfig.get_path("purelib"))
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    keys = [key for key in TINY if not key.startswith("data.scenes")]
    keys += ["data.scenes={train: 4, val: 2, size: 64}", f"data.cache_dir={cache_dir}", "hydra.run.dir=trained"]
    said = run(tmp_path / "venv/bin/cityseg-train", "model=unet", *keys, cwd=empty, env=environment)
    assert "mIoU" in said
    typed = ["ckpt=trained/checkpoints/best.ckpt", f"data.cache_dir={cache_dir}", "hydra.run.dir=scored"]
    said = run(tmp_path / "venv/bin/cityseg-evaluate", *typed, cwd=empty, env=environment)
    assert "mIoU" in said
    assert sorted(path.name for path in empty.iterdir()) == ["scored", "trained"]
    used = "import cityseg, cityseg.commands as c; print(cityseg.__file__, c.CONF)"
    for path in run(python, "-c", used, cwd=empty, env=environment).split():
        assert path.startswith(str(tmp_path / "venv"))
