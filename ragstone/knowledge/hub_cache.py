"""A data set's files in the cache of the hub's client: downloaded so that a stop costs nothing, checked, found again.

The client itself begins a file anew that it was stopped in, which for an index of 38 GB is hours. Here the part that
came is kept beside the others, and goes on. The layout is the client's: contents lie in blobs/, named by their SHA-256;
the snapshot of a commit has links to them; refs/main names the commit.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragstone.errors import InputError, LostError, one_line
from ragstone.knowledge.manifest import checksum
from ragstone.progress import ProgressBar, progress_bar

GB = 10**9
AGAIN = "run the same command again: it goes on where it stopped"


@dataclass(frozen=True)
class HubFile:
    """A file of the data set."""

    path: str
    """Within the repository."""
    size: int
    sha256: str


@dataclass(frozen=True)
class HubListing:
    """Files of one commit."""

    commit: str
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)


class HubCache:
    """A data set's place in the cache."""

    def __init__(self, repository: str) -> None:
        from huggingface_hub import constants

        self.repository = repository
        self.folder = Path(constants.HF_HUB_CACHE) / f"datasets--{repository.replace('/', '--')}"

    def snapshots(self) -> list[Path]:
        """The folders of the commits of which files were downloaded, the last one first; each may lack some."""
        reference = self.folder / "refs" / "main"
        if not reference.is_file():
            return []
        folders = sorted((self.folder / "snapshots").iterdir(), key=lambda folder: -folder.stat().st_mtime_ns)
        last = reference.read_text(encoding="utf-8").strip()
        return sorted(folders, key=lambda folder: folder.name != last)

    def ask(self, paths: Sequence[str]) -> HubListing:
        """Ask the hub for files, or all files in folders, named by their `paths`.

        Raises:
            LostError: the hub does not answer.
            InputError: it has none at one of `paths`.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import EntryNotFoundError

        with _told(f"The hub says nothing about {self.repository}"):
            api = HfApi()
            commit = str(api.dataset_info(self.repository).sha)
            files: list[HubFile] = []
            for path in paths:
                folder, is_file = (path, False) if "." not in Path(path).name else (str(Path(path).parent), True)
                try:
                    entries = list(api.list_repo_tree(self.repository, folder, revision=commit, repo_type="dataset"))
                except EntryNotFoundError:
                    entries = []
                found = [entry for entry in entries if not is_file or entry.path == path]
                if not found:
                    raise InputError(f"{self.repository} on the hub has nothing at {path}; it may have been moved.")
                files += [_hub_file(entry) for entry in found if hasattr(entry, "blob_id")]
        return HubListing(commit, tuple(files))

    def missing(self, listing: HubListing) -> int:
        """Bytes of a listing that are still to come."""
        return sum(file.size - self._there(file) for file in listing.files)

    def download(self, listing: HubListing) -> Path:
        """Download what is missing, check every file, and return the snapshot's folder.

        Raises:
            LostError: the hub has gone; what came is kept.
            InputError: there is no room, a file came damaged, or another process is at it.
        """
        with self._alone(), progress_bar("Downloading", listing.size) as bar:
            self._refuse_without_room(self.missing(listing))
            for file in listing.files:
                bar.note(Path(file.path).name)
                self._fetch(file, listing.commit, bar)
            snapshot = self.folder / "snapshots" / listing.commit
            for file in listing.files:
                _link(snapshot / file.path, self._blob(file))
            reference = self.folder / "refs" / "main"
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(listing.commit, encoding="utf-8")
        return snapshot

    def _fetch(self, file: HubFile, commit: str, bar: ProgressBar) -> None:
        """Bring one file and check it; one that is there is checked only."""
        blob, part = self._blob(file), self._part(file)
        bar.advance(self._there(file))
        if not blob.exists():
            self._bring(file, commit, part, bar)
        path = blob if blob.exists() else part
        if checksum(path) != file.sha256:
            path.unlink()
            raise InputError(f"{file.path} is damaged: it is not what the hub lists, and was removed; {AGAIN}.")
        if path == part:
            part.replace(blob)

    def _bring(self, file: HubFile, commit: str, part: Path, bar: ProgressBar) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        url = hf_hub_url(self.repository, file.path, repo_type="dataset", revision=commit)
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as target, _told(f"The hub has gone while {file.path} was coming"):
            if target.tell() > file.size:
                target.seek(0)
                target.truncate()
            http_get(
                url,
                _Watched(target, bar),  # type: ignore[arg-type]
                resume_size=target.tell(),
                headers=build_hf_headers(),
                expected_size=file.size,
            )

    def _there(self, file: HubFile) -> int:
        """Bytes of a file that have come."""
        for path in (self._blob(file), self._part(file)):
            if path.exists():
                return min(path.stat().st_size, file.size)
        return 0

    def _blob(self, file: HubFile) -> Path:
        return self.folder / "blobs" / file.sha256

    def _part(self, file: HubFile) -> Path:
        return self.folder / "blobs" / f"{file.sha256}.ragstone.incomplete"

    def _refuse_without_room(self, needed: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise InputError(
                f"{needed / GB:.1f} GB are still to come, but {self.folder} has room for {free / GB:.1f} GB; set "
                "HF_HUB_CACHE to a folder on a larger disk."
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else downloads the same within the with-block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".ragstone.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"Another process is downloading {self.repository}; wait until it is done.") from None
            yield


class _Watched:
    """A file that moves a bar as it is written."""

    def __init__(self, file: Any, bar: ProgressBar) -> None:
        self._file = file
        self._bar = bar

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: bytes) -> int:
        self._bar.advance(len(content))
        return int(self._file.write(content))


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Tell failures of the network in a sentence that begins with `what`."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    # The client's errors derive from those of the HTTP library beneath it, whichever that is.
    except HfHubHTTPError.__bases__ as error:  # type: ignore[misc]
        if getattr(error, "filename", None) is not None:
            raise
        reason = one_line(error, 200) or type(error).__name__
        raise LostError(f"{what} ({reason}); {AGAIN}.") from error


def _hub_file(entry: Any) -> HubFile:
    if entry.lfs is None:
        raise InputError(f"The hub lists no checksum for {entry.path}; the data set's layout is not the known one.")
    return HubFile(entry.path, int(entry.lfs.size), str(entry.lfs.sha256))


def _link(path: Path, blob: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(os.path.relpath(blob, path.parent))
    new.replace(path)
