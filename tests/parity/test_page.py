"""The ladder's page."""

from ladder_lab import ladder, result

from keras_pneumo.parity.comparison import Difference
from keras_pneumo.parity.page import write_page


def test_the_page_is_offline_and_escapes(tmp_path):
    broken = Difference(1.0, 0.2, 0.2, first="<script>", worst="<script>", compared=9)
    page = write_page(tmp_path / "parity.html", ladder(result(), result(6, "Forward", "a", broken, None, "none")))
    text = page.read_text()
    assert "Can these two be compared?" in text
    assert "<script>" not in text
    assert "BROKEN" in text
    assert "http://" not in text
    assert "Research use only" in text
