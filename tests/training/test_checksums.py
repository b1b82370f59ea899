import pytest

from gr_jax.training import checksums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "data").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "small").write_text("{}")
    (tmp_path / "empty").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_file_is_in_one_share_and_its_damage_is_found_in_one(folder, count):
    for index in range(count):
        checksums.write(folder, index, count)
    assert not any(checksums.first_damage(folder, index, 3) for index in range(3))
    for name in ("a/data", "small", "empty"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole + b"x")
        found = [
            damage for index in range(3) if (damage := checksums.first_damage(folder, index, 3))
        ]
        assert len(found) == 1 and name in found[0]
        (folder / name).write_bytes(whole)


def test_a_flipped_bit_a_missing_file_and_a_damaged_list_are_told(folder):
    checksums.write(folder)
    data = bytearray((folder / "a" / "data").read_bytes())
    data[700] ^= 4
    (folder / "a" / "data").write_bytes(data)
    assert checksums.first_damage(folder) == "a/data has another checksum"
    (folder / "a" / "data").unlink()
    assert "a/data" in checksums.first_damage(folder)
    (folder / "checksums.0.json").write_text('{"a/data')
    assert checksums.first_damage(folder) == "checksums.0.json is damaged"


def test_a_folder_without_checksums_passes(folder):
    assert checksums.first_damage(folder) == ""
