"""A run while it trains: the report page on 127.0.0.1 (--watch), TensorBoard's event files.

After each epoch the page is written anew from the checkpoint of that epoch, by the training thread
itself (Numba's host loops may not run in two threads at once); a thread of the server only sends
it. The server listens on 127.0.0.1 alone, knows one address, /, and answers no other host name.
"""

import argparse
import contextlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tinyconv.data.open_data import Data
from tinyconv.run.run_folder import RunFolder
from tinyconv.train import Epoch
from tinyconv.weights.model import load_model
from tinyconv.weights.report import history_of, page

RELOAD = 5
"""Seconds after which an open page asks again."""

WAITING = (
    "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=3><title>tinyconv</title>"
    "<p>The page comes after the first epoch."
)


class LivePage:
    """Serves the text in `text` on 127.0.0.1; port 0 takes a free one. OSError if it is taken."""

    def __init__(self, port: int = 0) -> None:
        self.text = WAITING
        live = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                own = self.headers.get("Host", "").rpartition(":")[0] in ("127.0.0.1", "localhost")
                found = own and self.path == "/"
                body = live.text.encode() if found else b"not found\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", f"text/{'html' if found else 'plain'}")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing is printed between the lines of the epochs."""

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End the server."""
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def watched(
    options: argparse.Namespace, folder: RunFolder | None, data: Data, on_epoch: Any
) -> Any:
    """`on_epoch`, and after it what --watch and --tensorboard ask for, in a `with` statement.

    folder: None for a process that writes nothing. ValueError names the extra where tensorboardX
    is not installed.
    """
    calls: list[Callable[[Epoch], None]] = [on_epoch]
    with contextlib.ExitStack() as stack:
        if folder is not None and options.tensorboard:
            calls.append(_events(folder, stack))
        if folder is not None and options.watch is not None:
            calls.append(_page(folder, data, options.watch, stack))

        def call(epoch: Epoch) -> None:
            for each in calls:
                each(epoch)

        yield call


def _page(
    folder: RunFolder, data: Data, port: int, stack: contextlib.ExitStack
) -> Callable[[Epoch], None]:
    live = LivePage(port)
    stack.callback(live.close)
    print(f"watch it at {live.address}", flush=True)

    def update(epoch: Epoch) -> None:
        model = load_model(folder.checkpoints()[0])
        path = str(folder.path)
        live.text = page(model, data, history_of(path), path, RELOAD)

    return update


def _events(folder: RunFolder, stack: contextlib.ExitStack) -> Callable[[Epoch], None]:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError(
            "--tensorboard: tensorboardX is not installed: pip install -e '.[tensorboard]'"
        ) from None
    writer = SummaryWriter(str(folder.path / "tensorboard"))
    stack.callback(writer.close)

    def add(epoch: Epoch) -> None:
        for name, value in epoch.as_dict().items():
            if isinstance(value, float):
                kind, _, what = name.partition("_")
                tag = f"{what}/{kind}" if kind in ("train", "val") else f"run/{name}"
                writer.add_scalar(tag, value, epoch.epoch)
        writer.flush()

    return add
