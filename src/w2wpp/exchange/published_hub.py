"""The published files from the Hugging Face hub: the small ones and V.pt into its cache, the table read in place by ranges."""

import io
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from w2wpp.common.errors import W2WError
from w2wpp.common.hub import endpoint as hub_endpoint
from w2wpp.exchange.formats.published_places import DIMENSIONS, DOGS, IDENTITIES, SPACE, TABLES, Part
from w2wpp.exchange.formats.torch_files import TableFile

WANTED: dict[Part, tuple[str, ...]] = {
    "space": (*SPACE, DIMENSIONS, IDENTITIES),
    "people": (DIMENSIONS, IDENTITIES),
    "dogs": (DIMENSIONS, DOGS),
    "all": (*SPACE, DIMENSIONS, IDENTITIES),
}


def fetch_published(repo: str, part: Part = "all") -> tuple[Path, TableFile | None]:
    """Download what `import_published` needs of a repository -> the folder, and the table, which is read from the hub.

    Only the files of that part are fetched, with progress on stderr, and an interrupted download goes on where it stopped.
    The table is 26 GB: its rows are asked for by position, so that they are never on disk twice.
    Raises W2WError without a network, or for a repository without these files.
    """
    import huggingface_hub as hub
    from huggingface_hub import constants

    endpoint = hub_endpoint()
    try:
        info = hub.HfApi(endpoint=endpoint).model_info(repo, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        names = sorted(name for name in sizes if PurePosixPath(name).name in WANTED[part])
        tables = [name for name in sorted(sizes) if PurePosixPath(name).name == TABLES["dogs" if part == "dogs" else "people"]]
        if not names or (part in ("people", "dogs") and not tables):
            raise W2WError(f"{repo} holds no published files of --part {part}; it has {', '.join(sorted(sizes)[:3]) or 'none'}.")
        total = sum(sizes[name] for name in names) / 1e9
        print(f"{repo}: {len(names)} files, {total:.2f} GB, into {constants.HF_HUB_CACHE}", file=sys.stderr)
        folder = Path(hub.snapshot_download(repo, revision=info.sha, allow_patterns=names, endpoint=endpoint))
        wants_table = part in ("people", "dogs", "all")
        if not (tables and wants_table):
            return folder, None
        print(f"{repo}: {tables[0]}, {sizes[tables[0]] / 1e9:.2f} GB, is read from the hub row by row", file=sys.stderr)
        url = hub.hf_hub_url(repo, tables[0], revision=info.sha, endpoint=endpoint)
        size = sizes[tables[0]]
        return folder, TableFile.open(Path(PurePosixPath(repo, tables[0])), opened=lambda: io.BufferedReader(HubFile(url, size), 2**16))
    except W2WError:
        raise
    except Exception as error:  # the hub's own, its HTTP library's, and the system's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise W2WError(f"cannot fetch {repo} from {endpoint}: {reason} Is the network there, and the name right?") from error


class HubFile(io.RawIOBase):
    """A file of the hub, read by ranges; a broken connection is tried again."""

    def __init__(self, url: str, size: int) -> None:
        self.url, self.size, self._at = url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        from huggingface_hub.utils._headers import build_hf_headers
        from huggingface_hub.utils._http import http_backoff

        view = memoryview(buffer).cast("B")
        last = min(self._at + len(view), self.size) - 1
        if last < self._at:
            return 0
        headers = {**build_hf_headers(), "Range": f"bytes={self._at}-{last}"}
        answer = http_backoff("GET", self.url, headers=headers, follow_redirects=True)
        answer.raise_for_status()
        found = answer.content
        if len(found) != last - self._at + 1:
            raise W2WError(f"{self.url} answered with {len(found)} bytes for {last - self._at + 1}. Try again.")
        view[: len(found)] = found
        self._at += len(found)
        return len(found)
