"""Where wheels may come from: the indexes and folders that pip's settings name, and the files that they list."""

from __future__ import annotations

import configparser
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.request import url2pathname

PYPI = "https://pypi.org/simple"
ACCEPTED = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
LARGEST_PAGE = 64 << 20


@dataclass(frozen=True)
class Listed:
    """A wheel that an index lists.

    Attributes:
        file: its name.
        url: its address: https, http or file.
        sha256: that the index gives; empty if it gives none.
        yanked: whether its makers withdrew it.
    """

    file: str
    url: str
    sha256: str = ""
    yanked: bool = False


@dataclass(frozen=True)
class Settings:
    """What pip's configuration files and environment variables say about indexes.

    Attributes:
        indexes: addresses of indexes, in order.
        links: folders, or addresses of pages or folders, that list wheels of all packages.
        verify: whether TLS certificates are checked, or the file of accepted ones.
        certificate: file of the client's own certificate.
        proxy: for all connections; the usual environment variables are followed where it is empty.
        trusted: hosts whose certificates are not checked.
    """

    indexes: tuple[str, ...] = (PYPI,)
    links: tuple[str, ...] = ()
    verify: bool | str = True
    certificate: str = ""
    proxy: str = ""
    trusted: frozenset[str] = field(default_factory=frozenset)

    def connection(self, url: str, timeout: float) -> dict[str, Any]:
        """Return the options of `requests.get` for an address."""
        parts = urlsplit(url)
        known = {parts.hostname, parts.netloc.rpartition("@")[2]} & self.trusted
        options: dict[str, Any] = {"timeout": timeout, "verify": False if known else self.verify}
        if self.certificate:
            options["cert"] = self.certificate
        if self.proxy:
            options["proxies"] = {"http": self.proxy, "https": self.proxy}
        return options


def settings() -> Settings:
    """Read pip's settings: its configuration files, then PIP_… variables.

    Where pip names no index, uv's variables may.

    Raises:
        ValueError: a configuration file cannot be understood.
    """
    said = _said()
    index = said.get("index-url") or os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL") or PYPI
    indexes = (index, *said.get("extra-index-url", "").split())
    off = said.get("no-index", "").lower() in ("1", "true", "yes", "on")
    return Settings(
        () if off else tuple(dict.fromkeys(part.rstrip("/") for part in indexes)),
        tuple(said.get("find-links", "").split()),
        said.get("cert") or True,
        said.get("client-cert", ""),
        said.get("proxy", ""),
        frozenset(said.get("trusted-host", "").split()),
    )


def _said() -> dict[str, str]:
    """Return pip's settings by the names of its options: those for all commands, then those of `pip download`."""
    said: dict[str, str] = {}
    sections: dict[str, dict[str, str]] = {"global": {}, "download": {}}
    for path in _configuration_files():
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise ValueError(f"pip's configuration {path} is damaged: {str(error).splitlines()[0]}") from None
        for section, values in sections.items():
            if parser.has_section(section):
                values.update({name.replace("_", "-"): value for name, value in parser.items(section)})
    for values in sections.values():
        said.update(values)
    for name, value in os.environ.items():
        if name.startswith("PIP_") and value:
            said[name[4:].lower().replace("_", "-")] = value
    return said


def _configuration_files() -> Iterator[Path]:
    """Yield the places of pip's configuration files, the weakest first."""
    given = os.environ.get("PIP_CONFIG_FILE", "")
    if given == os.devnull:  # pip's own sign for no files at all
        return
    if sys.platform == "win32":
        roots = [Path(os.environ.get("PROGRAMDATA", r"C:\ProgramData"), "pip"), Path.home() / "pip"]
        roots.append(Path(os.environ.get("APPDATA", Path.home() / "AppData" / "Roaming"), "pip"))
        name = "pip.ini"
    else:
        shared = os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
        roots = [*(Path(part, "pip") for part in shared.split(":") if part), Path("/etc")]
        if sys.platform == "darwin":
            roots.append(Path("/Library/Application Support/pip"))
            roots.append(Path.home() / "Library" / "Application Support" / "pip")
        roots += [Path.home() / ".pip", Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "pip")]
        name = "pip.conf"
    yield from (root / name for root in roots)
    yield Path(sys.prefix, name)
    if given:
        yield Path(given)


def local_path(url: str) -> Path | None:
    """Return the path of a file: address or of a plain path; None for what must be fetched."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme in ("http", "https") else Path(url).expanduser()


def listed(place: str, name: str, known: Settings, timeout: float) -> list[Listed]:
    """Return the wheels that a page lists: of an index about one package, or of a folder of links.

    Args:
        place: an index, or a place of links.
        name: the normalised name of the package; empty for a place of links.
        known: pip's settings.
        timeout: seconds of one connection, and the twentieth part of what the whole page may take.

    Raises:
        OSError, ValueError: the page cannot be reached, or it is no page of an index.
    """
    url = f"{place}/{name}/" if name else place
    path = local_path(url)
    if path is None:
        return _parsed(*_fetched(url, known, timeout))
    if path.is_dir() and not (path / "index.html").is_file():
        return [Listed(file.name, file.resolve().as_uri()) for file in sorted(path.glob("*.whl"))]
    page = path / "index.html" if path.is_dir() else path
    return _parsed(page.read_bytes(), "text/html", page.resolve().as_uri())


def _fetched(url: str, known: Settings, timeout: float) -> tuple[bytes, str, str]:
    """Fetch a page; return its bytes, its type, and its address after redirections."""
    import requests

    end, data = time.monotonic() + 20 * timeout, bytearray()
    options = known.connection(url, timeout)
    with requests.get(url, headers={"Accept": ACCEPTED}, stream=True, **options) as answer:
        answer.raise_for_status()
        for block in answer.iter_content(1 << 16):
            data += block
            if len(data) > LARGEST_PAGE or time.monotonic() > end:
                raise ValueError("the page of the index does not end")
        return bytes(data), answer.headers.get("Content-Type", ""), answer.url


def _parsed(data: bytes, kind: str, url: str) -> list[Listed]:
    """Return the wheels of a page in one of the two forms of the simple API (PEP 503, PEP 691)."""
    if "json" in kind:
        files = json.loads(data)["files"]
        return [
            Listed(f["filename"], urljoin(url, f["url"]), f.get("hashes", {}).get("sha256", ""), bool(f.get("yanked")))
            for f in files if f["filename"].endswith(".whl")
        ]  # fmt: skip
    reader = _Links()
    reader.feed(data.decode("utf-8", "replace"))
    found = []
    for link, yanked in reader.links:
        address, fragment = urldefrag(urljoin(urljoin(url, reader.base), link))
        file = unquote(urlsplit(address).path).rpartition("/")[2]
        digest = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
        if file.endswith(".whl"):
            found.append(Listed(file, address, digest[1].lower() if digest else "", yanked))
    return found


class _Links(HTMLParser):
    """The addresses on a page, whether each is yanked, and the address that they are relative to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, bool]] = []
        self.base = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if href := values.get("href"):
            if tag == "a":
                self.links.append((href, "data-yanked" in values))
            elif tag == "base" and not self.base:
                self.base = href
