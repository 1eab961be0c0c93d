import json
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from numba.core import config
from numba.core.codegen import get_host_cpu_features

from clusterray.compilation import njit

LOOK = """
import json
import clusterray.features.kernels
from numba.core.registry import cpu_target
print(json.dumps(cpu_target.target_context.codegen().magic_tuple()))
"""


def test_loops_are_compiled_for_all_of_a_wide_register():
    if "+avx512f" not in get_host_cpu_features().split(","):
        pytest.skip("no AVX-512 here")
    assert get_host_cpu_features() + ",-prefer-256-bit" == config.CPU_FEATURES


def test_features_that_the_user_names_stand():
    asked = "+sse2,+avx2"
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        env={**os.environ, "NUMBA_CPU_FEATURES": asked}, check=True, capture_output=True,
    )  # fmt: skip
    assert json.loads(done.stdout)[-1] == asked


def test_without_a_place_for_what_is_compiled_it_is_compiled_all_the_same(monkeypatch):
    def plain(function, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda *given: ("not kept", function(*given))

    monkeypatch.setattr(numba, "njit", lambda **o: lambda f: plain(f, **o))
    assert njit(nogil=True)(np.add)(1, 2) == ("not kept", 3)
