// Gradients of linear attention, a block of kept states after another from the last, in it a chunk of positions after another,
//   g = scale·dout      w_ij = P_ij (g_i·v_j)      dS: the gradient of the state behind the chunk
//   dq_i = cum_i (S g_i) + Σ_j w_ij k_j      dk_j = rest_j (dS v_j) + Σ_i w_ij q_i
//   dv_j = dSᵀ(rest_j k_j) + Σ_i P_ij (q_i·k_j) g_i
//   dS ← all·dS + Σ_i (cum_i q_i) g_iᵀ
// with the decays of linear_chunks.h. log_decay's gradient at t is the sum of what passes through t: pairs of queries that
// read at t or later and keys before t, what later queries read of the state S, what earlier keys leave in the state, and of S
// what becomes of it.
//
// Reads: all inputs, gradients of the results, kept states, denominators.
// Writes: gradients; of groups of heads sums over some of them; of log_decay by position, and of bonus by sequence, sums of
// parts.
// Task: a group of heads of a sequence by a range of features, then a head by a range of columns of value; or everything of a
// group.
// Order of sums: as the forward's; heads of a group in order. No range shows in the bits.

#include "linear/cpu/kernels/linear_backward.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class S>
class BackwardTask {
  using T = Accumulate<S>;
  using V = Native<T>;

 public:
  BackwardTask(const LinearAttentionBackwardParams& p, int64_t task, void* memory)
      : p_(p),
        part_(p, task),
        arena_(memory),
        m_(arena_, p, part_),
        decays_(arena_, per_feature() ? m_.ld : 0) {}
  int64_t bytes() const { return arena_.used(); }

  void run() {
    span_ = p_.spans[part_.sequence];
    for (int64_t d = 0; d < m_.ld; ++d) m_.ones[d] = m_.all[d] = 1;
    factor_ = scale_later() ? static_cast<T>(p_.scale) : T(1);
    for (head_ = part_.first_head; head_ < part_.first_head + part_.heads; ++head_) {
      start_head();
      if (p_.causal)
        for (int64_t b = p_.grid.blocks(span_.queries) - 1; b >= 0; --b) block(b);
      else
        not_causal();
      finish_head();
    }
  }

 private:
  bool per_feature() const { return p_.decay == DecayKind::kFeature; }
  bool per_position() const { return p_.decay == DecayKind::kPosition; }
  bool in_pairs() const { return p_.causal && p_.grid.held == 0; }
  bool of_decays() const { return p_.decay_sums || (per_feature() && p_.grad_log_decay); }
  bool of_queries() const { return p_.grad_query || of_decays(); }
  bool of_keys() const { return p_.grad_key || of_decays(); }
  int64_t key_head() const { return head_ / p_.group(); }
  int64_t place() const { return part_.sequence * p_.H + head_; }
  int64_t state_size() const { return m_.columns * m_.ld; }

  template <class X>
  Strided<X> rows(const Heads& x, int64_t head, int64_t t, int64_t first) const {
    return {static_cast<const X*>(x.data) + span_.batch * x.batch + head * x.head +
                (span_.start + t) * x.position + first * x.feature,
            x.position, x.feature};
  }
  const T* state_numbers(const Heads& x) const {
    return static_cast<const T*>(x.data) + part_.sequence * x.batch + head_ * x.head;
  }
  int64_t turned(int64_t c, int64_t d) const { return panel_index<T>(c, d, m_.columns, m_.ld); }
  static void fill(T* to, int64_t n, T value) {
    for (int64_t i = 0; i < n; ++i) to[i] = value;
  }

  // ---- a head's first and last

