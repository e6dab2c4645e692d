"""What the commands share before Hydra and after it. Nothing heavy is imported here, so that ``--help`` is quick."""

from __future__ import annotations

import atexit
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

from cityseg.errors import CitysegError, did_you_mean

if TYPE_CHECKING:
    from cityseg.runs.sweeps import Sweep

log = logging.getLogger(__name__)


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever standard output is at the moment, so that a progress bar can keep lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        self.stream = sys.stdout
        super().emit(record)


def run(main: Callable[[], Any], config_dir: Path, config_name: str) -> None:
    """Run a Hydra main function; what a user can mend ends with a message instead of a traceback.

    Args:
        main: decorated with ``hydra.main``.
        config_dir: where the configs are, to find the nearest key to a wrong one.
        config_name: the primary config.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    # Hydra copies its store, with the configs of all plugins in it, for each group that --help lists; loading from it
    # gives copies as it is.
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    # Hydra's own ${hydra:...} is not there yet when it names the folder of a sweep.
    OmegaConf.register_new_resolver("run_name", lambda name, model, data: name or f"{model}-{data}", replace=True)
    # A sweep that was given a name has one folder, so that the same command goes on with it.
    OmegaConf.register_new_resolver("sweep_time", lambda name, now: "" if name else now, replace=True)
    arguments = expand_generator(expand_resume(sys.argv[1:]))
    for value in (argument.removeprefix("name=") for argument in arguments if argument.startswith("name=")):
        name = Path(value.strip("'\""))
        if name.is_absolute() or ".." in name.parts:
            fail(f"name={value}: leads out of outputs. Fix: a plain name, or hydra.run.dir=FOLDER")
    arguments = multirun_first([quote_path(argument) for argument in arguments])
    sys.argv[1:] = one_writer(arguments, os.environ)
    # Hydra then raises what went wrong instead of printing a shortened traceback of its own.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    failure = _attempt(main, config_dir, config_name)
    sweep = _sweep()
    if sweep is None:
        if failure is not None:
            fail(failure)
        return
    if failure is not None and not sweep.failed():  # else the job has told it
        log.error("%s", failure)
    if not sweep.begun():
        sys.exit(1)
    if sweep.ready_for_final():
        sys.argv[1:] = sweep.final_arguments(sys.argv[1:])
        failure = _attempt(main, config_dir, config_name)
    sys.exit(sweep.close() or failure is not None)


def _attempt(main: Callable[[], Any], config_dir: Path, config_name: str) -> str | None:
    """Run the main function; returns what went wrong, if a user can mend it or a job of a sweep has told it."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        main()
    except CitysegError as error:
        return str(error)
    except (HydraException, OmegaConfBaseException) as error:
        return _short_message(error) + nearest_key(sys.argv[1:], config_dir, config_name)
    except SystemExit:
        if (sweep := _sweep()) is not None:
            log.warning("to go on with the sweep: python train.py resume=%s", sweep.folder)
        raise
    except Exception as error:
        if plugin := re.match(r"Unknown plugin class : 'hydra_plugins\.hydra_(\w+?)_launcher\.", str(error)):
            return f"hydra/launcher: its plugin is not installed. Fix: pip install 'cityseg[{plugin[1]}]'"
        if "/hydra/_internal/" in traceback.extract_tb(error.__traceback__)[-1].filename.replace(os.sep, "/"):
            groups = " ".join(_group_choices(sys.argv[1:], config_dir)) or "an override without a key"
            return f"{groups}: {error}. Fix: choose by name, as GROUP=CHOICE or GROUP=[CHOICE,CHOICE]"
        if (sweep := _sweep()) is None or not sweep.begun():
            raise
        return f"{type(error).__name__}: {error}"
    return None


def _sweep() -> Sweep | None:
    """The sweep that this process has started."""
    module = sys.modules.get("cityseg.runs.sweeps")
    return None if module is None else cast("Sweep | None", module.started)


def fail(message: str) -> NoReturn:
    """Say what went wrong, and leave with exit code 1."""
    if logging.getLogger().handlers:
        log.error("%s", message)
    else:
        print(message, file=sys.stderr)
    sys.exit(1)


