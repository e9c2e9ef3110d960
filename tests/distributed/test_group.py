"""Messages, what torchrun tells a process, and waiting for others."""

import time

import pytest
import torch
from torch.distributed import (
    HashStore,  # pyright: ignore[reportPrivateImportUsage]
    PrefixStore,  # pyright: ignore[reportPrivateImportUsage]
)

from minitrain.distributed import pulse as pulses
from minitrain.distributed.group import Group
from minitrain.distributed.launch import Launch
from minitrain.distributed.messages import pack, unpack
from minitrain.distributed.pulse import Lost, Pulse
from minitrain.system.errors import GroupError, SettingsError

DTYPES = (
    torch.float32, torch.bool, torch.float64, torch.bfloat16, torch.int64,
    torch.uint8, torch.complex64,
)  # fmt: skip


def test_a_message_brings_tensors_of_any_dtypes_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    sent = []
    for number, dtype in enumerate(DTYPES * 2):
        bits = torch.randint(256, (16 * (number % 3),), generator=generator)
        shape = (-1, 1) if number % 2 else (-1,)
        values = bits.to(torch.uint8)
        sent.append(values.ne(0) if dtype == torch.bool else values.view(dtype))
        sent[-1] = sent[-1].reshape(shape) if len(bits) else sent[-1]
    sent += [torch.tensor(float("nan")), torch.rand(3, 4).t()]
    found = unpack(pack(sent), like=sent)
    for one, other in zip(found, sent, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        flat = (x.contiguous().reshape(-1).view(torch.uint8) for x in (one, other))
        assert torch.equal(*flat)


def test_a_launch_is_read_from_the_environment() -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    told = dict(zip(names, "3412", strict=True)) | {"TORCHELASTIC_RESTART_COUNT": "5"}
    assert Launch.of(told) == (3, 4, 1, 2, 5)
    assert Launch.of({}) == (0, 1, 0, 1, 0)
    for name in names:
        wrong = {**told, name: "many"} if name != "WORLD_SIZE" else {"WORLD_SIZE": "4"}
        with pytest.raises(SettingsError, match="let torchrun start the processes"):
            Launch.of(wrong)


class Work:
    """A collective that is over in the moment in which the wait for it is given up."""

    def __init__(self) -> None:
        self.num_waits = 0

    def wait(self, *_: object) -> bool:
        self.num_waits += 1
        if self.num_waits == 1:
            raise RuntimeError("timed out")
        return True

    def is_completed(self) -> bool:
        return True


def test_what_is_over_in_time_is_no_death() -> None:
    alone = Group.__new__(Group)  # without processes to talk to
    alone._has_core = False
    assert alone._wait(work := Work()) and work.num_waits == 2


def test_a_pulse_tells_the_silent_and_hears_last_words() -> None:
    store = PrefixStore("group", HashStore())
    for rank in (1, 2):
        store.set(f"beat {rank}", "0")
    own = Pulse.__new__(Pulse)  # without a thread that beats
    own.store, own.world_size, own._rank, own._others = store, 3, 0, [1, 2]
    own._seen = {}
    assert own.silent(0.2) == []
    time.sleep(0.3)
    store.set("beat 2", "1")
    assert own.silent(0.2) == [1]
    store.set("word 1", "")  # it left because of another one
    assert own.lost() is None
    store.set("word 2", "ValueError: no")
    assert own.lost() == Lost(2, "ValueError: no")


def test_who_does_not_come_is_named(monkeypatch) -> None:
    monkeypatch.setattr(pulses, "LATENESS", 1.0)
    with pytest.raises(GroupError, match="rank 1 has not come within 1 seconds"):
        Pulse(HashStore(), 0, 2)
    with pytest.raises(GroupError, match="rank 0 has not come"):
        Pulse(HashStore(), 1, 2)


def test_who_came_and_stopped_is_named_and_not_who_waits_for_it(monkeypatch) -> None:
    """Rank 0 of three has said where to meet, and then stopped: rank 2 never comes."""
    monkeypatch.setattr(pulses, "LATENESS", 2.0)
    store = HashStore()
    store.set(pulses.TOKEN, "token")
    store.set("token/beat 0", "7")
    monkeypatch.setattr(pulses, "_living", lambda *_: "token")
    with pytest.raises(GroupError, match="rank 0 of 3 hangs at the start"):
        Pulse(store, 1, 3)
