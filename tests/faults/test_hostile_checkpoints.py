"""Checkpoints made to run code, to fill the memory or to give wrong weights: refused, whichever command reads them."""

import io
import os
import pickle
import random
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from cityseg.checkpoints import KEY, SealedCheckpointIO, load_checkpoint
from cityseg.errors import CheckpointError, CitysegError, ConfigError
from cityseg.labels import label_space
from cityseg.models.encoders import read_weights

pytestmark = pytest.mark.slow  # a network is trained, and asked for by every command

OWN = {
    "format": 1,
    "version": "0",
    "epochs": 1,
    "config": {"model": {"encoder": "resnet18"}},
    "label_space": label_space("cityscapes19").to_dict(),
}
WEIGHTS = {"network.weight": torch.arange(6.0).reshape(2, 3)}
GIB = 2**30


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.made_of = function, arguments

    def __reduce__(self):
        return self.made_of


SYSTEM = Call(os.system, "touch marker")
EVAL = Call(eval, "__import__('os').system('touch marker')")
NESTED = Call(getattr, Call(__import__, "os"), Call(str, "system"))
CODE = {
    "os.system as the weights": {"state_dict": SYSTEM, KEY: OWN},
    "os.system among the weights": {"state_dict": {**WEIGHTS, "x": SYSTEM}, KEY: OWN},
    "eval deep in the config": {"state_dict": WEIGHTS, KEY: {**OWN, "config": {"a": [{"b": (EVAL,)}]}}},
    "calls in calls": {"state_dict": WEIGHTS, KEY: OWN, "callbacks": {"x": Call(map, NESTED, ["touch marker"])}},
    "a class with a state": {"state_dict": WEIGHTS, KEY: OWN, "optimizer_states": [Path("marker")]},
}


