// Linear attention, one head after another, a chunk of positions at a time,
//   out_i = scale·[(cum_i q_i)ᵀ S + Σ_j P_ij (q_i·k_j) v_j]      S ← all·S + Σ_j (rest_j k_j) v_jᵀ
// with the decays of linear_chunks.h. Normalising adds a column of ones to v, whose out is the denominator.
//
// Reads: all inputs, of any strides.
// Writes: out, the last states and norms; states before every block and denominators, where a backward will want them.
// Task: a head of a sequence by a range of columns of value.
// Order of sums: what the state gives by features in order, what the chunk's keys give in order, then both together; so
// neither ranges
// nor what follows a position show in its bits.

#include "linear/cpu/kernels/linear_chunks.h"
#include "simd/unpacked.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class S>
class ForwardTask {
  using T = Accumulate<S>;
  using V = Native<T>;

 public:
  ForwardTask(const LinearAttentionParams& p, int64_t task, void* memory)
      : p_(p), arena_(memory), decays_(arena_, per_feature() ? pad_lanes<T>(p.D) : 0) {
    const int64_t ranges = ceil_div(p.Dv, p.range) + (p.Dv == 0);
    const int64_t heads = p.H > 0 ? p.H : 1;
    sequence_ = task / ranges / heads;
    head_ = task / ranges % heads;
    first_ = task % ranges * p.range;
    own_ = p.Dv - first_ < p.range ? p.Dv - first_ : p.range;
    columns_ = pad_columns<T>(own_ + (p.normalize ? 1 : 0));
    ld_ = pad_lanes<T>(p.D);
    const int64_t chunk = p.grid.chunk;
    pairs_ld_ = pad_columns<T>(chunk);
    state_ = arena_.take<T>(p.D * columns_);
    held_ = p.grid.held > 0 ? arena_.take<T>(p.D * columns_) : state_;
    for (T** rows : {&q_, &k_, &w_}) *rows = arena_.take<T>(chunk * ld_);
    keys_ = arena_.take<T>(p.D * pairs_ld_);
    values_ = arena_.take<T>(chunk * columns_);
    panels_ = arena_.take<T>(chunk * columns_);
    out_ = arena_.take<T>(chunk * columns_);
    pairs_ = arena_.take<T>(chunk * pairs_ld_);
    factors_ = arena_.take<T>(ld_);
  }
  int64_t bytes() const { return arena_.used(); }

  void run() {
    span_ = p_.spans[sequence_];
    if (of_few()) return chunk(0, span_.queries);
    start_state();
    if (!p_.causal) {
      for (int64_t t = 0; t < span_.keys; t += p_.grid.chunk)
        write_keys(t, span_.keys - t < p_.grid.chunk ? span_.keys - t : p_.grid.chunk);
      keep(sequence_);
    }
    for (int64_t t = 0, end, block = span_.block; t < span_.queries; t = end) {
      end = p_.grid.chunk_end(t, span_.queries);
      if (p_.causal && p_.grid.starts_block(t)) keep(block++);
      if (p_.grid.held > 0 && t % p_.grid.held == 0)
        for (int64_t i = 0; i < p_.D * columns_; i += kWidth<V>)
          store(held_ + i, load<V>(state_ + i));
      chunk(t, end - t);
    }
    store_state(static_cast<T*>(p_.state) + place() * p_.D * p_.Dv, p_.Dv, false);
    if (p_.norm && p_.normalize && first_ == 0)
      for (int64_t d = 0; d < p_.D; ++d)
        static_cast<T*>(p_.norm)[place() * p_.D + d] = state_[index(d, own_)];
  }

 private:
  bool per_feature() const { return p_.decay == DecayKind::kFeature; }
  /// Whether queries see keys of their own chunk.
  bool in_pairs() const { return p_.causal && p_.grid.held == 0; }
  int64_t place() const { return sequence_ * p_.H + head_; }
  int64_t index(int64_t d, int64_t c) const { return panel_index<T>(d, c, p_.D, columns_); }

