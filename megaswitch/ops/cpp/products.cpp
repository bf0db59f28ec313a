// Products with weights, in float32 and bfloat16 those of `matrix_products.h`, else torch's.
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include <vector>

#include "common.h"
#include "geglu.h"
#include "matrix_products.h"

namespace megaswitch {
namespace {

using at::Tensor;

#ifdef __AMX_BF16__
constexpr bool kTiles = true;  // oneDNN, and so torch, makes use of them, and they do several times as much
#else
constexpr bool kTiles = false;
#endif

// Calls `work` with a number of the type, where our products of it are the faster ones. `wide`: nobody else has them
// without rounding.
template <typename Work>
bool ours(at::ScalarType type, bool wide, Work work) {
#ifdef CPU_CAPABILITY_AVX512
  if (type == at::kFloat) return work(float()), true;
#endif
#if MEGASWITCH_PAIRS
  if (type == at::kBFloat16 && (wide || !kTiles)) return work(at::BFloat16()), true;
#endif
  return false;
}

void check(const Tensor& x, const Tensor& weight) {
  TORCH_CHECK(x.scalar_type() == weight.scalar_type(), "operands are of one type");
  TORCH_CHECK(x.size(-1) == weight.size(-2), "a row has ", x.size(-1), " numbers and a matrix ", weight.size(-2));
}

void check(const Tensor& rows, const Tensor& cols, at::IntArrayRef counts, int64_t experts) {
  int64_t all = 0;
  for (const int64_t count : counts) all += count;
  TORCH_CHECK(rows.size(0) == all && cols.size(0) == all, "counts add up to ", all);
  TORCH_CHECK(static_cast<int64_t>(counts.size()) == experts, "there are ", experts, " experts");
}

// Some rows of x by each of the matrices; C is what comes out in. `finish`: see `multiply_matrices`.
template <typename T, typename C, size_t S, typename Finish>
void multiply_each(const Tensors<S>& outs, const Tensor& x_in, const Tensors<S>& weights_in, at::IntArrayRef counts,
                   Finish finish) {
  using E = operand_t<T>;
  Tensors<S> weights;
  Tensor x;
  for (size_t s = 0; s < S; ++s) std::tie(x, weights[s]) = laid_out<T>(x_in, weights_in[s]);
  Rooms<E> rooms(room_of<E, S>(x.size(1), weights[0].size(2)));
  int64_t first = 0;
  for (const int64_t e : c10::irange(counts.size())) {
    Tensors<S> to, by;
    for (size_t s = 0; s < S; ++s) to[s] = outs[s].narrow(0, first, counts[e]), by[s] = weights[s].select(0, e);
    multiply_matrices<T, C, S>(to, x.narrow(0, first, counts[e]), by, rooms, finish);
    first += counts[e];
  }
}

constexpr auto kAsItIs = [](const auto&, int64_t) {};

Tensor empty_product(const Tensor& x, const Tensor& weights) {
  return at::empty({x.size(0), weights.size(2)}, x.options());
}

void torchs_grouped_times(const Tensor& out, const Tensor& x, const Tensor& weights, at::IntArrayRef counts) {
  int64_t first = 0;
  for (const int64_t e : c10::irange(counts.size())) {
    Tensor to = out.narrow(0, first, counts[e]);
    at::mm_out(to, x.narrow(0, first, counts[e]), weights.select(0, e));
    first += counts[e];
  }
}

// x W by groups, and whether `finish` has seen it: torch's products are as they are.
template <typename Finish>
std::pair<Tensor, bool> grouped_product(const Tensor& x, const Tensor& weights, at::IntArrayRef counts, Finish finish) {
  check(x, weights);
  check(x, x, counts, weights.size(0));
  Tensor out = empty_product(x, weights);
  const bool done = ours(x.scalar_type(), false, [&](auto number) {
    using T = decltype(number);
    multiply_each<T, T, 1>({out}, x, {weights}, counts, finish);
  });
  if (!done) torchs_grouped_times(out, x, weights, counts);
  return {out, done};
}

Tensor grouped_times(const Tensor& x, const Tensor& weights, at::IntArrayRef counts) {
  return grouped_product(x, weights, counts, kAsItIs).first;
}

Tensor times(const Tensor& x, const Tensor& weight) {
  check(x, weight);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = weight.size(1);
  const Tensor rows = x.flatten(0, -2);
  return grouped_times(rows, weight.unsqueeze(0), {rows.size(0)}).view(shape);
}

// In at least float32.
Tensor wide_times(const Tensor& x, const Tensor& weight) {
  check(x, weight);
  const auto wide = c10::promoteTypes(x.scalar_type(), at::kFloat);
  Tensor out;
  const bool done = ours(x.scalar_type(), true, [&](auto number) {
    out = at::empty({x.size(0), weight.size(1)}, x.options().dtype(wide));
    multiply_each<decltype(number), float, 1>({out}, x, {weight.unsqueeze(0)}, {x.size(0)}, kAsItIs);
  });
  return done ? out : times(x.to(wide), weight.to(wide));
}

// max(x W, 0). What is not a number stays.
Tensor grouped_relu(const Tensor& x, const Tensor& weights, at::IntArrayRef counts) {
  const auto positive = [](const auto& row, int64_t columns) {
    using T = std::remove_pointer_t<std::decay_t<decltype(row[0])>>;
    using W = wide_t<T>;
#pragma omp simd
    for (int64_t n = 0; n < columns; ++n) row[0][n] = narrow<T>(W(row[0][n]) < W(0) ? W(0) : W(row[0][n]));
  };
  auto [out, finished] = grouped_product(x, weights, counts, positive);
  return finished ? out : out.clamp_min_(0);
}

// gelu(x gates) (x weights), and both products.
std::tuple<Tensor, Tensor, Tensor> grouped_geglu(const Tensor& x, const Tensor& gates, const Tensor& weights,
                                                 at::IntArrayRef counts) {
  check(x, weights);
  TORCH_CHECK(gates.sizes() == weights.sizes() && gates.scalar_type() == weights.scalar_type(),
              "gates and weights are of one shape and type");
  check(x, x, counts, weights.size(0));
  Tensor hidden = empty_product(x, weights), of_gate = empty_product(x, weights), of_x = empty_product(x, weights);
  const bool done = ours(x.scalar_type(), false, [&](auto number) {
    using T = decltype(number);
    T *start = of_x.data_ptr<T>(), *to = hidden.data_ptr<T>();
    multiply_each<T, T, 2>({of_gate, of_x}, x, {gates, weights}, counts,
                           [=](const std::array<T*, 2>& row, int64_t columns) {
                             geglu_run<T>(row[0], row[1], to + (row[1] - start), columns);
                           });
  });
  if (!done) {
    torchs_grouped_times(of_gate, x, gates, counts);
    torchs_grouped_times(of_x, x, weights, counts);
    MEGASWITCH_DISPATCH(x.scalar_type(), "grouped_geglu", [&] {
      geglu_run<scalar_t>(of_gate.data_ptr<scalar_t>(), of_x.data_ptr<scalar_t>(), hidden.data_ptr<scalar_t>(),
                          hidden.numel());
    });
  }
  return {hidden, of_gate, of_x};
}

// into += rows^T cols; torch rounds the product to their type before it is added to a wider one.
void add_torchs(Tensor into, const Tensor& rows, const Tensor& cols) {
  if (into.scalar_type() == rows.scalar_type()) {
    at::addmm_out(into, into, rows.t(), cols);
  } else {
    into.add_(at::mm(rows.t(), cols));
  }
}

// Likewise each of `into` with some of the rows.
void add_each(const Tensor& into, const Tensor& rows, const Tensor& cols, at::IntArrayRef counts) {
  check(rows, cols, counts, into.size(0));
  TORCH_CHECK(into.size(1) == rows.size(1) && into.size(2) == cols.size(1), "a gradient is ", rows.size(1), " x ",
              cols.size(1), " and not ", into.size(1), " x ", into.size(2));
  const auto each = [&](auto add) {
    int64_t first = 0;
    for (const int64_t e : c10::irange(counts.size())) {
      add(into.select(0, e), rows.narrow(0, first, counts[e]), cols.narrow(0, first, counts[e]));
      first += counts[e];
    }
  };
  const bool fits = into.scalar_type() == at::kFloat && into.stride(-1) == 1;
  const bool done = fits && ours(rows.scalar_type(), false, [&](auto number) {
    using T = decltype(number);
    Rooms<operand_t<T>> rooms(gradient_room<operand_t<T>>(into.size(1), rows.size(0)));
    each([&](const Tensor& to, const Tensor& x, const Tensor& y) {
      add_matrices<T>(to, x.contiguous(), y.contiguous(), rooms);
    });
  });
  if (!done) each(add_torchs);
}

Tensor& add_outer_(Tensor& into, const Tensor& rows, const Tensor& cols) {
  add_each(into.unsqueeze(0), rows, cols, {rows.size(0)});
  return into;
}

Tensor& add_grouped_(Tensor& into, const Tensor& rows, const Tensor& cols, at::IntArrayRef counts) {
  add_each(into, rows, cols, counts);
  return into;
}

}  // namespace

TORCH_LIBRARY_IMPL(megaswitch_cpp, CPU, m) {
  m.impl("times", times);
  m.impl("wide_times", wide_times);
  m.impl("add_outer_", add_outer_);
  m.impl("grouped_times", grouped_times);
  m.impl("grouped_relu", grouped_relu);
  m.impl("grouped_geglu", grouped_geglu);
  m.impl("add_grouped_", add_grouped_);
}

}  // namespace megaswitch
