"""Published weights: where they are looked for, and which downloads are kept."""

import hashlib
import http.server
import pathlib
import re
import threading

import pooch
import pytest

from jaxviz import models
from jaxviz.models import published

CONTENT = (pathlib.Path(__file__).parent.parent / "reference" / "tiny_state.pth").read_bytes()
NAME = f"squeezenet1_1-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, no $JAXVIZ_DATA."""
    monkeypatch.delenv("JAXVIZ_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "jaxviz" / "weights"


@pytest.fixture
def served(monkeypatch):
    """What a server on this machine has under each path, and the paths that were asked for."""
    files, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            """Says nothing."""

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        folder = f"http://127.0.0.1:{server.server_port}/"
        file = published._file("squeezenet1_1", NAME)
        monkeypatch.setattr(
            published, "SOURCE", published.Source({"squeezenet1_1": (file,)}, (folder,))
        )
        yield files, asked
        server.shutdown()
        thread.join()


def test_a_download_whose_sum_begins_as_its_name_ends_is_kept(served, cache):
    files, asked = served
    files[f"/{NAME}"] = CONTENT
    for _ in range(2):
        path = models.published_weights("squeezenet1_1")
        assert path == cache / NAME
        assert path.read_bytes() == CONTENT
    assert asked == [f"/{NAME}"]


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x", b"<html>sign in</html>", b""])
def test_another_download_is_refused_and_leaves_nothing(content, served, cache):
    files, _ = served
    files[f"/{NAME}"] = content
    came = hashlib.sha256(content).hexdigest()[:8]
    message = rf"must come whole.*sha256 must be {NAME[14:22]}; it is {came}.*The published weights"
    with pytest.raises(ConnectionError, match=message):
        models.published_weights("squeezenet1_1")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_server_without_the_file_is_named(served, cache):
    with pytest.raises(ConnectionError, match=rf"http://127\.0\.0\.1:\d+/{NAME}: 404"):
        models.published_weights("squeezenet1_1")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_nothing_is_downloaded_unasked(served):
    with pytest.raises(FileNotFoundError, match=f"{NAME}; not found in.*Allow the download"):
        models.published_weights("squeezenet1_1", download=False)
    assert not served[1]


@pytest.mark.parametrize(
    ("net", "name"),
    [
        ("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"),
        ("squeezenet1_1", "squeezenet1_1.safetensors"),
        ("squeezenet1_1", "squeezenet1_1_imagenet.safetensors"),
        ("squeezenet1_1", "squeezenet1_1.pth"),
        ("resnet20", "resnet20_cifar10.safetensors"),
        ("resnet20", "resnet20.safetensors"),
    ],
)
def test_each_spelling_is_found(net, name, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVIZ_DATA", str(tmp_path))
    file = tmp_path / "weights" / name
    file.parent.mkdir()
    file.touch()
    assert models.published_weights(net) == file


def test_resnet20_says_how_its_file_is_made():
    with pytest.raises(FileNotFoundError, match=r"needs resnet20_cifar10\.safetensors.*without"):
        models.published_weights("resnet20")


def test_every_download_has_a_checksum_and_a_net():
    assert set(published._FILES) == {
        name for name, make in models.nets.items() if make().input_shape == (224, 224, 3)
    }
    for net, name in published._FILES.items():
        assert re.fullmatch(rf"{net}(-owt|_rwightman)?-[0-9a-f]{{8}}\.pth", name)
        (file,) = published.SOURCE.files[net]
        assert file.checksum == f"sha256:{name[-12:-4]}"
