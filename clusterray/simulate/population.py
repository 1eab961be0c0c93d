"""Which systems a survey holds, each a function of (seed, object_id) and its conditions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from clusterray.errors import InputError, RunError, did_you_mean
from clusterray.provenance import seed_for, uniform_for
from clusterray.simulate import negatives
from clusterray.simulate.frame import Frame
from clusterray.simulate.observe import Exposure
from clusterray.simulate.recipe import KINDS, Recipe
from clusterray.simulate.spectra import Photometry
from clusterray.simulate.surroundings import draw_field, draw_stars
from clusterray.simulate.system import System, draw_background, draw_foreground
from clusterray.simulate.truth import Images, find_images, truth_row

__all__ = ["Drawn", "draw", "kind_of", "object_id_of"]

_FROM_A_LENS: Final = ("lens", "marginal", "lens_off", "outside_caustic")


@dataclass(frozen=True, eq=False)
class Drawn:
    """A system and its row of the truth table, but for the arc mask."""

    system: System
    truth: dict[str, Any]


def object_id_of(index: int) -> str:
    """Name the system of an index: its MEM_MATCH_ID, counted from 1."""
    return str(index + 1)


def kind_of(index: int, *, seed: int, recipe: Recipe) -> str:
    """Class of an index, drawn by the recipe's shares from (seed, object_id) alone."""
    names = [k for k in KINDS if recipe.classes.get(k, 0.0) > 0]
    edges = np.cumsum([recipe.classes[k] for k in names])
    u = uniform_for(seed, [object_id_of(index)], purpose="kind")[0]
    return names[min(int(np.searchsorted(edges, u, side="right")), len(names) - 1)]


def draw(
    object_id: str,
    *,
    kind: str,
    seed: int,
    recipe: Recipe,
    photometry: Photometry,
    frame: Frame,
    exposures: Sequence[Exposure],
) -> Drawn:
    """Draw one system of a class.

    Attempt t = 0, 1, … uses the random numbers of (seed, object_id, t); the first that meets the
    criterion of its class under the given conditions is the system. `tries` counts them, and
    `cuts` why the others were thrown away. Lenses: at least two background members with two images
    each that are seen; marginal: exactly one; lens_off: a lens, then switched off; outside_caustic:
    none, though a background cluster is there; galaxy_galaxy: one member lenses one galaxy; the
    others have no criterion.

    Raises
    ------
    InputError : an unknown class.
    RunError : no attempt succeeded.
    """
    if kind not in KINDS:
        raise InputError(f"kind '{kind}' is not a class of systems; {did_you_mean(kind, KINDS)}")
    around = _Conditions(recipe, photometry, frame, exposures)
    cuts: Counter[str] = Counter()
    for attempt in range(recipe.criterion.max_tries):
        rng = np.random.default_rng(seed_for(seed, object_id=object_id, attempt=attempt))
        made = _attempt(object_id, kind, around, rng)
        if isinstance(made, str):
            cuts[made] += 1
            continue
        system, images = made
        system = replace(_surrounded(system, around, seed=seed), tries=attempt + 1, cuts=dict(cuts))
        return Drawn(system, _truth(system, images, around))
    raise RunError(
        f"object {object_id}: none of {recipe.criterion.max_tries} draws is a '{kind}' under this "
        f"recipe ({', '.join(f'{n} cut by {why}' for why, n in cuts.most_common())}); widen "
        "lens_cluster.massive_m200_msun or lens_cluster.z, choose a deeper survey, or raise "
        "criterion.max_tries"
    )


@dataclass(frozen=True, eq=False)
class _Conditions:
    recipe: Recipe
    photometry: Photometry
    frame: Frame
    exposures: Sequence[Exposure]


