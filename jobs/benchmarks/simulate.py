"""Rendering lenses: ours against a straight lenstronomy rendering of the same scenes.

The baseline is lenstronomy's `ImageModel`, band by band, with all profiles, source planes and
galaxies of the scene, the same supersampling and the same PSF; each scene's deflection is computed
anew by both, and CPU seconds of one core count. `ImageModel` takes one value a sample, which misses
the cusps of small galaxies, so the images of both are held to a third: lenstronomy's profiles and
deflections, integrated finely (one band of one scene, for it takes a minute). Beside it: the rate
of whole systems, with all draws that cuts removed, truth and noise, of lenses alone and of the
recipe's mix.
"""

import argparse
import os
from dataclasses import replace
from time import process_time
from typing import Any

import numpy as np
import numpy.typing as npt
from lenstronomy.Data.imaging_data import ImageData
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from scipy import fft

from clusterray.config import SurveySettings
from clusterray.simulate import halo, observe, population, recipe, scene, sersic
from clusterray.simulate.cutouts import CutoutMaker
from clusterray.simulate.galaxies import Galaxies
from clusterray.simulate.system import System
from clusterray.sky import surveys
from jobs.benchmarks.result import Result

__all__ = ["add_arguments", "measure"]

_SEED = 20260401
_MIN_RATE, _MIN_RATIO, _MAX_DIFFERENCE = 8.0, 2.0, 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen."""
    parser.add_argument("--systems", type=int, default=12, help="lenses to render by both")
    parser.add_argument("--mix", type=int, default=100, help="systems of the recipe's mix")
    parser.add_argument("--size-px", type=int, default=128)
    parser.add_argument("--pixel-scale", type=float, default=0.5)


def measure(options: argparse.Namespace) -> Result:
    """Render every scene by both in turn, then make whole systems."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    settings = SurveySettings(
        name="hsc", size_px=options.size_px, pixel_scale_arcsec=options.pixel_scale
    )
    maker = CutoutMaker(surveys.resolve(settings), recipe.load(), _SEED)
    maker.make("1", "lens")
    seconds: dict[str, list[float]] = {"ours": [], "straight": []}
    last = len(maker.survey.bands) - 1
    for k in range(options.systems):
        # Without stars: lenstronomy draws points between samples, we share them among four.
        system = replace(maker.draw(f"{k + 1}", "lens").system, stars=None)
        start = process_time()
        found = _rendered(system, maker)
        seconds["ours"].append(process_time() - start)
        start = process_time()
        coarse = [_straight(system, maker, b) for b in range(last + 1)]
        seconds["straight"].append(process_time() - start)
    fine = _integrated(system, maker, last)
    differences = {
        name: float(np.abs(image - fine).max() / fine.max())
        for name, image in (("ours", found[last]), ("straight", coarse[last]))
    }
    lens_rate = _rate(maker, ["lens"] * options.systems)
    mix = [population.kind_of(i, seed=_SEED, recipe=maker.recipe) for i in range(options.mix)]
    rates = {name: 1 / float(np.median(taken)) for name, taken in seconds.items()}
    return _result(rates, differences, lens_rate, _rate(maker, mix), maker)


def _rendered(system: System, maker: CutoutMaker) -> npt.NDArray[np.float32]:
    """Ours, its deflection computed anew."""
    fresh = replace(system, foreground=replace(system.foreground, _planes={}))
    exposures = maker.exposures(system.object_id)
    canvas = scene.paint(fresh, maker.frame, n_bands=len(exposures))
    return scene.image_of(canvas, fresh, maker.frame, exposures, maker.recipe.observation)


