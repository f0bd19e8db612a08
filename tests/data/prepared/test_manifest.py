"""What is refused of a manifest: impossible values, also where its hashes fit."""

import json
import shutil

import pytest

from keras_pneumo.data.prepared.manifest import read_manifest
from keras_pneumo.errors import PneumoError


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"synthetic": "no"}, "synthetic: .* valid boolean"),
        ({"sizes": [-64]}, r"sizes\.0: .* greater than or equal to 1"),
        ({"sizes": [True]}, r"sizes\.0: .* valid integer"),
        ({"files": {"a": 3}}, r"files\.a: .* valid string"),
        ({"files": {"../../x": "0" * 64}}, "outside of the folder"),
        ({"files": {"/etc/passwd": "0" * 64}}, "outside of the folder"),
        ({"vanished": {"64": 3}}, r"vanished\.64: "),
        ({"notes": "x"}, "notes: "),
    ],
)
def test_row_43_impossible_values_are_refused_in_a_sentence(prepared_folder, tmp_path, change, words):
    shutil.copy(prepared_folder / "manifest.json", tmp_path)
    manifest = read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(PneumoError, match=words) as refused:
        read_manifest(tmp_path)
    assert "Run keras-pneumo prepare DATA" in str(refused.value)


def test_row_43_a_manifest_that_is_nested_too_deeply_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(PneumoError, match="is damaged"):
        read_manifest(tmp_path)
