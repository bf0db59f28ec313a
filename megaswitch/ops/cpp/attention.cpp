// Attention with biases by distance, block by block: of all pairs of positions nothing is kept. The forward pass leaves
// each query's greatest logit and the inverse of its sum of exponentials, from which the backward has the weights again.
//
// B sequences, Q queries, M keys, H heads, K width of a head, R = Q + M - 1 distances. One sequence and head is one
// thread's work, so that the order of sums does not depend on the number of threads.
#include <limits>
#include <vector>

#include "common.h"
#include "exponential.h"
#include "packing.h"
#include "product.h"
#include "random.h"

namespace megaswitch {
namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

template <typename W>
constexpr int64_t kQueries = 4 * kRows<W>;  // of a block: what there is of each query and key stays in the second cache
constexpr int64_t kDepth = 128;             // keys whose values one pass over a block's weights takes

// A number that is added to logits of keys that are not seen: no softmax lets it through, but it is finite.
template <typename W>
constexpr W kHidden = std::numeric_limits<W>::lowest() / 4;

struct Arguments {
  Tensor q, k, v;
  MaybeTensor by_distance, real, of_queries, of_keys;
  bool causal;
  MaybeTensor states;
  double rate;

  int64_t B() const { return q.size(0); }
  int64_t Q() const { return q.size(1); }
  int64_t M() const { return k.size(1); }
  int64_t H() const { return q.size(2); }
  int64_t K() const { return q.size(3); }
  int64_t R() const { return Q() + M() - 1; }
};

MaybeTensor whole(const MaybeTensor& x) { return x ? MaybeTensor(x->contiguous()) : std::nullopt; }

Arguments arguments(const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& by_distance,
                    const MaybeTensor& real, const MaybeTensor& of_queries, const MaybeTensor& of_keys, bool causal,
                    const MaybeTensor& states, double rate) {
  Arguments a{q.contiguous(), k.contiguous(), v.contiguous(), whole(by_distance), whole(real),
              whole(of_queries), whole(of_keys), causal, whole(states), rate};
  TORCH_CHECK(k.sizes() == v.sizes() && k.size(0) == a.B() && k.size(2) == a.H() && k.size(3) == a.K());
  TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(), "q, k, v of one type");
  TORCH_CHECK(!causal || a.M() >= a.Q(), "queries are the last of the positions");
  TORCH_CHECK(!by_distance || (by_distance->size(0) == a.H() && by_distance->size(1) == a.R()));
  TORCH_CHECK(!real || real->numel() == a.B() * a.M());
  TORCH_CHECK(!of_keys || (of_keys->numel() == a.B() * a.M() && of_queries->numel() == a.B() * a.Q()));
  TORCH_CHECK(!states || states->numel() == a.B() * a.H() * a.Q());
  return a;
}

// Memory of one thread, parts of which begin on whole cache lines.
template <typename W>
class Room {
 public:
  Room(int64_t numbers, const Tensor& like) : all_(at::empty({numbers}, like.options().dtype(wide_type<W>()))) {}
  template <typename E = W>
  E* take(int64_t count) {
    static_assert(sizeof(E) == sizeof(W));
    E* part = static_cast<E*>(all_.mutable_data_ptr()) + used_;
    used_ += (count + 15) / 16 * 16;
    TORCH_INTERNAL_ASSERT(used_ <= all_.numel());
    return part;
  }
  void again() { used_ = 0; }

 private:
  Tensor all_;
  int64_t used_ = 0;
};

// What is added to the logits of one sequence and head, and which weights are dropped.
template <typename W>
struct Head {
  int64_t b, h, queries, keys;
  bool causal;
  const W* by_distance;        // zeros where there is none, and after its end
  std::vector<int32_t> of_keys;  // the keys' numbers, another one where a key is not real
  const int64_t* of_queries;
  const int64_t* states;
  uint32_t threshold;
  W scale;

