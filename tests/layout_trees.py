"""Small data sets in the folders, with the lists and the kinds of media files, in which they are distributed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from media_files import noise_and_tone, textured_frames, write_clip, write_sound

EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")


@lru_cache
def content(suffix: str) -> bytes:
    """A media file as the data set with this suffix has it."""
    frames, sound = textured_frames(4, 32, 48), noise_and_tone(0.25)
    if suffix in (".wav", ".mp3"):
        return write_sound(suffix[1:].upper(), sound)
    if suffix == ".flv":
        return write_clip(
            "flv", frames, noise_and_tone(0.25, 22050), video_codec="flv1", audio_codec="libmp3lame", rate=22050
        )
    if suffix in (".avi", "silent .avi"):
        sound = None if suffix.startswith("silent") else sound
        return write_clip("avi", frames, sound, video_codec="mpeg4", audio_codec="libmp3lame")
    return write_clip(suffix.removeprefix("."), frames, sound)


def write(
    folder: Path, media: Iterable[str], lists: Mapping[str, str] | None = None, silent: Iterable[str] = ()
) -> Path:
    """Writes media files, those of them without sound, and lists below a folder."""
    files = {name: content(os.path.splitext(name)[1]) for name in media}
    files |= {name: content("silent .avi") for name in silent}
    files |= {name: text.encode() for name, text in (lists or {}).items()}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# One clip an actor, and one whose name has a level of a single letter.
CREMA_D = (*(f"{1001 + i}_DFA_{EMOTIONS[i % 6]}_XX" for i in range(91)), "1040_ITH_SAD_X")
CREMA_D_TEST = (*CREMA_D[:90:10], "1040_ITH_SAD_X")


def crema_d(folder: Path) -> Path:
    """The repository of the data set's authors."""
    names = [
        f"{place}/{clip}.{suffix}" for clip in CREMA_D for place, suffix in (("VideoFlash", "flv"), ("AudioWAV", "wav"))
    ]
    return write(
        folder, [*names, "AudioMP3/1001_DFA_ANG_XX.mp3"], {"SentenceFilenames.csv": '"Stimulus_Number","Filename"\n'}
    )


def crema_d_common() -> dict[str, str]:
    """train.csv and test.csv, with one actor on both sides."""
    lines = {
        "train.csv": [f"{clip},{clip.split('_')[2]}" for clip in CREMA_D if clip not in CREMA_D_TEST],
        "test.csv": [f"{clip},{clip.split('_')[2]}" for clip in CREMA_D_TEST],
    }
    return {name: "\ufeff" + "\n".join(rows) + "\n" for name, rows in lines.items()}


def crema_d_folds() -> dict[str, str]:
    """data_splits_VALV.pkl: five folds with 60 clips to train on, 10 to validate and 10 to test."""

    def part(fold: int, start: int, count: int) -> list[str]:
        turned = CREMA_D[fold:] + CREMA_D[:fold]
        return [f"{clip}.wav-{i % 5}" for i, clip in enumerate(turned[start : start + count])]

    folds = {
        str(fold): {"train": part(fold, 0, 60), "val": part(fold, 60, 10), "test": part(fold, 70, 10)}
        for fold in range(1, 6)
    }
    return {"data_splits_VALV.pkl": json.dumps(folds)}


AVE_LISTS = {
    "trainSet.txt": "Church bell&RUhOCu3LNXM&good&0&10\n"
    "Male speech, man speaking&-hChcJAh5N0&good&5&10\n"
    "Church bell&_4MH3m4AwEc&good&6&8\n"
    "Truck&_4MH3m4AwEc&good&0&2\n"
    "Bark&E_1Asfq8it4&good&0&3\n"
    "Frying (food)&on2listsVal&good&0&10\n"
    "Truck&on2listsTes&good&0&10\n",
    "valSet.txt": "Frying (food)&on2listsVal&good&1&4\nBark&3jS8tWfLJxI&good&7&9\n",
    "testSet.txt": "Horse&on2listsTes&good&0&10\nBark&1H2XD5lUp8w&good&0&10\n",
}
AVE_LISTS["Annotations.txt"] = "Category&VideoID&Quality&StartTime&EndTime\n" + "".join(AVE_LISTS.values())
AVE_CLIPS = (
    "RUhOCu3LNXM",
    "-hChcJAh5N0",
    "_4MH3m4AwEc",
    "E_1Asfq8it4",
    "on2listsVal",
    "on2listsTes",
    "3jS8tWfLJxI",
    "1H2XD5lUp8w",
)