  void start_head() {
    const Heads &s = p_.grad_state, &z = p_.grad_norm;
    const T* const from = s.data ? state_numbers(s) : nullptr;
    const auto number = [&](int64_t d, int64_t c) { return from[d * s.position + c * s.feature]; };
    if (part_.of_features) {
      fill(m_.state_grad, state_size(), 0);
      if (p_.grid.held > 0) fill(m_.read_grad, state_size(), 0);
      for (int64_t d = 0; d < part_.features && from; ++d)
        for (int64_t c = 0; c < p_.Dv; ++c) m_.state_grad[turned(c, d)] = number(part_.d0 + d, c);
      for (int64_t d = 0; d < part_.features && z.data && p_.normalize; ++d)
        m_.state_grad[turned(p_.Dv, d)] = state_numbers(z)[(part_.d0 + d) * z.position];
      fill(m_.bonus_sums, m_.ld, 0);
    } else {
      fill(m_.value_state, p_.D * m_.values_ld, 0);
      if (p_.grid.held > 0) fill(m_.value_read, p_.D * m_.values_ld, 0);
      for (int64_t d = 0; d < p_.D && from; ++d)
        for (int64_t c = 0; c < part_.values; ++c)
          m_.value_state[panel_index<T>(d, c, p_.D, m_.values_ld)] = number(d, part_.v0 + c);
    }
    if (p_.bonus.data)
      with_stored<S>(p_.bonus.float32, [&](auto stored) {
        using X = decltype(stored);
        const X* const u = static_cast<const X*>(p_.bonus.data) + head_ * p_.bonus.head;
        stage_rows(Strided<X>{u + part_.d0 * p_.bonus.feature, 0, p_.bonus.feature}, 1,
                   part_.features, m_.bonus, m_.ld);
      });
  }

  void finish_head() {
    if (!part_.of_features) return;
    const int64_t row = place() * p_.D + part_.d0;
    if (auto* const to = static_cast<T*>(p_.grad_initial_state))
      for (int64_t d = 0; d < part_.features; ++d)
        for (int64_t c = 0; c < p_.Dv; ++c) to[(row + d) * p_.Dv + c] = m_.state_grad[turned(c, d)];
    if (auto* const to = static_cast<T*>(p_.grad_initial_norm); to && p_.normalize)
      for (int64_t d = 0; d < part_.features; ++d) to[row + d] = m_.state_grad[turned(p_.Dv, d)];
    if (auto* const to = static_cast<T*>(p_.bonus_sums))
      store_row(to + row, m_.bonus_sums, part_.features);
  }

  // ---- operands

  Strided<S> queries(int64_t t) const { return rows<S>(p_.query, key_head(), t, part_.d0); }
  Strided<S> keys(int64_t t) const { return rows<S>(p_.key, key_head(), t, part_.d0); }
  Strided<S> values(int64_t t) const { return rows<S>(p_.value, head_, t, 0); }
  Strided<S> grads_of(int64_t t) const { return rows<S>(p_.grad_out, head_, t, part_.v0); }

  /// Kernels that go feature by feature have all their rows at one distance.
  RowsOf<T> take(Strided<S> from, int64_t count, int64_t n, T* copy, int64_t ld) const {
    if (!per_feature()) return take_rows(from, count, n, copy, ld);
    stage_rows(from, count, n, copy, ld);
    return {copy, ld};
  }

