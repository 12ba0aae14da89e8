#include <fulgurite/attention.h>
#include <torch/csrc/autograd/autograd.h>

#include "commands.h"

Tensors run_attention(const Tensors& inputs) {
  const at::Tensor query = inputs.at("query").requires_grad_();
  const at::Tensor key = inputs.at("key").requires_grad_();
  const at::Tensor value = inputs.at("value").requires_grad_();

  fulgurite::AttentionOptions options;
  options.causal = true;
  options.window_left = 7;
  const at::Tensor turned = fulgurite::rope(query, inputs.at("cos"), inputs.at("sin"));
  const auto [out, lse] = fulgurite::attention(turned, key, value, options);
  torch::autograd::backward({out, lse}, {inputs.at("grad_out"), inputs.at("grad_lse")});

  Tensors outputs;
  outputs.insert("out", out.detach());
  outputs.insert("lse", lse.detach());
  outputs.insert("grad_query", query.grad());
  outputs.insert("grad_key", key.grad());
  outputs.insert("grad_value", value.grad());
  return outputs;
}
