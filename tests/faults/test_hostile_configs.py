"""Configs that come with a checkpoint or a run folder are data: nothing is run, looked up or written elsewhere."""

import re
import shutil

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from cityseg.checkpoints import KEY, SealedCheckpointIO
from cityseg.cli import expand_resume, run
from cityseg.errors import ConfigError, DataError
from cityseg.reports.html.run import write_run_page
from cityseg.runs.config import settle
from cityseg.runs.trust import calls, check_trusted
from tests.conftest import ROOT, TINY

pytestmark = pytest.mark.slow  # a network is trained, and asked for by every command

CALLS = [  # and where each would go if it were trusted
    "os.system", "builtins.eval", "builtins.exec", "subprocess.Popen", "shutil.rmtree", "pathlib.Path.unlink",
    "torch.load", "torch.hub.load", "torch.utils.cpp_extension.load", "torch.package.PackageImporter",
    "torch.jit.CompilationUnit", "hydra.utils.instantiate", "hydra.utils.get_object", "pickle.loads",
    "functools.partial",
    # by way of what a trusted module imports
    "cityseg.files.os.system", "cityseg.losses.torch.load", "cityseg.callbacks.history.Path.unlink",
    "cityseg.data.statistics.pickle.loads", "torch.nn.functional.importlib.import_module",
    "torch.optim.optimizer.torch.load",
    "torch.nn.modules.module.torch.hub.load", "pytorch_lightning.loggers.logger.os.remove",
    "pytorch_lightning.strategies.launchers.subprocess_script.subprocess.Popen",
    "albumentations.core.serialization.Path",
    # of trusted modules, but no parts of a run
    "cityseg.files.write_text", "cityseg.data.pack.pack", "cityseg.data.split_files.write_split", "cityseg.cli.run",
    "cityseg.data.scenes.__main__.job", "cityseg.runs.prediction.predict", "cityseg.losses.__builtins__",
    "pytorch_lightning.cli.LightningCLI", "pytorch_lightning.LightningModule.load_from_checkpoint",
    "pytorch_lightning.profilers.SimpleProfiler", "segmentation_models_pytorch.from_pretrained",
    "torch.nn.Module.__class__",
    "albumentations.load", "torchmetrics.Metric",
    # no names
    "${x}", "cityseg.${x}", "cityseg.losses.CrossEntropyLoss ", "cityseg..losses.CrossEntropyLoss", "", "cityseg", "7",
]  # fmt: skip
LOOKUPS = [
    "${oc.env:HOME}", "${oc.decode:'[1,2]'}", "${oc.create:{_target_:os.system}}", "${hydra:runtime.cwd}", "${now:%Y}",
    "${oc.select:seed,${oc.env:HOME}}", "${${seed}}", "${oc.${seed}:HOME}", "a ${oc.env:HOME} b", "${oc.dict.values:x}",
    "${list}", "${list.0}", "${chain}", "${self}", "${no.such.key}", "${.seed}", "\\${oc.env:HOME}",
]  # fmt: skip
PLAIN = {"seed": 1, "list": [{"a": 1}], "chain": "${seed}", "empty": {}, "nothing": None}


@pytest.mark.parametrize("target", CALLS)
def test_a_target_that_is_no_part_of_a_run_is_refused_by_name(target, caplog):
    nested = {"model": {"_target_": "cityseg.models.smp.build", "options": [{"deep": [{"_target_": target}]}]}}
    for config in ({"loss": {"_target_": target}}, nested, {"model": {"_target_": [target]}}):
        with pytest.raises(ConfigError, match=rf"(?s)would build {re.escape(target)}, which is refused.*_target_"):
            check_trusted(config)
    with pytest.raises(ConfigError, match="refused"):  # nor by way of a package that the user trusts
        check_trusted({"loss": {"_target_": "tests.conftest.os.system"}}, ["tests"])