def ave(folder: Path) -> Path:
    """AVE_Dataset.zip, unpacked."""
    lists = {f"AVE_Dataset/{name}": text for name, text in AVE_LISTS.items()}
    return write(
        folder, [f"AVE_Dataset/AVE/{clip}.mp4" for clip in AVE_CLIPS], lists | {"AVE_Dataset/ReadMe.txt": "AVE"}
    )


KINETICS_HEAD = "label,youtube_id,time_start,time_end,split,is_cc\n"
KINETICS_LISTS = {
    "annotations/train.csv": KINETICS_HEAD
    + '"playing accordion",-0A_accordi,19,29,train,0\n'
    + '"playing accordion",0B_accordio,0,10,train,0\n'
    + "abseiling,0347ZoDXyP0,95,105,train,0\n"
    + "singing,0C_singing-,7,17,train,1\n"
    + '"strumming guitar",0D_strummin,3,13,train,0\n',
    "annotations/val.csv": KINETICS_HEAD + "singing,0E_singing_,1234,1244,val,0\n",
    "annotations/test.csv": KINETICS_HEAD + '"tapping pen",0F_tapping_,5,15,test,0\n',
}
KINETICS_CLIPS = {
    "-0A_accordi_000019_000029": "train/playing accordion",
    "0B_accordio_000000_000010": "train/playing accordion",
    "0347ZoDXyP0_000095_000105": "train/abseiling",
    "0C_singing-_000007_000017": "train/singing",
    "0D_strummin_000003_000013": "train/strumming guitar",
    "0E_singing__001234_001244": "val/singing",
    "0F_tapping__000005_000015": "test/tapping pen",
}


def kinetics(folder: Path, classes: bool = True, lists: bool = True) -> Path:
    """Kinetics-400 as the CVD Foundation has it, with or without folders of classes; or a copy without lists."""
    names = [f"{place if classes else place.split('/')[0]}/{clip}.mp4" for clip, place in KINETICS_CLIPS.items()]
    return write(folder, names, KINETICS_LISTS) if lists else write(folder, [n.replace(" ", "_") for n in names])


VGGSOUND_LIST = (
    "---g-f_I2yQ,1,people marching,test\n"
    '--0PQM4-hqg,30,"waterfall burbling",train\n'
    '--56QUhyDQM,185,"playing tennis, doubles",train\n'
    "--56QUhyDQM,7,playing tennis,train\n"
)
VGGSOUND_CLIPS = ("---g-f_I2yQ_000001", "--0PQM4-hqg_000030", "--56QUhyDQM_000185", "--56QUhyDQM_000007")


def vggsound(folder: Path) -> Path:
    """The archives, unpacked into their deep folders."""
    deep = "scratch/shared/train_data/VGGSound_final/video"
    return write(folder, [f"{deep}/{clip}.mp4" for clip in VGGSOUND_CLIPS], {"vggsound.csv": VGGSOUND_LIST})


UCF_CLASSES = ("ApplyEyeMakeup", "HandstandPushups", "Basketball")


def ucf101(folder: Path) -> Path:
    """Both archives, unpacked: three classes with 25 groups of one clip; that of UCF50 has no sound."""
    lists: dict[str, str] = {"classInd.txt": "".join(f"{i} {name}\r\n" for i, name in enumerate(UCF_CLASSES, 1))}
    media, silent = [], []
    for number in (1, 2, 3):
        lines: dict[str, list[str]] = {"train": [], "test": []}
        for index, name in enumerate(UCF_CLASSES, 1):
            for group in range(1, 26):
                clip = f"v_{name.replace('Handstand', 'HandStand')}_g{group:02}_c01.avi"
                if number == 1:
                    (silent if name == "Basketball" else media).append(f"UCF-101/{name}/{clip}")
                if 7 * (number - 1) < group <= 7 * number:
                    lines["test"].append(f"{name}/{clip}")
                else:
                    lines["train"].append(f"{name}/{clip} {index}")
        lists |= {f"{part}list0{number}.txt": "\r\n".join(listed) + "\r\n" for part, listed in lines.items()}
    return write(folder, media, {f"ucfTrainTestlist/{name}": text for name, text in lists.items()}, silent)
