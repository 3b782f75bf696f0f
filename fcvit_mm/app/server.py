"""The server of the web demo: host and port, and the restriction to this machine."""

import os
import socket
from typing import Any, Optional

from ..errors import UserError
from .page import MAX_BYTES, import_gradio

DEFAULT_PORT = 7860
#: Header with which the browser requests nothing from other hosts, whatever Gradio's page contains.
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
CSS = """
.gradio-container {width: 100% !important; max-width: 1200px !important; margin: auto}
#prediction img {width: 100%; height: 100%; object-fit: contain}
#maps .grid-wrap {max-height: none !important; overflow: visible !important}
.message {padding: .6em .9em; border-radius: 6px; border-left: 4px solid #0072B2; background: #0072B212}
.message.problem {border-color: #D55E00; background: #D55E0018}
footer {display: none !important}
"""


class OwnHostOnly:
    """ASGI middleware: every answer tells the browser to load nothing from another host."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message['type'] == 'http.response.start':
                message = dict(message, headers=[*message.get('headers', ()), (b'content-security-policy', POLICY)])
            await send(message)

        await self.app(scope, receive, send_with_policy)


def open_port(host: str, port: Optional[int]) -> socket.socket:
    """Open a listening socket.

    Args:
        host (str): Address to listen on.
        port (int, optional): Port; 0 for any free one, ``None`` for the first free one from ``DEFAULT_PORT`` on.

    Raises:
        UserError: The port is taken or not allowed, or the host does not belong to this machine.
    """
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    ports = range(DEFAULT_PORT, DEFAULT_PORT + 20) if port is None else [port]
    failure: Optional[Exception] = None
    for each in ports:
        try:
            return socket.create_server((host, each), family=family)
        except (OSError, OverflowError) as error:
            failure = error
    raise UserError(
        f'the web demo cannot listen on {host}, port {port or f"{ports[0]} to {ports[-1]}"} ({failure}): choose '
        'another with --host and --port'
    ) from failure


def build_server(page: Any, max_bytes: int = MAX_BYTES) -> Any:
    """Build a ``uvicorn.Server`` for the page, for ``run(sockets=[open_port(...)])``.

    Gradio's own ``launch`` is not used, so that no public link can be created and nothing is sent to other hosts.

    Args:
        page (gradio.Blocks): Result of :func:`~fcvit_mm.app.page.build_page`.
        max_bytes (int): Largest size of an upload.
    """
    gradio = import_gradio()
    import uvicorn
    from fastapi import FastAPI

    os.environ['HF_HUB_DISABLE_TELEMETRY'] = '1'
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(OwnHostOnly)
    theme = gradio.themes.Default(primary_hue='blue', font=['system-ui', 'sans-serif'], font_mono=['monospace'])
    gradio.mount_gradio_app(
        app,
        page,
        path='/',
        max_file_size=max_bytes,
        show_error=False,
        theme=theme,
        css=CSS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )
    # Gradio's launch sets these. Without them, a request could name any file of this machine as its upload.
    page.has_launched = page.is_running = True
    mounted = app.routes[-1].app  # type: ignore[attr-defined]

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: Any = None) -> None:
            mounted.stop_event.set()  # closes the connections of open pages, for which the server would wait
            await super().shutdown(sockets)

    return Server(uvicorn.Config(app, log_level='warning', timeout_graceful_shutdown=3))
