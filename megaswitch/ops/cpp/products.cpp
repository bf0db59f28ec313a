// Products with weights, in float32 and bfloat16 those of `matrix_products.h`, else torch's.
#include <ATen/ops/addmm.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/mm.h>

#include <vector>

#include "common.h"
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
  if (MEGASWITCH_PAIRS && type == at::kBFloat16 && (wide || !kTiles)) return work(at::BFloat16()), true;
#endif
  return false;
}

// Rows of x as whole operands, and weights whose rows or columns are contiguous.
template <typename T>
std::pair<Tensor, Tensor> laid_out(const Tensor& x, const Tensor& weights) {
  if (x.size(-1) % kNumbers<operand_t<T>> != 0) {
    return {at::constant_pad_nd(x, {0, 1}), at::constant_pad_nd(weights, {0, 0, 0, 1})};
  }
  const bool either = weights.stride(-1) == 1 || weights.stride(-2) == 1;
  return {x.contiguous(), either ? weights : weights.contiguous()};
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

// Some rows of x by each of the matrices; C is what comes out in.
template <typename T, typename C>
void multiply_each(const Tensor& out, const Tensor& x_in, const Tensor& weights_in, at::IntArrayRef counts) {
  const auto [x, weights] = laid_out<T>(x_in, weights_in);
  Rooms<operand_t<T>> rooms(room_of<operand_t<T>>(x.size(1)));
  int64_t first = 0;
  for (const int64_t e : c10::irange(counts.size())) {
    const Tensor to = out.narrow(0, first, counts[e]), from = x.narrow(0, first, counts[e]);
    multiply_matrices<T, C>(to, from, weights.select(0, e), rooms);
    first += counts[e];
  }
}

Tensor times(const Tensor& x, const Tensor& weight) {
  check(x, weight);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = weight.size(1);
  Tensor out = at::empty(shape, x.options()), to = out.flatten(0, -2);
  const Tensor rows = x.flatten(0, -2);
  const bool done = ours(x.scalar_type(), false, [&](auto number) {
    using T = decltype(number);
    multiply_each<T, T>(to, rows, weight.unsqueeze(0), {rows.size(0)});
  });
  if (!done) at::mm_out(to, rows, weight);
  return out;
}

// In at least float32.
Tensor wide_times(const Tensor& x, const Tensor& weight) {
  check(x, weight);
  const auto wide = c10::promoteTypes(x.scalar_type(), at::kFloat);
  Tensor out = at::empty({x.size(0), weight.size(1)}, x.options().dtype(wide));
  const bool done = ours(x.scalar_type(), true, [&](auto number) {
    multiply_each<decltype(number), float>(out, x, weight.unsqueeze(0), {x.size(0)});
  });
  if (!done) at::mm_out(out, x.to(wide), weight.to(wide));
  return out;
}

Tensor grouped_times(const Tensor& x, const Tensor& weights, at::IntArrayRef counts) {
  check(x, weights);
  check(x, x, counts, weights.size(0));
  Tensor out = at::empty({x.size(0), weights.size(2)}, x.options());
  const bool done = ours(x.scalar_type(), false, [&](auto number) {
    using T = decltype(number);
    multiply_each<T, T>(out, x, weights, counts);
  });
  int64_t first = 0;
  for (int64_t e = 0; !done && e < weights.size(0); first += counts[e++]) {
    Tensor to = out.narrow(0, first, counts[e]);
    at::mm_out(to, x.narrow(0, first, counts[e]), weights.select(0, e));
  }
  return out;
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
    Rooms<operand_t<T>> rooms(gradient_room<operand_t<T>>());
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
  m.impl("add_grouped_", add_grouped_);
}

}  // namespace megaswitch
