"""The user's own images: every form they may have, and a sentence for each that does not fit."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.data import (
    Own,
)


@pytest.fixture
def own():
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (20, 3, 4, 5), np.uint8), np.arange(20) % 2


def write_images(folder: Path, images: np.ndarray, labels=None) -> None:
    from PIL import Image

    for i, image in enumerate(images):
        place = folder if labels is None else folder / ("cat", "dog")[labels[i]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{i:03}.png")


def test_own_images_are_the_same_in_every_form(own, tmp_path):
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    x, y = own
    order = np.argsort(y, kind="stable")  # the order in which folders of classes are read
    x, y = x[order], y[order]
    np.savez(tmp_path / "first.npz", x=x, y=y)
    np.savez(tmp_path / "last.npz", x=x.transpose(0, 2, 3, 1), y=y)
    write_images(tmp_path / "folder", x, y)
    pyarrow.parquet.write_table(
        pyarrow.table({"x": list(x.reshape(20, -1)), "y": y}), tmp_path / "flat.parquet"
    )
    cells = []
    for image in x:
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, "png")
        cells.append({"bytes": file.getvalue(), "path": None})
    pyarrow.parquet.write_table(pyarrow.table({"image": cells, "label": y}), tmp_path / "png.parquet")
    for split, count in (("train", 16), ("val", 2), ("test", 2)):
        found = {
            name: Own(split, root=tmp_path / name, shape=(3, 4, 5), classes=2)
            for name in ("first.npz", "last.npz", "folder", "flat.parquet", "png.parquet")
        }
        assert {len(data) for data in found.values()} == {count}
        assert len({data.fingerprint for data in found.values()}) == 1, found


def test_undivided_images_fall_into_three_parts_that_share_none(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1))
    parts = [
        Own(s, root=tmp_path / "a.npz", shape=(1, 1, 1), val=0.2, test=0.1).x.flatten()
        for s in ("train", "val", "test")
    ]
    assert [len(part) for part in parts] == [35, 10, 5]
    assert torch.cat(parts).sort().values.tolist() == list(range(50))
    assert parts[1].tolist() != list(range(35, 45))
    with pytest.raises(LookupError, match="no test split"):
        Own("test", root=tmp_path / "a.npz", shape=(1, 1, 1), test=0)


def test_divided_images_keep_their_division_and_one_meaning_of_a_class(own, tmp_path):
    x, y = own
    write_images(tmp_path / "folder" / "train", x[:10], y[:10])
    write_images(tmp_path / "folder" / "test", x[10:13], [1, 1, 1])
    assert Own("test", root=tmp_path / "folder", shape=(3, 4, 5), classes=2).y.tolist() == [1, 1, 1]
    with pytest.raises(LookupError, match=r"no val split: .* has train, test"):
        Own("val", root=tmp_path / "folder", shape=(3, 4, 5))
    (tmp_path / "files").mkdir()
    np.savez(tmp_path / "files" / "val.npz", x=x[:4])
    assert torch.equal(Own("val", root=tmp_path / "files", shape=(3, 4, 5)).x, torch.from_numpy(x[:4]))
    np.savez(tmp_path / "all.npz", train_x=x[:9], train_y=y[:9], test_x=x[9:])
    assert torch.equal(
        Own("train", root=tmp_path / "all.npz", shape=(3, 4, 5), classes=2).y, torch.from_numpy(y[:9])
    )
    with pytest.raises(LookupError, match="no val split"):
        Own("val", root=tmp_path / "all.npz", shape=(3, 4, 5))


def test_grey_images_may_leave_out_their_channel(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((10, 6, 7), np.uint8))
    assert Own("train", root=tmp_path / "a.npz", shape=(1, 6, 7), levels=2).x.shape == (8, 1, 6, 7)


X, Y = np.zeros((10, 3, 4, 5), np.uint8), np.arange(10) % 2


@pytest.mark.parametrize(
    ("arrays", "options", "sentence"),
    [
        ({"x": X + 9, "y": Y}, {"levels": 8}, "holds values from 9 to 9, but levels=8 allows only 0 to 7"),
        ({"x": X.astype(np.int16) - 1}, {}, "holds values from -1 to -1"),
        ({"x": X / 2}, {}, "holds float64 values"),
        ({"x": X[:, :, :3]}, {}, r"holds images of size \[3, 3, 5\], but shape=\[3, 4, 5\]"),
        ({"x": X[:0]}, {}, "holds no images"),
        ({"x": X, "y": Y[:5]}, {"classes": 2}, "holds 10 images but 5 labels"),
        ({"x": X, "y": Y + 5}, {"classes": 2}, "holds the label 6, but classes=2"),
        ({"x": X, "y": Y / 2}, {"classes": 2}, "holds labels of float64"),
        ({"x": X}, {"classes": 2}, "holds no labels but classes=2"),
        ({"images": X}, {}, "has images, but images are looked for in x, image or train_x"),
        ({"x": X}, {"levels": 1000}, "levels=1000 do not fit into uint8"),
        ({"x": X}, {"val": 0.5, "test": 0.5}, "leave nothing to train on"),
    ],
)
def test_own_arrays_that_do_not_fit_are_refused(tmp_path, arrays, options, sentence):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=sentence):
        Own("train", root=tmp_path / "a.npz", **{"shape": (3, 4, 5)} | options)


@pytest.mark.parametrize("name", ["a.npz", "a.parquet", "a.csv"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more"])
def test_an_own_file_that_cannot_be_read_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read|is neither .npz nor .parquet") as error:
        Own("train", root=tmp_path / name, shape=(3, 4, 5))
    assert str(tmp_path / name) in str(error.value)


def test_own_folders_that_do_not_fit_are_refused(own, tmp_path):
    from PIL import Image

    x, y = own
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        Own("train", root=tmp_path / "nowhere", shape=(3, 4, 5))
    with pytest.raises(FileNotFoundError, match="holds no images"):
        Own("train", root=tmp_path, shape=(3, 4, 5))
    write_images(tmp_path / "folder", x, y)
    with pytest.raises(ValueError, match="holds 2 folders of images, but classes=3"):
        Own("train", root=tmp_path / "folder", shape=(3, 4, 5), classes=3)
    Image.new("RGB", (9, 9)).save(tmp_path / "folder" / "cat" / "odd.png")
    with pytest.raises(ValueError, match=r"odd.png has size \[3, 9, 9\], but shape=\[3, 4, 5\]"):
        Own("train", root=tmp_path / "folder", shape=(3, 4, 5))
    Image.new("I;16", (5, 4)).save(tmp_path / "folder" / "cat" / "odd.png")
    with pytest.raises(ValueError, match=r"odd.png is no readable image .more than 8 bits"):
        Own("train", root=tmp_path / "folder", shape=(3, 4, 5))
    (tmp_path / "folder" / "cat" / "odd.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"odd.png is no readable image"):
        Own("train", root=tmp_path / "folder", shape=(3, 4, 5))
