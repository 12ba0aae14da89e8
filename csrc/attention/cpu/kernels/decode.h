// What the kernels of decoding are told: few queries against a long cache.
#pragma once

#include "attention/cpu/kernels/params.h"

namespace fulgurite {

struct DecodeParams {
  // Sequence b has N queries and M = cache_lens[b] keys, and its splits stand where blocks of keys do. key and value are
  // (B,Hkv,Mmax,·), or (P,Hkv,page,·) under a page table.
  AttentionParams attention;
  const int32_t* page_table;  // null: contiguous caches
  int64_t pages, page;        // entries of a row of the table; keys of a page
  int64_t split_keys;         // keys of a task: whole key blocks

  // What a split leaves for the merge, per (sequence, key/value head, split): rows are the queries of all heads of the group.
  void *acc, *max, *sum;  // o, m and l of online_softmax.h
  int64_t rows;           // group·N
};

inline Dtype dtype_of(const DecodeParams& d) { return d.attention.dtype; }

struct DecodeLayout {
  int64_t acc_row;  // elements of a row of acc
  int64_t scratch;  // bytes of one task
};

using DecodeLayoutFn = void(const DecodeParams&, DecodeLayout*);
using DecodeTaskFn = void(const DecodeParams&, int64_t task, void* scratch);

}  // namespace fulgurite