def _short_message(error: Exception) -> str:
    """What Hydra says, without its search path, and with the nearest choice where a group has no such one."""
    from hydra.errors import OverrideParseException

    if "Could not load 'hydra/sweeper/optuna'" in str(error):
        return "hydra/sweeper=search: its plugin is not installed. Fix: pip install 'cityseg[optuna]'"
    options = getattr(error, "options", None)
    if options:
        group, _, choice = str(getattr(error, "missing_cfg_file", "")).rpartition("/")
        return f"{group}={choice}: no such choice, expected one of {', '.join(options)}.{did_you_mean(choice, options)}"
    lines = [line for text in (str(error), str(error.__cause__ or "")) for line in text.splitlines()]
    if (key := getattr(error, "full_key", None)) and key not in lines[0]:
        lines[0] = f"{key}: {lines[0]}"
    noise = (
        "full_key:",
        "object_type=",
        "Config search path",
        "provider=",
        "See https",
        "To append to your config",
    )
    if isinstance(error, OverrideParseException):
        lines.insert(0, str(error.override or ""))
        lines.append("Fix: KEY=VALUE, with 'quotes' around a value that has more in it than letters, digits and ._-/")
    return "\n".join(dict.fromkeys(line for line in lines if line.strip() and not line.strip().startswith(noise)))


def expand_resume(arguments: Sequence[str]) -> list[str]:
    """Point Hydra at the folder of the run or the sweep that goes on.

    A run keeps its original config files; a sweep is started again with what was typed then.

    >>> expand_resume(["resume=.", "trainer.max_epochs=9"])[:3]
    ['resume=.', 'trainer.max_epochs=9', "hydra.run.dir='.'"]
    """
    arguments = list(arguments)
    folder = next((a.partition("=")[2] for a in reversed(arguments) if a.startswith("resume=")), "")
    if folder in ("", "null"):
        return arguments
    if not Path(folder).is_dir():
        fail(
            f"resume={folder}: no such folder, expected that of a run (outputs/NAME/TIMESTAMP) or of a sweep "
            "(outputs/NAME/multirun/TIMESTAMP)"
        )
    if (Path(folder) / "multirun.yaml").is_file():
        return _sweep_arguments(Path(folder), [a for a in arguments if not a.startswith("resume=")])
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    return [*arguments, f"hydra.run.dir={quoted(folder)}", f"hydra.output_subdir=.hydra/resumed_{stamp}"]


