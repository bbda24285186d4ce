import hashlib
import os
import random
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers.data.download import CHUNK, DamagedFile, DataError, checksum_of, download, make_folder, unpack, verify

CONTENT = random.Random(0).randbytes(2 * CHUNK + 12_345)  # more than one chunk, and not a whole number of them
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server(serve):
    return serve({"file.bin": CONTENT})


def fetch(server_or_urls, path, timeout=5.0):
    urls = server_or_urls if isinstance(server_or_urls, list) else [server_or_urls.url + path.name]
    return download(urls, path, MD5, timeout=timeout)


def part_of(path):
    return path.with_name(path.name + ".part")


def test_a_file_arrives_whole_in_a_new_folder(server, tmp_path):
    path = tmp_path / "new" / "folder" / "file.bin"
    assert fetch(server, path) == path
    assert path.read_bytes() == CONTENT
    assert [found.name for found in path.parent.iterdir()] == ["file.bin"]
    assert server.ranges_seen() == [None]


def test_the_progress_bar_names_the_file_and_counts_to_its_end(server, tmp_path, capsys):
    download([server.url + "file.bin"], tmp_path / "file.bin", MD5, timeout=5)
    shown = capsys.readouterr().err
    assert "file.bin" in shown and "100%" in shown


def test_a_dead_first_mirror_is_passed_over(server, dead_url, tmp_path):
    path = fetch([dead_url + "file.bin", server.url + "file.bin"], tmp_path / "file.bin")
    assert path.read_bytes() == CONTENT


def test_a_mirror_without_the_file_is_passed_over(server, serve, tmp_path):
    path = fetch([serve({}).url + "file.bin", server.url + "file.bin"], tmp_path / "file.bin")
    assert path.read_bytes() == CONTENT


def test_an_interrupted_download_is_kept_and_resumed(server, tmp_path):
    path, cut = tmp_path / "file.bin", CHUNK + 1000
    server.cuts = [cut]
    with pytest.raises(DataError, match=f"interrupted after {cut:,} of {len(CONTENT):,} bytes.*kept for a resume"):
        fetch(server, path)
    assert not path.exists()
    assert part_of(path).read_bytes() == CONTENT[:cut]

    fetch(server, path)
    assert server.ranges_seen() == [None, f"bytes={cut}-"]
    assert path.read_bytes() == CONTENT
    assert not part_of(path).exists()


def test_an_interruption_can_happen_twice(server, tmp_path):
    path = tmp_path / "file.bin"
    server.cuts = [1000, 2000]
    for _ in range(2):
        with pytest.raises(DataError):
            fetch(server, path)
    fetch(server, path)
    assert server.ranges_seen() == [None, "bytes=1000-", "bytes=3000-"]
    assert path.read_bytes() == CONTENT


def test_the_second_mirror_goes_on_where_the_first_broke_off(server, serve, tmp_path):
    broken = serve({"file.bin": CONTENT})
    broken.cuts = [5000]
    path = fetch([broken.url + "file.bin", server.url + "file.bin"], tmp_path / "file.bin")
    assert server.ranges_seen() == ["bytes=5000-"]
    assert path.read_bytes() == CONTENT


def test_a_server_that_ignores_the_range_replaces_what_was_there(server, tmp_path):
    path = tmp_path / "file.bin"
    server.ranges = False
    part_of(path).write_bytes(CONTENT[:7000])
    fetch(server, path)
    assert server.ranges_seen() == ["bytes=7000-"]  # one request is enough: nothing was appended
    assert path.read_bytes() == CONTENT


def test_a_stalled_server_is_left_after_the_timeout(server, serve, tmp_path):
    stalled, path = serve({"file.bin": CONTENT}), tmp_path / "file.bin"
    stalled.stalls, stalled.cuts = True, [CHUNK + 1000]
    with pytest.raises(DataError, match="(?i)timed out"):
        fetch(stalled, path, timeout=0.5)
    assert not path.exists()
    kept = part_of(path).read_bytes()
    assert len(kept) >= CHUNK and CONTENT.startswith(kept)

    fetch(server, path)
    assert server.ranges_seen() == [f"bytes={len(kept)}-"]
    assert path.read_bytes() == CONTENT


def test_a_stall_keeps_every_byte_that_came(server, tmp_path):
    # otherwise a mirror that stalls after less than a chunk makes no progress, however often it is tried
    server.stalls, server.cuts = True, [1000]
    with pytest.raises(DataError, match="1,000 bytes kept"):
        fetch(server, tmp_path / "file.bin", timeout=0.3)


