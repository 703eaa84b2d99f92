"""The order of NCCL's sums on the stream, with an emulated CuPy that notes its calls."""

import sys
from types import SimpleNamespace
from unittest.mock import MagicMock, call

import numpy as np
import pytest
from rank_threads import connected, on_all

from layers import Device, DeviceError
from tinyconv.parallel.nccl import NCCL

IDENTITY = tuple(range(-64, 64))


def fake_device(monkeypatch, cupy, nccl):
    for name, module in (("", cupy), (".cuda", cupy.cuda), (".cuda.nccl", nccl)):
        monkeypatch.setitem(sys.modules, f"fake_cupy{name}", module)
    device = Device("cpu")
    device.xp = SimpleNamespace(__name__="fake_cupy", cuda=cupy.cuda)
    return device


def test_nccl_sums_after_the_computing_before_it_and_before_the_computing_after(monkeypatch):
    cupy = MagicMock()
    nccl, sums = cupy.cuda.nccl, cupy.cuda.Stream.return_value
    computing, event = cupy.cuda.get_current_stream.return_value, cupy.cuda.Event.return_value
    nccl.get_unique_id.side_effect = [IDENTITY]  # the first rank's, once
    device = fake_device(monkeypatch, cupy, nccl)
    ranks = on_all(connected(2), lambda hosts: NCCL(hosts, device))
    nccl.NcclCommunicator.assert_has_calls([call(2, IDENTITY, r) for r in (0, 1)], any_order=True)
    assert cupy.cuda.Stream.call_args == call(non_blocking=True)
    cupy.reset_mock()
    flat = SimpleNamespace(data=SimpleNamespace(ptr=1160), size=60, dtype=np.dtype(np.float32))
    ranks[1].start(flat)
    ranks[1].finish()
    ranks[1].close()
    assert cupy.mock_calls == [
        call.cuda.get_current_stream(),
        call.cuda.Event().record(computing),
        call.cuda.Stream().wait_event(event),
        call.cuda.nccl.NcclCommunicator().allReduce(
            1160, 1160, 60, nccl.NCCL_FLOAT32, nccl.NCCL_SUM, sums.ptr
        ),
        call.cuda.Event().record(sums),
        call.cuda.get_current_stream(),
        call.cuda.get_current_stream().wait_event(event),
        call.cuda.Stream().synchronize(),
        call.cuda.nccl.NcclCommunicator().destroy(),
    ]


@pytest.mark.parametrize("nccl", [None, SimpleNamespace(available=False)])
def test_without_nccl_the_package_is_named_on_every_rank(monkeypatch, nccl):
    device = fake_device(monkeypatch, MagicMock(), nccl)
    for error in on_all(connected(2), lambda hosts: NCCL(hosts, device)):
        assert isinstance(error, DeviceError) and "'.[nccl12]'" in str(error)
