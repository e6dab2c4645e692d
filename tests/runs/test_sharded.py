"""What ``trainer=fsdp`` cannot do is refused by name before anything is built."""

import pytest

from cityseg.errors import ConfigError
from cityseg.runs.preflight import check_run_config

REFUSED = {
    "model=gan_fpn_aspp": "trainer=fsdp: .* this task has two.*trainer=ddp",
    "callbacks=[default,ema]": "callbacks.ema: .*callbacks.ema=null, or trainer=ddp",
    "callbacks=[default,freezing]": "callbacks.freezing: .*callbacks.freezing=null, or trainer=ddp",
    "compile=true": "compile=true with trainer=fsdp.*compile=false",
    "data.batch_size=auto": "data.batch_size=auto: .*a number, or trainer=ddp",
}


@pytest.mark.parametrize("typed", REFUSED)
def test_what_needs_whole_weights_is_refused(compose_config, typed):
    config = compose_config(["trainer=fsdp", typed])
    with pytest.raises(ConfigError, match=r"(?s)1 problem with the config:.*" + REFUSED[typed]):
        check_run_config(config)


@pytest.mark.parametrize("typed", [["trainer=fsdp"], ["trainer=ddp", *list(REFUSED)[1:]]])
def test_what_can_be_done_is_not(compose_config, typed):
    config = compose_config(typed)
    check_run_config(config)
