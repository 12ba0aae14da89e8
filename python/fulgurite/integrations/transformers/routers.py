"""Routers, by ``moe_route``: logits, weights and ids in the dtypes of the released classes."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from fulgurite.nn import functional as F

Routing = tuple[Tensor, Tensor, Tensor]


class DeepseekV3(DeepseekV3TopkRouter):
    """Sigmoid scores, a bias for the choice, groups."""

    def forward(self, hidden_states: Tensor) -> Routing:
        x = hidden_states.view(-1, self.hidden_dim).float()
        logits = linear(x, self.weight.float())
        weights, ids, _ = F.moe_route(
            logits,
            self.top_k,
            bias=self.e_score_correction_bias,
            score="sigmoid",
            n_group=self.num_group,
            topk_group=self.topk_group,
            renormalize=self.norm_topk_prob,
            eps=1e-20,
            scale=self.routed_scaling_factor,
        )
        return logits, weights, ids.long()


class Mixtral(MixtralTopKRouter):
    """The softmax of the chosen logits, in float32."""

    def forward(self, hidden_states: Tensor) -> Routing:
        logits = linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
        weights, ids, _ = F.moe_route(logits.float(), self.top_k)
        return logits, weights, ids.long()


class Qwen3Moe(Qwen3MoeTopKRouter):
    """The softmax over all experts in float32, renormalised if the model says so."""

    def forward(self, hidden_states: Tensor) -> Routing:
        logits = linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
        weights, ids, _ = F.moe_route(
            logits.float(), self.top_k, renormalize=bool(self.norm_topk_prob)
        )
        return logits, weights.to(logits.dtype), ids.long()


class GptOss(GptOssTopKRouter):
    """The softmax of the chosen logits, in their dtype."""

    def forward(self, hidden_states: Tensor) -> Routing:
        logits = linear(hidden_states, self.weight, self.bias)
        weights, ids, _ = F.moe_route(logits, self.top_k, score="softmax_topk")
        return logits, weights.to(logits.dtype), ids.long()
