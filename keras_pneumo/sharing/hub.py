"""Packages on a hub of models (huggingface.co, or the one that ``HF_ENDPOINT`` names), by huggingface_hub.

``hf://OWNER/NAME`` names a repository, ``hf://OWNER/NAME@REVISION`` a commit, tag or branch of it. What is pushed is a
package; what is fetched is taken from one commit, copied into this user's cache, checked against the package's list,
and from then on read from there: a commit never changes. Who may read or write is the hub's matter: ``hf auth login``,
or the variable ``HF_TOKEN``.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from keras_pneumo.errors import PneumoError
from keras_pneumo.sharing.archive import unpacked
from keras_pneumo.sharing.package import LIST, Package, read_list, read_package
from keras_pneumo.storage.files import cache_folder, file_lock
from keras_pneumo.storage.tables import one_line

_ADDRESS = re.compile(
    r"hf:/{1,2}(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w][\w./-]{0,99}))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Address(NamedTuple):
    """A repository on the hub, and a revision of it."""

    repo: str
    revision: str = ""
    """Commit, tag or branch; blank for the newest."""

    def __str__(self) -> str:
        """``hf://OWNER/NAME@REVISION``."""
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision else "")


def is_address(text: str | Path) -> bool:
    """Whether this is meant as a name on the hub (as a Path it has lost a slash)."""
    return str(text).startswith("hf:/")


def read_address(text: str | Path) -> Address:
    """Read ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``.

    Raises:
        PneumoError: it is neither.
    """
    match = _ADDRESS.fullmatch(str(text))
    if match is None:
        raise PneumoError(
            f"{one_line(str(text))} is no name on a hub. Write hf://OWNER/NAME, or hf://OWNER/NAME@REVISION."
        )
    return Address(match["repo"], match["revision"] or "")


def received(place: str | Path) -> tuple[Path, str]:
    """The folder of a run or a detector that is named by its folder, its zip or its address on a hub.

    A zip and a hub's package are unpacked in this user's cache, and checked each time; see :func:`is_received`.

    Returns:
        The folder, and the address of the commit that was fetched; blank where nothing was.

    Raises:
        PneumoError: as :func:`fetch` and :func:`.archive.unpacked`.
    """
    if is_address(place):
        package, address = fetch(read_address(place))
        return package.folder, str(address)
    if Path(place).suffix == ".zip" and not Path(place).is_dir():
        return unpacked(Path(place)), ""
    return Path(place), ""


def is_received(folder: Path) -> bool:
    """Whether :func:`received` unpacked this folder; nothing may be written into it, or it is no longer its list's."""
    return (folder / LIST).is_file() and folder.resolve().is_relative_to(cache_folder().resolve())


def push(package: Package, address: Address, public: bool = False) -> Address:
    """Upload a package as one commit; a repository that does not exist is made.

    Args:
        package: what to upload. Files of an earlier package that this one lacks are removed.
        address: where to.
        public: whether a new repository can be read by everybody; an existing one stays as it is.

    Returns:
        The address of the commit.

    Raises:
        PneumoError: the hub refuses or cannot be reached.
    """
    if address.revision:
        raise PneumoError(f"{address} names a revision, which is never changed. Leave out @{address.revision}.")
    hub = require_library()
    with _asked(hub, address):
        api = _api(hub)
        api.create_repo(address.repo, private=not public, exist_ok=True)
        there = set(api.list_repo_files(address.repo)) - {".gitattributes"}
        names = [LIST, *package.files]
        added = [hub.CommitOperationAdd(name, str(package.folder / name)) for name in names]
        removed = [hub.CommitOperationDelete(name) for name in sorted(there - set(names))]
        # Not upload_folder, which may upload in several commits: a record would stand beside the weights of another.
        commit = api.create_commit(address.repo, [*added, *removed], commit_message=f"{package.kind} {package.name}")
    return address._replace(revision=str(commit.oid))