def _attempt(
    object_id: str, kind: str, around: _Conditions, rng: np.random.Generator
) -> tuple[System, Images | None] | str:
    """A system of the class, or the name of the cut that removed it."""
    recipe, photometry = around.recipe, around.photometry
    law = recipe.lens_cluster
    if kind in _FROM_A_LENS:
        return _behind(object_id, kind, around, rng)
    massive = kind == "galaxy_galaxy" or rng.random() < law.massive_share
    mass = (law.massive_m200_msun if massive else law.m200_msun).draw(rng)
    boosted = None
    if kind == "galaxy_galaxy":
        boosted = (int(rng.integers(1, 6)), float(rng.uniform(240.0, 320.0)))
    foreground = draw_foreground(
        mass, recipe=recipe, photometry=photometry, rng=rng, boosted=boosted
    )
    system = System(object_id, kind, foreground)
    if kind == "projected_double":
        return negatives.projected_double(system, recipe, photometry, rng), None
    if boosted is None:
        return negatives.DECORATED[kind](system, around.frame, photometry, rng), None
    made = negatives.galaxy_galaxy(system, boosted[0], recipe, around.frame, photometry, rng)
    return "no galaxy lens" if made is None else (made, None)


def _behind(
    object_id: str, kind: str, around: _Conditions, rng: np.random.Generator
) -> tuple[System, Images | None] | str:
    """A cluster behind a cluster, if as many members are multiply imaged as the class asks."""
    recipe = around.recipe
    law, criterion = recipe.source_cluster, recipe.criterion
    foreground = draw_foreground(
        recipe.lens_cluster.massive_m200_msun.draw(rng),
        recipe=recipe,
        photometry=around.photometry,
        rng=rng,
    )
    z = law.z.draw(rng)
    if foreground.theta_e_arcsec(z) < criterion.min_theta_e_arcsec:
        return "min_theta_e_arcsec"
    offset = {
        "marginal": law.marginal_offset_arcsec,
        "outside_caustic": law.outside_offset_arcsec,
    }.get(kind, law.lens_offset_arcsec)
    background = draw_background(
        z,
        offset_arcsec=offset.draw(rng),
        law=law,
        photometry=around.photometry,
        lensed=True,
        rng=rng,
    )
    plane = foreground.plane(around.frame)
    images = find_images(background.members, plane, around.frame, around.exposures, criterion)
    n = len(images.multiple)
    wanted = {"marginal": n == 1, "outside_caustic": n == 0}.get(kind, n >= 2)
    if not wanted:
        return f"{n if n < 2 else '2 or more'} multiply imaged"
    system = System(object_id, kind, foreground, background)
    return (negatives.lens_off(system), None) if kind == "lens_off" else (system, images)


def _surrounded(system: System, around: _Conditions, *, seed: int) -> System:
    """The system with field galaxies and stars, which depend on (seed, object_id) alone."""
    rng = np.random.default_rng(seed_for(seed, object_id=system.object_id, part="field"))
    extent = (2 * around.frame.centre_arcsec,) * 2
    law, photometry = around.recipe.surroundings, around.photometry
    field = draw_field(extent, law, photometry=photometry, rng=rng)
    return replace(
        system, field=field, stars=draw_stars(extent, law, photometry=photometry, rng=rng)
    )


def _truth(system: System, images: Images | None, around: _Conditions) -> dict[str, Any]:
    lens, frame, criterion = system.foreground, around.frame, around.recipe.criterion
    field = system.field
    assert field is not None
    # A redshift and a source plane each: only what can be multiply imaged is looked at.
    reach = 1.5 * lens.theta_e_arcsec(3.0)
    near = np.hypot(field.x_arcsec, field.y_arcsec) < reach
    behind = field.take(near & (field.z > lens.z_lens + 0.05))
    plane = lens.plane(frame)
    seen = find_images(behind, plane, frame, around.exposures, criterion)
    if system.source is not None:
        images = find_images(
            system.source.take(np.array([0])), plane, frame, around.exposures, criterion
        )
    row = truth_row(
        system,
        images,
        len(seen.multiple),
        exposures=around.exposures,
        frame=frame,
        reference_z_source=around.recipe.reference_z_source,
    )
    if system.source is not None:
        row["n_field_multiply_imaged"] += row["n_multiply_imaged"]
        row["n_multiply_imaged"] = 0
    return row
