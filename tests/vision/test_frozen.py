"""Behind a frozen trunk: kept tokens give what the whole network gives."""

import numpy as np
import pytest
import torch

from clusterray.vision.augment import dihedral
from clusterray.vision.frozen import (
    TokenLearner,
    encode,
    frozen_blocks,
    frozen_digest,
    token_shape,
)
from clusterray.vision.learner import CutoutLearner
from clusterray.vision.vit import freeze
from tests.vision.vision_nets import cutouts, tiny


def frozen(blocks, **options):
    model = tiny(**options)
    freeze(model, blocks)
    return model.eval()


def arrays(n=6):
    return tuple(torch.from_numpy(a) for a in cutouts(n)[:3])


@pytest.mark.parametrize("blocks", [1, 2])
def test_kept_tokens_give_the_logits_of_the_whole_network(blocks):
    """To the rounding of float16, 1e-2 of a logit; gradients to 1 %."""
    model = frozen(blocks)
    assert frozen_blocks(model) == blocks
    tokens = encode(model, arrays(), n_views=3, half=False)
    assert tokens.dtype == torch.float16
    assert tokens.shape == (6, *token_shape(model, n_views=3))
    behind = TokenLearner(model)
    ours = behind(behind.prepare((tokens,), None))
    whole = CutoutLearner(model, augmented=False)
    theirs = whole(whole.prepare(arrays(), None))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-2)
    gradients = []
    for logits in (ours, theirs):
        model.zero_grad()
        logits.square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()
                          if p.requires_grad})  # fmt: skip
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert (gradient - other).norm() <= 0.01 * other.norm() + 1e-6, name


def test_views_are_the_orientations_and_a_seed_takes_one():
    model = frozen(2)
    pixels, step, sigma = arrays(4)
    tokens = encode(model, (pixels, step, sigma), n_views=8, half=False)
    for k in (1, 6):
        turned = dihedral(pixels, torch.full((4,), k))
        alone = encode(model, (turned, step, sigma), n_views=1, half=False)[:, 0]
        torch.testing.assert_close(tokens[:, k], alone, rtol=0, atol=2e-3)
    behind = TokenLearner(model)
    seeds = np.arange(4, dtype=np.uint64) * np.uint64(977)
    chosen = behind.prepare((tokens,), seeds)
    taken = [
        next(k for k in range(8) if torch.equal(chosen[i], tokens[i, k].float())) for i in range(4)
    ]
    assert len(set(taken)) > 1
    part = behind.prepare((tokens[2:3],), seeds[2:3])
    assert torch.equal(part[0], chosen[2])


def test_what_is_not_frozen_is_not_kept():
    assert frozen_blocks(tiny()) == 0
    unfrozen = frozen(1)
    unfrozen.trunk.patch_embed.proj.bias.requires_grad_(True)
    assert frozen_blocks(unfrozen) == 0


def test_digest_changes_with_frozen_weights_stretch_and_views_alone():
    reference = frozen_digest(frozen(1), n_views=1)
    behind = frozen(1)
    with torch.no_grad():
        for part in (behind.trunk.blocks[1], behind.trunk.norm, behind.head, behind.pool):
            for parameter in part.parameters():
                parameter.add_(1)
    assert frozen_digest(behind, n_views=1) == reference
    within = frozen(1)
    with torch.no_grad():
        within.trunk.blocks[0].mlp.fc1.bias[0] += 1e-3
    others = [
        frozen_digest(within, n_views=1),
        frozen_digest(frozen(1), n_views=2),
        frozen_digest(frozen(2), n_views=1),
        frozen_digest(frozen(1, asinh_softening=2.0), n_views=1),
    ]
    assert len({reference, *others}) == 5