def fetch(address: Address) -> tuple[Package, Address]:
    """Fetch a package: from this user's cache where the commit is there, else from the hub.

    Returns:
        The package, checked, and the address of its commit.

    Raises:
        PneumoError: the hub refuses or cannot be reached, or what it has is no whole package.
    """
    if _COMMIT.fullmatch(address.revision) and (_folder_of(address) / LIST).is_file():
        return read_package(_folder_of(address)), address
    hub = require_library()
    with _asked(hub, address):
        info = _api(hub).model_info(address.repo, revision=address.revision or None)
    pinned = address._replace(revision=str(info.sha))
    if not _COMMIT.fullmatch(pinned.revision):
        raise PneumoError(f"The hub names no commit of {address}. Name one: hf://{address.repo}@COMMIT.")
    folder = _folder_of(pinned)
    with file_lock(folder):
        if (folder / LIST).is_file():
            return read_package(folder), pinned
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            package = _download(hub, pinned, Path(temporary))
            shutil.rmtree(folder, ignore_errors=True)
            package.folder.rename(folder)
    return replace(package, folder=folder), pinned


def _download(hub: ModuleType, pinned: Address, temporary: Path) -> Package:
    """Put the listed files of a commit into a folder of ``temporary``, and check them."""
    whole = temporary / "whole"
    where: dict[str, Any] = {"revision": pinned.revision, "local_dir": whole}
    api = _api(hub)
    with _asked(hub, pinned):
        try:
            api.hf_hub_download(pinned.repo, LIST, **where)
            files = read_list((whole / LIST).read_bytes(), f"{LIST} of {pinned}").files
            api.snapshot_download(pinned.repo, allow_patterns=sorted(files), **where)
        except hub.errors.RemoteEntryNotFoundError:
            raise PneumoError(
                f"{pinned} is no package of keras-pneumo: it has no {LIST}. Check the name, or push a run or a "
                "detector."
            ) from None
    shutil.rmtree(whole / ".cache", ignore_errors=True)  # the library's own notes
    return read_package(whole, Path(str(pinned)))


def _folder_of(address: Address) -> Path:
    """Where a commit lies in this user's cache."""
    return cache_folder() / "hub" / address.repo.replace("/", "--") / address.revision


def _api(hub: ModuleType) -> Any:
    """The hub that HF_ENDPOINT names now; the library reads the variable when it is imported, and never again."""
    return hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="keras_pneumo")


def require_library() -> ModuleType:
    """huggingface_hub, imported.

    Raises:
        PneumoError: it is not installed.
    """
    if find_spec("huggingface_hub") is None:
        raise PneumoError("This needs huggingface_hub, which is not installed. Run: pip install 'keras-pneumo[hub]'")
    return importlib.import_module("huggingface_hub")


@contextlib.contextmanager
def _asked(hub: ModuleType, address: Address) -> Iterator[None]:
    """Turn whatever the library raises within this context into a sentence."""
    try:
        yield
    except PneumoError:
        raise
    except Exception as error:
        raise _refusal(hub, address, error) from error


def _refusal(hub: ModuleType, address: Address, error: Exception) -> PneumoError:
    """What the library's error means, in a sentence."""
    errors = hub.errors
    if isinstance(error, errors.RevisionNotFoundError):
        return PneumoError(f"hf://{address.repo} has no revision {address.revision}. Check the name after the @.")
    if isinstance(error, errors.RepositoryNotFoundError | errors.GatedRepoError):
        return PneumoError(f"The hub has no {address}, or you may not see it. Check the name, and run hf auth login.")
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
        return PneumoError(
            f"The hub does not let you write or read {address}. Log in with hf auth login, or set HF_TOKEN to a token "
            "that may."
        )
    reason = one_line(str(error).split("\n")[0] or type(error).__name__, 160)
    return PneumoError(
        f"The hub did not answer for {address} ({reason}). Check the network and HF_ENDPOINT, and run the same command "
        "again."
    )