  /// Few positions, as decoding has, read the state where it stands and write the next to its place: packing it would take
  /// longer.
  bool of_few() const {
    return p_.causal && !p_.normalize && !p_.kept && p_.grid.held == 0 && span_.queries > 0 &&
           span_.queries <= kFewRows && span_.queries <= p_.grid.chunk && own_ == columns_ &&
           p_.initial_state.data && p_.initial_state.feature == 1;
  }
  Strided<T> state_in_place() const {
    const Heads& s = p_.initial_state;
    return {static_cast<const T*>(s.data) + sequence_ * s.batch + head_ * s.head + first_,
            s.position, 1};
  }
  /// The chains of advance_state.
  void advance_few(int64_t count, RowsOf<T> keys, const T* factors) const {
    const Strided<T> from = state_in_place();
    T* to = static_cast<T*>(p_.state) + place() * p_.D * p_.Dv + first_;
    for (int64_t d = 0; d < p_.D; ++d, to += p_.Dv)
      for (int64_t c = 0; c < own_; c += kWidth<V>) {
        V sum{};
        for (int64_t j = 0; j < count; ++j)
          sum = madd(splat<V>(keys.data[j * keys.ld + d]), load<V>(x_.data + j * x_.ld + c), sum);
        const V before = load<V>(from.data + d * from.row_stride + c);
        store(to + c, madd(splat<V>(factors[d]), before, sum));
      }
  }

  template <class X>
  Strided<X> rows(const Heads& x, int64_t head, int64_t t) const {
    return {static_cast<const X*>(x.data) + span_.batch * x.batch + head * x.head +
                (span_.start + t) * x.position,
            x.position, x.feature};
  }

  void start_state() {
    const Heads &s = p_.initial_state, &z = p_.initial_norm;
    const int64_t at = sequence_ * s.batch + head_ * s.head;
    for (int64_t i = 0; i < p_.D * columns_; i += kWidth<V>) store(state_ + i, V{});
    for (int64_t d = 0; d < p_.D && s.data; ++d)
      for (int64_t c = 0; c < own_; c += kWidth<V>)
        store(state_ + index(d, c), load_strided<V>(static_cast<const T*>(s.data) + at +
                                                        d * s.position + (first_ + c) * s.feature,
                                                    s.feature, own_ - c));
    for (int64_t d = 0; d < p_.D && z.data && p_.normalize; ++d)
      state_[index(d, own_)] =
          static_cast<const T*>(z.data)[sequence_ * z.batch + head_ * z.head + d * z.position];
  }

  /// Rows of `columns` numbers, those of this task.
  void store_state(T* to, int64_t columns, bool norm) const {
    for (int64_t d = 0; d < p_.D; ++d, to += columns) {
      for (int64_t c = 0; c < own_; c += kWidth<V>)
        store_up_to(to + first_ + c, load<V>(state_ + index(d, c)), own_ - c);
      if (norm) to[p_.Dv] = state_[index(d, own_)];
    }
  }
  void keep(int64_t block) const {
    if (p_.kept)
      store_state(static_cast<T*>(p_.kept) + (block * p_.H + head_) * p_.D * p_.columns(),
                  p_.columns(), p_.normalize && first_ == 0);
  }

  Strided<S> queries(int64_t t) const { return rows<S>(p_.query, head_ / p_.group(), t); }
  Strided<S> keys(int64_t t) const { return rows<S>(p_.key, head_ / p_.group(), t); }
  Strided<S> values(int64_t t) const { return rows<S>(p_.value, head_, t).columns_from(first_); }

