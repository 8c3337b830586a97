"""assets/ and its copy in the package: what `make export` makes and `make check` holds together."""

from pathlib import Path

from check_book import asset_differences, export_assets


def test_copy_follows_assets(tmp_path: Path) -> None:
    for name, content in (("models/a/model.bin", b"\xff\x00\xfe"), ("models/a/old.bin", b"1")):
        (tmp_path / "assets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "assets" / name).write_bytes(content)
    export_assets(tmp_path)
    assert list(asset_differences(tmp_path)) == []

    (tmp_path / "assets/models/a/old.bin").unlink()
    (tmp_path / "assets/new.sql").touch()
    (tmp_path / "voxrec/assets/models/a/model.bin").write_bytes(b"\xff\x00\xfd")
    assert list(asset_differences(tmp_path)) == [
        "voxrec/assets/models/a/model.bin: is not the file in assets/",
        "voxrec/assets/models/a/old.bin: not in assets/; delete it, or put it there",
        "voxrec/assets/new.sql: missing",
    ]
    export_assets(tmp_path)
    assert list(asset_differences(tmp_path)) == []
    assert not (tmp_path / "voxrec/assets/models/a/old.bin").exists()


def test_no_assets_no_copy(tmp_path: Path) -> None:
    export_assets(tmp_path)
    assert not (tmp_path / "voxrec").exists() and list(asset_differences(tmp_path)) == []
