"""The live page: only on 127.0.0.1, only one address; TensorBoard's files with the same numbers."""

import argparse
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from small import random_photos

from tinyconv import Model, alexnet, save_model
from tinyconv.data.open_data import Data
from tinyconv.train import Epoch
from tinyconv.weights.live import LivePage, watched


def get(address, **headers):
    with urlopen(Request(address, headers=headers), timeout=10) as answer:
        return answer.read().decode()


def test_the_page_is_served_at_one_address_of_this_machine():
    live = LivePage()
    try:
        assert live.server.server_address[0] == "127.0.0.1"
        assert "after the first epoch" in get(live.address)
        live.show("größe", 1)
        assert get(live.address) == "größe"
        for address, headers in (
            (live.address + "run.json", {}),
            (live.address + "../etc/passwd", {}),
            (live.address, {"Host": f"evil.example:{live.server.server_port}"}),
        ):
            with pytest.raises(HTTPError, match="404"):
                get(address, **headers)
    finally:
        live.close()
    with pytest.raises(OSError):
        get(live.address)


def test_a_port_that_cannot_be_used_is_a_line():
    live = LivePage()
    used = live.server.server_port
    try:
        for port, reason in ((used, "in use"), (70_000, "must be 0-65535")):
            with pytest.raises(ValueError, match=rf"^--watch {port}: .*{reason}.*; name a port"):
                LivePage(port)
    finally:
        live.close()


def number(address):
    with urlopen(Request(address, method="HEAD"), timeout=10) as answer:
        assert answer.read() == b"" and int(answer.headers["Content-Length"])
        return answer.headers["ETag"]


def test_an_open_page_hears_of_the_next_one_and_of_the_last():
    live = LivePage()
    try:
        before = number(live.address)
        live.show("first", 1)
        assert (before, number(live.address)) == ('"0"', '"1"')
        live.show("last", 2)
        closing = threading.Thread(target=live.close)
        closing.start()
        assert get(live.address) == "last"  # the server waits for it
        closing.join(timeout=3)  # less than WAIT
        assert not closing.is_alive()
    finally:
        if closing.is_alive():
            closing.join()
    idle = LivePage()
    idle.show("no page is open", 1)
    started = time.monotonic()
    idle.close()
    assert time.monotonic() - started < 3


def epoch(number):
    return Epoch(number, 0.01, 1.5, 0.25, 1.25, 0.5, 0.75, 100.0, 2.0, 0.0, 2.0, True)


def run_of(tmp_path):
    net = alexnet(3, 0.05, 64, "robust")
    names = [f"class{i}" for i in range(3)]
    save_model(tmp_path / "checkpoint-000000001.h5", Model(net, np.zeros((73, 73, 3)), names, 32.0))
    photos = random_photos(6, size=73)
    checkpoints = [tmp_path / "checkpoint-000000001.h5"]
    folder = SimpleNamespace(path=tmp_path, checkpoints=lambda: checkpoints)
    return folder, Data.of_photos(photos, photos, "drawn")


def test_an_epoch_updates_the_page_and_writes_events(tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    folder, data = run_of(tmp_path)
    options = argparse.Namespace(watch=0, tensorboard=True)
    seen = []
    with watched(options, folder) as also:
        address = capsys.readouterr().out.split()[-1]
        also(seen.append, data)(epoch(1))
        found = get(address)
    assert '"live": 1' in found and '"photos": [' in found and seen == [epoch(1)]
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    for tag in ("loss/train", "loss/val", "top1/val", "run/lr"):
        assert tag.encode() in content
    assert np.float32(1.25).tobytes() in content and "skip" not in asdict(epoch(1))


def test_without_the_options_nothing_is_written_or_served(tmp_path):
    options = argparse.Namespace(watch=None, tensorboard=False)
    with watched(options, SimpleNamespace(path=tmp_path)) as also:
        seen = []
        also(seen.append, None)(epoch(1))
    assert seen == [epoch(1)]
    assert not list(Path(tmp_path).iterdir())


def test_without_the_extra_a_line_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    options = argparse.Namespace(watch=None, tensorboard=True)
    with (
        pytest.raises(ValueError, match=r"tensorboardX is not installed: pip install -e '.\[tens"),
        watched(options, SimpleNamespace(path=tmp_path)),
    ):
        pass
