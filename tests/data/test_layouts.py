"""Data sets as they are distributed: what each layout makes of its tree, and what is said of one that is not whole."""

from __future__ import annotations

import logging
import shutil

import pytest
from layout_trees import (
    AVE_CLIPS,
    CREMA_D,
    CREMA_D_TEST,
    KINETICS_CLIPS,
    UCF_CLASSES,
    ave,
    crema_d,
    crema_d_common,
    crema_d_folds,
    kinetics,
    ucf101,
    vggsound,
    write,
)

from raybal.config import parse
from raybal.data.chunk import Preprocessing
from raybal.data.layouts.base import LAYOUTS, LayoutSettings, read_layout
from raybal.data.layouts.crema_d import ACTORS
from raybal.data.layouts.kinetics_sounds import CLASSES
from raybal.data.layouts.ucf101 import UCF101Settings
from raybal.data.plan import PrepareConfig
from raybal.data.pool import Pool, Sidecar
from raybal.data.prepare import prepare as prepare_on_a_cluster
from raybal.errors import ConfigError, DataError
from raybal.media.audio import AudioSettings
from raybal.media.video import VideoSettings
from raybal.settings import from_plain

TREES = {"ave": ave, "crema_d": crema_d, "kinetics_sounds": kinetics, "ucf101": ucf101, "vggsound": vggsound}
SMALL = Preprocessing(
    video=VideoSettings(frames=2, height=16, width=16, color="gray"), audio=AudioSettings(seconds=0.2, mels=8)
)


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """tree(name): a data set's folder, which no test changes."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = TREES[name](tmp_path_factory.mktemp(name))
        return made[name]

    return make


def read(name, place, **options):
    return read_layout(from_plain(LayoutSettings, {"name": name, **options}), str(place))


def rows(manifest, *columns):
    """The table's columns, as sorted tuples."""
    return sorted(zip(*(manifest.table[c].to_pylist() for c in columns), strict=True), key=str)


def groups_by_split(manifest):
    sides = {}
    for split, group in rows(manifest, "split", "group"):
        sides.setdefault(split, set()).add(group)
    return sides


def sizes(manifest):
    splits = manifest.table["split"].to_pylist()
    return {part: splits.count(part) for part in dict.fromkeys(splits)}


# CREMA-D


def test_crema_d_with_the_common_split(tree, tmp_path, caplog):
    folder, lists = tree("crema_d"), write(tmp_path, [], crema_d_common())
    caplog.set_level(logging.INFO, logger="raybal")
    manifest = read("crema_d", folder, lists=str(lists))
    assert rows(manifest, "id", "video_uri", "audio_uri", "label", "group", "split") == sorted(
        (
            clip,
            f"{folder}/VideoFlash/{clip}.flv",
            f"{folder}/AudioWAV/{clip}.wav",
            clip.split("_")[2],
            clip[:4],
            "test" if clip in CREMA_D_TEST else "train",
        )
        for clip in CREMA_D
    )
    assert "CREMA-D: 92 clips of 6 classes, 82 train, 10 test" in caplog.text
    sides = groups_by_split(manifest)
    assert sides["train"] & sides["test"] == {"1040"}


def test_crema_d_with_the_published_folds(tree, tmp_path):
    folder, lists = tree("crema_d"), write(tmp_path, [], crema_d_folds())
    manifest = read("crema_d", folder, split="fold-2", lists=str(lists))
    assert sizes(manifest) == {"train": 60, "val": 10, "test": 10}
    turned = CREMA_D[2:] + CREMA_D[:2]
    assert rows(manifest, "id", "split")[:2] == [(CREMA_D[2], "train"), (CREMA_D[3], "train")]
    assert [clip for clip, split in rows(manifest, "id", "split") if split == "test"] == sorted(turned[70:80])
    # The number behind a name is no label.
    assert {label for (label,) in rows(manifest, "label")} == {"ANG", "DIS", "FEA", "HAP", "NEU", "SAD"}


def test_crema_d_with_folds_of_raybals_own(tree, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="raybal")
    tested = []
    for number in range(1, 6):
        manifest = read("crema_d", tree("crema_d"), split=f"fold-{number}")
        sides = groups_by_split(manifest)
        assert {part: len(actors) for part, actors in sides.items()} == {"train": 63, "val": 14, "test": 14}
        assert sorted(actor for actors in sides.values() for actor in actors) == sorted(ACTORS)
        tested += sides["test"]
    assert len(tested) == len(set(tested)) == 70
    assert "fold-1 is one of raybal's own, since there is no data_splits_VALV.pkl" in caplog.text
    # An actor's side does not depend on which files are there.
    some = write(tmp_path, [f"{place}/{c}.{s}" for c in CREMA_D[:30] for place, s in (("a", "flv"), ("b", "wav"))])
    assert set(rows(read("crema_d", some, split="fold-5"), "id", "split")) < set(rows(manifest, "id", "split"))