  void take_values(int64_t t, int64_t count) {
    if (!p_.normalize) {
      x_ = take_rows(values(t), count, own_, values_, columns_);
    } else {
      for (int64_t i = 0; i < count; ++i) store(values_ + (i + 1) * columns_ - kWidth<V>, V{});
      stage_rows(values(t), count, own_, values_, columns_);
      for (int64_t i = 0; i < count; ++i) values_[i * columns_ + own_] = 1;
      x_ = {values_, columns_};
    }
    x_panels_ = take_panels(x_, count, columns_, panels_);
  }
  /// Feature by feature keys and queries are changed where they are.
  void take_operands(int64_t t, int64_t count) {
    if (per_feature()) {
      stage_rows(queries(t), count, p_.D, q_, ld_);
      stage_rows(keys(t), count, p_.D, k_, ld_);
      query_ = {q_, ld_};
      key_ = {k_, ld_};
    } else {
      query_ = take_rows(queries(t), count, p_.D, q_, ld_);
      if (p_.causal) key_ = take_rows(keys(t), count, p_.D, k_, ld_);
    }
    if (p_.causal) take_values(t, count);
  }
  void prefetch(int64_t t) const {
    const int64_t left = span_.queries - t, count = left < p_.grid.chunk ? left : p_.grid.chunk;
    prefetch_rows(queries(t), count, p_.D);
    if (!p_.causal) return;
    prefetch_rows(keys(t), count, p_.D);
    prefetch_rows(values(t), count, own_);
  }

  /// Keys that decay with nothing on their way into the state.
  void write_keys(int64_t t, int64_t count) {
    const RowsOf<T> k = take_rows(keys(t), count, p_.D, k_, ld_);
    take_values(t, count);
    advance(count, k, nullptr);
  }

  void advance(int64_t count, RowsOf<T> keys, const T* factors) {
    if (!factors) {
      for (int64_t d = 0; d < p_.D; ++d) factors_[d] = position_.all;
      factors = factors_;
    }
    if (of_few()) return advance_few(count, keys, factors);
    advance_state<false>(p_.D, columns_, count, keys.transposed(), x_panels_, factors, state_,
                         state_);
  }

  void chunk(int64_t t, int64_t count) {
    const ChunkReads reads(p_, count);
    const T scale = static_cast<T>(p_.normalize ? 1 : p_.scale);
    take_operands(t, count);
    prefetch(t + count);
    const int64_t at = span_.batch * p_.log_decay.batch + head_ * p_.log_decay.head +
                       (span_.start + t) * p_.log_decay.position;
    const bool per_position = p_.decay == DecayKind::kPosition, held = p_.grid.held > 0;
    if (per_position) position_.template load<S>(p_.log_decay, at, reads);
    if (per_feature()) decays_.template load<S>(p_.log_decay, at, p_.D, reads);
    if (in_pairs()) score_pairs(reads, scale);
    if (per_feature() && !held) multiply_rows(query_, decays_.cum, count, p_.D, q_, ld_);
    RowsOf<T> query = query_, key = key_;
    if ((per_position && !held) || scale != 1) {
      scale_rows(query_, count, p_.D, per_position && !held ? position_.cum : nullptr, scale, q_,
                 ld_);
      query = {q_, ld_};
    }
    read_state(query, t, count, reads);
    if (!p_.causal) return;
    if (per_feature()) multiply_rows(key_, decays_.rest, count, p_.D, w_, ld_);
    if (per_position) scale_rows(key_, count, p_.D, position_.rest, T(1), k_, ld_);
    if (per_feature() || per_position) key = {per_feature() ? w_ : k_, ld_};
    advance(count, key, per_feature() ? decays_.all : nullptr);
  }

  void read_state(RowsOf<T> query, int64_t t, int64_t count, const ChunkReads& reads) {
    T* out = out_;
    int64_t ld = columns_;
    const int64_t row = (span_.batch * p_.H + head_) * p_.N + span_.start + t;
    if constexpr (std::is_same_v<S, T>)
      if (!p_.normalize && own_ == columns_) {
        out = static_cast<T*>(p_.out) + row * p_.Dv + first_;
        ld = p_.Dv;
      }
    if (of_few())
      multiply_unpacked<T, T>(count, columns_, p_.D, query.matrix(), state_in_place(), out, ld,
                              false);
    else
      multiply<T>(count, columns_, p_.D, query.matrix(), PanelsB<T>{held_, p_.D, columns_}, out,
                  ld);
    if (in_pairs()) {
      const bool alone = !all_finite(x_, count, columns_);
      add_triangle<T>(count, columns_, count, MatrixA<T>{pairs_, pairs_ld_, 1}, x_panels_, nullptr,
                      ends_of_sums(reads), alone, out, ld);
    }
    if (out == out_) store_out(row, count);
  }

