"""Scores of cutouts, the same for a row group however it was moved about.

Logits depend in their last bits on the batch a network sees. So rows go through it in micro-batches
of one fixed size, cut from the start of the row group, the last one padded with empty cutouts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from clusterray.errors import InputError
from clusterray.schema import BLANK
from clusterray.vision.preprocess import BLANK_BYTE, to_input, unshuffle
from clusterray.vision.training import cpu_threads
from clusterray.vision.vit import LensViT, VitOutput

__all__ = ["VitScores", "all_views", "predict"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class VitScores:
    """Logit (n,), embedding (n, d), attention over tokens in row-major order (n, tokens)."""

    logit: Array
    embedding: Array
    attention: Array


def predict(
    model: LensViT,
    pixels: Array,
    *,
    step: Array,
    noise_sigma: Array,
    micro_batch: int,
    size_px: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str = "cpu",
    threads: int | None = None,
    views: Literal[1, 8] = 1,
) -> VitScores:
    """Score the cutouts of one row group.

    Stretch and input size are those the network was trained with. A row without any data gets the
    score of an empty sky; rejecting it is the caller's.

    Parameters
    ----------
    model : in eval mode; moved to `device`.
    pixels : (n, b, h, w) int16, or the shard's byte planes (n, 2·b·h·w) uint8.
    step, noise_sigma : (n, b), nJy.
    micro_batch : rows the network sees at once; it can change the last bits of a logit.
    size_px : side of the cutouts, needed for byte planes alone.
    dtype : of the trunk; pooling and head are float32.
    threads : CPU threads; their number, too, can change the last bits.
    views : 8 averages over all rotations and reflections, see `all_views`.

    Raises
    ------
    InputError : arrays that do not belong together or have other bands than the network, or a
        network in training mode.
    """
    layout = _layout(model, pixels, step, noise_sigma, size_px)
    model.to(device)
    parts: list[tuple[Array, ...]] = []
    with torch.inference_mode(), cpu_threads(threads):
        for batch, sigma_step, sigma, n in _micro_batches(pixels, step, noise_sigma, micro_batch):
            raw = torch.from_numpy(batch).to(device)
            if raw.dtype == torch.uint8:
                raw = unshuffle(raw, n_bands=layout[0], height_px=layout[1], width_px=layout[2])
            images = to_input(
                raw,
                torch.from_numpy(sigma_step).to(device),
                noise_sigma=torch.from_numpy(sigma).to(device),
                softening=model.settings.asinh_softening,
                size_px=model.settings.image_size_px,
            )
            with torch.autocast(raw.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
                output = model(images) if views == 1 else all_views(model, images)
            parts.append(tuple(t[:n].float().cpu().numpy() for t in output))
    if not parts:
        dim, tokens = model.head.in_features, model.n_tokens
        return VitScores(*(np.empty(s, np.float32) for s in ((0,), (0, dim), (0, tokens))))
    return VitScores(*(np.concatenate(p) for p in zip(*parts, strict=True)))


def all_views(model: LensViT, images: torch.Tensor) -> VitOutput:
    """Score images as the mean over the eight symmetries of the square.

    Logits and embeddings are averaged, attention maps after they were turned back. What comes out
    does not depend on how a cutout is oriented, but for rounding: turning the image leaves logit
    and embedding and turns the map.

    Parameters
    ----------
    images : (n, b, size, size), as the network takes them.
    """
    rows, columns = model.grid.rows, model.grid.columns
    logit, embedding, attention = [], [], []
    for turns in range(4):
        for mirrored in (False, True):
            view = torch.rot90(images, turns, (2, 3))
            seen = model((view.flip(3) if mirrored else view).contiguous())
            attended = seen.attention.view(-1, rows, columns)
            attended = attended.flip(2) if mirrored else attended
            attention.append(torch.rot90(attended, -turns, (1, 2)).flatten(1))
            logit.append(seen.logit)
            embedding.append(seen.embedding)
    return VitOutput(*(torch.stack(parts).mean(0) for parts in (logit, embedding, attention)))


def _layout(
    model: LensViT, pixels: Array, step: Array, noise_sigma: Array, size_px: int | None
) -> tuple[int, int, int]:
    n, bands = len(pixels), model.settings.n_bands
    if model.training:
        raise InputError("the network is in training mode: call .eval() before scoring")
    if pixels.dtype == np.uint8 and pixels.ndim == 2 and size_px:
        layout = (bands, size_px, size_px)
        fits = pixels.shape[1] == 2 * bands * size_px * size_px
    else:
        fits = pixels.dtype == np.int16 and pixels.ndim == 4 and pixels.shape[1] == bands
        layout = (bands, *pixels.shape[2:4]) if fits else (bands, 0, 0)
    if not fits:
        raise InputError(
            f"cutouts are {pixels.dtype}{list(pixels.shape)}, expected int16[n, {bands}, h, w], or "
            f"uint8 byte planes of {bands} bands with size_px given: the network was trained on "
            f"{bands} bands; score with the bundle of this survey"
        )
    for name, values in (("step", step), ("noise_sigma", noise_sigma)):
        if np.shape(values) != (n, bands):
            raise InputError(
                f"{name} has shape {np.shape(values)} beside {n} cutouts, expected {(n, bands)}"
            )
    return layout


def _micro_batches(
    pixels: Array, step: Array, noise_sigma: Array, size: int
) -> Iterator[tuple[Array, Array, Array, int]]:
    """Yield arrays of exactly `size` rows, and how many of them are real."""
    empty = BLANK_BYTE if pixels.dtype == np.uint8 else BLANK
    for start in range(0, len(pixels), size):
        n = min(size, len(pixels) - start)
        # A fresh array: Ray's are read-only views, which torch may not wrap.
        batch = np.full((size, *pixels.shape[1:]), empty, pixels.dtype)
        scale = np.ones((2, size, step.shape[1]), np.float32)
        batch[:n] = pixels[start : start + n]
        scale[0, :n], scale[1, :n] = step[start : start + n], noise_sigma[start : start + n]
        yield batch, scale[0], scale[1], n