def _sweep_arguments(folder: Path, typed: Sequence[str]) -> list[str]:
    """What a sweep was started with, and what was typed now in place of the same keys.

    What a folder says is data: what could run code, or write elsewhere, has to be typed again.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        started = yaml.safe_load((folder / "multirun.yaml").read_text(encoding="utf-8"))["hydra"]["overrides"]
        before = [str(text) for text in (*started["hydra"], *started["task"])]
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        fail(f"{folder}/multirun.yaml: not what a sweep writes ({type(error).__name__}). Fix: type the command again")
    now = {argument.partition("=")[0] for argument in typed}
    anew = ("hydra.mode=", "hydra.sweep.dir=", "hydra.job.config.override_dirname.exclude_keys=")
    kept = [text for text in before if text.partition("=")[0] not in now and not text.startswith(anew)]
    if refused := [text for text in kept if not _is_harmless(text)]:
        fail(
            f"resume={folder}: its multirun.yaml has {' and '.join(map(ascii, refused))}, which is refused, since it "
            "could run code or leave the folder. Fix: if it is your own, type it again beside resume="
        )
    return [*(() if {"-m", "--multirun"} & now else ("-m",)), *kept, *typed, f"hydra.sweep.dir={quoted(folder)}"]


def _is_harmless(override: str) -> bool:
    """Whether an override from a file chooses among what there is, and sets values.

    >>> [_is_harmless(text) for text in ("model=unet,fpn", "data.root=/data", "hydra.launcher.n_jobs=2")]
    [True, True, True]
    >>> [_is_harmless(text) for text in ("model=/tmp/evil", "loss._target_=os.system", "hydra.job_logging.x=y")]
    [False, False, False]
    """
    key, _, value = override.partition("=")
    if re.search(r"_target_|\$\{|\.\.", override):
        return False
    if key.startswith("hydra"):
        return re.fullmatch(r"hydra/(launcher|sweeper)|hydra\.(launcher|sweeper)\.[\w.]+", key) is not None and (
            re.fullmatch(r"[\w.:-]+", value) is not None
        )
    is_group = "." not in key or "@" in key
    return (
        re.fullmatch(r"[+~]{0,2}[a-zA-Z]\w*[\w.@/]*", key) is not None
        and key.lstrip("+") not in ("resume", "trusted")
        and not (is_group and "/" in value)
    )


def quoted(value: object) -> str:
    """A value that Hydra takes as it is, whatever is in it.

    >>> quoted("a, b")
    "'a, b'"
    """
    # Backslashes mean themselves but before a quote, be it the last one.
    text = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), str(value))
    return f"'{text}'"


def quote_path(argument: str) -> str:
    """Let a path have an equals sign in it, as the folders of a sweep do: Hydra takes one only between quotes.

    >>> quote_path("ckpt=cv/fold=0/checkpoints/best.ckpt"), quote_path("data.scenes={train: 4}")
    ("ckpt='cv/fold=0/checkpoints/best.ckpt'", 'data.scenes={train: 4}')
    """
    key, _, value = argument.partition("=")
    return f"{key}={quoted(value)}" if re.fullmatch(r"[^'\"()\[\]{},]*=[^'\"()\[\]{},]*", value) else argument


def expand_generator(arguments: Sequence[str]) -> list[str]:
    """Let ``generator=unet`` choose the network of an adversarial model from the group of all networks.

    >>> expand_generator(["model=gan", "generator=unet"])
    ['model=gan', 'model@model.generator=unet']
    """
    return [re.sub(r"^generator=", "model@model.generator=", argument) for argument in arguments]


def one_writer(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Keep every process but the first from writing logs and configs; where no folder is named, it has a passing one.

    torchrun and srun start each process by itself, and Hydra would make a run folder for each.

    >>> one_writer(["hydra.run.dir=run"], {"RANK": "1"})
    ['hydra.run.dir=run', 'hydra/job_logging=none', 'hydra.output_subdir=null']
    """
    if all(environment.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")):
        return list(arguments)
    quiet = [*arguments, "hydra/job_logging=none", "hydra.output_subdir=null"]
    if any(argument.startswith("hydra.run.dir=") for argument in arguments):
        return quiet
    folder = tempfile.mkdtemp(prefix="cityseg-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return [*quiet, f"hydra.run.dir={quoted(folder)}"]


def multirun_first(arguments: Sequence[str]) -> list[str]:
    """Let ``-m`` stand anywhere: Hydra's parser takes overrides only in one stretch.

    >>> multirun_first(["data=pairs", "-m", "fold=0,1"])
    ['-m', 'data=pairs', 'fold=0,1']
    """
    return sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))


def _group_choices(overrides: Sequence[str], config_dir: Path) -> list[str]:
    """The overrides that choose from a group of ours."""
    groups = [path.name for path in config_dir.iterdir() if path.is_dir()]
    return [text for text in overrides if re.split("[=@]", text.lstrip("+~"))[0] in groups]


def nearest_key(overrides: Sequence[str], config_dir: Path, config_name: str) -> str:
    """Name the existing keys nearest to those that were typed and do not exist; empty if all exist."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from cityseg.keys import dotted_keys

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        try:
            known = dotted_keys(compose(config_name, _group_choices(overrides, config_dir)))
        except Exception:  # one of the choices is what is wrong
            known = dotted_keys(compose(config_name))
    typed = [override.partition("=")[0] for override in overrides if "=" in override and override[0] not in "+~-"]
    wrong = [key for key in typed if key not in known and not key.startswith("hydra")]
    return "".join(f"\n{key}:{hint}" for key in wrong if (hint := did_you_mean(key, known)))