  /// A bonus lets a query see its own key.
  const int64_t* ends_of_sums(const ChunkReads& reads) {
    for (int64_t i = 0; i < reads.count; ++i) ends_[i] = p_.bonus.data ? i + 1 : reads.ends[i];
    return ends_;
  }

  /// pairs_ij = scale·P_ij (q_i·k_j), from queries and keys as they are.
  void score_pairs(const ChunkReads& reads, T scale) {
    const int64_t count = reads.count;
    if (per_feature()) {
      ascend(reads, p_.D, ld_, q_, k_, decays_.a, w_, pairs_ld_, pairs_, static_cast<T*>(nullptr),
             static_cast<T*>(nullptr));
      scale_rows<T>({pairs_, pairs_ld_}, count, pairs_ld_, static_cast<T*>(nullptr), scale, pairs_,
                    pairs_ld_);
    } else {
      pack_transposed<T>(Strided<T>{key_.data, key_.ld, 1}, count, p_.D, keys_);
      multiply_pairs<T>(count, p_.D, query_.matrix(),
                        PanelsB<T>{keys_, p_.D, pad_columns<T>(count)}, reads.ends, pairs_,
                        pairs_ld_);
      decay_pairs(pairs_, pairs_ld_, reads,
                  p_.decay == DecayKind::kPosition ? position_.a : nullptr, scale);
    }
    if (!p_.bonus.data) return;
    load_bonus();
    for (int64_t i = 0; i < count; ++i)
      pairs_[i * pairs_ld_ + i] =
          scale * dot(query_.from(i).data, factors_, key_.from(i).data, p_.D);
  }
  void load_bonus() {
    with_stored<S>(p_.bonus.float32, [&](auto stored) {
      using X = decltype(stored);
      stage_rows(Strided<X>{static_cast<const X*>(p_.bonus.data) + head_ * p_.bonus.head, 0,
                            p_.bonus.feature},
                 1, p_.D, factors_, ld_);
    });
  }

  void store_out(int64_t row, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      T factor = 1;
      if (p_.normalize) {
        const T sum = out_[i * columns_ + own_];
        if (p_.denominators && first_ == 0) static_cast<T*>(p_.denominators)[row + i] = sum;
        factor = static_cast<T>(p_.scale) / (sum + static_cast<T>(p_.eps));
      }
      store_row(static_cast<S*>(p_.out) + (row + i) * p_.Dv + first_, out_ + i * columns_, own_,
                factor);
    }
  }

  const LinearAttentionParams& p_;
  Arena arena_;
  FeatureDecays<T> decays_;
  PositionDecays<T> position_;
  LinearSpan span_;
  int64_t sequence_, head_, first_, own_, columns_, ld_, pairs_ld_;
  int64_t ends_[kLinearChunk];
  RowsOf<T> query_, key_, x_;  // of the chunk
  PanelsB<T> x_panels_;
  T *state_, *held_, *q_, *k_, *w_, *keys_, *values_, *panels_, *out_, *pairs_, *factors_;
};

}  // namespace

void linear_attention_layout(const LinearAttentionParams& p, int64_t* bytes) {
  with_storage(p.dtype, [&](auto s) { *bytes = ForwardTask<decltype(s)>(p, 0, nullptr).bytes(); });
}

void linear_attention(const LinearAttentionParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { ForwardTask<decltype(s)>(p, task, scratch).run(); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
