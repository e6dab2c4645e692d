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
from collections.abc import Callable, Sequence
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
    """Run a function decorated with ``hydra.main``, and what follows the jobs of a sweep.

    What a user can mend ends with a message instead of a traceback, which names the keys nearest to wrong ones.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its font cache
    # Hydra copies its store, with the configs of all plugins in it, for each group that --help lists; loading from it
    # gives copies as it is.
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    # Hydra's own ${hydra:...} is not there yet when it names the folder of a sweep.
    OmegaConf.register_new_resolver("run_name", lambda name, model, data: name or f"{model}-{data}", replace=True)
    # A sweep that was given a name has one folder, so that the same command goes on with it.
    OmegaConf.register_new_resolver("sweep_time", lambda name, now: "" if name else now, replace=True)
    sys.argv[1:] = rewritten(sys.argv[1:])
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
        wrong = _wrong_keys(sys.argv[1:], config_dir, config_name)
        told_by_key = wrong and str(error).startswith("Could not override")
        return "\n".join(wrong if told_by_key else [_short_message(error, config_dir), *wrong])
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


def _short_message(error: Exception, config_dir: Path) -> str:
    """What Hydra says, without its search path, and with the choices that there are where a group has no such one."""
    from hydra.errors import OverrideParseException

    if missing := re.search(r"Missing mandatory value: (\S+)", str(error)):
        return f"{missing[1]}: not given. Fix: {missing[1]}=..., see --help"
    if "Could not load 'hydra/sweeper/optuna'" in str(error):
        return "hydra/sweeper=search: its plugin is not installed. Fix: pip install 'cityseg[optuna]'"
    group, _, choice = str(getattr(error, "missing_cfg_file", "")).rpartition("/")
    ours = (path.stem for path in sorted((config_dir / group).glob("*.yaml")))  # Hydra names none of a list
    if group and (options := getattr(error, "options", None) or list(ours)):
        told = _described(config_dir / group, [name for name in options if not name.startswith("_")])
        near = did_you_mean(choice, told)
        expected = f" {', '.join(told)}.{near}" if near else "".join(f"\n  {row}" for row in told.values())
        return f"{group}={choice}: no such choice, expected one of{expected}"
    lines = [line for text in (str(error), str(error.__cause__ or "")) for line in text.splitlines()]
    if (key := getattr(error, "full_key", None)) and key not in lines[0]:
        lines[0] = f"{key}: {lines[0]}"
    if isinstance(error, OverrideParseException):
        lines.insert(0, str(error.override or ""))
        lines.append("Fix: KEY=VALUE, with 'quotes' around a value that has more in it than letters, digits and ._-/")
    noise = r"\s*($|full_key:|object_type=|Config search path|provider=|See https|To append to your config)"
    return "\n".join(dict.fromkeys(line for line in lines if not re.match(noise, line)))


def _described(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The choices of a group -> each as a row of a table, with the first sentence of the comment in its file."""
    width = max(map(len, names), default=0)
    rows = {}
    for name in names:
        path = folder / f"{name}.yaml"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        comments = re.match("(?:# @package.*\n)?((?:# .*\n)*)", text)
        about = re.split(r"[.;](?:\s|$)", comments[1].replace("\n# ", " ").removeprefix("# "))[0] if comments else ""
        rows[name] = f"{name:<{width}}  {about}".rstrip()
    return rows


