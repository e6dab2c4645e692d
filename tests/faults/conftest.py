"""A trained network, and every command that reads one."""

import pytest

from cityseg.models.encoders import read_weights
from cityseg.runs.evaluation import evaluate
from cityseg.runs.export import export
from cityseg.runs.jobs import run_job
from cityseg.runs.prediction import predict
from tests.conftest import TINY
from tests.data.layouts import photo, save


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def trained(kept, run_tiny):
    """A checkpoint of a run; only the first test trains."""
    if not (kept / "last.ckpt").is_file():
        (run_tiny("panels=0", "callbacks.images=null", folder="trained") / "checkpoints/last.ckpt").rename(
            kept / "last.ckpt"
        )
    return kept / "last.ckpt"


@pytest.fixture
def commands(tmp_path, compose_config, monkeypatch, cache_dir):
    """Everything that reads a file of weights, by name: called with the file."""
    monkeypatch.chdir(tmp_path)
    save(photo(64, 64), tmp_path / "photos/a.png")
    made = {}

    def config(name, *typed):
        if name not in made:
            made[name] = compose_config(typed, tmp_path / "out", name)
        return made[name].copy()

    def of_ckpt(command, name, *typed):
        def called(path):
            composed = config(name, "ckpt=x", *typed)
            composed.ckpt = str(path)
            return command(composed, tmp_path / "out") if command is evaluate else command(composed)

        return called

    def resumed(sweep):
        def called(path):
            composed = config("train", *TINY, f"data.cache_dir={cache_dir}")
            run = tmp_path / "sweep/run"
            (run / "checkpoints").mkdir(parents=True, exist_ok=True)
            (run / "checkpoints/last.ckpt").write_bytes(path.read_bytes())
            composed.resume = None if sweep else str(run)
            run_job(composed, run, [], sweep=run.parent if sweep else None)

        return called

    return {
        "evaluate": of_ckpt(evaluate, "evaluate"),
        "predict": of_ckpt(predict, "predict", "input=photos", "output=predicted"),
        "export": of_ckpt(export, "export", "output=network.onnx"),
        "resume": resumed(sweep=False),
        "resume a sweep": resumed(sweep=True),
        "model.pretrained": read_weights,
    }
