"""What holding a cluster costs."""

from clusterray.config import PriceSettings

__all__ = ["price"]


def price(seconds: float, *, shape: tuple[float, float], prices: PriceSettings) -> float | None:
    """Price of holding the cluster; None where a price that matters is not configured."""
    total = 0.0
    for amount, rate in zip(shape, (prices.cpu_hour, prices.gpu_hour), strict=True):
        if amount and rate is None:
            return None
        total += amount * (rate or 0.0) * seconds / 3600
    return total