def test_crema_d_that_raybal_splits(tree):
    manifest = read("crema_d", tree("crema_d"), split="own")
    assert rows(manifest, "split") == [(None,)] * 92
    assert len({group for (group,) in rows(manifest, "group")}) == 91


@pytest.mark.parametrize(
    ("lists", "split", "says"),
    [
        ({}, "common", r"there is no train\.csv in it, nor in a folder below it; lists that are in another folder"),
        ({"train.csv": "a\n", "test.csv": "a,b\n"}, "common", r"train\.csv has a line 'a', and 'clip,emotion' was exp"),
        ({"train.csv": "a,b\n", "test.csv": "a,b\n"}, "common", "name 'a', which is none of its clips"),
        ({"data_splits_VALV.pkl": '{"1": {"train": []}}'}, "fold-1", "VALV.pkl has no fold 1 with train, val and test"),
        ({}, "fold-1", r"there is no data_splits_VALV\.pkl in it"),
        ({"data_splits_VALV.pkl": "(dp0"}, "fold-1", "VALV.pkl has no fold 1 with train, val and test as JSON"),
        ({"a/train.csv": "", "b/train.csv": ""}, "common", "has several files train.csv: a/train.csv, b/train.csv; gi"),
    ],
)
def test_lists_that_are_not_as_they_are_distributed(tree, tmp_path, lists, split, says):
    with pytest.raises(DataError, match=says):
        read("crema_d", tree("crema_d"), split=split, lists=str(write(tmp_path / "lists", ["x.wav"], lists)))


# AVE


def test_ave(tree, caplog):
    folder = tree("ave")
    caplog.set_level(logging.INFO, logger="raybal")
    manifest = read("ave", folder)
    assert rows(manifest, "id", "label", "split") == [
        ("-hChcJAh5N0", "Male speech, man speaking", "train"),
        ("1H2XD5lUp8w", "Bark", "test"),
        ("3jS8tWfLJxI", "Bark", "val"),
        ("E_1Asfq8it4", "Bark", "train"),
        ("RUhOCu3LNXM", "Church bell", "train"),
        ("_4MH3m4AwEc", "Church bell", "train"),
        ("on2listsTes", "Horse", "test"),
        ("on2listsVal", "Frying (food)", "val"),
    ]
    assert rows(manifest, "uri") == sorted((f"{folder}/AVE_Dataset/AVE/{clip}.mp4",) for clip in AVE_CLIPS)
    assert manifest.table["group"].to_pylist() == manifest.table["id"].to_pylist()
    assert "AVE: 2 clips are on several lists" in caplog.text


def test_ave_that_raybal_splits(tree, caplog):
    manifest = read("ave", tree("ave"), split="own")
    # In the order of Annotations.txt, where a header comes first.
    assert rows(manifest, "id", "label", "split")[-2:] == [
        ("on2listsTes", "Truck", None),
        ("on2listsVal", "Frying (food)", None),
    ]
    assert len(manifest.table) == 8
    assert not caplog.records, "the header is no clip that is gone"


# Kinetics-Sounds


@pytest.mark.parametrize(("classes", "lists"), [(True, True), (False, True), (True, False)])
def test_kinetics_sounds(tmp_path, classes, lists):
    manifest = read("kinetics_sounds", kinetics(tmp_path, classes, lists))
    assert rows(manifest, "id", "label", "group", "split") == [
        ("-0A_accordi_000019_000029", "playing accordion", "-0A_accordi", "train"),
        ("0B_accordio_000000_000010", "playing accordion", "0B_accordio", "train"),
        ("0C_singing-_000007_000017", "singing", "0C_singing-", "train"),
        ("0E_singing__001234_001244", "singing", "0E_singing_", "val"),
        ("0F_tapping__000005_000015", "tapping pen", "0F_tapping_", "test"),
    ]
    for clip, uri in rows(manifest, "id", "uri"):
        place = KINETICS_CLIPS[clip] if classes else KINETICS_CLIPS[clip].split("/")[0]
        assert uri == f"{tmp_path}/{place if lists else place.replace(' ', '_')}/{clip}.mp4"