  Head(const Arguments& a, int64_t item, Room<W>& room)
      : b(item / a.H()), h(item % a.H()), queries(a.Q()), keys(a.M()), causal(a.causal),
        of_keys(padded<W>(a.M()), 0), of_queries(a.of_queries ? a.of_queries->const_data_ptr<int64_t>() + b * a.Q() : nullptr),
        states(a.states ? a.states->const_data_ptr<int64_t>() + item * a.Q() : nullptr),
        threshold(threshold_of(a.rate)), scale(a.states ? W(1.0 / (1.0 - a.rate)) : W(1)) {
    const int64_t width = a.Q() + padded<W>(a.M());
    W* numbers = room.take(width);
    std::fill_n(numbers, width, W(0));
    if (a.by_distance) std::copy_n(a.by_distance->template const_data_ptr<W>() + h * a.R(), a.R(), numbers);
    by_distance = numbers;
    for (int64_t m = 0; m < keys; ++m) {
      if (a.of_keys) of_keys[m] = static_cast<int32_t>(a.of_keys->const_data_ptr<int64_t>()[b * keys + m]);
      if (a.real && !a.real->const_data_ptr<bool>()[b * keys + m]) of_keys[m] = std::numeric_limits<int32_t>::min();
    }
  }
  // Keys that the queries before this one may see.
  int64_t limit(int64_t query) const { return causal ? std::min(keys, query + keys - queries) : keys; }
};

// One query's part of that.
template <typename W>
struct Row {
  const W* by_distance;
  const int32_t* of_keys;
  int32_t own;
  uint32_t state, threshold;

  Row(const Head<W>& head, int64_t query)
      : by_distance(head.by_distance + head.queries - 1 - query), of_keys(head.of_keys.data()),
        own(head.of_queries ? static_cast<int32_t>(head.of_queries[query]) : 0),
        state(head.states ? static_cast<uint32_t>(head.states[query]) : 0), threshold(head.threshold) {}
  W added(int64_t m) const { return by_distance[m] + (of_keys[m] == own ? W(0) : kHidden<W>); }
  bool kept(int64_t m) const {
    return (Counters(0).of(state, static_cast<uint32_t>(m)) >> 8) >= threshold;
  }
};

template <typename W>
struct Statistic {
  W most, inverse;
};

// What so many lanes hold together, always in the same order.
template <typename W, typename Join>
W join_lanes(W* lanes, Join join) {
#pragma GCC unroll 8
  for (int64_t half = kPanel<W> / 2; half > 0; half /= 2) {
    for (int64_t l = 0; l < half; ++l) lanes[l] = join(lanes[l], lanes[l + half]);
  }
  return lanes[0];
}

// Logits into exponentials, those of dropped weights 0; beyond `limit` there are none, up to the panels' end.
template <typename W, bool kDropped>
Statistic<W> softmax_row(W* s, int64_t limit, int64_t end, const Row<W>& row) {
  constexpr int64_t P = kPanel<W>;
  W most[P], total[P];
  std::fill_n(most, P, -std::numeric_limits<W>::infinity());
  std::fill_n(total, P, W(0));
  std::fill(s + limit, s + end, -std::numeric_limits<W>::infinity());
  for (int64_t m = 0; m < end; m += P) {
#pragma omp simd
    for (int64_t l = 0; l < P; ++l) {
      const W x = s[m + l] + row.added(m + l);
      s[m + l] = x;
      most[l] = x > most[l] ? x : most[l];
    }
  }
  const W top = join_lanes<W>(most, [](W a, W b) { return a > b ? a : b; });
  for (int64_t m = 0; m < end; m += P) {
#pragma omp simd
    for (int64_t l = 0; l < P; ++l) {
      const W e = exponential(s[m + l] - top);
      total[l] += e;
      s[m + l] = !kDropped || row.kept(m + l) ? e : W(0);
    }
  }
  return {top, W(1) / join_lanes<W>(total, std::plus<W>())};
}

