"""`cj metrics`: the Prometheus series of the ledger, over HTTP or as a file. What they are is in `metrics`."""

import contextlib
import errno
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Final

import typer

from cj_pipeline.cli.context import errors, open_ledger, say
from cj_pipeline.core.errors import CJError, InputError
from cj_pipeline.whole_files import write_whole

HOST: Final = "127.0.0.1"
_SOCKET_SECONDS: Final = 30.0

metrics_app = typer.Typer(no_args_is_help=True, help="The ledger's counts for Prometheus.")


@metrics_app.command()
def serve(port: Annotated[int, typer.Option(help="Port on loopback.", min=1, max=65535)] = 9464) -> None:
    """Serve the series on loopback until interrupted; each scrape reads the ledger anew."""
    from cj_pipeline.settings import load_settings

    url = load_settings().effective_ledger_url
    try:
        read_series(url)
    except InputError:
        raise
    except CJError as error:
        errors.print(f"note: {error}; scrapes answer 503 until that is mended", markup=False)
    with metrics_server(url, port) as server:
        say(f"metrics: http://{HOST}:{server.server_port}/metrics   Ctrl-C ends it")
        sys.stdout.flush()
        # SIGTERM arrives as an interrupt too
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


@metrics_app.command()
def dump(
    output: Annotated[
        Path | None,
        typer.Option(help="Write to this file, whole or not at all (for node_exporter: name it *.prom)."),
    ] = None,
) -> None:
    """Print the series once, or write them for node_exporter's textfile collector."""
    from cj_pipeline.metrics import exposition

    with open_ledger() as (_settings, ledger):
        series = exposition(ledger)
    if output is None:
        sys.stdout.write(series.decode())
        return
    try:
        write_whole(output, lambda stream: stream.write(series))
    except OSError as error:
        raise InputError(f"--output {output}: {error.strerror}") from None
    # nothing is said: this is for cron


def read_series(url: str) -> bytes:
    """All series of the ledger at a SQLAlchemy URL, read through connections of their own.

    Raises:
        InputError: not a URL of a ledger.
        CJError: the ledger cannot be read.
    """
    from cj_pipeline.ledger import Ledger
    from cj_pipeline.metrics import exposition

    ledger = Ledger.open(url)
    try:
        return exposition(ledger)
    finally:
        ledger.close()


class MetricsServer(ThreadingHTTPServer):
    """Answers `GET /metrics` with the series of the ledger at `url`, or 503 with the reason why it cannot."""

    daemon_threads = True

    def __init__(self, url: str, port: int) -> None:
        self.url = url
        super().__init__((HOST, port), _Scrape)


def metrics_server(url: str, port: int) -> MetricsServer:
    """A server that listens on loopback; port 0 takes a free one.

    Raises:
        InputError: the port cannot be had.
    """
    try:
        return MetricsServer(url, port)
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise InputError(f"port {port} {why}: choose another with --port") from None


class _Scrape(BaseHTTPRequestHandler):
    server: MetricsServer
    timeout = _SOCKET_SECONDS

    def do_GET(self) -> None:
        from cj_pipeline.metrics import CONTENT_TYPE

        if self.path.partition("?")[0] not in ("/metrics", "/"):
            self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"the series are at /metrics\n")
            return
        try:
            series = read_series(self.server.url)
        except CJError as error:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", f"{error}\n".encode())
        except Exception as error:  # noqa: BLE001 - a scrape that fails must not end the server, nor tell of rows
            reason = f"the ledger cannot be read ({type(error).__name__})\n"
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", reason.encode())
        else:
            self._answer(HTTPStatus.OK, CONTENT_TYPE, series)

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        # one who hung up meanwhile misses nothing that the next scrape would not tell
        with contextlib.suppress(ConnectionError, TimeoutError):
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a line per scrape would drown what matters."""
