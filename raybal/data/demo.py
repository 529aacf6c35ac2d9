"""The built-in pool: handwritten digits that move about while a synthetic voice says their name.

Real media files with everything that makes a pool hard, from what two pip packages carry: the 1,797 handwritten
digits of scikit-learn and the voices of eSpeak NG. Each clip has its own noise in each modality, drawn independently,
so that some clips can only be heard and others only be seen; over all, hearing is the easier way. The clips of one
voice are one group.

Equal seeds give equal bytes on one machine, whatever the number of worker processes.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from raybal.data.demo_clips import VERSION, WORDS, Recipe, recipe, speak, write_clips
from raybal.errors import DataError
from raybal.store import storage_errors

_BATCH = 30


def demo_folder(seed: int = 0) -> Path:
    """Returns where the demo pool is kept: `raybal/demo-v1-seed0` in $XDG_CACHE_HOME, or in ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "raybal" / f"demo-v{VERSION}-seed{seed}"


def make_demo(
    folder: Path | None = None,
    *,
    seed: int = 0,
    limit: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Makes the demo pool, or returns at once if it is there.

    Writes `clips/<id>.mp4` (H.264 64x64 at 15 frames a second, AAC, 0.8 s) and `manifest.csv` with the columns id,
    uri (relative to the manifest), label (the word) and group (the voice). All of it is made in a temporary folder
    beside the wanted one and renamed at the end, so the folder is complete or not there.

    Worker processes are spawned: a script that calls this needs the usual `if __name__ == "__main__":`.

    Args:
        folder: where to write; `demo_folder(seed)` if not given.
        seed: of everything random.
        limit: number of clips, the first ones; all 1,797 if not given.
        workers: processes; one a core if not given. The clips do not depend on it.
        progress: whether to show a progress bar.

    Returns:
        the folder.

    Raises:
        DataError: a package of the demo extra is missing, or the folder holds something else.
        StoreError: the folder cannot be written.
    """
    folder = demo_folder(seed) if folder is None else Path(folder)
    wanted = {"version": VERSION, "seed": seed, "limit": limit}
    if folder.exists():
        _check_existing(folder, wanted)
        return folder
    images, labels = _digits()
    images, labels = images[:limit], labels[:limit]
    recipes = [recipe(i, int(label), seed) for i, label in enumerate(labels)]
    with storage_errors("write", str(folder)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=f"{folder.name}.making-", dir=folder.parent))
        try:
            (making / "clips").mkdir()
            _make_clips(making, recipes, images, workers or os.cpu_count() or 1, progress)
            _write_manifest(making / "manifest.csv", recipes)
            (making / "demo.json").write_text(json.dumps(wanted))
            making.chmod(0o755)
            try:
                making.rename(folder)
            except OSError:
                # Another process finished first.
                _check_existing(folder, wanted)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return folder


def _check_existing(folder: Path, wanted: dict[str, Any]) -> None:
    try:
        found = json.loads((folder / "demo.json").read_text())
    except OSError as error:
        raise DataError(f"{folder}: exists and holds no demo pool; give a folder that does not exist yet") from error
    if found != wanted:
        raise DataError(f"{folder}: holds a demo pool made with {found}, not with {wanted}; give another folder")


def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns the pictures uint8 [n, 8, 8] (0 to 16) and the labels [n] of scikit-learn's digits."""
    missing = [name for name in ("sklearn", "espeakng_loader") if find_spec(name) is None]
    if missing:
        raise DataError(f'the demo pool needs {" and ".join(missing)}: pip install "raybal[demo]"')
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target


def _write_manifest(path: Path, recipes: list[Recipe]) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["id", "uri", "label", "group"])
        rows.writerows([r.id, f"clips/{r.id}.mp4", WORDS[r.label], r.voice] for r in recipes)


def _make_clips(folder: Path, recipes: list[Recipe], images: NDArray[np.uint8], workers: int, progress: bool) -> None:
    batches = [slice(start, start + _BATCH) for start in range(0, len(recipes), _BATCH)]
    # Spawned, not forked: the caller may have threads (torch, Ray), and eSpeak NG must be fresh.
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(min(workers, len(batches)), mp_context=context) as pool,
        tqdm(total=len(recipes), desc="demo clips", unit="clip", disable=not progress) as bar,
    ):
        try:
            words = pool.submit(speak, recipes).result()
            jobs = {pool.submit(write_clips, folder, recipes[b], images[b], words[b]): len(recipes[b]) for b in batches}
            for job in as_completed(jobs):
                job.result()
                bar.update(jobs[job])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
