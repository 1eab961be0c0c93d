"""The square of sky that one system is painted on."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from clusterray.errors import ConfigError
from clusterray.simulate.lensing import grid_axis

__all__ = ["Frame"]


@dataclass(frozen=True)
class Frame:
    """Detector pixels about a system, and the finer samples it is painted on.

    `size_px` pixels of `pixel_arcsec` are kept; `margin_px` more on each side are painted, whose
    light the PSF brings in. Each pixel holds `supersampling`² samples. Images are looked for in the
    middle `field_arcsec`, a survey's cutout.
    """

    size_px: int
    pixel_arcsec: float
    supersampling: int
    margin_px: int
    field_arcsec: float

    @classmethod
    def around(
        cls,
        size_px: int,
        pixel_arcsec: float,
        *,
        sharpest_fwhm_arcsec: float,
        field_arcsec: float | None = None,
    ) -> Self:
        """Choose samples of less than half the sharpest PSF, and a margin of about 2″.

        Raises
        ------
        ConfigError : pixels wider than twice the PSF, or a frame too small for a cluster.
        """
        if not 0.02 <= pixel_arcsec <= 2 * sharpest_fwhm_arcsec:
            raise ConfigError(
                f"pixels of {pixel_arcsec:g}″ cannot be simulated: expected 0.02 to "
                f"{2 * sharpest_fwhm_arcsec:g}″ (twice the sharpest PSF's FWHM)"
            )
        if not 20 <= size_px * pixel_arcsec <= 200:
            raise ConfigError(
                f"a field of {size_px * pixel_arcsec:g}″ cannot be simulated: expected 20 to 200″; "
                "change survey.size_px or survey.pixel_scale_arcsec"
            )
        k = max(1, int(np.ceil(pixel_arcsec / (0.45 * sharpest_fwhm_arcsec))))
        margin = int(np.ceil(2.0 / pixel_arcsec))
        return cls(size_px, pixel_arcsec, k, margin, field_arcsec or size_px * pixel_arcsec)

    @property
    def n_samples(self) -> int:
        """Samples along a side."""
        return (self.size_px + 2 * self.margin_px) * self.supersampling

    @property
    def step_arcsec(self) -> float:
        """Side of a sample."""
        return self.pixel_arcsec / self.supersampling

    @property
    def axis_arcsec(self) -> NDArray[np.float64]:
        """(n_samples,) places of the samples from the centre."""
        return grid_axis(self.n_samples, self.step_arcsec)

    @property
    def half_field_arcsec(self) -> float:
        """Half of a cutout's side."""
        return self.field_arcsec / 2

    @property
    def centre_arcsec(self) -> float:
        """The centre's place from the corner of the painted square, along either axis."""
        return self.n_samples * self.step_arcsec / 2

    def kept(self) -> slice:
        """The pixels inside the margin, along either axis."""
        return slice(self.margin_px, self.margin_px + self.size_px)

    def pixel_of(self, place_arcsec: NDArray[np.float64]) -> NDArray[np.int64]:
        """Pixel (of those that are kept) that holds a place along an axis; may lie outside."""
        half = self.size_px * self.pixel_arcsec / 2
        return np.floor((place_arcsec + half) / self.pixel_arcsec).astype(np.int64)
