"""The process of the page: Gradio's settings, the server's thread, and a clean end."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import clipseg_jax
from clipseg_jax.core.interrupt import Interrupted
from clipseg_jax.core.processes import leave
from clipseg_jax.web.files import Files
from clipseg_jax.web.guard import Guard
from clipseg_jax.web.models import DEMO, Models, Run
from clipseg_jax.web.photos import Limits, Sample, samples
from clipseg_jax.web.sessions import Sessions
from input_pipeline import commands
from input_pipeline.text_lists import escaped, one_line

_IDLE_S = 3600.0  # what is not used for so long is forgotten
_SWEEP_S = 2.0
_MOST_SESSIONS = 200
_MOST_BYTES = 1 << 30  # of all visitors' photos and results
_MOST_FILE_BYTES = 1 << 31
_GRACE_S = 1  # for answers that are on their way

# Gradio reads these when it is imported or makes a page: no word to anyone of visitors or versions,
# no tunnel, and nothing served or kept that this page does not ask for.
_SETTINGS: Mapping[str, str] = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_SHARE": "False",
    "GRADIO_ALLOWED_PATHS": "",
    "GRADIO_WATCH_DIRS": "",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_SSR_MODE": "False",
}


def serve(offered: Mapping[str, str | Path], host: str, port: int, limits: Limits) -> None:
    """Serves the page until the process is interrupted; then its files are gone.

    Args:
      offered: models by the names that visitors see; see `Models`.
      host: address to listen at.
      port: 0: any free one.
      limits: of uploads.

    Raises:
      OSError: the address is taken.
      Interrupted: Ctrl-C or SIGTERM.
    """
    with bound_socket(host, port) as listening:
        files = Files()
        try:
            configure(files)
            import uvicorn

            models = Models(offered, clipseg_jax.load)
            models.get(models.names[0])  # a wrong command ends here, not at the first visitor
            photos = samples(real=models.names[0] != DEMO)
            app, sessions = application(models, files, limits, photos)
            config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_GRACE_S)
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, args=[[listening]], daemon=True)
            thread.start()
            _announce(host, listening.getsockname()[1], models.names)
            threading.Thread(target=_warm_up, args=[models, photos[0]], daemon=True).start()
            while thread.is_alive():
                thread.join(_SWEEP_S)
                sessions.trim()
                files.sweep(idle_s=_IDLE_S, most_bytes=_MOST_FILE_BYTES)
        except Interrupted as interrupted:
            files.close()
            # At once: a pass in another thread may take a minute yet.
            leave(interrupted.exit_code, "the page is closed")
        finally:
            files.close()


def configure(files: Files) -> None:
    """Sets Gradio up through the environment; must precede its import."""
    os.environ.update(_SETTINGS)
    os.environ["GRADIO_TEMP_DIR"] = str(files.root)
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(files.root / "none")  # its files would be served


def application(
    models: Models, files: Files, limits: Limits, photos: tuple[Sample, ...]
) -> tuple[Any, Sessions]:
    """The ASGI application of the page, and what it keeps of its visitors.

    Args:
      models: what is offered.
      files: the folder of its files.
      limits: of uploads.
      photos: samples.
    """
    import fastapi
    import gradio as gr

    from clipseg_jax.web import layout, page
    from clipseg_jax.web.actions import Actions

    sessions = Sessions(most=_MOST_SESSIONS, most_bytes=_MOST_BYTES, idle_s=_IDLE_S)
    actions = Actions(models, sessions, files, limits, photos)
    blocks = page.build(actions, models, limits, photos)
    blocks.state_session_capacity = 2 * _MOST_SESSIONS  # Gradio's own record of each visitor
    app = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        blocked_paths=[],
        show_error=False,
        max_file_size=limits.megabytes * 1_000_000,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=layout.theme(),
        css_paths=layout.STYLE,
    )
    return Guard(app, upload_bytes=limits.megabytes * 1_000_000), sessions


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at the address; port 0: any free one.

    Raises:
      OSError: the address is taken, or not this machine's; the message says what to give.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host.strip("[]"), port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise OSError(
            f"cannot listen at {host}:{port} ({error.strerror or error}); give another --port, "
            "such as 7861, or --host, an address of this machine"
        ) from error
    return listening


def _warm_up(models: Models, sample: Sample) -> None:
    """Compiles what the first visitor will most probably ask for."""
    name = models.names[0]
    run = Run(name, sample.words, sample.background, models.get(name).method, "auto")
    try:
        models.scores(run, sample.photo.pixels)
    except Exception as error:  # a visitor is told as well
        commands.say(f"{escaped(run.model)} cannot segment: {one_line(error)}", error=True)


def _announce(host: str, port: int, offered: Sequence[str]) -> None:
    shown = f"[{host}]" if ":" in host else host
    commands.say(f"http://{shown}:{port}/ offers {escaped(', '.join(offered))}; Ctrl-C ends it")
    if host not in ("127.0.0.1", "::1", "localhost"):
        commands.say("other machines can use it, without a password", error=True)
