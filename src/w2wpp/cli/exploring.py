"""The verb `w2w explore`: the space in a browser."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

import w2wpp as w2w
from w2wpp.cli.common import encoder_of, open_space, show
from w2wpp.cli.help import SPACES, verb
from w2wpp.cli.options import Base, Device, EncoderFile, Json
from w2wpp.common.errors import W2WError

SPACE = typer.Argument(help="A space.safetensors by `w2w fit`, its folder, a hub id, or tiny-faces (embedded).")
DATASET = typer.Option(
    "--dataset", help="Whose people stand on the map and teach the attributes.", show_default="tiny-faces with tiny-faces"
)
AUTH = typer.Option("--auth", help="NAME:PASSWORD that visitors must give.")
SHARE = typer.Option("--share", help="Reach the page from anywhere, through a relay of Gradio's; only with --auth.")


def register(app: typer.Typer) -> None:
    """Add this verb to `w2w`."""
    verb(app, "explore", "w2w explore tiny-faces", SPACES)(explore)


def explore(
    space: Annotated[Path, SPACE] = Path("tiny-faces"),
    base: Base = "tiny-faces",
    dataset: Annotated[str | None, DATASET] = None,
    encoder: EncoderFile = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of the page.")] = 7860,
    host: Annotated[str, typer.Option("--host", help="Address to listen at; 127.0.0.1 is this machine alone.")] = "127.0.0.1",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    share: Annotated[bool, SHARE] = False,
    auth: Annotated[str | None, AUTH] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Move in a space in the browser: sample, invert a photo, blend, edit, a map, prompts, and export."""
    who = tuple(auth.split(":", 1)) if auth and ":" in auth else None
    if auth and (who is None or not all(who)):
        raise W2WError("--auth is no NAME:PASSWORD. Write it like ada:secret.")
    if share and who is None:
        raise W2WError("--share lets anybody reach the page. Give --auth NAME:PASSWORD as well.")
    try:
        from w2wpp.explore.page import build, launch
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise W2WError("w2w explore needs Gradio. Install it with: pip install 'w2wpp[explore]'.") from error
    from w2wpp.explore.studio import Studio
    from w2wpp.spaces.pretrained import has_encoder

    model, opened = open_space(space, base, device)
    network = encoder_of(space, encoder) if encoder or has_encoder(space) else None
    rows = dataset or ("tiny-faces" if str(space) == "tiny-faces" else None)
    data = w2w.WeightDataset.from_pretrained(rows) if rows else None
    page = build(Studio(model, opened, str(space), network, data, encoder))
    try:
        address = launch(page, host, port, browser=browser, auth=(who[0], who[1]) if who else None, share=share)
    except OSError as error:
        raise W2WError(f"no page can be served at {host}:{port} ({error}). Choose another --port.") from error
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the folder of what visitors send goes then, too
    show({"page": address, "ends with": "Ctrl-C"}, as_json)
    page.block_thread()
