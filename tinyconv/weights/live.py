"""A run while it trains: the report page on 127.0.0.1 (--watch), TensorBoard's event files.

After each epoch the page is written anew from the checkpoint of that epoch, by the training thread
itself (Numba's host loops may not run in two threads at once); a thread of the server only sends
it. The server listens on 127.0.0.1 alone, knows one address, /, and answers no other host name. It
ends with the run; an open page stays as it is.
"""

import argparse
import contextlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tinyconv.data.open_data import Data
from tinyconv.run.run_folder import RunFolder
from tinyconv.train import Epoch
from tinyconv.weights.model import load_model
from tinyconv.weights.report import history_of, page

WAIT = 4.0
"""Seconds that the server waits for an open page, which asks every two, to load the last text."""

WAITING = (
    "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=3><title>tinyconv</title>"
    "<meta name=color-scheme content='light dark'><link rel=icon href=data:,>"
    "<p>The page comes after the first epoch."
)


class LivePage:
    """Serves the text in `text` on 127.0.0.1; port 0 takes a free one.

    ValueError if the port is used by another program, or cannot be.
    """

    def __init__(self, port: int = 0) -> None:
        self._text, self._epoch, self._sent, self._asked = WAITING, 0, 0, -math.inf
        live = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                live._answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                """Nothing is printed between the lines of the epochs."""

        try:
            self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(
                f"--watch {port}: {reason}; name a port from 1024 to 65535, or 0 for a free one"
            ) from None
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def show(self, text: str, epoch: int) -> None:
        """From now on serve `text`; an open page that is of another epoch loads itself anew."""
        self._text, self._epoch = text, epoch

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        """The page, and its epoch as ETag; HEAD asks for that alone."""
        own = request.headers.get("Host", "").rpartition(":")[0] in ("127.0.0.1", "localhost")
        found, epoch = own and request.path == "/", self._epoch
        body = self._text.encode() if found else b"not found\n"
        request.send_response(200 if found else 404)
        request.send_header("Content-Type", f"text/{'html' if found else 'plain'}")
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Cache-Control", "no-store")
        request.send_header("ETag", f'"{epoch}"')
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)
            self._sent = epoch if found else self._sent
        self._asked = time.monotonic() if found else self._asked

    def close(self) -> None:
        """End the server, after an open page has loaded the last text."""
        limit = min(time.monotonic(), self._asked + WAIT) + WAIT  # no open page: no wait
        while self._sent != self._epoch and time.monotonic() < limit:
            time.sleep(0.05)
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def watched(options: argparse.Namespace, folder: RunFolder | None) -> Any:
    """What --watch and --tensorboard ask for, in a `with` statement.

    Its value is also(on_epoch, data): a function for each epoch that calls on_epoch first. folder:
    None for a process that writes nothing. ValueError for a port that cannot be used, and, with
    the extra, where tensorboardX is not installed.
    """
    with contextlib.ExitStack() as stack:
        events = live = None
        if folder is not None and options.tensorboard:
            events = _events(folder, stack)
        if folder is not None and options.watch is not None:
            live = LivePage(options.watch)
            stack.callback(live.close)
            print(f"watch it at {live.address}", flush=True)

        def also(on_epoch: Callable[[Epoch], None], data: Data) -> Callable[[Epoch], None]:
            def call(epoch: Epoch) -> None:
                on_epoch(epoch)
                if events is not None:
                    events(epoch)
                if folder is not None and live is not None:
                    model, path = load_model(folder.checkpoints()[0]), str(folder.path)
                    text = page(model, data, history_of(path), path, epoch.epoch)
                    live.show(text, epoch.epoch)

            return call

        yield also


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
        for name, value in asdict(epoch).items():
            if isinstance(value, float):
                kind, _, what = name.partition("_")
                tag = f"{what}/{kind}" if kind in ("train", "val") else f"run/{name}"
                writer.add_scalar(tag, value, epoch.epoch)
        writer.flush()

    return add
