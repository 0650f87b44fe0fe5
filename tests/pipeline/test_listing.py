"""The list of images is made once, kept, and made again when what it lists has changed."""

import dataclasses
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mmray.config.learning import RetrievalConfig
from mmray.config.presets import DEMO
from mmray.config.run import identity_of
from mmray.pipeline.session import Session
from mmray.pipeline.stages.listing import list_each, list_stage, read_exclusion_list
from mmray.pipeline.stages.minable import need_items
from mmray.system import locations
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.locations import open_folder
from tests.made import synthetic


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name in ("b/2.jpg", "a.jpg", "b/1.png", "c.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def listed(photos: Path, *, excluded=(), chosen=("extract",), **flags) -> list[str]:
    config: RetrievalConfig = dataclasses.replace(DEMO, images=(str(photos),), **flags)
    session = Session(config, Folder(str(photos.parent / "runs")), synthetic.SilentRun(), chosen)
    return [image.name for image in list_stage(session, config.images, set(excluded))]


def test_a_rerun_goes_by_the_list_it_kept(photos, capsys, monkeypatch):
    names = ["a.jpg", "b/1.png", "b/2.jpg", "c.jpg"]
    assert listed(photos) == names
    assert "4 image files" in capsys.readouterr().err
    monkeypatch.setattr(
        "mmray.pipeline.stages.listing.find", None
    )  # it would fail if it were called
    assert listed(photos) == names
    assert "done before (list-" in capsys.readouterr().err


def test_an_image_is_taken_once_however_often_it_is_named_and_that_is_said(photos, capsys):
    names = ["a.jpg", "./a.jpg", "b/2.jpg", f"file://{photos}/a.jpg", "b/2.jpg", "gone.jpg"]
    (photos / "l.txt").write_text("\n".join(names))
    config = dataclasses.replace(DEMO, images=(str(photos / "l.txt"), str(photos)))
    session = Session(
        config, Folder(str(photos.parent / "runs")), synthetic.SilentRun(), ("extract",)
    )
    listed = list_stage(session, config.images, set())
    assert [image.name for image in listed] == ["a.jpg", "b/2.jpg", "gone.jpg", "b/1.png", "c.jpg"]
    said = "list: 5 entries name an image that was named before; each of the 5 images is taken once"
    assert said in capsys.readouterr().err.splitlines()


def test_what_a_list_must_not_name_is_an_error_that_stores_no_credentials(photos, capsys):
    names = [
        "a.jpg",
        "s3://KEY:SECRET@b/x.jpg",
        "s3://b/x?endpoint_override=h&session_token=SECRET",
    ]
    (photos / "l.txt").write_text("\n".join([*names, "abfs://c@account/x.jpg"]))
    assert listed(photos / "l.txt")[0] == "a.jpg"
    (stage,) = (photos / "runs").glob("list-*")
    (kept,) = pq.read_table(stage / "list.parquet", columns=["error"]).to_pydict().values()
    assert [str(error).split(" ")[0] for error in kept] == [
        "None",
        "credentials",
        "credentials",
        "only",
    ]
    assert not any(b"SECRET" in file.read_bytes() for file in stage.rglob("*") if file.is_file())
    assert "SECRET" not in capsys.readouterr().err


def test_other_credentials_make_no_other_list(photos, monkeypatch, bucket):
    (bucket / "x").mkdir()
    (bucket / "x" / "a.jpg").write_bytes(b"a")

    def opened(uri, in_bucket=locations.open_folder):
        assert "***" not in uri
        return in_bucket(re.sub("k:SECRET[12]@", "", uri)) if "@" in uri else open_folder(uri)

    monkeypatch.setattr(locations, "open_folder", opened)
    for secret in ("SECRET1", "SECRET2"):
        source = f"s3://k:{secret}@bucket/x"
        config = dataclasses.replace(DEMO, images=(source,))
        session = Session(
            config, Folder(str(photos.parent / "runs")), synthetic.SilentRun(), ("extract",)
        )
        assert [image.uri for image in list_stage(session, [source], set())] == [f"{source}/a.jpg"]
        assert "SECRET" not in str(identity_of(config))
    (stage,) = (photos.parent / "runs").glob("list-*")
    assert not any(b"SECRET" in file.read_bytes() for file in stage.rglob("*") if file.is_file())


def test_what_is_left_out_is_told_and_kept_in_the_record(photos, capsys):
    for name in ("x.mov", "b/y.MOV", ".z.jpg", "b/@eaDir/1.jpg"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"")
    assert len(listed(photos)) == 4
    told = capsys.readouterr().err
    assert "4 image files; left out: 2 .mov, 1 @eaDir folder, 1 hidden file\n" in told
    (record,) = (photos.parent / "runs").glob("list-*/_SUCCESS.json")
    counts = json.loads(record.read_text())["counts"]
    assert counts["left_out"] == {".mov": 2, "@eaDir folder": 1, "hidden file": 1}
    assert (counts["images"], counts["listed"]) == (4, 4)


@pytest.mark.parametrize("name", ["d.jpg", "b/0.jpg"])
def test_an_added_image_is_noticed_at_any_depth(photos, name):
    assert len(listed(photos)) == 4
    (photos / name).write_bytes(b"new")
    assert name in listed(photos)


def test_the_same_relative_path_elsewhere_is_another_source(photos, monkeypatch):
    other = photos.parent / "b"
    (other / "photos").mkdir(parents=True)
    (other / "photos" / "x.jpg").write_bytes(b"")
    monkeypatch.chdir(photos.parent)
    config = dataclasses.replace(DEMO, images=("photos",))
    session = Session(
        config, Folder(str(photos.parent / "runs")), synthetic.SilentRun(), ("extract",)
    )
    assert len(list_stage(session, config.images, set())) == 4
    monkeypatch.chdir(other)
    assert len(list_stage(session, config.images, set())) == 1
    monkeypatch.chdir(photos.parent)
    assert len(list_stage(session, config.images, set())) == 4


def test_a_removed_image_is_noticed(photos):
    listed(photos)
    (photos / "b" / "1.png").unlink()
    assert listed(photos) == ["a.jpg", "b/2.jpg", "c.jpg"]


def test_a_changed_image_is_noticed_on_demand(photos, capsys):
    listed(photos)
    capsys.readouterr()
    (photos / "a.jpg").write_bytes(b"longer than before")
    listed(photos)
    assert "done before" in capsys.readouterr().err
    listed(photos, relist=True)
    told = capsys.readouterr().err
    assert "list: made again, as --relist asks" in told
    assert "4 image files" in told


def test_stages_after_the_extraction_keep_the_images_they_had(photos):
    listed(photos)
    (photos / "d.jpg").write_bytes(b"new")
    assert len(listed(photos, chosen=("mine",))) == 4


def test_it_must_have_been_listed_if_extract_is_not_chosen(photos):
    with pytest.raises(InputError, match="the stage extract has not been done"):
        listed(photos, chosen=("mine",))


def test_exclusions_and_samples_are_lists_of_their_own(photos):
    assert listed(photos, excluded={"1", "a.jpg"}) == ["b/2.jpg", "c.jpg"]
    drawn = [tuple(listed(photos, sample=2, seed=seed)) for seed in range(6)]
    assert all(len(names) == 2 and list(names) == sorted(names) for names in drawn)
    assert len(set(drawn)) > 1
    assert drawn[3] == tuple(listed(photos, sample=2, seed=3))
    assert len(listed(photos, sample=100)) == 4
    assert len(listed(photos)) == 4


def test_it_is_said_how_many_are_left_out(photos, capsys):
    listed(photos, excluded={"1", "a.jpg", "of another collection"})
    said = capsys.readouterr().err
    assert "2 images left out by the 3 names of --exclude" in said
    assert "2 of the 3 names of --exclude fit an image; 'of another collection' fits" in said


def test_excluded_names_that_fit_no_image_are_an_error(photos):
    names = {str(photos / "a.jpg"), "x"}
    message = (
        r"--exclude: none of the 2 names, such as /.*a\.jpg, is .* image, such as a\.jpg: give"
    )
    with pytest.raises(InputError, match=message):
        listed(photos, excluded=names)
    assert len(listed(photos)) == 4


def test_excluded_names_may_fit_any_of_several_sources(photos, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("0.jpg", "1.jpg"):
        (other / name).write_bytes(b"")
    session = Session(DEMO, Folder(str(tmp_path / "runs")), synthetic.SilentRun(), ("extract",))
    sources = [str(photos), str(other)]
    for _ in range(2):  # the second time the lists are there
        assert [len(part) for part, _ in list_each(session, sources, {"0", "x"})] == [4, 1]
        with pytest.raises(InputError, match=r"none of the 2 names, such as x, .* such as a\.jpg"):
            list_each(session, sources, {"x", "z"})
    assert "1 images left out by the 2 names" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"none of the 1 names"):
        list_each(session, sources[:1], {"y"})


def test_a_file_without_names_leaves_nothing_out_and_says_so(tmp_path, capsys):
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbf\r\n \r\n")
    config = dataclasses.replace(DEMO, exclude=str(tmp_path / "names.txt"))
    assert read_exclusion_list(config) == frozenset()
    assert "names.txt: there is no name in it, nothing is left out" in capsys.readouterr().err


def test_a_sample_has_none_of_the_excluded(photos):
    assert listed(photos, excluded={"a", "1", "2"}, sample=1) == ["c.jpg"]


def test_nothing_left_is_an_error(photos):
    with pytest.raises(InputError, match="none of the images is left; look at --exclude"):
        listed(photos, excluded={"a", "1", "2", "c"})


@pytest.mark.parametrize("flag", ["graph-k", "positive-k"])
def test_there_must_be_more_images_than_neighbours_asked_for(flag):
    few = dataclasses.replace(DEMO.mining, graph_k=3, positive_k=3)
    few = dataclasses.replace(few, **{flag.replace("-", "_"): 12})
    need_items(few, 13, "images")
    with pytest.raises(InputError, match=f"12 images are too few for --mining.{flag} 12: add"):
        need_items(few, 12, "images")


def test_several_sources_follow_each_other(photos, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "0.jpg").write_bytes(b"")
    config = dataclasses.replace(DEMO, images=(str(other), str(photos / "c.jpg")))
    session = Session(config, Folder(str(tmp_path / "runs")), synthetic.SilentRun(), ("extract",))
    images = list_stage(session, config.images, set())
    assert [image.uri for image in images] == [str(other / "0.jpg"), str(photos / "c.jpg")]
