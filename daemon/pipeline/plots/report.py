"""The report: one HTML file that needs no network, with the figures' data, Vega-Lite and the images in it."""

from __future__ import annotations

import base64
import contextlib
import html
import json
import os
import posixpath
from collections.abc import Iterable

from millpond.daemon.errors import InvalidFileError, UsageError
from millpond.daemon.pipeline.plots.figures import Figure
from millpond.daemon.project.durable import write_error, writing
from millpond.daemon.project.paths import printable

# Up to so many bytes of images stand in the report itself; beyond that they lie beside it.
MAX_INLINE = 16 << 20
_TYPES = {".svg": "image/svg+xml", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif"}
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Plots</title>
{scripts}
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; }}
.figures {{ display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }}
figure {{ margin: 0; }}
figcaption {{ color: #666; margin-bottom: .3rem; }}
figure img {{ max-width: 600px; border: 1px solid #ddd; }}
</style>
</head>
<body>
<div class="figures">
{plot_divs}
</div>
</body>
</html>
"""
# What a page of one's own must have; DVC's name.
_PLACE, _SCRIPTS = "{plot_divs}", "{scripts}"


def page(figures: Iterable[Figure], own: str | None, images: dict[tuple[str, str], str]) -> str:
    """The HTML; `own`: a page with `{plot_divs}` and perhaps `{scripts}` in it; `images`: where each (revision, path) is.

    Raises UsageError.
    """
    parts = [
        _image(figure, images) if figure.images else _chart(number, figure) for number, figure in enumerate(figures)
    ]
    if own is None:
        return _PAGE.format(scripts=_scripts(), plot_divs="\n".join(parts))
    if _PLACE not in own:
        raise UsageError(f"the page has no {_PLACE} in it", hint=f"write {_PLACE} where the plots are to stand")
    return own.replace(_SCRIPTS, _scripts()).replace(_PLACE, "\n".join(parts))


def image_names(figures: Iterable[Figure]) -> dict[tuple[str, str], str]:
    """A file's name for each image, by (revision, path), none of them alike."""
    found: dict[tuple[str, str], str] = {}
    taken: set[str] = set()
    for figure in figures:
        for revision, path, _ in figure.images:
            name = f"{revision}_{path}".replace("/", "_")
            stem, kind = posixpath.splitext(name)
            number = 1
            while name in taken:
                number += 1
                name = f"{stem}_{number}{kind}"
            taken.add(name)
            found[revision, path] = name
    return found


def write(folder: str, figures: list[Figure], own: str | None) -> str:
    """Write the report into a folder, which is made; its path. Raises UsageError, DiskFullError, AccessError."""
    size = sum(len(raw) for figure in figures for _, _, raw in figure.images)
    if size <= MAX_INLINE:
        images = {
            (revision, path): f"data:{_type(path)};base64,{base64.b64encode(raw).decode()}"
            for figure in figures
            for revision, path, raw in figure.images
        }
    else:
        images = {key: f"static/{os.path.basename(path)}" for key, path in write_images(folder, figures).items()}
    path = os.path.join(folder, "index.html")
    _put(path, page(figures, own, images).encode())
    return path


def write_images(folder: str, figures: list[Figure]) -> dict[tuple[str, str], str]:
    """Write all images into the folder `static` in a folder; the path of each. Raises as `write`."""
    static = os.path.join(folder, "static")
    found = {key: os.path.join(static, name) for key, name in image_names(figures).items()}
    for figure in figures:
        for revision, path, raw in figure.images:
            _put(found[revision, path], raw)
    return found


def _put(path: str, data: bytes) -> None:
    """Write a file whole. It can be made again at any time, so nothing waits for the disk."""
    part = f"{path}.millpond-{os.getpid()}.tmp"
    try:
        with writing(path):
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(part, "wb") as file:
                    file.write(data)
                os.replace(part, path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part)
    except OSError as error:
        raise write_error(error, hint="choose another folder: -o PATH") from error


def read_page(path: str) -> str:
    """A page of one's own. Raises InvalidFileError."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(MAX_INLINE)
    except (OSError, UnicodeDecodeError) as error:
        shown = printable(path)
        raise InvalidFileError(f"cannot read the page '{shown}': {error}", path=shown) from error


def _chart(number: int, figure: Figure) -> str:
    # A name of a field must not end the script that it stands in.
    spec = json.dumps(figure.spec).replace("<", "\\u003c")
    return f'<figure id="plot{number}"></figure><script>vegaEmbed("#plot{number}", {spec});</script>'


def _image(figure: Figure, images: dict[tuple[str, str], str]) -> str:
    return "\n".join(
        f"<figure><figcaption>{html.escape(figure.name)} at {html.escape(revision)}</figcaption>"
        f'<img alt="{html.escape(figure.name)}" src="{html.escape(images[revision, path])}"></figure>'
        for revision, path, _ in figure.images
    )


def _type(path: str) -> str:
    return _TYPES.get(posixpath.splitext(path)[1].lower(), "image/png")


def _scripts() -> str:
    """Vega, Vega-Lite and vega-embed as one script. Raises UsageError."""
    try:
        from vl_convert import javascript_bundle
    except ImportError as error:
        raise UsageError(
            "an HTML report needs a package that is not installed",
            hint="install it with: pip install 'millpond[plots]'; or look at the data: --show-vega, --text",
        ) from error
    bundle: str = javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version="5.21")
    return "<script>" + bundle.replace("</script", "<\\/script") + "</script>"
