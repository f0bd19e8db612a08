import json

import numpy as np
import pandas as pd
import pytest

from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.inference.postprocess import read_postprocessing
from keras_pneumo.inference.run import read_run
from keras_pneumo.inference.submission import predict_subset, write_predictions


@pytest.mark.parametrize("task", ["classifier", "segmenter"])
def test_an_ensemble_is_predicted_as_one_submission(tmp_path, tiny_runs, prepared_folder, task):
    run, prepared = read_run(tiny_runs / task), load_prepared(prepared_folder)
    written = write_predictions(predict_subset([run, run], prepared), tmp_path / "both")
    assert "2 runs" in json.loads((tmp_path / "both" / "submission.json").read_text())["team"]
    if task == "segmenter":
        assert written.search.parameters == read_postprocessing(tmp_path / "both" / "postprocess.json")
        assert (tmp_path / "both" / "postprocess.png").read_bytes()[:4] == b"\x89PNG"
        assert written.pixels.shape == (len(prepared.subset("test")), 2, 256)
        assert (written.pixels[:, 0].sum(axis=1) == 1024**2).all()
    write_predictions(predict_subset([run], prepared), tmp_path / "single")
    for name in ("predictions.csv", "validation.csv"):
        single, both = (pd.read_csv(tmp_path / folder / name) for folder in ("single", "both"))
        assert single["image_id"].tolist() == both["image_id"].tolist()
        np.testing.assert_allclose(single["probability"], both["probability"], atol=0.01)