def test_the_choices_of_kinetics_sounds(tree):
    assert len(set(CLASSES)) == 31
    with_guitar = read("kinetics_sounds", tree("kinetics_sounds"), classes=32, split="val-as-test")
    assert rows(with_guitar, "label", "split") == [
        ("playing accordion", "train"),
        ("playing accordion", "train"),
        ("singing", "test"),
        ("singing", "train"),
        ("strumming guitar", "train"),
    ]
    assert sizes(read("kinetics_sounds", tree("kinetics_sounds"), split="own")) == {None: 5}


def test_a_folder_of_lists_without_those_of_kinetics(tree, tmp_path):
    lists = write(tmp_path, [], {"train.csv": "id,label\na,singing\n"})
    with pytest.raises(
        DataError, match=r"does not look like Kinetics-Sounds: there is no CSV file with the columns lab"
    ):
        read("kinetics_sounds", tree("kinetics_sounds"), lists=str(lists))
    write(tmp_path, [], {"train.csv": "label,youtube_id,time_start,time_end,split\nsinging,0E_singing_,1,2\n"})
    with pytest.raises(DataError, match=r"train\.csv: a line for '0E_singing_' is cut short"):
        read("kinetics_sounds", tree("kinetics_sounds"), lists=str(lists))


def test_a_clip_of_kinetics_that_was_replaced(tmp_path):
    name = "0C_singing-_000007_000017.mp4"
    write(kinetics(tmp_path), [f"replacement/replacement_for_corrupted_k400/{name}"])
    uris = dict(rows(read("kinetics_sounds", tmp_path), "id", "uri"))
    assert uris[name[:-4]] == f"{tmp_path}/replacement/replacement_for_corrupted_k400/{name}"


# VGGSound


def test_vggsound(tree):
    folder = tree("vggsound")
    deep = f"{folder}/scratch/shared/train_data/VGGSound_final/video"
    assert rows(read("vggsound", folder), "id", "uri", "label", "group", "split") == [
        ("---g-f_I2yQ_000001", f"{deep}/---g-f_I2yQ_000001.mp4", "people marching", "---g-f_I2yQ", "test"),
        ("--0PQM4-hqg_000030", f"{deep}/--0PQM4-hqg_000030.mp4", "waterfall burbling", "--0PQM4-hqg", "train"),
        ("--56QUhyDQM_000007", f"{deep}/--56QUhyDQM_000007.mp4", "playing tennis", "--56QUhyDQM", "train"),
        ("--56QUhyDQM_000185", f"{deep}/--56QUhyDQM_000185.mp4", "playing tennis, doubles", "--56QUhyDQM", "train"),
    ]
    assert sizes(read("vggsound", folder, split="own")) == {None: 4}


# UCF101


@pytest.mark.parametrize("split", [1, 2, 3])
def test_ucf101(tree, split):
    folder = tree("ucf101")
    manifest = read("ucf101", folder, split=split)
    # Of 18 groups of each class to train on, 2 validate.
    assert sizes(manifest) == {"train": 48, "val": 6, "test": 21}
    sides = groups_by_split(manifest)
    tested = range(7 * split - 6, 7 * split + 1)
    assert sides["test"] == {f"{name}_g{group:02}" for name in UCF_CLASSES for group in tested}
    assert not sides["train"] & sides["val"]
    assert not sides["test"] & (sides["train"] | sides["val"])
    assert {group.split("_")[0] for group in sides["val"]} == set(UCF_CLASSES)
    # Its files and its class are spelt in two ways.
    ((uri, label),) = [
        row[1:] for row in rows(manifest, "id", "uri", "label") if row[0] == "v_HandStandPushups_g09_c01"
    ]
    assert (uri, label) == (f"{folder}/UCF-101/HandstandPushups/v_HandStandPushups_g09_c01.avi", "HandstandPushups")


def test_the_choices_of_ucf101(tree, caplog):
    caplog.set_level(logging.INFO, logger="raybal")
    assert sizes(read("ucf101", tree("ucf101"), val_groups=0.0)) == {"train": 54, "test": 21}
    assert sizes(read("ucf101", tree("ucf101"), split="own")) == {None: 75}
    heard = read("ucf101", tree("ucf101"), audio_only=True)
    assert {label for (label,) in rows(heard, "label")} == {"ApplyEyeMakeup", "HandstandPushups"}
    assert len(heard.table) == 50
    assert "UCF101: 25 clips without sound are left out" in caplog.text


def test_a_line_of_ucf101_that_is_none(tree, tmp_path):
    lists = write(tmp_path, [], {"classInd.txt": "1 Archery\n", "trainlist01.txt": "Bowling/v_Bowling_g01_c01.avi 2\n"})
    with pytest.raises(DataError, match=r"trainlist01\.txt has a line 'Bowling/v_Bowling_g01_c01\.avi 2', and <Class>"):
        read("ucf101", tree("ucf101"), lists=str(lists))


