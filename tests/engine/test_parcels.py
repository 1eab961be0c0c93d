import pickle

import numpy as np
import pyarrow as pa
import pytest

from clusterray.engine.parcels import Parcel, pack, unpack

RNG = np.random.default_rng(3)


def parcel(unit, n, *, width=40, planes=True):
    data = pa.table({"object_id": [f"{unit}-{i}" for i in range(n)], "x": RNG.normal(size=n)})
    reject = {"object_id": "a", "stage": "s", "reason": "r", "retryable": False}
    image = RNG.integers(0, 255, (n, width)).astype(np.uint8) if planes else None
    return Parcel(unit, data, [reject] * (unit % 2), {"read": 0.5}, image)


def same(one, other):
    assert (one.unit, list(one.rejects), one.seconds) == (other.unit, other.rejects, other.seconds)
    assert one.data.equals(other.data)
    if one.planes is None:
        assert other.planes is None
    else:
        np.testing.assert_array_equal(one.planes.ravel(), other.planes.ravel())
        assert len(one.planes) == len(other.planes)


@pytest.mark.parametrize("sizes", [(5,), (0,), (3, 0, 7)])
@pytest.mark.parametrize("planes", [True, False])
def test_parcels_come_out_as_they_went_in(sizes, planes):
    parcels = [parcel(k, n, planes=planes) for k, n in enumerate(sizes)]
    table = pack(parcels)
    assert table.num_rows == len(sizes)
    for one, other in zip(parcels, unpack(table), strict=True):
        same(one, other)


def test_parcels_survive_slicing_joining_and_pickling():
    parcels = [parcel(k, 4, planes=k != 2) for k in range(4)]
    whole = pack(parcels)
    joined = pa.concat_tables([whole.slice(2), whole.slice(0, 2)]).combine_chunks()
    travelled = pickle.loads(pickle.dumps(joined, protocol=5))
    for one, other in zip([*parcels[2:], *parcels[:2]], unpack(travelled), strict=True):
        same(one, other)


def test_pixels_are_never_copied():
    """Addresses stay: into the table, out of it, and out of band through pickle, as Ray does it."""
    before = parcel(0, 64, width=4096)
    at = before.planes.__array_interface__["data"][0]
    table = pack([before])
    assert table.column("planes").chunk(0).buffers()[2].address == at
    assert unpack(table)[0].planes.__array_interface__["data"][0] == at
    buffers = []
    pickled = pickle.dumps(table, protocol=5, buffer_callback=buffers.append)
    assert len(pickled) < 5000
    again = pickle.loads(pickled, buffers=[b.raw() for b in buffers])
    assert unpack(again)[0].planes.__array_interface__["data"][0] == at
