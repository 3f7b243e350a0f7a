"""Wheels come from the indexes of pip's settings, over loopback and from folders, without pip itself."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from u2export.reference.wheels import FAILURES, download, member, package_index, reason

NAME, MEMBER = "Some_Photos-1.2-py3-none-any.whl", "photos/a.txt"


def wheel(text: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(MEMBER, text)
    return file.getvalue()


WHOLE = wheel("whole")
SHA = hashlib.sha256(WHOLE).hexdigest()
LOGIN = "Basic " + base64.b64encode(b"me:secret").decode()


class Index(BaseHTTPRequestHandler):
    """Indexes of several kinds below one address; `seen` holds what was asked."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.path)
        kind, _, rest = self.path.removeprefix("/").partition("/")
        if kind == "private" and self.headers.get("Authorization") != LOGIN:
            self.answer(401, "text/plain", b"who are you?")
        elif kind == "moved":
            self.send_response(301)
            self.send_header("Location", f"/html/{rest}")
            self.end_headers()
        elif rest.endswith(".whl"):
            self.answer(200, "application/zip", wheel("damaged") if kind == "damaged" else WHOLE)
        elif rest != "some-photos/" or kind == "absent":
            self.answer(404, "text/plain", b"no such package")
        elif kind == "html":
            page = f'<a href="../files/{NAME}#sha256={SHA}">{NAME}</a><a href="x-1.2.tar.gz">x</a>'
            self.answer(200, "text/html", page.encode())
        elif kind == "empty":
            self.answer(200, "application/json", b'{"files": 3}')
        else:
            self.answer(200, "application/vnd.pypi.simple.v1+json", json.dumps({"files": self.files(kind)}).encode())

    def files(self, kind: str) -> list[dict[str, object]]:
        hashes = {"sha256": SHA}
        url = f"http://{self.headers['Host']}/{kind}/files/{NAME}" if kind == "private" else f"../files/{NAME}"
        withdrawn = NAME.replace("py3", "py2.py3")
        return [
            {"filename": NAME.replace("1.2", "1.3"), "url": "newer", "hashes": {}},
            {"filename": withdrawn, "url": f"../files/{withdrawn}", "hashes": {"sha256": "0" * 64}, "yanked": "bad"},
            {"filename": NAME, "url": url, "hashes": hashes},
            {"filename": "some_photos-1.2.tar.gz", "url": "../files/x.tar.gz", "hashes": {}},
        ]

    def answer(self, code: int, kind: str, data: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(package_index, "_configuration_files", lambda: iter([tmp_path / "pip.conf"]))
    Index.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetched(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    got = download("some-photos==1.2", folder, 5.0)
    assert got.name == NAME and [path.name for path in folder.iterdir()] == [NAME]
    return member(got, MEMBER).decode()


@pytest.mark.parametrize("kind", ["json", "html", "moved"])
def test_both_forms_of_an_index(kind: str, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{index}/{kind}/")
    assert fetched(tmp_path / "out") == "whole"


def test_a_wheel_that_is_not_the_listed_one_is_refused(
    index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{index}/damaged")
    with pytest.raises(FAILURES, match=r"(?i)hash|sha256") as failed:
        fetched(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir()) and "\n" not in reason(failed.value)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"http://{index}/empty http://{index}/json")
    assert fetched(tmp_path / "out") == "whole"  # another index has it


def test_names_and_passwords_of_an_index(index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@{index}/private")
    assert fetched(tmp_path / "out") == "whole"
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:wrong@{index}/private")
    with pytest.raises(FAILURES) as failed:
        fetched(tmp_path / "more")
    assert "wrong" not in reason(failed.value) and "401" in reason(failed.value)


def test_settings_of_files_and_folders(index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / NAME).write_bytes(WHOLE)
    page = tmp_path / "simple" / "some-photos" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<base href="http://{index}/json/"><a href="files/{NAME}#sha256={SHA}">a</a>')
    links, pages = (tmp_path / "links").as_uri(), (tmp_path / "simple").as_uri()
    for text in (
        f"[global]\nno-index = true\n[download]\nfind_links = {links}\n",
        f"[global]\nno-index = true\nfind-links =\n  /absent\n  {tmp_path / 'links'}\n",
        f"[global]\nindex-url = http://{index}/absent\nextra-index-url = {pages}\n",
    ):
        (tmp_path / "pip.conf").write_text(text)
        (tmp_path / "out" / NAME).unlink(missing_ok=True)
        assert fetched(tmp_path / "out") == "whole"
    assert Index.seen == ["/absent/some-photos/", f"/json/files/{NAME}"]
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # a variable is stronger than a file
    with pytest.raises(FAILURES, match="name no index"):
        download("some-photos==1.2", tmp_path / "out", 5.0)
    (tmp_path / "pip.conf").write_text("no section\n")
    with pytest.raises(FAILURES, match=r"pip\.conf is damaged"):
        download("some-photos==1.2", tmp_path / "out", 5.0)


def test_pip_and_uv_agree_about_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_index, "_configuration_files", lambda: iter([tmp_path / "pip.conf"]))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CERT", "ca.pem")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "inside:8080")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv/simple")
    known = package_index.settings()
    assert known.indexes == ("https://uv/simple",)
    assert known.connection("https://uv/simple", 3)["verify"] == "ca.pem"
    assert known.connection("https://inside:8080/simple", 3)["verify"] is False
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip/simple")
    assert package_index.settings().indexes == ("https://pip/simple",)


def test_pip_reads_the_same_configuration_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configuration = pytest.importorskip("pip._internal.configuration")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "mine.conf"))
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded = configuration.Configuration(isolated=False, load_only=None)
    theirs = [path for _, paths in loaded.iter_config_files() for path in paths]
    ours = [str(path) for path in package_index._configuration_files()]
    assert set(theirs) <= set(ours) and ours[-1] == str(tmp_path / "mine.conf")
