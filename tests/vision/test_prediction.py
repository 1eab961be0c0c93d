import numpy as np
import pytest
import torch

from clusterray.errors import InputError
from clusterray.schema import BLANK
from clusterray.vision import preprocess
from clusterray.vision.prediction import predict
from tests.vision.vision_nets import SIZE_PX, cutouts, planes_of, tiny

PIXELS, STEP, SIGMA, _ = cutouts(21)


def scores(model, rows=slice(None), pixels=PIXELS, **options):
    options = {"micro_batch": 8, "threads": 1} | options
    return predict(model, pixels[rows], step=STEP[rows], noise_sigma=SIGMA[rows], **options)


def test_agrees_with_the_network_row_by_row():
    model = tiny().eval()
    got = scores(model)
    for i in range(len(PIXELS)):
        image = preprocess.to_input(
            *(torch.from_numpy(a[i : i + 1]) for a in (PIXELS, STEP)),
            noise_sigma=torch.from_numpy(SIGMA[i : i + 1]),
            softening=3.0,
            size_px=SIZE_PX,
        )
        with torch.no_grad():
            for values, expected in zip(
                (got.logit, got.embedding, got.attention), model(image), strict=True
            ):
                np.testing.assert_allclose(values[i], expected[0].numpy(), atol=2e-6)
    assert {a.dtype for a in (got.logit, got.embedding, got.attention)} == {np.dtype("float32")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_does_not_depend_on_its_neighbours(dtype):
    model = tiny().eval()
    whole = scores(model, dtype=dtype)
    again = scores(model, dtype=dtype)
    np.testing.assert_array_equal(whole.logit, again.logit)
    # The last micro-batch holds five rows and padding: alone, and with other rows beside them.
    np.testing.assert_array_equal(whole.logit[16:], scores(model, slice(16, 21), dtype=dtype).logit)
    others = PIXELS.copy()
    others[np.arange(21) != 18] = 3000
    np.testing.assert_array_equal(
        whole.logit[18], scores(model, pixels=others, dtype=dtype).logit[18]
    )
    np.testing.assert_array_equal(
        whole.attention[18], scores(model, pixels=others, dtype=dtype).attention[18]
    )


def test_byte_planes_and_read_only_arrays_score_the_same():
    model = tiny().eval()
    planes = np.stack([planes_of(p) for p in PIXELS])
    planes.flags.writeable = False
    np.testing.assert_array_equal(
        scores(model).logit, scores(model, pixels=planes, size_px=SIZE_PX).logit
    )


def test_empty_row_group_and_empty_cutouts():
    model = tiny().eval()
    got = scores(model, slice(0, 0))
    assert (got.logit.shape, got.embedding.shape, got.attention.shape) == ((0,), (0, 24), (0, 16))
    blank = np.full_like(PIXELS, BLANK)
    assert np.isfinite(scores(model, pixels=blank).logit).all()


def test_bfloat16_is_near_float32():
    model = tiny().eval()
    difference = scores(model, dtype="bfloat16").logit - scores(model).logit
    assert 0 < np.abs(difference).max() < 0.02


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"pixels": PIXELS[:, :2]}, r"int16\[21, 2, 32, 32\].*trained on 3 bands"),
        ({"pixels": PIXELS.astype(np.int32)}, "int32"),
        ({"pixels": np.zeros((21, 2 * 3 * SIZE_PX**2), np.uint8)}, "size_px given"),
        ({"pixels": np.zeros((21, 100), np.uint8), "size_px": SIZE_PX}, r"uint8\[21, 100\]"),
        ({"step": STEP[:5]}, r"step has shape \(5, 3\) beside 21"),
    ],
)
def test_bad_input(change, match):
    given = {"pixels": PIXELS, "step": STEP, "noise_sigma": SIGMA, "micro_batch": 8} | change
    with pytest.raises(InputError, match=match):
        predict(tiny().eval(), given.pop("pixels"), **given)


def test_training_mode_is_refused():
    with pytest.raises(InputError, match="training mode"):
        scores(tiny().train())