  void take_keys(int64_t t, int64_t count) {
    k_ = take(keys(t), count, part_.features, m_.k, m_.ld);
    if (!part_.of_features) return;
    if (!p_.normalize) {
      v_ = take_rows(values(t), count, p_.Dv, m_.v, m_.values_ld);
      return;
    }
    start_last_vectors(m_.v, count);
    stage_rows(values(t), count, p_.Dv, m_.v, m_.values_ld);
    for (int64_t i = 0; i < count; ++i) m_.v[i * m_.values_ld + p_.Dv] = 1;
    v_ = {m_.v, m_.values_ld};
  }
  /// The column that normalising adds may begin a vector of its own.
  void start_last_vectors(T* to, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) store(to + (i + 1) * m_.values_ld - kWidth<V>, V{});
  }

  void load_decays_of(int64_t t, const ChunkReads& reads) {
    const HeadsInput& x = p_.log_decay;
    const int64_t at = span_.batch * x.batch + head_ * x.head + (span_.start + t) * x.position;
    if (per_position()) {
      position_.template load<S>(x, at, reads);
      fill(m_.all, m_.ld, position_.all);
    } else if (per_feature()) {
      decays_.template load<S>(x, at + part_.d0 * x.feature, part_.features, reads);
      for (int64_t d = 0; d < m_.ld; ++d) m_.all[d] = decays_.all[d];
    }
  }

  /// rest∘k as rows, and as an operand B.
  RowsOf<T> rest_rows(int64_t count) {
    if (p_.decay == DecayKind::kNone) return k_;
    if (per_feature())
      multiply_rows(k_, decays_.rest, count, m_.ld, m_.rest_k, m_.ld);
    else
      scale_rows(k_, count, m_.ld, position_.rest, T(1), m_.rest_k, m_.ld);
    return {m_.rest_k, m_.ld};
  }
  PanelsB<T> rest_panels(int64_t count) {
    if (per_position())
      return pack_scaled<T>(k_, count, part_.features, position_.rest, T(1), m_.panels);
    return take_panels(rest_rows(count), count, part_.features, m_.panels);
  }
  const T* cum() const { return per_position() && p_.grid.held == 0 ? position_.cum : nullptr; }
  /// factor·cum∘q as rows, and as an operand B.
  RowsOf<T> read_rows(int64_t count) {
    if (per_feature() && p_.grid.held == 0)
      multiply_rows(q_, decays_.cum, count, m_.ld, m_.read_q, m_.ld);
    else if (cum() || factor_ != 1)
      scale_rows(q_, count, m_.ld, cum(), factor_, m_.read_q, m_.ld);
    else
      return q_;
    return {m_.read_q, m_.ld};
  }
  PanelsB<T> read_panels(int64_t count) {
    if (!per_feature() && (cum() || factor_ != 1))
      return pack_scaled<T>(q_, count, part_.features, cum(), factor_, m_.panels);
    return take_panels(read_rows(count), count, part_.features, m_.panels);
  }

  /// Whether g is the gradient of out as it is given, and what is made of g is scaled instead.
  bool scale_later() const { return !p_.normalize && !per_feature(); }

  void take_queries(int64_t t, int64_t count) {
    q_ = take(queries(t), count, part_.features, m_.q, m_.ld);
    g_ = {m_.g, m_.values_ld};
    if (!p_.grad_out.data) return fill(m_.g, count * m_.values_ld, 0);
    if (scale_later()) {
      g_ = take_rows(grads_of(t), count, part_.values, m_.g, m_.values_ld);
      return;
    }
    if (p_.normalize) start_last_vectors(m_.g, count);
    stage_rows(grads_of(t), count, part_.values, m_.g, m_.values_ld);
    const int64_t at = (span_.batch * p_.H + head_) * p_.N + span_.start + t;
    for (int64_t i = 0; i < count; ++i) {
      T* const g = m_.g + i * m_.values_ld;
      T factor = static_cast<T>(p_.scale), of_sum = 0;
      if (p_.normalize) {
        const T inverse =
            1 / (static_cast<const T*>(p_.denominators)[at + i] + static_cast<T>(p_.eps));
        stage_rows(rows<S>(p_.out, head_, t + i, part_.v0), 1, part_.values, m_.row, m_.values_ld);
        of_sum = -dot(g, m_.row, part_.values) * inverse;
        factor *= inverse;
      }
      scale_rows<T>(g_.from(i), 1, part_.values, nullptr, factor, g, m_.values_ld);
      if (m_.columns > part_.values) g[part_.values] = of_sum;
    }
  }

  void prefetch(int64_t t) const {
    if (t < 0) return;
    const int64_t count = p_.grid.chunk < span_.queries - t ? p_.grid.chunk : span_.queries - t;
    prefetch_rows(queries(t), count, part_.features);
    if (p_.grad_out.data) prefetch_rows(grads_of(t), count, part_.values);
    prefetch_rows(keys(t), count, part_.features);
    if (part_.of_features) prefetch_rows(values(t), count, p_.Dv);
  }

  // ---- pairs of positions

  /// q·k of all features.
  void score_pairs(int64_t t, const ChunkReads& reads) {
    const int64_t count = reads.count;
    MatrixA<T> q = q_.matrix();
    if (part_.features < p_.D) {
      q = {m_.whole_q, pad_columns<T>(p_.D), 1};
      stage_rows(rows<S>(p_.query, key_head(), t, 0), count, p_.D, m_.whole_q, q.row_stride);
    }
    pack_transposed<T>(rows<S>(p_.key, key_head(), t, 0), count, p_.D, m_.keys);
    multiply_pairs<T>(count, p_.D, q, PanelsB<T>{m_.keys, p_.D, pad_columns<T>(count)}, reads.ends,
                      m_.scores, m_.pairs_ld);
  }

  /// w = P∘(g·v), without P where that is of each feature.
  void weigh_pairs(const ChunkReads& reads) {
    const int64_t count = reads.count;
    pack_transposed<T>(Strided<T>{v_.data, v_.ld, 1}, count, m_.columns, m_.values);
    multiply_pairs<T>(count, m_.columns, g_.matrix(),
                      PanelsB<T>{m_.values, m_.columns, pad_columns<T>(count)}, reads.ends,
                      m_.weights, m_.pairs_ld);
    decay_pairs(m_.weights, m_.pairs_ld, reads, per_position() ? position_.a : nullptr, factor_);
    for (int64_t i = 0; i < count && p_.bonus.data; ++i)
      own_[i] = factor_ * dot(g_.from(i).data, v_.from(i).data, m_.columns);
  }

  // ---- gradients of a chunk

  /// A state as operand, its columns of value along k.
  PanelsB<T> turned_state(const T* state) const { return {state, m_.columns, m_.ld}; }

  void query_gradients(int64_t t, const ChunkReads& reads, const T* state) {
    const int64_t count = reads.count, n = part_.features;
    place_grads(t, p_.N, p_.grad_query);
    multiply<T>(count, n, m_.columns, g_.matrix(), turned_state(state), grads_.data, grads_.ld);
    if (per_feature() && in_pairs())
      multiply_rows<T>(made(), decays_.cum, count, m_.ld, grads_.data, grads_.ld);
    else if (cum() || factor_ != 1)
      scale_rows<T>(made(), count, m_.ld, cum(), factor_, grads_.data, grads_.ld);
    if (of_decays()) sum_features(q_, count, m_.of_read);
    if (in_pairs() && p_.grad_query) {
      if (per_feature())
        ascend<T>(reads, n, m_.ld, m_.q, m_.k, decays_.a, m_.read_q, m_.pairs_ld, nullptr,
                  m_.weights, grads_.data);
      else
        add_triangle<T>(count, n, count, MatrixA<T>{m_.weights, m_.pairs_ld, 1},
                        take_panels(k_, count, n, m_.panels), nullptr, reads.ends,
                        !all_finite(k_, count, n), grads_.data, grads_.ld);
      add_bonus(count, k_);
    }
    if (p_.grad_query) deliver(t, count, p_.N, p_.grad_query, p_.query_sums);
  }

  void key_gradients(int64_t t, const ChunkReads& reads) {
    const int64_t count = reads.count, n = part_.features;
    place_grads(t, p_.M, p_.grad_key);
    multiply<T>(count, n, m_.columns, v_.matrix(), turned_state(m_.state_grad), grads_.data,
                grads_.ld);
    if (per_position())
      scale_rows<T>(made(), count, m_.ld, position_.rest, T(1), grads_.data, grads_.ld);
    if (per_feature()) multiply_rows<T>(made(), decays_.rest, count, m_.ld, grads_.data, grads_.ld);
    if (of_decays()) sum_features(k_, count, m_.of_rest);
    if (in_pairs()) {
      if (per_feature())
        descend(reads, n, m_.ld, m_.q, m_.k, decays_.a, m_.pairs_ld, m_.weights, grads_.data,
                m_.passed);
      else if (p_.grad_key)
        add_triangle<T>(count, n, count, MatrixA<T>{m_.weights, 1, m_.pairs_ld},
                        take_panels(q_, count, n, m_.panels), reads.begins, nullptr,
                        !all_finite(q_, count, n), grads_.data, grads_.ld);
      add_bonus(count, q_);
    }
    if (p_.grad_key) deliver(t, count, p_.M, p_.grad_key, p_.key_sums);
  }

  /// Gradients of a head alone are made where they belong, if they are as wide there.
  void place_grads(int64_t t, int64_t positions, void* grad) {
    grads_ = {m_.grads, m_.ld};
    if constexpr (std::is_same_v<S, T>)
      if (grad && p_.group() == 1 && m_.ld == part_.features && !per_feature())
        grads_ = {static_cast<T*>(grad) + row_of_keys(t, positions) * p_.D + part_.d0, p_.D};
  }
  RowsOf<T> made() const { return {grads_.data, grads_.ld}; }
  int64_t row_of_keys(int64_t t, int64_t positions) const {
    return (span_.batch * p_.Hk + key_head()) * positions + span_.start + t;
  }

  /// grads_i += (g_i·v_i) u∘x_i
  void add_bonus(int64_t count, RowsOf<T> x) {
    if (!p_.bonus.data) return;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < m_.ld; d += kWidth<V>) {
        T* const to = grads_.data + i * grads_.ld + d;
        const V own = load<V>(x.data + i * x.ld + d) * own_[i];
        store(to, madd(own, load<V>(m_.bonus + d), load<V>(to)));
      }
  }
  void bonus_gradients(int64_t count) {
    for (int64_t d = 0; d < m_.ld; d += kWidth<V>) {
      V sum{};
      for (int64_t i = 0; i < count; ++i)
        sum = madd(load<V>(q_.from(i).data + d) * own_[i], load<V>(k_.from(i).data + d), sum);
      store(m_.bonus_sums + d, load<V>(m_.bonus_sums + d) + sum);
    }
  }

  /// grads∘x, of each feature; or summed over each unit of them: (units, positions).
  void sum_features(RowsOf<T> x, int64_t count, T* to) const {
    if (per_feature()) return multiply_rows<T>(made(), x.data, count, m_.ld, to, m_.ld);
    for (int64_t d = 0; d < part_.features; d += kFeatureUnit, to += p_.grid.chunk) {
      const int64_t n = m_.ld - d < kFeatureUnit ? m_.ld - d : kFeatureUnit;
      for (int64_t i = 0; i < count; ++i)
        to[i] = dot(made().from(i).data + d, x.from(i).data + d, n);
    }
  }

  void deliver(int64_t t, int64_t count, int64_t positions, void* grad, void* some_heads) const {
    if (grads_.data != m_.grads) return;
    const bool first = head_ == part_.first_head,
               last = head_ + 1 == part_.first_head + part_.heads;
    const bool whole = last && p_.group_parts() == 1;
    T* const sums =
        static_cast<T*>(some_heads) + part_.part_of_group * p_.B * p_.Hk * positions * p_.D;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = (row_of_keys(t, positions) + i) * p_.D + part_.d0;
      T* const from = m_.grads + i * m_.ld;
      for (int64_t d = 0; d < part_.features && !first; d += kWidth<V>)
        store(from + d, load_first<V>(sums + at + d, part_.features - d) + load<V>(from + d));
      if (whole)
        store_row(static_cast<S*>(grad) + at, from, part_.features);
      else
        store_row(sums + at, from, part_.features);
    }
  }

  void value_gradients(int64_t t, const ChunkReads& reads) {
    const int64_t count = reads.count, n = part_.values;
    const int64_t row = (span_.batch * p_.H + head_) * p_.M + span_.start + t;
    T* to = m_.value_grad;
    int64_t ld = m_.value_columns;
    if constexpr (std::is_same_v<S, T>)
      if (ld == n) {
        to = static_cast<T*>(p_.grad_value) + row * p_.Dv + part_.v0;
        ld = p_.Dv;
      }
    if (part_.of_features) turn_state(m_.state_grad, p_.D, m_.columns, m_.value_state);
    multiply<T>(count, n, p_.D, rest_rows(count).matrix(),
                PanelsB<T>{m_.value_state, p_.D, m_.values_ld}, to, ld);
    if (in_pairs()) {
      int64_t begins[kLinearChunk];
      for (int64_t j = 0; j < count; ++j) begins[j] = p_.bonus.data ? j : reads.begins[j];
      add_triangle<T>(count, n, count, MatrixA<T>{m_.scores, 1, m_.pairs_ld},
                      take_panels(g_, count, n, m_.g_panels), begins, nullptr,
                      !all_finite(g_, count, n), to, ld);
    }
    for (int64_t i = 0; i < count && to == m_.value_grad; ++i)
      store_row(static_cast<S*>(p_.grad_value) + (row + i) * p_.Dv + part_.v0, to + i * ld, n);
  }

  // ---- log_decay

  void decay_gradients(int64_t t, const ChunkReads& reads, const T* state) {
    column_products(state, m_.state_grad, m_.columns, m_.ld, m_.products);
    multiply_rows<T>({m_.products, m_.ld}, m_.all, 1, m_.ld, m_.products, m_.ld);
    if (per_feature())
      feature_decay_gradients(t, reads);
    else
      position_decay_gradients(t, reads);
  }

  void position_decay_gradients(int64_t first, const ChunkReads& reads) {
    const int64_t count = reads.count;
    for (int64_t d = 0; d < part_.features; d += kFeatureUnit) {
      const int64_t unit = (part_.d0 + d) / kFeatureUnit, local = d / kFeatureUnit;
      const T *const read = m_.of_read + local * p_.grid.chunk, *const rest = m_.of_rest +
                                                                              local * p_.grid.chunk;
      T* const to = static_cast<T*>(p_.decay_sums) +
                    ((unit * p_.B + span_.batch) * p_.H + head_) * p_.N + span_.start + first;
      T state = 0, later = 0, before = 0;
      for (int64_t i = d; i < d + kFeatureUnit && i < part_.features; ++i) state += m_.products[i];
      for (int64_t t = count - 1, i = count - 1; t >= 0; --t) {
        for (; in_pairs() && i >= reads.begins[t]; --i) later += read[i];
        to[t] = later + state + (unit == 0 && in_pairs() ? m_.passed[t] : T(0));
      }
      for (int64_t t = 0; t < count; ++t) {
        to[t] += before;
        before += rest[t];
      }
    }
  }

  void feature_decay_gradients(int64_t first, const ChunkReads& reads) {
    const int64_t count = reads.count;
    for (int64_t d = 0; d < m_.ld; d += kWidth<V>) {
      V later{}, before{};
      const V state = load<V>(m_.products + d);
      for (int64_t t = count - 1, i = count - 1; t >= 0; --t) {
        for (; in_pairs() && i >= reads.begins[t]; --i)
          later += load<V>(m_.of_read + i * m_.ld + d);
        T* const to = m_.passed + t * m_.ld + d;
        store(to, in_pairs() ? load<V>(to) + later + state : state);
      }
      for (int64_t t = 0; t < count; ++t) {
        T* const to = m_.passed + t * m_.ld + d;
        store(to, load<V>(to) + before);
        before += load<V>(m_.of_rest + t * m_.ld + d);
      }
    }
    const int64_t row = (span_.batch * p_.H + head_) * p_.N + span_.start + first;
    with_stored<S>(p_.log_decay.float32, [&](auto stored) {
      using X = decltype(stored);
      for (int64_t t = 0; t < count; ++t)
        store_row(static_cast<X*>(p_.grad_log_decay) + (row + t) * p_.D + part_.d0,
                  m_.passed + t * m_.ld, part_.features);
    });
  }

  // ---- the state's gradient before the chunk

  void step_back(int64_t t, int64_t count) {
    T* const grad = part_.of_features ? m_.state_grad : m_.value_state;
    T* const read = part_.of_features ? m_.read_grad : m_.value_read;
    if (p_.grid.held == 0) return add_reads(count, m_.all, grad);
    add_reads(count, m_.ones, read);
    const int64_t n = part_.of_features ? state_size() : p_.D * m_.values_ld;
    decay_state(grad);
    if (t % p_.grid.held != 0) return;
    for (int64_t i = 0; i < n; ++i) grad[i] += read[i];
    fill(read, n, 0);
  }
  /// grad = factors∘grad + Σ_i (cum_i q_i) g_iᵀ
  void add_reads(int64_t count, const T* factors, T* grad) {
    if (part_.of_features)
      advance_state<true>(m_.columns, m_.ld, count, g_.transposed(), read_panels(count), factors,
                          grad, grad);
    else
      advance_state<false>(p_.D, m_.values_ld, count, read_rows(count).transposed(),
                           take_panels(g_, count, part_.values, m_.g_panels), factors, grad, grad);
  }
  void decay_state(T* grad) {
    if (part_.of_features)
      advance_state<true>(m_.columns, m_.ld, 0, MatrixA<T>{m_.g, 1, m_.values_ld},
                          PanelsB<T>{m_.panels, 0, m_.ld}, m_.all, grad, grad);
    else
      advance_state<false>(p_.D, m_.values_ld, 0, MatrixA<T>{m_.q, 1, m_.ld},
                           PanelsB<T>{m_.g_panels, 0, m_.values_ld}, m_.all, grad, grad);
  }

  // ---- blocks

  const T* kept(int64_t block) const {
    return static_cast<const T*>(p_.kept) +
           ((block * p_.H + head_) * p_.D + part_.d0) * p_.columns();
  }
  void load_kept(int64_t block, T* to) const {
    pack_transposed<T>(Strided<T>{kept(block), p_.columns(), 1}, part_.features, m_.columns, to);
  }

  /// States before each chunk of a block, from the one that was kept.
  void load_states(int64_t index, int64_t begin, int64_t end) {
    load_kept(span_.block + index, m_.states);
    T* state = m_.states;
    for (int64_t t = begin, next; (next = p_.grid.chunk_end(t, span_.queries)) < end; t = next) {
      const ChunkReads reads(p_, next - t);
      take_keys(t, next - t);
      load_decays_of(t, reads);
      advance_state<true>(m_.columns, m_.ld, next - t, v_.transposed(), rest_panels(next - t),
                          m_.all, state, state + state_size());
      state += state_size();
    }
    const int64_t held = p_.grid.held;
    if (held > 0 && begin % held != 0 && (end == span_.queries || end % held == 0))
      load_kept(span_.block + p_.grid.blocks(begin / held * held), m_.read);
  }

  void block(int64_t index) {
    const int64_t begin = p_.grid.block_begin(index), end = p_.grid.block_end(begin, span_.queries);
    int64_t starts[kLinearBlock], chunks = 0;
    for (int64_t t = begin; t < end; t = p_.grid.chunk_end(t, span_.queries)) starts[chunks++] = t;
    const bool with_states = part_.of_features && of_queries();
    if (with_states) load_states(index, begin, end);
    while (chunks-- > 0) {
      const int64_t t = starts[chunks];
      const T *state = nullptr, *read = nullptr;
      if (with_states) state = read = m_.states + chunks * state_size();
      if (with_states && p_.grid.held > 0) {
        const int64_t first = t / p_.grid.held * p_.grid.held;
        int64_t at = chunks;
        while (at > 0 && starts[at] > first) --at;
        read = starts[at] == first ? m_.states + at * state_size() : m_.read;
      }
      chunk(t, p_.grid.chunk_end(t, span_.queries) - t, state, read);
    }
  }

  void chunk(int64_t t, int64_t count, const T* state, const T* read) {
    const ChunkReads reads(p_, count);
    take_queries(t, count);
    take_keys(t, count);
    prefetch(t - p_.grid.chunk);
    load_decays_of(t, reads);
    const bool values = part_.of_values && p_.grad_value, features = part_.of_features;
    const bool decay_pairs_too = features && per_position() && of_decays() && part_.d0 == 0;
    if (in_pairs()) {
      if (!per_feature() && (values || decay_pairs_too)) score_pairs(t, reads);
      if (features) weigh_pairs(reads);
      if (decay_pairs_too) sum_passed(reads, m_.pairs_ld, m_.weights, m_.scores, m_.passed);
      if (values) decay_scores(reads);
    }
    if (features) {
      if (of_queries()) query_gradients(t, reads, read);
      if (of_keys()) key_gradients(t, reads);
      if (p_.bonus_sums) bonus_gradients(count);
      if (of_decays()) decay_gradients(t, reads, state);
    }
    if (values) value_gradients(t, reads);
    step_back(t, count);
  }

  /// scores become P∘(q·k), a query's own key by the bonus.
  void decay_scores(const ChunkReads& reads) {
    if (per_feature())
      ascend(reads, p_.D, m_.ld, m_.q, m_.k, decays_.a, m_.read_q, m_.pairs_ld, m_.scores,
             static_cast<T*>(nullptr), static_cast<T*>(nullptr));
    else
      decay_pairs(m_.scores, m_.pairs_ld, reads, per_position() ? position_.a : nullptr, factor_);
    for (int64_t i = 0; i < reads.count && p_.bonus.data; ++i)
      m_.scores[i * m_.pairs_ld + i] =
          factor_ * dot(q_.from(i).data, m_.bonus, k_.from(i).data, m_.ld);
  }

  /// All queries read the last state.
  void not_causal() {
    const int64_t most = p_.grid.chunk;
    if (part_.of_features && p_.grad_query) load_kept(part_.sequence, m_.states);
    for (int64_t t = 0; t < span_.queries; t += most) {
      const ChunkReads reads(p_, span_.queries - t < most ? span_.queries - t : most);
      take_queries(t, reads.count);
      if (part_.of_features && p_.grad_query) query_gradients(t, reads, m_.states);
      add_reads(reads.count, m_.ones, part_.of_features ? m_.state_grad : m_.value_state);
    }
    for (int64_t t = 0; t < span_.keys; t += most) {
      const ChunkReads reads(p_, span_.keys - t < most ? span_.keys - t : most);
      take_keys(t, reads.count);
      if (part_.of_features && p_.grad_key) key_gradients(t, reads);
      if (part_.of_values && p_.grad_value) value_gradients(t, reads);
    }
  }

  const LinearAttentionBackwardParams& p_;
  BackwardPart part_;
  Arena arena_;
  BackwardScratch<S> m_;
  FeatureDecays<T> decays_;
  PositionDecays<T> position_;
  LinearSpan span_;
  int64_t head_;
  struct Grads {
    T* data;
    int64_t ld;
  };
  RowsOf<T> q_, k_, v_, g_;  // of the chunk
  T factor_;                 // of what is made of g
  Grads grads_;              // of queries, or of keys, in the making
  T own_[kLinearChunk];      // factor·g_i·v_i
};

}  // namespace

void linear_attention_backward_layout(const LinearAttentionBackwardParams& p, int64_t* bytes) {
  with_storage(p.dtype, [&](auto s) {
    *bytes = BackwardTask<decltype(s)>(p, 0, nullptr).bytes();
    if (p.values > 0) {
      const int64_t of_values = BackwardTask<decltype(s)>(p, p.feature_tasks(), nullptr).bytes();
      if (of_values > *bytes) *bytes = of_values;
    }
  });
}

void linear_attention_backward(const LinearAttentionBackwardParams& p, int64_t task,
                               void* scratch) {
  with_storage(p.dtype, [&](auto s) { BackwardTask<decltype(s)>(p, task, scratch).run(); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