def test_a_server_that_never_answers_is_left_after_the_timeout(server, serve, tmp_path):
    silent = serve({"file.bin": CONTENT})
    silent.stalls, silent.cuts = True, [0]
    path = fetch([silent.url + "file.bin", server.url + "file.bin"], tmp_path / "file.bin", timeout=0.5)
    assert path.read_bytes() == CONTENT


def test_a_wrong_checksum_names_both_and_leaves_nothing(serve, tmp_path):
    wrong, path = b"another file", tmp_path / "file.bin"
    with pytest.raises(DataError, match=f"expected MD5 {MD5}, found {hashlib.md5(wrong).hexdigest()}"):
        fetch(serve({"file.bin": wrong}), path)
    assert list(tmp_path.iterdir()) == []


def test_the_next_mirror_starts_afresh_after_a_wrong_checksum(server, serve, tmp_path):
    wrong = serve({"file.bin": b"another file"})
    path = fetch([wrong.url + "file.bin", server.url + "file.bin"], tmp_path / "file.bin")
    assert path.read_bytes() == CONTENT
    assert server.ranges_seen() == [None]


@pytest.mark.parametrize("length", [9000, len(CONTENT) + 9000], ids=["shorter than the file", "longer than the file"])
def test_a_stale_wrong_part_is_replaced_by_a_whole_download(server, tmp_path, length):
    path = tmp_path / "file.bin"
    part_of(path).write_bytes(b"x" * length)
    fetch(server, path)
    assert server.ranges_seen() == [f"bytes={length}-", None]
    assert path.read_bytes() == CONTENT


def test_a_part_that_is_already_whole_becomes_the_file(server, tmp_path):
    # all bytes were there when the process died: the server answers 416, and the checksum decides
    path = tmp_path / "file.bin"
    part_of(path).write_bytes(CONTENT)
    fetch(server, path)
    assert server.ranges_seen() == [f"bytes={len(CONTENT)}-"]
    assert path.read_bytes() == CONTENT


def test_all_mirrors_dead_lists_each_with_its_reason_and_the_way_out(dead_url, serve, tmp_path):
    path, empty = tmp_path / "file.bin", serve({})
    with pytest.raises(DataError) as caught:
        fetch([dead_url + "file.bin", empty.url + "file.bin"], path)
    lines = str(caught.value).splitlines()
    assert re.search(rf"{dead_url}file.bin: .*refused", lines[1])
    assert re.search(rf"{empty.url}file.bin: .*404", lines[2])
    assert str(path) in lines[-1] and MD5 in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_part_outlives_dead_mirrors(dead_url, tmp_path):
    path = tmp_path / "file.bin"
    part_of(path).write_bytes(CONTENT[:100])
    with pytest.raises(DataError, match="100 bytes kept"):
        fetch([dead_url + "file.bin"], path)
    assert part_of(path).read_bytes() == CONTENT[:100]


def test_several_processes_fetch_a_file_once(server, tmp_path):
    path = tmp_path / "file.bin"
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: fetch(server, path), range(4))) == [path] * 4
    assert len(server.seen) == 1
    assert path.read_bytes() == CONTENT


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    in_the_way = tmp_path / "a_file"
    in_the_way.write_text("not a folder")
    with pytest.raises(DataError, match="AD_DATA_DIR") as caught:
        fetch(server, in_the_way / "file.bin")
    assert str(in_the_way) in str(caught.value)
    assert server.seen == []  # it is found before anything is fetched
    assert in_the_way.read_text() == "not a folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(DataError, match="AD_DATA_DIR") as caught:
        make_folder(locked)
    assert str(locked) in str(caught.value)


def test_make_folder_leaves_no_trace_of_its_check(tmp_path):
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []
    make_folder(tmp_path / "a")


def test_checksum_of_a_file_of_several_chunks(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    assert checksum_of(tmp_path / "file", "md5") == MD5
    verify(tmp_path / "file", MD5)


def test_verify_names_the_file_and_both_checksums(tmp_path):
    path = tmp_path / "file.gz"
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DataError) as caught:
        verify(path, MD5)
    for part in (str(path), MD5, checksum_of(path, "md5"), f"{len(CONTENT) - 1:,} bytes"):
        assert part in str(caught.value)


# --- files without a published checksum, and others than MD5 ---------------------------------------------------------

SHA256 = hashlib.sha256(CONTENT).hexdigest()


def fetch_unchecked(urls, path):
    return download(urls, path, None, timeout=5.0)


