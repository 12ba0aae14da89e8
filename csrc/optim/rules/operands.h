// What an AdamW kernel reads and writes for each parameter.
#pragma once

namespace fulgurite {

enum AdamwOperand {
  kParam,
  kGrad,
  kExpAvg,
  kExpAvgSq,
  kMaxExpAvgSq,
  kMaster,
  kCopy,
  kEma,
  kIndex,  // no memory: its strides lead to the row-major index of an element
  kAdamwOperands
};

}  // namespace fulgurite
