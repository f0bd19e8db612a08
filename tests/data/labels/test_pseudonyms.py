"""Keyed pseudonyms: RFC 2104 by its definition, keys in files, and what is the same for every key."""

import hashlib
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_pneumo.data.labels import pseudonyms
from keras_pneumo.data.labels.pseudonyms import (
    KEY_FILE,
    PLAIN,
    PseudonymKey,
    incomparable,
    key_free_names,
    key_of,
    new_key,
    patient_hash,
    read_key,
    study_hash,
    user_key,
    write_key,
)
from keras_pneumo.errors import PneumoError

KEY = PseudonymKey(bytes(range(32)))


def hmac_by_hand(key, message):
    """HMAC-SHA256 as RFC 2104 defines it, for keys of up to 64 bytes."""
    padded = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded) + message).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in padded) + inner).hexdigest()


def test_a_pseudonym_is_the_hmac_and_names_its_key():
    name = patient_hash("MRN 4711")
    fingerprint = hmac_by_hand(KEY.secret, b"keras_pneumo pseudonym key")[:16]
    assert KEY.fingerprint == fingerprint
    assert KEY.pseudonym(name) == f"patient-{fingerprint[:8]}-{hmac_by_hand(KEY.secret, name.encode())[:16]}"
    assert KEY.pseudonym(study_hash("1.2.3")).startswith(f"study-{fingerprint[:8]}-")
    assert KEY.pseudonym("") == patient_hash("") == study_hash("") == ""


def test_row_40_no_number_can_be_tried_without_the_key():
    """Five digits were found in 0.1 s. All of them, by every hash that needs no key."""
    found = KEY.pseudonym(patient_hash("04711"))[-16:]
    for number in range(100_000):
        name = f"{number:05}"
        digests = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (name, patient_hash(name)))
        assert found not in (patient_hash(name)[-16:], *digests)
    assert found != new_key().pseudonym(patient_hash("04711"))[-16:], "not in the key's own digits alone"
    assert found == PseudonymKey(bytes(range(32))).pseudonym(patient_hash("04711"))[-16:]


def test_neither_key_nor_tag_is_shown():
    assert "00" * 3 not in repr(KEY)
    assert KEY.secret.hex()[:12] not in repr(KEY) + KEY.fingerprint
    assert "4711" not in KEY.pseudonym(patient_hash("MRN 4711"))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (KEY.pseudonym(patient_hash("a")), KEY.fingerprint[:8]),
        (patient_hash("a"), PLAIN),
        ("patient00017", ""),
        ("00002563", ""),
        ("image-1.2.3", ""),
        ("patient-1", ""),
        ("", ""),
    ],
)
def test_a_name_shows_which_key_it_has(name, key):
    assert key_of(name) == key


def test_patients_of_other_keys_cannot_be_compared():
    other = new_key()
    mine, theirs, plain = (make(patient_hash("a")) for make in (KEY.pseudonym, other.pseudonym, str))
    assert incomparable([mine], [mine, theirs, plain, "p1", ""]) == [False, True, True, False, False]
    assert incomparable([plain], [plain, mine]) == [False, True]
    assert incomparable([mine, plain], [mine]) == [True]
    assert incomparable(["p1", "00002563", ""], [mine, plain]) == [False, False]


@given(
    rows=st.dictionaries(st.text("0123456789.", min_size=1, max_size=4), st.sampled_from("abcde"), min_size=1),
    secret=st.binary(min_size=32, max_size=32),
)
def test_key_free_names_group_as_the_patients_do_whatever_the_key(rows, secret):
    def named(key):
        return key_free_names(list(rows), [key.pseudonym(patient_hash(name)) for name in rows.values()])

    assert named(PseudonymKey(secret)) == named(KEY)
    pairs = set(zip(named(KEY), rows.values(), strict=True))
    assert len(pairs) == len(set(named(KEY))) == len(set(rows.values()))


def test_key_free_names_leave_other_names():
    names = ["p1", patient_hash("a"), "image-x", KEY.pseudonym(patient_hash("a"))]
    assert key_free_names("cbad", names) == [*names[:3], "patient of d"]


def test_a_key_file_is_its_owners_alone_and_read_again(tmp_path):
    key = new_key()
    write_key(tmp_path, key)
    assert read_key(tmp_path) == read_key(tmp_path / KEY_FILE) == key
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]
    with pytest.raises(PneumoError, match="written by another run meanwhile"):
        write_key(tmp_path, new_key())
    assert read_key(tmp_path) == key


@pytest.mark.parametrize("content", [b"", b"secret words", b"ab" * 16, b"ab" * 33, b"\xff" * 64, b"zz" * 32])
def test_what_is_no_key_is_refused_without_quoting_it(tmp_path, content):
    (tmp_path / KEY_FILE).write_bytes(content)
    with pytest.raises(PneumoError, match="is no key of pseudonyms") as refused:
        read_key(tmp_path)
    assert not content or content.decode("latin-1") not in str(refused.value)


def test_a_missing_key_is_named(tmp_path):
    with pytest.raises(PneumoError, match="cannot be read: No such file"):
        read_key(tmp_path)


def test_a_user_has_one_key_for_studies(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_PNEUMO_CACHE", str(tmp_path / "cache"))
    first = user_key()
    assert stat.S_IMODE((tmp_path / "cache" / KEY_FILE).stat().st_mode) == 0o600
    monkeypatch.setattr(pseudonyms, "_user_keys", {})  # as another process
    assert user_key() == first == read_key(tmp_path / "cache")
    monkeypatch.setenv("KERAS_PNEUMO_CACHE", str(tmp_path / "other"))
    assert user_key() != first


def test_without_a_cache_the_key_lasts_as_long_as_the_program(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KERAS_PNEUMO_CACHE", str(tmp_path / "file"))
    assert user_key() == user_key()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