def written(content, path, how="torch"):
    """A file of some content, as torch writes it now, as it did before 1.6, as a bare pickle, or with our seal."""
    if how == "bare":
        path.write_bytes(pickle.dumps(content))
    elif how == "sealed":
        SealedCheckpointIO().save_checkpoint(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    return path


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch", "legacy", "bare", "sealed"])
@pytest.mark.parametrize("what", CODE)
def test_code_in_a_file_is_refused_and_not_run(tmp_path, monkeypatch, what, how):
    monkeypatch.chdir(tmp_path)
    path = written(CODE[what], tmp_path / "hostile.ckpt", how)
    with pytest.raises(CheckpointError, match=r"hostile\.ckpt: (refused, because it holds more|damaged)"):
        load_checkpoint(path)
    with pytest.raises(ConfigError, match=r"hostile\.ckpt: not a file of weights \("):
        read_weights(path)
    assert not (tmp_path / "marker").exists()


def test_every_command_refuses_code(commands, tmp_path):
    path = written(CODE["eval deep in the config"], tmp_path / "hostile.ckpt", "sealed")
    for name, command in commands.items():
        with pytest.raises(CitysegError, match=r"(hostile|last)\.ckpt: .*could run code"):
            command(path)
        assert not (tmp_path / "marker").exists(), name


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated", "ignore:.torch.load. received a zip file")
def test_a_script_of_torch_is_no_checkpoint(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.ckpt")
    with pytest.raises(CheckpointError, match=r"script\.ckpt"):
        load_checkpoint(tmp_path / "script.ckpt")


def test_what_else_lies_in_the_archive_is_neither_run_nor_unpacked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written({"state_dict": WEIGHTS, KEY: OWN}, tmp_path / "a.ckpt")
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("a/evil.pkl", "a/code/evil.py", "a/data.pkl.py"):
            archive.writestr(name, pickle.dumps(SYSTEM))
    assert torch.equal(load_checkpoint(path).state_dict["network.weight"], WEIGHTS["network.weight"])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/../../outside", b"x")
        archive.writestr("../outside", b"x")
    with pytest.raises(CheckpointError, match="not in a subdirectory"):
        load_checkpoint(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]
    assert not (tmp_path.parent / "outside").exists()


def packed(path, members):
    """Write a zip archive that says what it is told: name, bytes, whether deflated, size when unpacked, copies."""
    content, directory = io.BytesIO(), io.BytesIO()
    count = 0
    for name, data, deflated, size, copies in members:
        fields = struct.pack("<HHHHHLLL", 20, 0, 8 * deflated, 0, 0, zlib.crc32(data), len(data), size)
        start = content.tell()
        content.write(b"PK\3\4" + fields + struct.pack("<HH", len(name), 0) + name.encode() + data)
        for number in range(copies):
            other = name if copies == 1 else f"{name}{number}"
            count += 1
            place = struct.pack("<HHHHHLL", len(other), 0, 0, 0, 0, 0, start)
            directory.write(b"PK\1\2" + struct.pack("<H", 20) + fields + place + other.encode())
    end = struct.pack("<HHHHLLH", 0, 0, count, count, directory.tell(), content.tell(), 0)
    path.write_bytes(content.getvalue() + directory.getvalue() + b"PK\5\6" + end)
    return path


def deflated_zeros(size):
    """As many zeros, without ever making them: a block that starts anew, again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (size // 2**20) + packer.flush()


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def bombs(tmp_path):
    """Archives that would take gigabytes, and what is said of them."""
    parts = members_of(written({"state_dict": {"network.weight": torch.zeros(7, 111)}, KEY: OWN}, tmp_path / "a.ckpt"))
    plain = [(f"a/{name}", data, 0, len(data), 1) for name, data in parts.items()]

    def replaced(name, *member):
        return packed(tmp_path / "bomb.ckpt", [m for m in plain if m[0] != f"a/{name}"] + [(f"a/{name}", *member)])

    zeros = deflated_zeros(3 * GIB)
    assert len(zeros) < GIB / 200
    yield replaced("data.pkl", zeros, 1, 3 * GIB, 1), "would unpack"
    yield replaced("data/0", zeros, 1, 3 * GIB, 1), "would unpack"
    yield replaced("data/", bytes(2**20), 0, 2**20, 3000), "would unpack"
    for huge in (b"\x8a\x07" + (2**50).to_bytes(7, "little"), b"J" + (2**31 - 1).to_bytes(4, "little")):
        for claim, larger in ((b"M\x09\x03", huge), (b"K\x07Ko\x86", huge + b"K\1\x86")):  # 777 values, 7 times 111
            assert parts["data.pkl"].count(claim) == 1
            pickled = parts["data.pkl"].replace(claim, larger)
            yield replaced("data.pkl", pickled, 0, len(pickled), 1), "damaged"


def grown(path):
    """Bytes by which the largest resident size goes beyond what it was when a file is loaded."""
    Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
    before = status("VmRSS")
    try:
        load_checkpoint(path)
    finally:
        grown.last = status("VmHWM") - before


def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux tells the peak of the memory")
def test_bombs_and_claims_are_refused_in_bounded_memory(tmp_path):
    grown(written({"state_dict": WEIGHTS, KEY: OWN}, tmp_path / "small.ckpt"))
    for path, message in bombs(tmp_path):
        with pytest.raises(CheckpointError, match=message):
            grown(path)
        assert grown.last < 64 * 2**20, message
        with pytest.raises(ConfigError, match=r"model\.pretrained=.*bomb\.ckpt"):
            read_weights(path)


def test_a_sealed_checkpoint_whose_weights_were_changed_is_refused_though_torch_reads_it(commands, trained, tmp_path):
    good = torch.load(trained, weights_only=True)["state_dict"]
    name, weight = next((name, w) for name, w in good.items() if w.numel() > 500)
    content = bytearray(trained.read_bytes())
    content[content.index(bytes(weight.untyped_storage().tolist())) + 3] ^= 64
    path = tmp_path / "flipped.ckpt"
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["state_dict"][name], weight)
    for command in ("evaluate", "predict", "export", "resume", "resume a sweep"):
        with pytest.raises(CheckpointError, match="damaged"):
            commands[command](path)
    torch.save(torch.load(trained, weights_only=True), path)  # by somebody else, who knows of no seal
    assert torch.equal(load_checkpoint(path).state_dict[name], weight)


def laughs():
    """Ten lists, each of ten times the one before: ten thousand million values in a few hundred bytes."""
    value = ["ha"]
    for _ in range(10):
        value = [value] * 10
    return value


def endless():
    value = {}
    value["again"] = value
    return value


def deep():
    value = []
    for _ in range(400):
        value = [value]
    return value


SPACE = OWN["label_space"]
WRONG = {
    "laughs": {KEY: {**OWN, "config": {"a": laughs()}}},
    "endless": {KEY: {**OWN, "config": endless()}},
    "deep": {KEY: {**OWN, "config": {"a": deep()}}},
    "tensors": {KEY: {**OWN, "config": {"a": torch.zeros(2)}}},
    "no config": {KEY: {**OWN, "config": 3}},
    "a list": {KEY: [1, 2]},
    "text": {KEY: "x"},
    "missing": {KEY: {"format": 1}},
    "format": {KEY: {**OWN, "format": "x"}},
    "newer": {KEY: {**OWN, "format": 99}},
    "epochs": {KEY: {**OWN, "epochs": "many"}},
    "lines": {KEY: {**OWN, "label_space": {**SPACE, "class_names": ["a\nb", *SPACE["class_names"][1:]]}}},
    "colours": {KEY: {**OWN, "label_space": {**SPACE, "colors": [[0, 0, 999], *SPACE["colors"][1:]]}}},
    "ids": {KEY: {**OWN, "label_space": {**SPACE, "label_ids": [-1, *SPACE["label_ids"][1:]]}}},
    "classes": {KEY: {**OWN, "label_space": {**SPACE, "class_names": list(map(str, range(300)))}}},
    "weights": {"state_dict": {"a": 1}, KEY: OWN},
    "names": {"state_dict": {1: torch.zeros(1)}, KEY: OWN},
    "no weights": {"state_dict": [1], KEY: OWN},
    "callbacks": {"callbacks": [1], KEY: OWN},
    "states": {"callbacks": {"a": {"monitor": "x", "current_score": "y"}}, KEY: OWN},
}


@pytest.mark.parametrize("what", WRONG)
def test_other_content_than_ours_is_refused_by_the_file(tmp_path, what):
    path = written({"state_dict": WEIGHTS, **WRONG[what]}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"ckpt=.*x\.ckpt: "):
        load_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_random_pickles_give_a_checkpoint_or_a_named_error(tmp_path):
    parts = members_of(written({"state_dict": WEIGHTS, KEY: OWN}, tmp_path / "a.ckpt"))
    rng, refused = random.Random(1), 0
    for _ in range(300):
        pickled = bytearray(parts["data.pkl"])
        for _ in range(rng.choice((1, 1, 3))):
            pickled[rng.randrange(len(pickled))] = rng.randrange(256)
        members = {**parts, "data.pkl": bytes(pickled)}
        path = packed(tmp_path / "x.ckpt", [(f"a/{name}", data, 0, len(data), 1) for name, data in members.items()])
        try:
            load_checkpoint(path)
        except CheckpointError:
            refused += 1
    assert refused > 100


def test_a_resumed_run_removes_no_file_that_its_checkpoint_names(tmp_path):
    victim = tmp_path / "victim.ckpt"
    victim.touch()
    (tmp_path / "checkpoints").mkdir()
    for name in (f"local://{victim}", f"{tmp_path}/checkpoints/../victim.ckpt", str(tmp_path)):
        with pytest.raises(CheckpointError, match="not removed"):
            SealedCheckpointIO().remove_checkpoint(name)
        assert victim.is_file()
    SealedCheckpointIO().remove_checkpoint(str(victim))
    assert not victim.exists()
