"""The control path without models, at a small size."""

import pytest

from tools.scale import control_path as scale


@pytest.mark.slow
def test_every_image_is_streamed_once_and_every_candidate_is_judged():
    found = scale.in_own_process(600)
    # Of 600 images in six domains of 100, five are sources; of each, 80 train.
    assert found["trained_on"] == 400
    assert found["candidates"] == 800
    assert (
        400 <= found["accepted"] < 800
    )  # every third concludes wrongly, and each image has one that does not
    assert found["driver_peak_mb"] == max(found["peak_mb"].values())
    assert list(found["seconds"]) == ["start", "ingest", "split", "stream", "filter"]