def test_every_target_of_the_shipped_configs_is_a_part_of_a_run():
    texts = [path.read_text() for path in (ROOT / "conf").glob("*/*.yaml")]
    targets = {target for text in texts for target in re.findall(r"_target_: ([\w.]+)", text)}
    assert len(targets) > 35
    others = ["torch.nn.SyncBatchNorm", "torch.optim.RMSprop", "pytorch_lightning.callbacks.RichProgressBar",
              "segmentation_models_pytorch.losses.TverskyLoss", "albumentations.RandomFog"]  # fmt: skip
    check_trusted({name: {"_target_": name} for name in [*targets, *others]})


@pytest.mark.parametrize("text", LOOKUPS)
def test_an_interpolation_that_looks_elsewhere_is_refused_by_its_key(text):
    for config in ({"data": {"root": text}}, {"loss": [{"weight": text}]}):
        with pytest.raises(ConfigError, match=r"(root|weight)="):
            check_trusted({**PLAIN, **config, "self": "${self}" if text == "${self}" else 1})
    check_trusted({**PLAIN, "chain": 1, "a": "${seed}/${nothing}", "b": "${oc.select:no.such,norm}"})


def test_what_a_user_looks_up_is_in_the_checkpoint_as_it_was_found(compose_config, monkeypatch):
    monkeypatch.setenv("RATE", "0.25")
    monkeypatch.setenv("WHERE", "/data")
    config = compose_config(
        ["optimizer.lr='${oc.decode:${oc.env:RATE}}'", "data.root='${oc.env:WHERE}/scratch/../streets'", *TINY]
    )
    settle(config)
    plain = OmegaConf.to_container(config)
    assert (plain["optimizer"]["lr"], plain["data"]["root"]) == (0.25, "/data/streets")
    assert plain["data"]["seed"] == "${seed}"  # which a resumed run may be given anew
    assert not list(calls(plain))


def hostile(trained, path, change):
    content = torch.load(trained, weights_only=True)
    change(content[KEY]["config"])
    SealedCheckpointIO().save_checkpoint(content, path)
    return path


def runs_code(config):
    config["loss"]["_target_"] = "cityseg.files.os.system"
    config["augment"]["transforms"] = [
        {"_target_": "builtins.eval", "_args_": ["__import__('os').system('touch marker')"]}
    ]
    config["callbacks"]["x"] = {"_target_": "subprocess.Popen", "args": ["touch", "marker"]}


def test_every_command_refuses_a_config_that_runs_code_or_looks_elsewhere(commands, trained, tmp_path):
    code = hostile(trained, tmp_path / "code.ckpt", runs_code)
    look = hostile(trained, tmp_path / "look.ckpt", lambda config: config["data"].update(root="${oc.env:HOME}"))
    for name in ("export", "resume"):
        with pytest.raises(ConfigError, match=r"data\.root=\$\{oc\.env:HOME\}"):
            commands[name](look)
    for name in ("evaluate", "predict", "export", "resume", "resume a sweep"):
        with pytest.raises(ConfigError, match=r"(?s)cityseg\.files\.os\.system.*builtins\.eval.*subprocess\.Popen"):
            commands[name](code)
        assert not (tmp_path / "marker").exists(), name


OUTSIDE = {
    "callbacks.history.path": "../victim",
    "callbacks.last.folder": "${run_dir}/../victim",
    "callbacks.best.folder": "victim",
    "logger.tensorboard.folder": "/tmp/victim",
    "trainer.default_root_dir": "~/victim",
    "logger.csv.save_dir": "file:///tmp/victim",
    "logger.mlflow.tracking_uri": "sqlite:////tmp/victim/mlflow.db",
    "callbacks.kept.filename": "../../victim",
}


