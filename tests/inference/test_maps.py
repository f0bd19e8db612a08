import cv2
import numpy as np

from keras_pneumo.inference.maps import PackedMap, enlarge, quantise


def test_packed_maps_enlarge_as_probabilities():
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    quantised = PackedMap.of(quantise(ramp)).unpack()
    large = enlarge(quantised)
    assert large.shape == (1024, 1024)
    assert len(np.unique(large)) > 200, "there are levels between those of the small map"
    back = cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(back[:, 1:-1].astype(int) - quantised[:, 1:-1]).max() <= 1
