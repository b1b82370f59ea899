"""Downloads from a server on this machine: complete and verified, or nothing and a remedy."""

import dataclasses
import functools
import hashlib
import http.server
import json
import threading
import zipfile

import pytest

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.log import formats
from gr_jax.data.log.download import download
from gr_jax.data.log.preparation import prepare


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; a file under /short/ breaks off in the middle, /length/N tells N bytes."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        if not self.path.startswith(("/short/", "/length/")):
            return super().do_GET()
        self.send_response(200)
        told = self.path.rpartition("/")[2] if self.path.startswith("/length/") else "1000"
        self.send_header("Content-Length", told)
        self.end_headers()
        self.wfile.write(b"x" * 10)


@pytest.fixture
def site(tmp_path):
    """(folder, its address)."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_file_arrives_complete_and_leaves_nothing_else(site, tmp_path):
    folder, address = site
    (folder / "a.bin").write_bytes(bytes(range(256)) * 4000)
    md5 = hashlib.md5((folder / "a.bin").read_bytes()).hexdigest()
    (folder / "a.bin.md5").write_text(f"MD5 (a.bin) = {md5}\n")
    target = tmp_path / "new" / "a.bin"
    download(f"{address}/a.bin", target, checksum_url=f"{address}/a.bin.md5", progress=True)
    assert target.read_bytes() == (folder / "a.bin").read_bytes()
    assert [file.name for file in target.parent.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("record", [False, True])
def test_a_wrong_checksum_leaves_no_file(site, tmp_path, record):
    folder, address = site
    (folder / "a.bin").write_bytes(b"tampered")
    md5 = hashlib.md5(b"original").hexdigest()
    page = (
        json.dumps({"files": [{"key": "a.bin", "checksum": f"md5:{md5}"}]})
        if record
        else f"{md5}  a.bin"
    )
    (folder / "sum").write_text(page)
    target = tmp_path / "new" / "a.bin"
    with pytest.raises(ConfigError, match=f"the site says {md5}"):
        download(f"{address}/a.bin", target, checksum_url=f"{address}/sum")
    assert not list(target.parent.iterdir())
    good = hashlib.md5(b"tampered").hexdigest()
    (folder / "sum").write_text(page.replace(md5, good))
    download(f"{address}/a.bin", target, checksum_url=f"{address}/sum")


@pytest.mark.parametrize("path", ["short/a.bin", "missing.bin"])
def test_a_broken_download_leaves_no_file_and_says_what_to_put_where(site, tmp_path, path):
    _, address = site
    target = tmp_path / "new" / "a.bin"
    with pytest.raises(ConfigError) as error:
        download(f"{address}/{path}", target)
    assert f"get {address}/{path}" in str(error.value) and f"put it at {target}" in str(error.value)
    assert not list(target.parent.iterdir())


def test_without_network_one_line_says_which_file_from_where_and_where_to_put_it(
    tmp_path, monkeypatch
):
    def unreachable(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.chdir(tmp_path)
    expected = {
        "ml-100k": ("https://files.grouplens.org/datasets/movielens/ml-100k.zip", "ml-100k.zip"),
        "ml-1m": ("https://files.grouplens.org/datasets/movielens/ml-1m.zip", "ml-1m.zip"),
        "ml-20m": ("https://files.grouplens.org/datasets/movielens/ml-20m.zip", "ml-20m.zip"),
        "amazon-2014": ("categoryFiles/ratings_Books.csv", "ratings_Books.csv"),
        "amazon-2023": ("rating_only/Books.csv.gz", "Books.csv.gz"),
        "kuairand": (
            "https://zenodo.org/records/10439422/files/KuaiRand-1K.tar.gz",
            "KuaiRand-1K.tar.gz",
        ),
    }
    for source, (url, file) in expected.items():
        with pytest.raises(ConfigError) as error:
            prepare(DataConfig(source=source))
        message = str(error.value)
        assert (
            f"{url} " in message
            and f"put it at data/{source}/{file}" in message
            and "\n" not in message
        )
        assert "no network in tests" in message
    with pytest.raises(
        ConfigError, match=r"categoryFiles/ratings_Toys\.csv .* put it at raw/ratings_Toys\.csv"
    ):
        prepare(DataConfig(source="amazon-2014", path="raw/ratings_Toys.csv"))
    with pytest.raises(ConfigError, match=r"put it at raw/ml-1m\.zip"):
        prepare(DataConfig(source="ml-1m", path="raw/ratings.dat"))


def test_own_logs_are_never_downloaded(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.csv'.*no such file.*set data\.path"):
        prepare(DataConfig(source="csv", path=str(tmp_path / "nowhere.csv")))


def test_an_absent_log_is_fetched_once_and_prepared(site, tmp_path, monkeypatch):
    folder, address = site
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        formats,
        "FORMATS",
        {
            name: format
            if name != "ml-1m"
            else dataclasses.replace(format, site=address, checksum=f"{address}/ml-1m.zip.md5")
            for name, format in formats.FORMATS.items()
        },
    )
    with zipfile.ZipFile(folder / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "1::1193::5::978300760\n2::661::3::978302109\n")
        archive.writestr("ml-1m/movies.dat", "1193::Cuckoo::Drama\n")
    md5 = hashlib.md5((folder / "ml-1m.zip").read_bytes()).hexdigest()
    (folder / "ml-1m.zip.md5").write_text(md5)
    first = prepare(DataConfig(source="ml-1m"))
    (folder / "ml-1m.zip").unlink()
    again = prepare(DataConfig(source="ml-1m"))
    assert first.folder == again.folder and again.num_users == 2
    assert again.catalogue.titles(again.catalogue.item_ids(["1193"])) == ["Cuckoo"]


@pytest.mark.parametrize(
    ("length", "told"),
    [
        ("soon", "tells the length 'soon'"),
        ("-5", "tells the length '-5'"),
        ("1e9", "tells the length"),
        ("9" * 30, "tells the length"),
        (str(10**17), "it has 100,000,000,000,000,000 bytes, the disk has"),
    ],
)
def test_a_length_that_cannot_be_or_does_not_fit_leaves_no_file(site, tmp_path, length, told):
    target = tmp_path / "new" / "a.bin"
    with pytest.raises(ConfigError, match=f"its download failed .*{told}") as error:
        download(f"{site[1]}/length/{length}", target)
    assert not list(target.parent.iterdir()) and "\n" not in str(error.value)


def test_a_site_that_does_not_stop_is_stopped(site, tmp_path, monkeypatch):
    (site[0] / "a.bin").write_bytes(bytes(1 << 20))
    monkeypatch.setattr("gr_jax.data.log.download._MOST", 1 << 19)
    monkeypatch.setattr("gr_jax.data.log.download._length", lambda told, part: 0)
    with pytest.raises(ConfigError, match="it has more than 524,288 bytes"):
        download(f"{site[1]}/a.bin", tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()