def rewritten(typed: Sequence[str]) -> list[str]:
    """A command line as Hydra takes it, whose parser wants ``-m`` first.

    ``generator=unet`` chooses the network of an adversarial model from the group of all networks. Every process but
    the first, which torchrun and srun start, is kept from writing logs and configs, and has a passing run folder.

    >>> rewritten(["model=gan", "-m", "generator=unet", "data.root=/data/a=b"])
    ['-m', 'model=gan', 'model@model.generator=unet', "data.root='/data/a=b'"]
    """
    arguments = [re.sub("^generator=", "model@model.generator=", argument) for argument in expand_resume(typed)]
    for argument in arguments:
        name = Path(argument.removeprefix("name=").strip("'\""))
        if argument.startswith("name=") and (name.is_absolute() or ".." in name.parts):
            fail(f"{argument}: leads out of outputs. Fix: a plain name, or hydra.run.dir=FOLDER")
    arguments = sorted(map(quote_path, arguments), key=lambda argument: argument not in ("-m", "--multirun"))
    if all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")):
        return arguments
    if not any(argument.startswith("hydra.run.dir=") for argument in arguments):
        passing = tempfile.mkdtemp(prefix="cityseg-")
        atexit.register(shutil.rmtree, passing, ignore_errors=True)
        arguments.append(f"hydra.run.dir={quoted(passing)}")
    return [*arguments, "hydra/job_logging=none", "hydra.output_subdir=null"]


def expand_resume(arguments: Sequence[str]) -> list[str]:
    """Point Hydra at the folder of a run that goes on, or start a sweep again with what was typed then.

    >>> expand_resume(["resume=.", "trainer.max_epochs=9"])[:3]
    ['resume=.', 'trainer.max_epochs=9', "hydra.run.dir='.'"]
    """
    folder = next((a.partition("=")[2] for a in reversed(arguments) if a.startswith("resume=")), "")
    if folder in ("", "null"):
        return list(arguments)
    if not Path(folder).is_dir():
        expected = "a run (outputs/NAME/TIMESTAMP) or of a sweep (outputs/NAME/multirun/TIMESTAMP)"
        fail(f"resume={folder}: no such folder, expected that of {expected}")
    if (Path(folder) / "multirun.yaml").is_file():
        return _sweep_arguments(Path(folder), [a for a in arguments if not a.startswith("resume=")])
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    return [*arguments, f"hydra.run.dir={quoted(folder)}", f"hydra.output_subdir=.hydra/resumed_{stamp}"]


def _sweep_arguments(folder: Path, typed: Sequence[str]) -> list[str]:
    """What a sweep was started with, and what was typed now in place of the same keys, or could run code otherwise."""
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
        what = f"{' and '.join(map(ascii, refused))}, which is refused, since it could run code or leave the folder"
        fail(f"resume={folder}: its multirun.yaml has {what}. Fix: if it is your own, type it again beside resume=")
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
        return bool(re.fullmatch(r"hydra(/(launcher|sweeper)|\.(launcher|sweeper)\.[\w.]+)=[\w.:-]+", override))
    is_group = "." not in key or "@" in key
    named = re.fullmatch(r"[+~]{0,2}[a-zA-Z]\w*[\w.@/]*", key) is not None
    return named and key.lstrip("+") not in ("resume", "trusted") and not (is_group and "/" in value)


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


def _groups(config_dir: Path) -> list[str]:
    return [path.name for path in config_dir.iterdir() if path.is_dir()]


def _group_choices(overrides: Sequence[str], config_dir: Path) -> list[str]:
    """The overrides that choose from a group of ours."""
    groups = _groups(config_dir)
    return [text for text in overrides if re.split("[=@]", text.lstrip("+~"))[0] in groups]


def _wrong_keys(overrides: Sequence[str], config_dir: Path, config_name: str) -> list[str]:
    """A line for each key that was typed and does not exist, with those nearest to it."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from cityseg.keys import dotted_keys

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        try:
            known = dotted_keys(compose(config_name, _group_choices(overrides, config_dir)))
        except Exception:  # one of the choices is what is wrong
            known = dotted_keys(compose(config_name))
    known += _groups(config_dir)  # of experiments nothing is left in a config
    typed = [override.partition("=")[0] for override in overrides if "=" in override and override[0] not in "+~-"]
    wrong = [key for key in typed if key not in known and not key.startswith("hydra")]
    lines = []
    for key in wrong:
        same = [name for name in known if name.endswith(f".{key.rpartition('.')[2]}")]  # in another group
        hint = f" Did you mean {' or '.join(map(repr, same[:3]))}?" if same else did_you_mean(key, known)
        lines.append(f"{key}: no such key.{hint}")
    return lines