# All of them


@pytest.mark.parametrize(
    ("name", "title", "expected"),
    [
        ("ave", "AVE", r"testSet\.txt"),
        ("crema_d", "CREMA-D", r"VideoFlash/<clip>\.flv"),
        ("kinetics_sounds", "Kinetics-Sounds", r"train/<class>/<youtube_id>_<start>_<end>\.mp4"),
        ("ucf101", "UCF101", r"classInd\.txt"),
        ("vggsound", "VGGSound", r"vggsound\.csv"),
    ],
)
def test_a_folder_that_is_not_the_data_sets(tmp_path, name, title, expected):
    assert name in LAYOUTS.names()
    write(tmp_path / "in", ["photos/a.wav"], {"notes.txt": "x"})
    with pytest.raises(
        DataError, match=rf"^{tmp_path}/in does not look like {title}: there is no {expected} in it, nor"
    ):
        read(name, tmp_path / "in")
    with pytest.raises(DataError, match=rf"^there is no folder {tmp_path}/out; give the folder that holds {title}$"):
        read(name, tmp_path / "out")


def test_the_lists_of_another_data_set(tree, tmp_path):
    kinetics(tmp_path, classes=False, lists=False)
    with pytest.raises(DataError, match=f"{tmp_path} has no clip of Kinetics-Sounds that these settings ask for"):
        read("kinetics_sounds", tmp_path)


def test_clips_that_are_gone_are_counted_and_left_out(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="raybal")
    folder = ave(tmp_path)
    for clip in AVE_CLIPS[:4]:
        (folder / f"AVE_Dataset/AVE/{clip}.mp4").unlink()
    write(folder, ["AVE_Dataset/AVE/unlisted000.mp4", "elsewhere/on2listsVal.mp4"])
    manifest = read("ave", folder)
    assert sorted(manifest.table["id"].to_pylist()) == sorted(AVE_CLIPS[4:])
    (said,) = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert said.startswith(f"4 of 8 clips of AVE are not in {folder}, and left out: ")
    assert said.count(",") == 3
    assert said.endswith(" and 1 more")
    assert f"{folder}: 2 media files belong to no clip of the lists and are left out" in caplog.text
    (folder / f"AVE_Dataset/AVE/{AVE_CLIPS[5]}.mp4").unlink()
    with pytest.raises(DataError, match=f"^5 of 8 clips of AVE are not in {folder}: .* at most half of those that its"):
        read("ave", folder)


def test_half_a_clip_of_crema_d_is_gone(tree, tmp_path, caplog):
    folder = shutil.copytree(tree("crema_d"), tmp_path / "in")
    (folder / f"AudioWAV/{CREMA_D[0]}.wav").unlink()
    (folder / f"VideoFlash/{CREMA_D[1]}.flv").unlink()
    manifest = read("crema_d", folder, split="fold-1")
    assert sorted(manifest.table["id"].to_pylist()) == sorted(CREMA_D[2:])
    assert f"2 of 92 clips of CREMA-D are not in {folder}, and left out: {CREMA_D[0]}, {CREMA_D[1]}" in caplog.text


@pytest.mark.parametrize("name", TREES)
def test_a_folder_that_is_given_by_a_uri(tree, tmp_path, name):
    options = {"lists": write(tmp_path, [], crema_d_common()).as_uri()} if name == "crema_d" else {}
    local, remote = read(name, tree(name), **options), read(name, tree(name).as_uri(), **options)
    columns = ("id", "label", "group", "split")
    assert rows(remote, *columns) == rows(local, *columns)
    uri = remote.sources[0].column
    assert all(u.startswith(f"{tree(name).as_uri()}/") and " " not in u for (u,) in rows(remote, uri))


# The door


def test_a_layout_and_its_options_are_chosen_by_name():
    config = parse(PrepareConfig, ["--input=a", "--output=b", "--layout.name=ucf101", "--layout.split=2"])
    assert config.layout == UCF101Settings(name="ucf101", split=2)
    assert parse(PrepareConfig, ["--input=a", "--output=b"]).layout == LayoutSettings()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--layout.name=cremad"],
            r"^layout\.name: 'cremad' is not a layout; choose one of ave, crema_d, .*mean 'crema_d'",
        ),
        (["--layout.name=ave", "--layout.split=1"], r"^layout\.split: 1 is not accepted; choose one of official, own"),
        (
            ["--layout.name=ave", "--layout.classes=31"],
            r"^layout\.classes: there is no such key; layout has name, lists",
        ),
        (["--layout.split=own"], r"^layout\.name: this key is missing, beside split; choose one of ave, crema_d, kine"),
        (["--layout.lists=x"], r"^layout\.name: this key is missing, beside lists"),
        (["--layout.nome=ave"], "there is no such option"),
    ],
)
def test_layouts_and_options_that_are_none(arguments, says):
    with pytest.raises(ConfigError, match=says):
        parse(PrepareConfig, ["--input=a", "--output=b", *arguments])