def test_a_resumed_run_writes_into_its_own_folder_only(commands, trained, tmp_path, run_tiny):
    def point_elsewhere(config):
        config["logger"] |= {"csv": {"_target_": "pytorch_lightning.loggers.CSVLogger"}}
        config["logger"] |= {"mlflow": {"_target_": "pytorch_lightning.loggers.MLFlowLogger"}}
        config["callbacks"] |= {"kept": {"_target_": "pytorch_lightning.callbacks.ModelCheckpoint"}}
        for key, path in OUTSIDE.items():
            *parents, name = key.split(".")
            node = config
            for parent in parents:
                node = node[parent]
            node[name] = path

    path = hostile(trained, tmp_path / "elsewhere.ckpt", point_elsewhere)
    with pytest.raises(ConfigError) as caught:
        commands["resume"](path)
    for key in OUTSIDE:
        assert f"{key}=" in str(caught.value)
    assert "type it again beside resume=" in str(caught.value)
    assert not list(tmp_path.rglob("*victim*"))
    # The same folder, unchanged, goes on; and so does what the user types.
    folder = tmp_path / "sweep/run"
    shutil.copyfile(trained, folder / "checkpoints/last.ckpt")
    own = tmp_path / "own/history.csv"
    run_tiny(f"resume={folder}", "trainer.max_epochs=2", f"callbacks.history.path={own}", folder="sweep/run")
    assert own.is_file()


SWEEP = [
    "+hydra.callbacks.x._target_=os.system", "hydra.launcher._target_=os.system", "hydra.searchpath=[file:///tmp/evil]",
    "hydra.job_logging.handlers.x.()=os.system", "hydra.launcher.setup=['touch marker']", "hydra.run.dir=/tmp/evil",
    "hydra.launcher.python=/tmp/evil", "hydra/job_logging=../evil", "hydra.sweep.subdir=../../evil",
    "--config-dir=/tmp/evil",
    "-cd=/tmp/evil", "model=../../tmp/evil", "model=/tmp/evil", "callbacks=[default,../evil]",
    "model@model.generator=/tmp/e",
    "loss._target_=os.system", "+x={_target_: os.system}", "data.root=${oc.env:HOME}", "trusted=[os]",
    "name=../../evil", "name=/tmp/evil",
]  # fmt: skip


@pytest.mark.parametrize("override", SWEEP)
def test_a_sweep_folder_starts_nothing_that_could_run_code(override, tmp_path, capsys, caplog):
    def write(task, hydra):
        content = {"hydra": {"overrides": {"task": ["fold=0,1", *task], "hydra": ["hydra.mode=MULTIRUN", *hydra]}}}
        (tmp_path / "multirun.yaml").write_text(yaml.safe_dump(content))

    for lists in (([override], []), ([], [override])):
        write(*lists)
        with pytest.raises(SystemExit):
            expand_resume([f"resume={tmp_path}"])
        assert f"{override!a}, which is refused" in capsys.readouterr().err + caplog.text
    key = override.partition("=")[0]
    assert f"{key}=1" in expand_resume([f"resume={tmp_path}", f"{key}=1"])  # typed, it is the user's own


def test_a_sweep_folder_does_not_send_to_another(tmp_path, capsys, caplog):
    (tmp_path / "multirun.yaml").write_text("hydra: {overrides: {task: [resume=/tmp/evil], hydra: []}}")
    with pytest.raises(SystemExit):
        expand_resume([f"resume={tmp_path}"])
    assert "'resume=/tmp/evil', which is refused" in capsys.readouterr().err + caplog.text


@pytest.mark.parametrize(
    "content", ["", "hydra: 3", "[1", "hydra: {overrides: {task: 3, hydra: []}}", "- !!python/name:os.system"]
)
def test_a_sweep_file_that_is_none_is_named(content, tmp_path, capsys, caplog):
    (tmp_path / "multirun.yaml").write_text(content)
    with pytest.raises(SystemExit):
        expand_resume([f"resume={tmp_path}"])
    assert "multirun.yaml: not what a sweep writes" in capsys.readouterr().err + caplog.text


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "'a/../../x'"])
def test_a_run_name_does_not_lead_out_of_outputs(name, monkeypatch, capsys, caplog):
    monkeypatch.setattr("sys.argv", ["train.py", f"name={name}"])
    with pytest.raises(SystemExit):
        run(lambda: pytest.fail("it runs"), ROOT / "conf", "train")
    assert "leads out of outputs" in capsys.readouterr().err + caplog.text


def test_a_report_does_not_unfold_a_config_without_end(tmp_path):
    lines = ["a0: &a0 [ha, ha]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30))]
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra/config.yaml").write_text("\n".join(lines))
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(DataError, match="found an alias"):
        write_run_page(tmp_path)
