"""Fixtures of the backbones' tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def pure_float64(monkeypatch):
    """Norms that compute in float64, where transformers' go through float32: what is left is the packing's own error."""

    def forward(self, hidden):
        eps = getattr(self, "variance_epsilon", getattr(self, "eps", 1e-6))
        return self.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps)

    from transformers.models.glm4v.modeling_glm4v import Glm4vRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRMSNorm
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm
    from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextRMSNorm

    for norm in (Glm4vRMSNorm, Qwen3VLMoeTextRMSNorm, LlamaRMSNorm, Qwen2RMSNorm, Qwen2_5_VLRMSNorm, Qwen2VLRMSNorm, Qwen3VLTextRMSNorm):
        monkeypatch.setattr(norm, "forward", forward)
