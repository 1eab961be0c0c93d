"""Pretrained weights for a trunk: safetensors by path, URL or hub id, never a pickle."""

import hashlib
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from clusterray import storage
from clusterray.errors import InputError

__all__ = ["channel_shares", "inflate", "load_into", "load_weights"]

_HUB: Final = "hf-hub:"
_HUB_FILE: Final = "model.safetensors"
_OURS: Final = "trunk."
_HEADS: Final = ("head", "head_dist", "fc", "fc_norm", "attn_pool", "classifier")
_RGB_NM: Final = (640.0, 540.0, 460.0)
"""Where red, green and blue of a photograph lie."""
_BAND_NM: Final[Mapping[str, float]] = {
    "u": 365.0, "B": 440.0, "g": 480.0, "V": 550.0, "r": 620.0, "R": 650.0, "VIS": 715.0,
    "i": 755.0, "I": 790.0, "z": 870.0, "y": 975.0, "Y": 1020.0, "J": 1250.0, "H": 1650.0,
    "Ks": 2150.0, "K": 2190.0,
}  # fmt: skip
"""About the mean wavelength of usual filters; all that matters is their order and spacing."""
_log = logging.getLogger(__name__)


def load_weights(url: str, *, sha256: str = "") -> dict[str, torch.Tensor]:
    """Tensors by name from a safetensors file.

    Parameters
    ----------
    url : path or URL; or ``hf-hub:owner/name``, with ``@revision`` if wanted; or ``timm/name``
        where no such file lies here.
    sha256 : pinned digest of the file (hex); empty accepts any file but a hub's.

    Raises
    ------
    InputError : another digest than pinned, a hub id without a digest, a pickle (which could run
        code and is never opened), or no safetensors at all.
    StorageError : the file cannot be read.
    """
    hub = _hub_id(url)
    data = storage.read_bytes(_fetched(hub, sha256) if hub else url)
    where = storage.redact(url)
    found = hashlib.sha256(data).hexdigest()
    if sha256 and found != sha256.strip().lower():
        raise InputError(
            f"weights '{where}' have SHA-256 {found}, expected {sha256}; "
            "fetch the pinned file or correct vision.weights_sha256"
        )
    if data[:2] == b"PK" or data[:1] == b"\x80":
        raise InputError(
            f"weights '{where}' are a PyTorch pickle, which can run code when opened; "
            "expected safetensors: convert them once on a machine you trust"
        )
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise InputError(f"weights '{where}' are no readable safetensors file: {error}") from error


def _hub_id(url: str) -> str:
    if url.startswith(_HUB):
        return url.removeprefix(_HUB)
    return url if url.startswith("timm/") and not Path(url).exists() else ""


def _fetched(hub: str, sha256: str) -> str:
    """Path of a hub's file in its local cache."""
    if not sha256:
        raise InputError(
            f"vision.weights '{hub}' come from a hub, where a file can be replaced: set "
            f"vision.weights_sha256 to the digest that the hub's page shows for {_HUB_FILE}"
        )
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    name, _, revision = hub.partition("@")
    try:
        return huggingface_hub.hf_hub_download(name, _HUB_FILE, revision=revision or None)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise InputError(
            f"vision.weights: no {_HUB_FILE} of '{hub}': {str(error).splitlines()[0]}; "
            "check the name, or fetch the file where there is a network and give its path"
        ) from error


def channel_shares(bands: Sequence[str] | int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """How much of each RGB channel's weights a band takes: (bands, 3), each column sums to 1.

    The bands' range of wavelengths is laid over that of the three channels, the bluest band on
    blue, the reddest on red, as in a colour picture. A band takes the channel nearest to it on a
    logarithmic scale; a channel that is nearest to none goes to the band nearest to it. Bands
    that share a channel divide it evenly.

    Parameters
    ----------
    bands : names, blue to red; or their number, for bands evenly spaced. Names that are not
        known count as evenly spaced too.
    """
    n = bands if isinstance(bands, int) else len(bands)
    known = [] if isinstance(bands, int) else [_BAND_NM.get(b, np.nan) for b in bands]
    place = np.log(known) if known and np.isfinite(known).all() else np.arange(n, dtype=float)
    channels = -np.log(_RGB_NM)
    channels = 1 - (channels - channels.min()) / np.ptp(channels)
    if n > 1:
        place = (place - place.min()) / np.ptp(place)
        distance = np.abs(place[:, None] - channels)
    else:
        distance = np.zeros((1, 3))
    taken = distance == distance.min(axis=1, keepdims=True)
    for channel in np.flatnonzero(~taken.any(axis=0)):
        taken[:, channel] = distance[:, channel] == distance[:, channel].min()
    return np.asarray(taken / taken.sum(axis=0))


def inflate(weight: torch.Tensor, bands: Sequence[str] | int) -> torch.Tensor:
    """Weights of a first convolution over RGB for n bands, by `channel_shares`.

    An image equal in all bands gives what a grey RGB image gives.

    Parameters
    ----------
    weight : (d, 3, p, p), channels red, green, blue.
    bands : names, blue to red, or their number.

    Returns
    -------
    (d, n_bands, p, p).
    """
    shares = torch.from_numpy(channel_shares(bands)).to(torch.float64)
    return torch.einsum("bc,dcij->dbij", shares, weight.double()).to(weight.dtype)


def load_into(
    trunk: Any, state: Mapping[str, torch.Tensor], *, where: str, bands: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Load weights into a timm trunk, resampling patches and positions to its size.

    A network of ours (names `trunk.…`) gives its trunk, whose bands stand as they are; of other
    weights the first convolution is inflated from RGB to the trunk's bands.

    Returns
    -------
    Names of the tensors left out because they belong to a classifier; they are logged too.

    Raises
    ------
    InputError : the weights lack a tensor of the trunk, have one it does not know, or one of
        another shape.
    """
    ours = {n.removeprefix(_OURS): v for n, v in state.items() if n.startswith(_OURS)}
    fitted = ours or dict(state)
    want = trunk.state_dict()
    # Of its own module: it knows old names, and how positions are resampled.
    convert = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", None)
    try:
        fitted = dict(convert(fitted, trunk)) if convert else fitted
        if not ours:
            _inflate_first(trunk, fitted, bands)
        dropped = tuple(sorted(n for n in fitted if n not in want and _is_head(trunk, n)))
        trunk.load_state_dict({n: v for n, v in fitted.items() if n not in dropped})
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(
            f"weights '{storage.redact(where)}' do not fit this network: {error}; "
            "choose vision.model and model_options to match them"
        ) from error
    if dropped:
        _log.warning("weights '%s': left out %s", storage.redact(where), ", ".join(dropped))
    return dropped


def _inflate_first(trunk: Any, state: dict[str, torch.Tensor], bands: Sequence[str] | None) -> None:
    want = trunk.state_dict()
    first = trunk.pretrained_cfg.get("first_conv") or ()
    for name in (first,) if isinstance(first, str) else first:
        key = f"{name}.weight"
        if key in state and state[key].ndim == 4 and state[key].shape[1] == len(_RGB_NM):
            state[key] = inflate(state[key], bands or want[key].shape[1])


def _is_head(trunk: Any, name: str) -> bool:
    classifier = trunk.pretrained_cfg.get("classifier") or ()
    named = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    parts = name.split(".")
    return parts[0] in _HEADS or any(parts[: len(c)] == c for c in (n.split(".") for n in named))
