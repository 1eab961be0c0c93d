"""Two views of one lens: the same foreground cluster, another sky behind it, other conditions."""

from dataclasses import dataclass, replace

import numpy as np

from clusterray.errors import RunError
from clusterray.provenance import seed_for, uniform_for
from clusterray.simulate.cutouts import Cutout, CutoutMaker
from clusterray.simulate.population import Drawn
from clusterray.simulate.surroundings import draw_field, draw_stars
from clusterray.simulate.system import Background, System, draw_background
from clusterray.simulate.truth import find_images

__all__ = ["PairMaker"]


@dataclass(frozen=True)
class PairMaker:
    """Makes pairs of cutouts to learn from without labels (LenSiam; Chang et al. 2023).

    A pair shares the lens cluster, its mass and its light, and differs in what stands behind and
    around it, in PSF, depth and noise. `lens_share` of the pairs have a lensed background cluster
    at one redshift, by the criterion of a lens on either side; in the others the field behind is
    all that is lensed. Pair i depends on (survey, recipe, seed, i) alone.
    """

    maker: CutoutMaker
    lens_share: float

    def make(self, index: int) -> tuple[Cutout, Cutout]:
        """Draw and observe pair `index`; objects are named by it, with endings a and b.

        Raises
        ------
        RunError : none could be drawn.
        """
        name = f"pair{index}"
        u = uniform_for(self.maker.seed, [name], purpose="pair kind")[0]
        drawn = self.maker.draw(f"{name}a", "lens" if u < self.lens_share else "cluster")
        other = Drawn(self.partner(drawn.system, f"{name}b"), {})
        return self.maker.observe(drawn), self.maker.observe(other)

    def partner(self, system: System, object_id: str) -> System:
        """The same lens before another sky.

        Raises
        ------
        RunError : no background cluster is seen twice under the partner's conditions.
        """
        maker = self.maker
        rng = np.random.default_rng(seed_for(maker.seed, partner=object_id))
        extent, law = (2 * maker.frame.centre_arcsec,) * 2, maker.recipe.surroundings
        behind = system.background
        return replace(
            system,
            object_id=object_id,
            background=None if behind is None else self._background(system, behind.z, object_id),
            field=draw_field(extent, law, photometry=maker.photometry, rng=rng),
            stars=draw_stars(extent, law, photometry=maker.photometry, rng=rng),
        )

    def _background(self, system: System, z: float, object_id: str) -> Background:
        maker, law = self.maker, self.maker.recipe.source_cluster
        plane = system.foreground.plane(maker.frame)
        exposures = maker.exposures(object_id)
        for attempt in range(maker.recipe.criterion.max_tries):
            rng = np.random.default_rng(seed_for(maker.seed, partner=object_id, attempt=attempt))
            background = draw_background(
                z,
                offset_arcsec=law.lens_offset_arcsec.draw(rng),
                law=law,
                photometry=maker.photometry,
                lensed=True,
                rng=rng,
            )
            images = find_images(
                background.members, plane, maker.frame, exposures, maker.recipe.criterion
            )
            if len(images.multiple) >= 2:
                return background
        raise RunError(
            f"object {object_id}: none of {maker.recipe.criterion.max_tries} background clusters "
            "is multiply imaged by its partner's lens; raise criterion.max_tries in the recipe"
        )
