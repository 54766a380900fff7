"""The drawings: emoji sets, fetched from the npm registry at pinned versions, and drawn as pictures with transparency.

Only training and measuring need them; nothing here runs when the toy draws.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import HostError, quote_first_line
from .subjects import list_things

REGISTRY = "https://registry.npmjs.org/@iconify-json"
SIDE = 128  # of a picture, in pixels
FINE = 2  # pictures are drawn this many times larger, then made smaller
MARGIN = 0.04  # around a drawing, as a share of its width
INK = {"emojione-monotone": "#8c1c3a"}  # the colour of the sets that leave it open; black where nothing is said


@dataclass(frozen=True)
class Package:
    """One set. integrity: npm's own, "sha512-" and the digest in base64."""

    version: str
    integrity: str
    author: str
    licence: str


SETS = {
    "noto": Package(
        "1.2.9",
        "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Google Inc, https://github.com/googlefonts/noto-emoji",
        "Apache-2.0",
    ),
    "noto-v1": Package(
        "1.2.5",
        "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Google Inc, https://github.com/googlefonts/noto-emoji",
        "Apache-2.0",
    ),
    "twemoji": Package(
        "1.2.5",
        "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "Twitter, https://github.com/jdecked/twemoji",
        "CC-BY-4.0",
    ),
    "emojione": Package(
        "1.2.3",
        "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        "EmojiOne, https://github.com/EmojiTwo/emojitwo",
        "CC-BY-4.0",
    ),
    "emojione-monotone": Package(
        "1.2.1",
        "sha512-cZSNcPsuiAD6HCzCh/2dYKGh3pNI0jJlxBxQWfC33cQsPtqYZqulGBvlkThXYNvDl8VxgVHT9u+izyX/yeEIkA==",
        "EmojiOne, https://github.com/EmojiTwo/emojitwo",
        "CC-BY-4.0",
    ),
    "fluent-emoji": Package(
        "1.2.7",
        "sha512-D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
        "Microsoft Corporation, https://github.com/microsoft/fluentui-emoji",
        "MIT",
    ),
    "fluent-emoji-flat": Package(
        "1.2.6",
        "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "Microsoft Corporation, https://github.com/microsoft/fluentui-emoji",
        "MIT",
    ),
    "fluent-emoji-high-contrast": Package(
        "1.2.6",
        "sha512-esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
        "Microsoft Corporation, https://github.com/microsoft/fluentui-emoji",
        "MIT",
    ),
    "fxemoji": Package(
        "1.2.2",
        "sha512-UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        "Mozilla, https://github.com/mozilla/fxemoji",
        "Apache-2.0",
    ),
    "streamline-emojis": Package(
        "1.2.4",
        "sha512-iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
        "Streamline, https://github.com/webalys-hq/streamline-vectors",
        "CC-BY-4.0",
    ),
}

COMMON = [name for name in SETS if name not in ("fxemoji", "streamline-emojis")]  # sets with nearly all emoji

Icons = dict[str, Any]
Drawing = NDArray[np.uint8]  # [SIDE, SIDE, 4] in 0…255: red, green, blue, opacity
Drawings = dict[tuple[str, str], Drawing]  # by (set, name)
KEPT = f"drawings-{SIDE}.npz"


def fetch_set(name: str, folder: Path) -> Icons:
    """The set's icons.json, from `folder` if it is there, else fetched and kept there.

    Raises HostError if the registry cannot be reached, or if what came is not the pinned file.
    """
    path = folder / f"{name}-{SETS[name].version}.tgz"
    if not path.is_file():
        url = f"{REGISTRY}/{name}/-/{path.name}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                found = answer.read()
        except (urllib.error.URLError, OSError) as e:
            raise HostError(f"{url} cannot be fetched ({quote_first_line(e)})") from e
        kind, _, wanted = SETS[name].integrity.partition("-")
        if base64.b64encode(hashlib.new(kind, found).digest()).decode() != wanted:
            raise HostError(f"{url} is not the pinned file: its {kind} differs")
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_bytes(found)
        draft.replace(path)
    with tarfile.open(path) as archive:
        member = archive.extractfile("package/icons.json")
        assert member is not None
        icons: Icons = json.load(member)
        return icons


def draw_icon(icons: Icons, name: str, ink: str) -> Drawing:
    """One drawing of a set.  Raises ValueError if the library cannot draw it."""
    import resvg_py

    icon = icons["icons"][name]
    width, height = (icon.get(key, icons.get(key, 16)) for key in ("width", "height"))
    left, top, margin = icon.get("left", 0), icon.get("top", 0), MARGIN * width
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    box = f"{left - margin} {top - margin} {width + 2 * margin} {height + 2 * margin}"
    svg = f'<svg {names} viewBox="{box}" width="{FINE * SIDE}" height="{FINE * SIDE}" color="{ink}">{icon["body"]}</svg>'
    try:
        drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))))
    except BaseException as e:  # a panic of the library is no Exception
        if isinstance(e, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(f"{name} cannot be drawn ({quote_first_line(e)})") from None
    smaller = drawn.convert("RGBA").convert("RGBa").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(smaller.convert("RGBA"))


def draw_sets(folder: Path) -> Drawings:
    """(set, name) -> its drawing: of what the toy is made of, in all sets that can draw it.  Kept in `folder`.

    What that is: the single things that all of COMMON have, see `list_things`.
    """
    if (kept := folder / KEPT).is_file():
        with np.load(kept) as found:
            rows, drawings = [str(row).split("/") for row in found["rows"]], found["drawings"]
        return {(row[0], row[1]): drawing for row, drawing in zip(rows, drawings, strict=True)}
    sets = {each: fetch_set(each, folder) for each in SETS}
    names = list_things(set.intersection(*(set(sets[each]["icons"]) for each in COMMON)))
    made: Drawings = {}
    for each, icons in sets.items():
        for name in names:
            if name in icons["icons"]:
                try:
                    made[each, name] = draw_icon(icons, name, INK.get(each, "black"))
                except ValueError as e:
                    print(f"{each}: {e}", flush=True)
    write_drawings(made, folder)
    return made


def write_drawings(drawings: Drawings, folder: Path) -> None:
    """Keep drawings in `folder`.  If this is interrupted, there is no file that is half written."""
    draft = folder / f"part-{KEPT}"
    rows = [f"{each}/{name}" for each, name in drawings]
    np.savez_compressed(draft, rows=rows, drawings=np.stack(list(drawings.values())))
    draft.replace(folder / KEPT)