def _galaxies(system: System) -> tuple[Galaxies, Galaxies, list[float]]:
    """What is not lensed, what is, and the scale of the latter's deflection."""
    lens = system.foreground
    assert system.background is not None
    assert system.field is not None
    hidden = system.field.z > lens.z_lens
    behind = Galaxies.join(system.background.light, system.field.take(hidden))
    front = Galaxies.join(lens.icl, lens.members, system.field.take(~hidden))
    scale = [
        halo.distance_ratio(lens.z_lens, float(z))
        / halo.distance_ratio(lens.z_lens, lens.deflector.z_source)
        for z in behind.z
    ]
    return front, behind, scale


def _straight(system: System, maker: CutoutMaker, band: int) -> npt.NDArray[np.float64]:
    """(size, size) nJy per pixel: one band of the scene by lenstronomy."""
    frame, lens = maker.frame, system.foreground
    front, behind, scale = _galaxies(system)
    k = frame.supersampling
    n = frame.n_samples // frame.supersampling
    edge = -(n - 1) / 2 * frame.pixel_arcsec
    model = ImageModel(
        ImageData(
            image_data=np.zeros((n, n)),
            ra_at_xy_0=edge,
            dec_at_xy_0=edge,
            transform_pix2angle=np.eye(2) * frame.pixel_arcsec,
        ),
        PSF(
            psf_type="PIXEL",
            kernel_point_source=_kernel(maker.exposures(system.object_id)[band], maker),
            point_source_supersampling_factor=k,
            kernel_point_source_normalisation=True,
        ),
        lens_model_class=LensModel(list(lens.deflector.profiles)),
        source_model_class=LightModel(
            ["SERSIC_ELLIPSE"] * len(behind), deflection_scaling_list=scale
        ),
        lens_light_model_class=LightModel(["SERSIC_ELLIPSE"] * len(front)),
        kwargs_numerics={"supersampling_factor": k, "supersampling_convolution": True},
    )
    parameters = list(lens.deflector.parameters)
    image = model.image(parameters, _profiles(behind, band), _profiles(front, band))
    return np.asarray(image[frame.kept(), frame.kept()])


def _profiles(galaxies: Galaxies, band: int) -> list[dict[str, float]]:
    """Lenstronomy's parameters, with the amplitude that puts all flux inside our truncation."""
    flux = observe.flux_njy(galaxies.mag[:, band])
    amplitude = sersic.amplitudes(galaxies) * flux
    return [
        {
            "amp": float(amplitude[k]),
            "R_sersic": float(galaxies.r_eff_arcsec[k]),
            "n_sersic": float(galaxies.n_sersic[k]),
            **halo.ellipticity(float(galaxies.axis_ratio[k]), float(galaxies.angle_rad[k])),
            "center_x": float(galaxies.x_arcsec[k]),
            "center_y": float(galaxies.y_arcsec[k]),
        }
        for k in range(len(galaxies))
    ]


def _kernel(exposure: observe.Exposure, maker: CutoutMaker) -> npt.NDArray[np.float64]:
    """Our PSF as an odd kernel of samples, 10″ wide."""
    size = 2 * int(5.0 / maker.frame.step_arcsec)
    transfer = observe.optical_transfer(
        exposure,
        maker.recipe.observation,
        shape=(size, size),
        step_arcsec=maker.frame.step_arcsec,
        pixel_arcsec=maker.frame.pixel_arcsec,
    )
    kernel = np.clip(np.fft.fftshift(fft.irfft2(transfer, s=(size, size)))[1:, 1:], 0, None)
    return np.asarray(kernel / kernel.sum(), np.float64)


