"""Gated attention pooling: which patches of a cutout decide, and the embedding they make."""

import torch
from torch import nn

__all__ = ["GatedAttention"]


class GatedAttention(nn.Module):
    """Attention-based multiple-instance pooling with a gate.

    a_k ∝ exp{wᵀ(tanh(V h_k) ⊙ σ(U h_k))}, z = Σ a_k h_k  (Ilse, Tomczak & Welling 2018, eqs. 7, 9).

    Parameters
    ----------
    dim : length of a token.
    hidden_dim : rows of V and U.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.value = nn.Linear(dim, hidden_dim)
        self.gate = nn.Linear(dim, hidden_dim)
        self.weight = nn.Linear(hidden_dim, 1, bias=False)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pool (n, tokens, dim) to (n, dim), with the (n, tokens) weights, which sum to 1."""
        gated = torch.tanh(self.value(tokens)) * torch.sigmoid(self.gate(tokens))
        attention = torch.softmax(self.weight(gated).squeeze(-1), dim=-1)
        return torch.einsum("nt,ntd->nd", attention, tokens), attention