def test_without_a_checksum_a_whole_file_counts(server, tmp_path):
    path = fetch_unchecked([server.url + "file.bin"], tmp_path / "file.bin")
    assert path.read_bytes() == CONTENT
    assert [found.name for found in tmp_path.iterdir()] == ["file.bin"]


def test_without_a_checksum_the_announced_length_has_to_hold(server, tmp_path):
    server.cuts = [CHUNK + 5]
    with pytest.raises(DataError, match="bytes kept for a resume") as caught:
        fetch_unchecked([server.url + "file.bin"], tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists()
    assert "(checksum" not in str(caught.value)
    assert fetch_unchecked([server.url + "file.bin"], tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.ranges_seen() == [None, f"bytes={CHUNK + 5}-"]


def test_sha256_is_told_from_md5_by_its_length(server, tmp_path):
    path = download([server.url + "file.bin"], tmp_path / "file.bin", SHA256)
    assert checksum_of(path, "sha256") == SHA256
    verify(path, SHA256)
    verify(path, None)
    path.write_bytes(b"other")
    verify(path, None)
    with pytest.raises(DamagedFile, match=f"expected SHA256 {SHA256}, found {hashlib.sha256(b'other').hexdigest()}"):
        verify(path, SHA256)


def test_a_wrong_sha256_leaves_nothing(serve, tmp_path):
    url = serve({"file.bin": b"another file"}).url + "file.bin"
    with pytest.raises(DataError, match=SHA256):
        download([url], tmp_path / "file.bin", SHA256)
    assert list(tmp_path.iterdir()) == []


# --- archives ---------------------------------------------------------------------------------------------------------


def archive_of(folder, ending="xz", inner="nuts"):
    """An archive that holds ``inner``/a.txt, ``inner``/b/c.txt and a file beside the folder."""
    source = folder / "source"
    (source / "b").mkdir(parents=True, exist_ok=True)
    (source / "a.txt").write_text("a")
    (source / "b" / "c.txt").write_bytes(CONTENT[:5000])
    path = folder / f"archive.tar.{ending}"
    with tarfile.open(path, f"w:{ending}") as tar:
        tar.add(source, inner)
        tar.add(source / "a.txt", "readme.txt")
    return path


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("ending", ["xz", "gz", "bz2"])
def test_a_folder_of_an_archive_is_unpacked_under_its_new_name(tmp_path, ending):
    archive, target = archive_of(tmp_path, ending), tmp_path / "out" / "hazelnuts"
    target.parent.mkdir()
    unpack(archive, "nuts", target)
    assert below(tmp_path / "out") == ["hazelnuts", "hazelnuts/a.txt", "hazelnuts/b", "hazelnuts/b/c.txt"]
    assert (target / "b" / "c.txt").read_bytes() == CONTENT[:5000]
    assert archive.exists()


def test_a_folder_whose_name_only_begins_alike_is_not_unpacked(tmp_path):
    archive = archive_of(tmp_path, inner="nuts_2")
    with pytest.raises(DamagedFile, match="holds no folder nuts "):
        unpack(archive, "nuts", tmp_path / "out" / "nuts")
    assert not archive.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("ending", ["xz", "gz", "bz2"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_an_archive_cut_short_is_removed_and_leaves_nothing(tmp_path, ending, share):
    archive, target = archive_of(tmp_path, ending), tmp_path / "out" / "nuts"
    target.parent.mkdir()
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DamagedFile, match=f"archive.tar.{ending} is damaged"):
        unpack(archive, "nuts", target)
    assert below(tmp_path / "out") == [] and not archive.exists()


def test_a_changed_byte_in_an_archive_is_noticed(tmp_path):
    archive, target = archive_of(tmp_path), tmp_path / "out" / "nuts"
    target.parent.mkdir()
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    archive.write_bytes(bytes(content))
    with pytest.raises(DamagedFile, match="damaged"):
        unpack(archive, "nuts", target)
    assert below(tmp_path / "out") == []


def test_a_disk_that_is_full_keeps_the_archive(tmp_path, monkeypatch):
    archive, target = archive_of(tmp_path), tmp_path / "out" / "nuts"
    target.parent.mkdir()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    with pytest.raises(
        DataError, match="could not unpack archive.tar.xz .*No space left on device.*make room"
    ) as caught:
        unpack(archive, "nuts", target)
    assert not isinstance(caught.value, DamagedFile)
    assert archive.exists() and below(tmp_path / "out") == []
