// The names that the string arguments of routers and experts take.
#pragma once

#include "common/choice.h"

namespace fulgurite {

/// softmax: over all experts; softmax_topk: over the chosen ones.
enum class Score : int { kSoftmax, kSoftmaxTopk, kSigmoid, kSqrtSoftplus };
inline constexpr Named<Score> kScores[] = {
    {"softmax", Score::kSoftmax},
    {"softmax_topk", Score::kSoftmaxTopk},
    {"sigmoid", Score::kSigmoid},
    {"sqrtsoftplus", Score::kSqrtSoftplus},
};

/// A group's score: the sum of its best two, or its best.
enum class GroupScore : int { kTop2, kMax };
inline constexpr Named<GroupScore> kGroupScores[] = {
    {"top2", GroupScore::kTop2},
    {"max", GroupScore::kMax},
};

enum class BalanceKind : int { kSwitch, kHf, kGshard, kSequence, kCv2 };
inline constexpr Named<BalanceKind> kBalanceKinds[] = {
    {"switch", BalanceKind::kSwitch}, {"hf", BalanceKind::kHf},
    {"gshard", BalanceKind::kGshard}, {"sequence", BalanceKind::kSequence},
    {"cv2", BalanceKind::kCv2},
};

enum class BiasRule : int { kSign, kProportional };
inline constexpr Named<BiasRule> kBiasRules[] = {
    {"sign", BiasRule::kSign},
    {"proportional", BiasRule::kProportional},
};

/// Who is served first where an expert's room is short.
enum class Drop : int { kToken, kChoice, kWeight, kPriority };
inline constexpr Named<Drop> kDrops[] = {
    {"token", Drop::kToken},
    {"choice", Drop::kChoice},
    {"weight", Drop::kWeight},
    {"priority", Drop::kPriority},
};

enum class Activation : int { kSilu, kGelu, kGeluTanh, kRelu, kRelu2, kSwigluOai };
inline constexpr Named<Activation> kActivations[] = {
    {"silu", Activation::kSilu},          {"gelu", Activation::kGelu},
    {"gelu_tanh", Activation::kGeluTanh}, {"relu", Activation::kRelu},
    {"relu2", Activation::kRelu2},        {"swiglu_oai", Activation::kSwigluOai},
};

}  // namespace fulgurite
