"""Commands that are answered before anything heavy is imported."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

HEAVY = ("albumentations", "cv2", "matplotlib", "pytorch_lightning", "scipy", "sklearn", "timm", "torch")
ANSWERS = {
    "train --help": "key (optimizer.lr=3e-4)",
    "evaluate --help": "scales:",
    "train --cfg job": "max_epochs:",
    "train -sc query=bash": "model=unet model=unetplusplus",
}
MISTAKES = {
    "train data.rot=/x": "Did you mean 'data.root'",
    "train model=unett": "Did you mean 'unet'",
    "train data=cityscapes": "\n  gtfine   The Cityscapes folders leftImg8bit and gtFine\n",
    "train callbacks=[none]": "callbacks=none: no such choice, expected one of\n  default ",
    "train experiment=unet": "experiment=unet: no such choice, expected one of\n  deeplabv3plus_b3  DeepLabV3+ with",
    "train yaml=1": "yaml: no such key.\n",
    "train optimiser=adam": "Did you mean 'optimizer'",
    "train lr=1 foo=2": "lr: no such key. Did you mean 'optimizer.lr'?\nfoo: no such key.",
    "train trainer.max_epochs": "missing EQUAL",
    "train data.root=/no/such/folder": "data.root=/no/such/folder: no such folder",
    "train resume=none": "resume=none: no such folder",
    "evaluate split=val": "ckpt: not given. Fix: ckpt=...",
    "predict ckpt=a.ckpt input=b": "output: not given. Fix: output=...",
    "evaluate ckpt=none.ckpt": "ckpt=none.ckpt: no such file",
    "predict ckpt=[none.ckpt] input=. output=.": "ckpt=none.ckpt: no such file",
    "export ckpt=none.ckpt": "ckpt=none.ckpt: no such file",
}
# All in one process, since Python and Hydra take longer to start than to answer.
RUN = """
import contextlib, io, json, logging, runpy, sys
lines, heavy = json.loads(sys.argv[1])
told = {}
for line in lines:
    script, *sys.argv[1:] = line.split()
    output, code = io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            runpy.run_path(f"{script}.py", run_name="__main__")
        except SystemExit as stop:
            code = int(stop.code or 0)
    logging.root.handlers.clear()
    told[line] = output.getvalue(), code, [name for name in heavy if name in sys.modules]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Command line -> output, exit code, heavy modules imported up to then."""
    folder = tmp_path_factory.mktemp("startup")
    for script in ("train", "evaluate", "predict", "export"):
        (folder / f"{script}.py").write_text((ROOT / f"{script}.py").read_text())
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps([[*ANSWERS, *MISTAKES], HEAVY])],
        env=os.environ | {"COMP_LINE": "python train.py model=une", "COMP_POINT": "25"},
        capture_output=True, text=True, cwd=folder, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("line", "answer"), ANSWERS.items())
def test_help_config_and_completion_need_nothing_heavy(told, line, answer):
    output, code, heavy = told[line]
    assert answer in output
    assert (code, heavy) == (0, [])


@pytest.mark.parametrize(("line", "message"), MISTAKES.items())
def test_a_mistake_is_told_in_a_few_lines_before_anything_heavy_is_imported(told, line, message):
    output, code, heavy = told[line]
    assert message in output
    assert ("no such choice" in output) + ("no such key" in output) < 2  # each mistake is told once
    assert "_common" not in output
    assert "Error executing job" not in output
    assert "Traceback" not in output
    assert len(output.splitlines()) < 10
    assert (code, heavy) == (1, [])


@pytest.mark.slow
def test_summaries_and_pages_need_no_torch():
    code = (
        "import sys, cityseg.crossval.output, cityseg.reports.html.comparison\n"
        "assert not {'torch', 'pytorch_lightning'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