// s: logits into the weights that values were taken with; g: their gradients into those of the logits, which are added
// to those of the distances. What the softmax takes off is summed over the weights, so that the gradient is 0 where one
// key has all the weight, and not the rounding of 0.
template <typename W, bool kDropped>
void softmax_backward_row(W* s, W* g, int64_t limit, int64_t end, const Row<W>& row, Statistic<W> saved, W scale,
                          W* distances) {
  constexpr int64_t P = kPanel<W>;
  W total[P];
  std::fill_n(total, P, W(0));
  std::fill(s + limit, s + end, -std::numeric_limits<W>::infinity());
  for (int64_t m = 0; m < end; m += P) {
#pragma omp simd
    for (int64_t l = 0; l < P; ++l) {
      const W p = exponential(s[m + l] + row.added(m + l) - saved.most) * saved.inverse;
      const W dp = g[m + l] * (!kDropped ? W(1) : row.kept(m + l) ? scale : W(0));
      total[l] += p * dp;
      s[m + l] = p;
      g[m + l] = dp;
    }
  }
  const W delta = join_lanes<W>(total, std::plus<W>());
#pragma omp simd
  for (int64_t m = 0; m < end; ++m) {
    const W p = s[m], ds = p * (g[m] - delta);
    if constexpr (kDropped) s[m] = p * (row.kept(m) ? scale : W(0));
    g[m] = ds;
    distances[m] += ds;
  }
}

template <typename T, bool kDropped, typename W = wide_t<T>, typename E = operand_t<T>>
void forward_head(const Arguments& a, int64_t item, Room<W>& room, T* out, W* stats) {
  room.again();
  const Head<W> head(a, item, room);
  const int64_t Q = a.Q(), M = a.M(), K = a.K(), row = a.H() * K, kp = padded<W>(K), mp = padded<W>(M);
  const int64_t of_q = (head.b * Q * a.H() + head.h) * K, of_k = (head.b * M * a.H() + head.h) * K;
  const T* q = a.q.const_data_ptr<T>() + of_q;
  E *k = room.template take<E>(K * mp), *v = room.template take<E>(M * kp);
  E* left = room.template take<E>(kQueries<W> * kp);
  const int64_t width = mp + kPanel<W>;  // not a power of two, which would put all rows of a tile into one set
  W *s = room.take(kQueries<W> * width), *sum = room.take(kQueries<W> * kp);
  pack_transposed(a.k.const_data_ptr<T>() + of_k, M, K, row, k);
  pack(a.v.const_data_ptr<T>() + of_k, M, K, row, v);
  for (int64_t first = 0; first < Q; first += kQueries<W>) {
    const int64_t count = std::min(kQueries<W>, Q - first), keys = head.limit(first + count), end = padded<W>(keys);
    copy_rows(q + first * row, count, K, row, left, kp);
    multiply<E>(count, end, K, {left, kp, 1}, {k, operands<E>(K)}, s, width, false);
    Statistic<W> found[kQueries<W>];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t query = first + i;
      found[i] = softmax_row<W, kDropped>(s + i * width, head.limit(query + 1), end, Row<W>(head, query));
      stats[item * Q + query] = found[i].most;
      stats[(a.B() * a.H() + item) * Q + query] = found[i].inverse;
    }
    const Matrix<E> weights = as_operand(s, count, end, width, in_place<E>(s));
    const Packed<E> values{v, operands<E>(M)};
    for (int64_t m = 0; m < keys; m += kDepth) {
      multiply<E>(count, K, std::min(kDepth, keys - m), weights.depth_from(m), values.depth_from(m), sum, kp, m > 0);
    }
    for (int64_t i = 0; i < count; ++i) {
      const W factor = found[i].inverse * head.scale;
      T* to = out + of_q + (first + i) * row;
      for (int64_t d = 0; d < K; ++d) to[d] = narrow<T>(sum[i * kp + d] * factor);
    }
  }
}

