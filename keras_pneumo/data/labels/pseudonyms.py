"""Keyed pseudonyms: names of patients and studies that group images and that nobody can undo without the key.

In come hashes of PatientID and StudyInstanceUID, which stay in memory; out go HMAC-SHA256 of these (RFC 2104), under a
random key of 256 bits. A plain hash of a short number is undone by trying all numbers, a keyed one is not. The key of a
prepared folder lies in it as :data:`KEY_FILE`, readable by its owner alone, and goes nowhere else. A pseudonym carries
the first digits of its key's fingerprint (``patient-5d41402a-9f86d081884c7d65``), so that two tables tell whether their
patients can be compared. Earlier versions wrote plain hashes (``patient-9f86d081884c7d65``); these stay readable.

The key is random, so nothing may depend on it but the pseudonyms themselves: splits are drawn before they are put in,
and hashes and resamplings take :func:`key_free_names`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import cache_folder, create_secret

KEY_FILE = "pseudonym.key"
"""The key of a prepared folder, in it; that of this machine's user lies under the same name in the cache folder."""

_KEY_BYTES = 32
_SHOWN = 8
"""Digits of a key's fingerprint that a pseudonym carries."""

_KEYED = re.compile(rf"(?:patient|study)-([0-9a-f]{{{_SHOWN}}})-[0-9a-f]{{16}}")
_PLAIN = re.compile(r"(?:patient|study)-[0-9a-f]{16}")

PLAIN = "plain"
"""In place of a key's digits: the pseudonym is an earlier version's hash without a key."""


def patient_hash(patient_id_tag: str) -> str:
    """A name that images share whose files have the same PatientID; blank stays blank.

    It can be undone by trying, so it stays in memory: what is written is :meth:`PseudonymKey.pseudonym` of it.
    """
    return _hash("patient", patient_id_tag)


def study_hash(study_uid_tag: str) -> str:
    """A name that images of one study share, made of StudyInstanceUID; likewise."""
    return _hash("study", study_uid_tag)


def _hash(kind: str, tag: str) -> str:
    return f"{kind}-{hashlib.sha256(tag.encode()).hexdigest()[:16]}" if tag else ""


@dataclass(frozen=True)
class PseudonymKey:
    """The key of some pseudonyms."""

    secret: bytes = field(repr=False)
    """32 random bytes."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell this key from others and say nothing of it."""
        return hmac.new(self.secret, b"keras_pneumo pseudonym key", hashlib.sha256).hexdigest()[:16]

    def pseudonym(self, name: str) -> str:
        """The keyed pseudonym of a :func:`patient_hash` or :func:`study_hash`; blank stays blank."""
        if not name:
            return ""
        digest = hmac.new(self.secret, name.encode(), hashlib.sha256).hexdigest()
        return f"{name.partition('-')[0]}-{self.fingerprint[:_SHOWN]}-{digest[:16]}"


def key_of(pseudonym: str) -> str:
    """The digits of the key that a pseudonym was made with, :data:`PLAIN`, or blank when it is no pseudonym."""
    if match := _KEYED.fullmatch(pseudonym):
        return match[1]
    return PLAIN if _PLAIN.fullmatch(pseudonym) else ""


def key_free_names(image_ids: Iterable[str], patient_ids: Iterable[str]) -> list[str]:
    """Names of patients that are the same whatever the key: a keyed pseudonym becomes that of its first image.

    Args:
        image_ids: of the images, in any order.
        patient_ids: the patient of each. Names that are no keyed pseudonym are kept.

    Returns:
        A name for each image; two are equal where the patients are.
    """
    pairs = [(str(patient_id), str(image_id)) for image_id, patient_id in zip(image_ids, patient_ids, strict=True)]
    first: dict[str, str] = {}
    for patient_id, image_id in pairs:
        if _KEYED.fullmatch(patient_id):
            first[patient_id] = min(image_id, first.get(patient_id, image_id))
    return [f"patient of {first[patient_id]}" if patient_id in first else patient_id for patient_id, _ in pairs]


def incomparable(learned: Iterable[str], patient_ids: Iterable[str]) -> list[bool]:
    """Of each patient, whether it cannot be compared with some of the learned ones: both are pseudonyms of other keys.

    Args:
        learned: patients of the images that were learned from.
        patient_ids: the patients to compare with them.
    """
    keys = {key_of(name) for name in set(learned)} - {""}
    own = map(key_of, patient_ids)
    return [bool(key) and bool(keys - {key}) for key in own]


# -- Files of keys -----------------------------------------------------------------------------------------------------


def new_key() -> PseudonymKey:
    """A random key."""
    return PseudonymKey(secrets.token_bytes(_KEY_BYTES))


def read_key(path: Path) -> PseudonymKey:
    """The key in a file, or in a prepared folder.

    Raises:
        PneumoError: there is none, or it is damaged. The message does not quote it.
    """
    file = path / KEY_FILE if path.is_dir() else path
    try:
        text = file.read_bytes()[:1000].decode("ascii").strip()
        secret = bytes.fromhex(text)
    except OSError as error:
        raise PneumoError(
            f"The key of pseudonyms {file} cannot be read: {error.strerror}. Give the {KEY_FILE} of a prepared folder."
        ) from None
    except ValueError:
        secret = b""
    if len(secret) != _KEY_BYTES:
        raise PneumoError(
            f"{file} is no key of pseudonyms: one is {2 * _KEY_BYTES} hexadecimal digits. Give the {KEY_FILE} of a "
            "prepared folder."
        )
    return PseudonymKey(secret)


def write_key(folder: Path, key: PseudonymKey) -> None:
    """Write a key into a prepared folder that has none.

    Raises:
        PneumoError: the file cannot be written, or there is one already.
    """
    if not create_secret(folder / KEY_FILE, _text_of(key)):
        raise PneumoError(f"{folder / KEY_FILE} was written by another run meanwhile. Run the same command again.")


def _text_of(key: PseudonymKey) -> bytes:
    return f"{key.secret.hex()}\n".encode()


_user_keys: dict[Path, PseudonymKey] = {}
_user_lock = threading.Lock()


def user_key() -> PseudonymKey:
    """The key of this machine's user, for names of studies in answers; made at first use.

    It lies in the cache folder, so that answers of one machine agree on them while no folder of answers, which may be
    handed on, has a key. Where the cache folder cannot be written, the key lasts as long as the program.
    """
    folder = cache_folder()
    with _user_lock:
        if folder not in _user_keys:
            key = new_key()
            with contextlib.suppress(PneumoError):
                create_secret(folder / KEY_FILE, _text_of(key))
                key = read_key(folder)
            _user_keys[folder] = key
        return _user_keys[folder]