def test_naming_another_layout_leaves_the_options_of_the_first_behind(tmp_path):
    (tmp_path / "c.yaml").write_text("layout: {name: crema_d, split: fold-1, lists: here}\n")
    config = parse(PrepareConfig, [f"--config={tmp_path}/c.yaml", "--input=a", "--output=b", "--layout.name=ave"])
    assert (config.layout.name, config.layout.split, config.layout.lists) == ("ave", "official", "here")


def test_the_help_says_what_each_layout_accepts(capsys):
    with pytest.raises(SystemExit):
        parse(PrepareConfig, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "manifest: ave, crema_d, kinetics_sounds, ucf101, vggsound (default: none)" in shown
    assert "--layout.split VALUE [ave] official: the data set's lists; own: raybal splits" in shown
    assert "[crema_d] common: train.csv and test.csv of many papers, with all actors on both sides" in shown
    assert "[kinetics_sounds] number of classes; 32: with strumming guitar (default: 31)" in shown


@pytest.mark.parametrize("name", TREES)
def test_every_layout_can_be_prepared(prepare, tree, tmp_path, name, caplog):
    caplog.set_level(logging.INFO, logger="raybal")
    layout = from_plain(LayoutSettings, {"name": name, **({"split": "fold-1"} if name == "crema_d" else {})})
    info = prepare(tree(name), tmp_path / "pool", layout=layout, preprocessing=SMALL)
    manifest = read_layout(layout, str(tree(name)))
    assert info.counts["items"] == info.counts["labelled"] == len(manifest.table)
    assert {part: n for part, n in sizes(manifest).items() if n} == {
        part: info.counts[part] for part in ("train", "val", "test") if info.counts[part]
    }
    assert sorted(info.names) == ["audio", "video"]
    assert info.counts["missing"] == {"video": 0, "audio": 25 if name == "ucf101" else 0}
    assert prepare(tree(name), tmp_path / "pool", layout=layout, preprocessing=SMALL) == info
    assert "nothing to do" in caplog.text


def test_clips_that_come_back_are_added_and_nothing_else_is_done(prepare, tmp_path):
    folder, output = ave(tmp_path / "in"), tmp_path / "pool"
    options = {"layout": from_plain(LayoutSettings, {"name": "ave"}), "preprocessing": SMALL}
    gone = folder / f"AVE_Dataset/AVE/{AVE_CLIPS[2]}.mp4"
    content = gone.read_bytes()
    gone.unlink()
    assert prepare(folder, output, **options).counts["items"] == 7
    shards = {p: p.stat().st_mtime_ns for p in (output / "shards").iterdir()}
    gone.write_bytes(content)
    assert prepare(folder.as_posix(), output, **options).counts["items"] == 8
    assert shards.items() < {p: p.stat().st_mtime_ns for p in (output / "shards").iterdir()}.items()
    assert Sidecar(str(output)).labels([AVE_CLIPS[2]]) == {AVE_CLIPS[2]: "Church bell"}


@pytest.mark.ray
def test_ucf101_on_a_cluster(cluster, tree, tmp_path):
    arguments = ["--layout.name", "ucf101", "--layout.split", "3", "--preprocessing.video.height", "16"]
    config = parse(PrepareConfig, ["--input", tree("ucf101").as_uri(), "--output", str(tmp_path / "pool"), *arguments])
    info = prepare_on_a_cluster(config)
    assert (info.classes, info.counts["items"], info.counts["val"]) == (tuple(sorted(UCF_CLASSES)), 75, 6)
    pool = Pool(str(tmp_path / "pool"))
    _, present = pool.read(pool.positions(["v_Basketball_g01_c01", "v_ApplyEyeMakeup_g01_c01"]))
    assert present[:, info.names.index("audio")].tolist() == [False, True]
    assert Sidecar(str(tmp_path / "pool")).groups(["v_HandStandPushups_g20_c01"]) == {
        "v_HandStandPushups_g20_c01": "HandstandPushups_g20"
    }