// The backward of one sequence and head.
template <typename T, bool kDropped, typename W = wide_t<T>, typename E = operand_t<T>>
class Backward {
 public:
  Backward(const Arguments& a, const Tensor& grad, const W* stats, int64_t item, Room<W>& room)
      : head_(a, item, room), Q_(a.Q()), M_(a.M()), K_(a.K()), row_(a.H() * K_), kp_(padded<W>(K_)),
        width_(padded<W>(M_) + kPanel<W>), of_q_((head_.b * Q_ * a.H() + head_.h) * K_),
        of_k_((head_.b * M_ * a.H() + head_.h) * K_), q_(a.q.const_data_ptr<T>() + of_q_),
        grad_(grad.const_data_ptr<T>() + of_q_), most_(stats + item * Q_),
        inverse_(stats + (a.B() * a.H() + item) * Q_) {
    const T *k = a.k.const_data_ptr<T>() + of_k_, *v = a.v.const_data_ptr<T>() + of_k_;
    const int64_t mp = padded<W>(M_);
    E *keys_across = room.template take<E>(K_ * mp), *values_across = room.template take<E>(K_ * mp);
    E* keys = room.template take<E>(M_ * kp_);
    pack_transposed(k, M_, K_, row_, keys_across);
    pack_transposed(v, M_, K_, row_, values_across);
    pack(k, M_, K_, row_, keys);
    keys_across_ = {keys_across, operands<E>(K_)};
    values_across_ = {values_across, operands<E>(K_)};
    keys_ = {keys, operands<E>(M_)};
    for (W** sum : {&dk_, &dv_}) {
      *sum = room.take(M_ * kp_);
      if (a.causal || Q_ == 0) std::fill_n(*sum, M_ * kp_, W(0));  // no first block of queries sees all keys
    }
    for (E** block : {&rows_, &q_panels_, &g_panels_}) *block = room.template take<E>(kQueries<W> * kp_);
    dq_ = room.take(kQueries<W> * kp_);
    for (W** block : {&s_, &g_}) *block = room.take(kQueries<W> * width_);
    dlogits_ = room.template take<E>(kQueries<W> * width_);
  }

  // Writes the three gradients of this sequence and head, and adds to those of the distances.
  void run(T* dq, T* dk, T* dv, W* distances) {
    for (int64_t first = 0; first < Q_; first += kQueries<W>) {
      const int64_t count = std::min(kQueries<W>, Q_ - first);
      block(first, count, head_.limit(first + count), head_.causal || first > 0, distances);
      write(dq_, count, dq + of_q_ + first * row_);
    }
    write(dk_, M_, dk + of_k_);
    write(dv_, M_, dv + of_k_);
  }

 private:
  // C = rows of x, by the keys or values across.
  void by_keys(const T* x, int64_t count, int64_t end, const Packed<E>& across, W* c) {
    copy_rows(x, count, K_, row_, rows_, kp_);
    multiply<E>(count, end, K_, {rows_, kp_, 1}, across, c, width_, false);
  }

  // `add`: to the gradients of keys and values.
  void block(int64_t first, int64_t count, int64_t keys, bool add, W* distances) {
    const T *q = q_ + first * row_, *grad = grad_ + first * row_;
    const int64_t end = padded<W>(keys);
    by_keys(q, count, end, keys_across_, s_);
    by_keys(grad, count, end, values_across_, g_);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t query = first + i;
      softmax_backward_row<W, kDropped>(s_ + i * width_, g_ + i * width_, head_.limit(query + 1), end,
                                        Row<W>(head_, query), {most_[query], inverse_[query]}, head_.scale,
                                        distances + Q_ - 1 - query);
    }
    pack(q, count, K_, row_, q_panels_);
    pack(grad, count, K_, row_, g_panels_);
    const Matrix<E> weights = as_transposed_operand(s_, count, end, width_, in_place<E>(s_));
    const Matrix<E> dlogits = as_operand(g_, count, end, width_, dlogits_);
    const Matrix<E> dlogits_across = as_transposed_operand(g_, count, end, width_, in_place<E>(g_));
    const Packed<E> queries{q_panels_, operands<E>(count)}, grads{g_panels_, operands<E>(count)};
    for (int64_t m = 0; m < keys; m += kDepth) {
      const int64_t some = std::min(kDepth, keys - m);
      multiply<E>(count, K_, some, dlogits.depth_from(m), keys_.depth_from(m), dq_, kp_, m > 0);
      multiply<E>(some, K_, count, weights.rows_from(m), grads, dv_ + m * kp_, kp_, add);
      multiply<E>(some, K_, count, dlogits_across.rows_from(m), queries, dk_ + m * kp_, kp_, add);
    }
  }

  void write(const W* from, int64_t rows, T* to) const {
    for (int64_t i = 0; i < rows; ++i) {
      fetch_ahead<true>(to + i * row_, K_, row_);
      for (int64_t d = 0; d < K_; ++d) to[i * row_ + d] = narrow<T>(from[i * kp_ + d]);
    }
  }

  const Head<W> head_;
  const int64_t Q_, M_, K_, row_, kp_, width_, of_q_, of_k_;
  const T *q_, *grad_;
  const W *most_, *inverse_;
  Packed<E> keys_across_, values_across_, keys_;
  E *rows_, *q_panels_, *g_panels_, *dlogits_;
  W *dk_, *dv_, *dq_, *s_, *g_;
};

