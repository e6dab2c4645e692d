"""What the commands share before Hydra and after it. Nothing heavy is imported here, so that ``--help`` is quick."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from cityseg.errors import CitysegError, did_you_mean

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
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    # Hydra's own ${hydra:...} is not there yet when it names the folder of a sweep.
    OmegaConf.register_new_resolver(
        "run_name", lambda name, model, data: name or f"{model}-{data}", replace=True, use_cache=False
    )
    sys.argv[1:] = expand_generator(expand_resume(sys.argv[1:]))
    # Hydra then raises what went wrong instead of printing a shortened traceback of its own.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        main()
    except CitysegError as error:
        _fail(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _fail(_short_message(error) + nearest_key(sys.argv[1:], config_dir, config_name))


def _fail(message: str) -> None:
    if logging.getLogger().handlers:
        log.error("%s", message)
    else:
        print(message, file=sys.stderr)
    sys.exit(1)


def _short_message(error: Exception) -> str:
    """What Hydra says, without its search path, and with the nearest choice where a group has no such one."""
    options = getattr(error, "options", None)
    if options:
        group, _, choice = str(getattr(error, "missing_cfg_file", "")).rpartition("/")
        return f"{group}={choice}: no such choice, expected one of {', '.join(options)}.{did_you_mean(choice, options)}"
    lines = [line for text in (str(error), str(error.__cause__ or "")) for line in text.splitlines()]
    noise = (
        "full_key:",
        "object_type=",
        "Config search path",
        "provider=",
        "See https",
        "To append to your config",
    )
    return "\n".join(dict.fromkeys(line for line in lines if line.strip() and not line.strip().startswith(noise)))


def expand_resume(arguments: Sequence[str]) -> list[str]:
    """Point Hydra at the folder of the run that goes on, and keep its original config files.

    >>> expand_resume(["resume=.", "trainer.max_epochs=9"])[:3]
    ['resume=.', 'trainer.max_epochs=9', 'hydra.run.dir=.']
    """
    arguments = list(arguments)
    folder = next((a.partition("=")[2] for a in reversed(arguments) if a.startswith("resume=")), "")
    if folder in ("", "null"):
        return arguments
    if not Path(folder).is_dir():
        _fail(f"resume={folder}: no such folder, expected the folder of a run (outputs/NAME/TIMESTAMP)")
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    return [*arguments, f"hydra.run.dir={folder}", f"hydra.output_subdir=.hydra/resumed_{stamp}"]


def expand_generator(arguments: Sequence[str]) -> list[str]:
    """Let ``generator=unet`` choose the network of an adversarial model from the group of all networks.

    >>> expand_generator(["model=gan", "generator=unet"])
    ['model=gan', 'model@model.generator=unet']
    """
    return [re.sub(r"^generator=", "model@model.generator=", argument) for argument in arguments]


def nearest_key(overrides: Sequence[str], config_dir: Path, config_name: str) -> str:
    """Name the existing keys nearest to those that were typed and do not exist; empty if all exist."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from cityseg.runs.keys import dotted_keys

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        known = dotted_keys(compose(config_name, return_hydra_config=False))
    typed = [override.partition("=")[0] for override in overrides if "=" in override and override[0] not in "+~-"]
    wrong = [key for key in typed if key not in known and not key.startswith("hydra")]
    return "".join(f"\n{key}:{hint}" for key in wrong if (hint := did_you_mean(key, known)))
