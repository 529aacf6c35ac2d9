"""The store: one root folder or bucket that holds everything of one experiment.

All files go through pyarrow.fs, so a local folder, S3 and GCS take the same path. A file appears whole or not at
all: locally it is written beside its name, synced and renamed; an object store shows an object when it is closed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import safetensors
import safetensors.torch
import torch
import yaml

from raybal.errors import StoreError

TEMPORARY = ".tmp-"
ROW_GROUP_BYTES = 8 * 2**20
# libyaml is several times faster where it is there.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_YAML_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def join(root: str, name: str) -> str:
    """Returns the path or URI of what is called `name` below a root; in a URI the name is encoded."""
    if "://" not in root:
        return f"{root.rstrip('/')}/{name}"
    head, mark, options = root.partition("?")
    return f"{head.rstrip('/')}/{urllib.parse.quote(name)}{mark}{options}"


class Store:
    """Files below one root, by relative path ("rounds/003/select.yaml").

    Args:
        root: a local path, or a URI that pyarrow.fs understands (file://, s3://, gs://). Credentials come from the
            environment; a URI that carries them is refused, since roots end up in logs, sheets and reports.

    Raises:
        StoreError: from every method, naming the file, when the storage refuses.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        if not self.root.strip():
            raise StoreError("an empty path is not accepted; give a folder or a URI")
        try:
            if "@" in urllib.parse.urlsplit(self.root).netloc:
                raise StoreError(
                    "a URI with a key or password in it is not accepted, it would show up in logs and reports; set "
                    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the like) in the environment instead"
                )
            if "://" in self.root:
                self.filesystem, self._base = pafs.FileSystem.from_uri(self.root)
            else:
                self.root = os.path.abspath(os.path.expanduser(self.root))
                self.filesystem, self._base = pafs.LocalFileSystem(), self.root
        except (ValueError, OSError) as error:
            raise StoreError(f"{self.root!r} is not a folder or URI that can be opened: {error}") from error
        self._base = self._base.rstrip("/")
        self.is_local = isinstance(self.filesystem, pafs.LocalFileSystem)

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.root,)

    def path(self, name: str = "") -> str:
        """Returns the path of a file inside the filesystem (for a local store, its path on disk)."""
        return f"{self._base}/{name}" if name else self._base

    def where(self, name: str) -> str:
        """Returns the full path or URI of a file, to show it or to open it elsewhere."""
        return join(self.root, name)

    def exists(self, name: str = "") -> bool:
        """Returns whether a file or folder of this name exists."""
        with storage_errors("look for", self.path(name)):
            return self.filesystem.get_file_info(self.path(name)).type != pafs.FileType.NotFound

    def names(self, folder: str = "") -> list[str]:
        """Returns the sorted names of the files and folders in a folder; none if it does not exist."""
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True)
        with storage_errors("list", self.path(folder)):
            found = [info.base_name for info in self.filesystem.get_file_info(selector)]
        return sorted(name for name in found if not name.startswith(TEMPORARY))

    def read_bytes(self, name: str) -> bytes:
        """Returns a file's content."""
        with storage_errors("read", self.path(name)), self.filesystem.open_input_stream(self.path(name)) as stream:
            return stream.read()

    def write_bytes(self, name: str, content: bytes | memoryview) -> None:
        """Writes a file; whoever reads meanwhile sees the old content or the new one, never a part."""
        path = self.path(name)
        with storage_errors("write", path):
            if not self.is_local:
                with self.filesystem.open_output_stream(path) as stream:
                    stream.write(content)
                return
            folder, base = os.path.split(path)
            os.makedirs(folder, exist_ok=True)
            temporary = os.path.join(folder, f"{TEMPORARY}{uuid.uuid4().hex}-{base}")
            try:
                with open(temporary, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise

    def delete(self, name: str) -> None:
        """Deletes a file; one that is not there is no error."""
        with storage_errors("delete", self.path(name)), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self.path(name))

    def clear(self, folder: str) -> None:
        """Deletes a folder with all that is in it."""
        with storage_errors("clear", self.path(folder)), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.path(folder))

    def sweep(self, folders: Iterable[str]) -> None:
        """Deletes the temporary files that a killed writer left behind, in some local folders and right at the root."""
        if not self.is_local:
            return
        places = [(self.path(), os.listdir(self.path()))]
        places += [(where, names) for folder in folders for where, _, names in os.walk(self.path(folder))]
        for where, names in places:
            for name in names:
                if name.startswith(TEMPORARY):
                    with contextlib.suppress(OSError):
                        os.unlink(os.path.join(where, name))

    def read_yaml(self, name: str) -> Any:
        """Returns the content of a YAML file."""
        try:
            return yaml.load(self.read_bytes(name), Loader=_YAML_LOADER)
        except yaml.YAMLError as error:
            raise StoreError(f"{self.path(name)} is not readable YAML: {yaml_problem(error)}") from error

    def write_yaml(self, name: str, content: Any) -> None:
        """Writes plain values (numbers, strings, lists, mappings) as YAML, keys in the order given."""
        self.write_bytes(name, yaml.dump(content, Dumper=_YAML_DUMPER, sort_keys=False, allow_unicode=True).encode())

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Returns a Parquet file as a table; a local one is memory-mapped."""
        with storage_errors("read", self.path(name)):
            return pq.ParquetFile(self.path(name), filesystem=self.filesystem, memory_map=self.is_local).read(
                columns=columns
            )

    def write_table(self, name: str, table: pa.Table, compression: str = "zstd") -> None:
        """Writes a table as one Parquet file, in row groups of about 8 MB so that a few rows can be read alone."""
        sink = pa.BufferOutputStream()
        rows = max(1, len(table) * ROW_GROUP_BYTES // max(table.nbytes, 1))
        pq.write_table(table, sink, compression=compression, row_group_size=rows)
        self.write_bytes(name, memoryview(sink.getvalue()))

    def read_tensors(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Returns (tensors, metadata) of a safetensors file."""
        content = self.read_bytes(name)
        try:
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            return safetensors.torch.load(content), json.loads(header["__metadata__"]["raybal"])
        except (ValueError, KeyError, safetensors.SafetensorError) as error:
            raise StoreError(f"{self.path(name)} is not a file of tensors that raybal wrote: {error!r}") from error

    def write_tensors(self, name: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
        """Writes tensors as safetensors, with plain values as metadata in the same file."""
        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        self.write_bytes(name, safetensors.torch.save(contiguous, {"raybal": json.dumps(metadata)}))


def yaml_problem(error: Exception) -> str:
    """Returns what is wrong with a YAML file, and where, in one line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"{problem} in line {mark.line + 1}, column {mark.column + 1}" if mark else problem


_REASONS = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again, nothing is lost",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again, nothing is lost",
    errno.EROFS: "it is on a read-only file system; choose a folder that can be written",
    errno.EACCES: "permission denied; choose another place, or change its permissions",
    errno.ENOENT: "it does not exist",
}


@contextlib.contextmanager
def storage_errors(action: str, path: str) -> Iterator[None]:
    """Turns what storage refuses into a StoreError that says what was tried, where, and what to do."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        reason = _REASONS.get(getattr(error, "errno", None) or 0, str(error))
        raise StoreError(f"cannot {action} {path}: {reason}") from error
    except UnicodeDecodeError as error:
        raise StoreError(f"cannot {action} {path}: a file name in it is not UTF-8: {error.object!r}") from error