// Calls work(item, room) for each sequence and head; a thread's room holds what one of them needs.
template <typename W, typename Work>
void for_each_head(const Arguments& a, Work work) {
  const int64_t kp = padded<W>(a.K()), width = padded<W>(a.M()) + kPanel<W>;
  const int64_t room = a.Q() + width + 5 * width * kp + kQueries<W> * (4 * kp + 3 * width) + 16 * 16;
  at::parallel_for(0, a.B() * a.H(), 1, [&](int64_t begin, int64_t end) {
    Room<W> mine(room, a.q);
    for (int64_t item = begin; item < end; ++item) work(item, mine);
  });
}

std::tuple<Tensor, Tensor> attention_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& by_distance, const MaybeTensor& real,
    const MaybeTensor& of_queries, const MaybeTensor& of_keys, bool causal, const MaybeTensor& states, double rate) {
  const Arguments a = arguments(q, k, v, by_distance, real, of_queries, of_keys, causal, states, rate);
  Tensor out = at::empty(q.sizes(), q.options()), stats;
  MEGASWITCH_DISPATCH(q.scalar_type(), "attention_forward", [&] {
    using T = scalar_t;
    using W = wide_t<T>;
    stats = at::empty({2, a.B(), a.H(), a.Q()}, q.options().dtype(wide_type<T>()));
    T* to = out.data_ptr<T>();
    W* found = stats.data_ptr<W>();
    for_each_head<W>(a, [&](int64_t item, Room<W>& room) {
      a.states ? forward_head<T, true>(a, item, room, to, found) : forward_head<T, false>(a, item, room, to, found);
    });
  });
  return {out, stats};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& grad_in, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& /* out */,
    const Tensor& stats, const MaybeTensor& by_distance, const MaybeTensor& real, const MaybeTensor& of_queries,
    const MaybeTensor& of_keys, bool causal, const MaybeTensor& states, double rate) {
  const Arguments a = arguments(q, k, v, by_distance, real, of_queries, of_keys, causal, states, rate);
  const Tensor grad = grad_in.contiguous();
  Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options());
  Tensor dv = at::empty(v.sizes(), v.options()), distances;
  MEGASWITCH_DISPATCH(q.scalar_type(), "attention_backward", [&] {
    using T = scalar_t;
    using W = wide_t<T>;
    T *to_q = dq.data_ptr<T>(), *to_k = dk.data_ptr<T>(), *to_v = dv.data_ptr<T>();
    const W* saved = stats.const_data_ptr<W>();
    const int64_t width = a.Q() + padded<W>(a.M());
    Tensor parts = at::zeros({a.B() * a.H(), width}, stats.options());
    W* sums = parts.data_ptr<W>();
    for_each_head<W>(a, [&](int64_t item, Room<W>& room) {
      room.again();
      W* mine = sums + item * width;
      if (a.states) {
        Backward<T, true>(a, grad, saved, item, room).run(to_q, to_k, to_v, mine);
      } else {
        Backward<T, false>(a, grad, saved, item, room).run(to_q, to_k, to_v, mine);
      }
    });
    distances = at::zeros({a.by_distance ? a.H() : 0, a.R()}, stats.options());
    for (int64_t item = 0; a.by_distance && item < a.B() * a.H(); ++item) {
      W* sum = distances.data_ptr<W>() + item % a.H() * a.R();
      for (int64_t r = 0; r < a.R(); ++r) sum[r] += sums[item * width + r];
    }
  });
  return {dq, dk, dv, distances};
}

}  // namespace

TORCH_LIBRARY_IMPL(megaswitch_cpp, CPU, m) {
  m.impl("attention_forward", attention_forward);
  m.impl("attention_backward", attention_backward);
}

}  // namespace megaswitch
