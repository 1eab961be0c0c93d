"""Which systems a survey holds, each a function of (seed, object_id) and its class."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clusterray.errors import InputError, RunError, did_you_mean
from clusterray.provenance import seed_for, uniform_for
from clusterray.simulate import halo, images, negatives
from clusterray.simulate.observe import flux_counts, noise_sigma
from clusterray.simulate.scene import trace
from clusterray.simulate.system import (
    KINDS,
    Foreground,
    Recipe,
    System,
    draw_background,
    draw_foreground,
)

__all__ = ["draw", "kinds", "multiply_imaged", "object_id_of"]

_GRID_ARCSEC: Final = 0.336


def object_id_of(index: int) -> str:
    """Name the system of an index: its MEM_MATCH_ID, counted from 1."""
    return str(index + 1)


def kinds(n_clusters: int, n_lenses: int, *, seed: int, recipe: Recipe) -> tuple[str, ...]:
    """(n_clusters,) the class of each index: exactly `n_lenses` lenses, scattered by the seed.

    Shares of the other classes are rounded down; clusters alone fill up.
    """
    rest = n_clusters - n_lenses
    counts = {"lens": n_lenses}
    counts |= {k: int(getattr(recipe, k) * rest) for k in ("marginal", "lens_off", "double")}
    names = [kind for kind, n in counts.items() for _ in range(n)]
    names += ["cluster"] * (n_clusters - len(names))
    order = uniform_for(seed, [object_id_of(i) for i in range(n_clusters)], purpose="kind")
    out = np.empty(n_clusters, dtype=object)
    out[np.argsort(order, kind="stable")] = names
    return tuple(out.tolist())


def draw(index: int, *, kind: str, seed: int, recipe: Recipe | None = None) -> System:
    """Draw one system of a class.

    Attempt t = 0, 1, … uses the random numbers of (seed, object_id, t); the first that meets the
    criterion of its class is the system, and `tries` counts them. Lenses: at least two background
    members with two detected images each; marginal: exactly one; lens_off: a lens, then switched
    off; double: in half of them a background cluster of which no member is multiply imaged, in
    the others a second cluster close behind; cluster: no criterion.

    Raises
    ------
    InputError : an unknown class.
    RunError : no attempt succeeded.
    """
    recipe = recipe or Recipe()
    if kind not in KINDS:
        raise InputError(f"kind '{kind}' is not a class of systems; {did_you_mean(kind, KINDS)}")
    object_id = object_id_of(index)
    attempt_at = _ATTEMPTS[kind]
    if kind == "double" and uniform_for(seed, [object_id], purpose="double")[0] < 0.5:
        attempt_at = _projected
    for attempt in range(recipe.max_tries):
        rng = np.random.default_rng(seed_for(seed, object_id=object_id, attempt=attempt))
        system = attempt_at(object_id, recipe, rng)
        if system is not None:
            return replace(system, tries=attempt + 1)
    raise RunError(
        f"object {object_id}: none of {recipe.max_tries} draws is a '{kind}' under this recipe; "
        "widen 'lens_m200_msun' or 'z_lens', deepen 'depth_mag' or raise 'max_tries'"
    )


def multiply_imaged(system: System, *, recipe: Recipe) -> NDArray[np.int64]:
    """(n,) detected images of each background galaxy inside the field, under nominal conditions.

    See `images.detected_images`; 0 for every galaxy of a system whose light goes straight.
    """
    deflector = system.deflector()
    if deflector is None or system.background is None:
        return np.zeros(0 if system.background is None else len(system.background), dtype=np.int64)
    n = round(recipe.field_arcsec / _GRID_ARCSEC)
    axis = (np.arange(n, dtype=np.float64) - (n - 1) / 2) * _GRID_ARCSEC
    psf = np.array(recipe.psf_fwhm_arcsec)
    sigma = [
        noise_sigma(depth, zero_point=zp, psf_fwhm_arcsec=fwhm, pixel_arcsec=_GRID_ARCSEC)
        for depth, zp, fwhm in zip(recipe.depth_mag, recipe.zero_point, psf, strict=True)
    ]
    return images.detected_images(
        trace(deflector, axis, axis),
        system.background,
        flux_counts(system.background.mag, zero_point=np.array(recipe.zero_point)),
        noise_sigma=np.array(sigma),
        psf_fwhm_arcsec=psf,
        min_snr=recipe.min_snr,
        min_separation_arcsec=recipe.min_separation_arcsec,
    )


def _power_law_mass(recipe: Recipe, rng: np.random.Generator) -> float:
    """dN/dlnM ∝ M^−1.5, about the slope of the cluster mass function at these masses."""
    low, high = (m**-1.5 for m in recipe.m200_msun)
    return float((low + rng.random() * (high - low)) ** (-1 / 1.5))


def _lens_mass(recipe: Recipe, rng: np.random.Generator) -> float:
    """Uniform in log M over the masses that can be lenses."""
    return float(np.exp(rng.uniform(*np.log(recipe.lens_m200_msun))))


def _behind(
    object_id: str,
    recipe: Recipe,
    rng: np.random.Generator,
    *,
    offset_arcsec: tuple[float, float],
    kind: str,
    accept: Callable[[int], bool],
) -> System | None:
    foreground = draw_foreground(_lens_mass(recipe, rng), recipe=recipe, rng=rng)
    z_source = float(rng.uniform(*recipe.z_source))
    theta_e = halo.einstein_radius_arcsec(foreground.deflector(z_source))
    if not recipe.theta_e_arcsec[0] <= theta_e <= recipe.theta_e_arcsec[1]:
        return None
    offset = float(rng.uniform(*offset_arcsec))
    background = draw_background(z_source, offset_arcsec=offset, red_fraction=0.5, rng=rng)
    system = System(object_id, kind, foreground, background, z_source, True, theta_e, 0)
    n = int((multiply_imaged(system, recipe=recipe) >= 2).sum())
    return replace(system, n_multiply_imaged=n) if accept(n) else None


def _lens(object_id: str, recipe: Recipe, rng: np.random.Generator) -> System | None:
    return _behind(
        object_id, recipe, rng, offset_arcsec=(0, 6), kind="lens", accept=lambda n: n >= 2
    )


def _marginal(object_id: str, recipe: Recipe, rng: np.random.Generator) -> System | None:
    return _behind(
        object_id, recipe, rng, offset_arcsec=(4, 16), kind="marginal", accept=lambda n: n == 1
    )


def _lens_off(object_id: str, recipe: Recipe, rng: np.random.Generator) -> System | None:
    system = _lens(object_id, recipe, rng)
    return None if system is None else negatives.lens_off(system)


def _double(object_id: str, recipe: Recipe, rng: np.random.Generator) -> System | None:
    return _behind(
        object_id, recipe, rng, offset_arcsec=(18, 30), kind="double", accept=lambda n: n == 0
    )


def _projected(object_id: str, recipe: Recipe, rng: np.random.Generator) -> System:
    foreground = draw_foreground(_lens_mass(recipe, rng), recipe=recipe, rng=rng)
    return negatives.projected_double(object_id, foreground, recipe=recipe, rng=rng)


def _cluster(object_id: str, recipe: Recipe, rng: np.random.Generator) -> System:
    mass = _lens_mass if rng.random() < recipe.rich else _power_law_mass
    foreground: Foreground = draw_foreground(mass(recipe, rng), recipe=recipe, rng=rng)
    theta_e = halo.einstein_radius_arcsec(foreground.deflector(recipe.reference_z_source))
    return System(object_id, "cluster", foreground, None, None, False, theta_e, 0)


_ATTEMPTS: Final[dict[str, Callable[[str, Recipe, np.random.Generator], System | None]]] = {
    "lens": _lens,
    "marginal": _marginal,
    "lens_off": _lens_off,
    "double": _double,
    "cluster": _cluster,
}