def _integrated(system: System, maker: CutoutMaker, band: int) -> npt.NDArray[np.float64]:
    """(size, size) nJy per pixel: one band, each sample from 4² rays, or 48² about a centre."""
    frame = maker.frame
    front, behind, scale = _galaxies(system)
    model = LensModel(list(system.foreground.deflector.profiles))
    parameters = list(system.foreground.deflector.parameters)
    light = LightModel(["SERSIC_ELLIPSE"])
    x, y = (v.ravel()[:, None] for v in np.meshgrid(frame.axis_arcsec, frame.axis_arcsec))
    few, many = (_parts(n, frame.step_arcsec) for n in (4, 48))
    places = np.stack([x + few[0], y + few[1]])
    alpha = np.reshape(model.alpha(*places.reshape(2, -1), parameters), places.shape)
    total = np.zeros(len(x))
    galaxies = [*_profiles(front, band), *_profiles(behind, band)]
    for profile, s in zip(galaxies, [*([0.0] * len(front)), *scale], strict=True):
        rays = places - s * alpha
        part = light.surface_brightness(*rays.reshape(2, -1), [profile])
        part = part.reshape(rays.shape[1:]).mean(axis=1)
        centre = np.array([profile["center_x"], profile["center_y"]])[:, None, None]
        apart = np.hypot(*(rays[:, :, 1:] - rays[:, :, :-1])).max(axis=1)
        core = np.hypot(*(rays - centre)).min(axis=1) < 2 * apart
        fine = np.stack([x[core] + many[0], y[core] + many[1]])
        bent = np.reshape(model.alpha(*fine.reshape(2, -1), parameters), fine.shape) if s else 0.0
        rays = fine - s * bent
        part[core] = (
            light.surface_brightness(*rays.reshape(2, -1), [profile])
            .reshape(rays.shape[1:])
            .mean(axis=1)
        )
        total += part
    canvas = (total * frame.step_arcsec**2).reshape(1, frame.n_samples, frame.n_samples)
    image = observe.blur(
        canvas.astype(np.float32),
        maker.exposures(system.object_id)[band : band + 1],
        maker.recipe.observation,
        step_arcsec=frame.step_arcsec,
        supersampling=frame.supersampling,
    )[0]
    return np.asarray(image[frame.kept(), frame.kept()], np.float64)


def _parts(n: int, step_arcsec: float) -> npt.NDArray[np.float64]:
    """(2, n²) offsets of equal parts of a sample from its middle."""
    one = ((np.arange(n) + 0.5) / n - 0.5) * step_arcsec
    return np.stack([np.tile(one, n), np.repeat(one, n)])


def _rate(maker: CutoutMaker, kinds: list[str]) -> float:
    """Whole systems a second: draws, truth, rendering, noise."""
    start = process_time()
    for k, kind in enumerate(kinds):
        maker.make(f"{1000 + k}", kind)
    return len(kinds) / (process_time() - start)


def _result(
    rates: dict[str, float],
    differences: dict[str, float],
    lens_rate: float,
    mix_rate: float,
    maker: CutoutMaker,
) -> Result:
    value, baseline = rates["ours"], rates["straight"]
    print(f"rendering one lens: ours {1e3 / value:.0f} ms, lenstronomy {1e3 / baseline:.0f} ms")
    for name, difference in differences.items():
        print(
            f"largest difference to the integrated scene, {name}: {100 * difference:.2f} % of peak"
        )
    print(f"whole systems: {lens_rate:.1f} lenses/s, {mix_rate:.1f}/s of the recipe's mix")
    detail: dict[str, Any] = {
        "bands": maker.survey.band_names,
        "size_px": maker.frame.size_px,
        "supersampling": maker.frame.supersampling,
        "max_difference_over_peak": differences,
        "whole_lenses_per_s": lens_rate,
        "whole_mix_per_s": mix_rate,
        "recipe": maker.recipe.digest(),
        "goals": {
            f"rendering ≥ {_MIN_RATE:g}/s": value >= _MIN_RATE,
            f"rendering ≥ {_MIN_RATIO:g} × baseline": value / baseline >= _MIN_RATIO,
            f"difference ≤ {100 * _MAX_DIFFERENCE:g} % of peak": differences["ours"]
            <= _MAX_DIFFERENCE,
            f"whole lenses ≥ {_MIN_RATE:g}/s": lens_rate >= _MIN_RATE,
        },
    }
    return Result(value=value, baseline=baseline, unit="systems/s", detail=detail)
