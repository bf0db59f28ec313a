// Products with weights through oneDNN, which with 512 bits is up to twice as fast in float32 as what torch.mm takes
// (MKL leaves out half of such a processor that is not Intel's), takes its operands either way round, and adds to what
// is there. In other types and on other processors they are torch's.
//
// oneDNN compiles a kernel for each shape it meets, which takes as long as a small product, and keeps a thousand of them.
// Experts get other numbers of rows every time; so that there are fewer shapes, large numbers are rounded.
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include <bit>
#include <vector>

#include "common.h"

namespace at::native {
// Of torch's library, though in none of its headers: result = beta result + alpha mat1 mat2.
TORCH_API void mkldnn_matmul(const Tensor& mat1, const Tensor& mat2, const Tensor& result, float beta, float alpha);
}  // namespace at::native

namespace megaswitch {
namespace {

using at::Tensor;

constexpr int64_t kPanel = 64;    // columns of a matrix whose pairs of rows are laid side by side: they stay in the cache
constexpr int64_t kBand = 256;    // rows that a panel is multiplied with at a time
constexpr int64_t kSteps = 16;  // numbers of rows, between one power of two and the next, that shapes may have
constexpr int64_t kFew = 64;    // so few rows may be of any number
constexpr int64_t kSome = 256;  // so few also where rounding costs an addition: their numbers come again soon

bool through_onednn(at::ScalarType type) {
#ifdef CPU_CAPABILITY_AVX512
  return type == at::kFloat || type == at::kBFloat16;
#else
  return false;
#endif
}

// out (+)= a b.
void multiply(Tensor out, const Tensor& a, const Tensor& b, bool add) {
  if (out.numel() == 0) return;
  if (a.size(1) == 0) {
    if (!add) out.zero_();
  } else if (through_onednn(out.scalar_type())) {
    at::native::mkldnn_matmul(a, b, out, add ? 1.0f : 0.0f, 1.0f);
  } else if (add) {
    at::addmm_out(out, out, a, b);
  } else {
    at::mm_out(out, a, b);
  }
}

// into += product, in one pass; torch's addition would widen a copy first.
void add_narrow(Tensor into, const Tensor& product) {
  if (into.scalar_type() != at::kFloat || product.scalar_type() != at::kBFloat16 || !into.is_contiguous()) {
    into.add_(product);
    return;
  }
  float* ip = into.data_ptr<float>();
  const at::BFloat16* pp = product.const_data_ptr<at::BFloat16>();
  at::parallel_for(0, into.numel(), grain(1), [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) ip[i] += static_cast<float>(pp[i]);
  });
}

// into += rows^T cols; in a wider type than theirs the product is rounded to theirs first, as autograd's is.
void add_product(Tensor into, const Tensor& rows, const Tensor& cols) {
  if (rows.size(0) == 0) return;
  if (into.scalar_type() == rows.scalar_type()) {
    multiply(into, rows.t(), cols, true);
  } else {
    Tensor product = at::empty(into.sizes(), rows.options());
    multiply(product, rows.t(), cols, false);
    add_narrow(into, product);
  }
}

// The distance between numbers of rows that shapes may have, near this number.
int64_t step_of(int64_t rows, int64_t exact) {
  return rows < exact ? 1 : static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(rows))) / kSteps;
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

Tensor times(const Tensor& x, const Tensor& weight) {
  check(x, weight);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = weight.size(1);
  Tensor out = at::empty(shape, x.options());
  multiply(out.flatten(0, -2), x.flatten(0, -2), weight, false);
  return out;
}

// Columns first .. first + columns of [K, M] as the instructions take them: [K / 2, columns, 2].
void pack_pairs(const Tensor& weight, int64_t first, int64_t columns, at::BFloat16* into) {
  const int64_t pairs = weight.size(0) / 2, down = weight.stride(0), across = weight.stride(1);
  const at::BFloat16* from = weight.const_data_ptr<at::BFloat16>() + first * across;
  for (int64_t k = 0; k < pairs; ++k, from += 2 * down) {
    for (int64_t m = 0; m < columns; ++m, into += 2) {
      into[0] = from[m * across];
      into[1] = from[m * across + down];
    }
  }
}

bool multiplies_pairs(const Tensor& x) {
#ifdef __AVX512BF16__
  return x.scalar_type() == at::kBFloat16 && x.size(1) % 2 == 0;
#else
  return false;
#endif
}

// In at least float32. In bfloat16 by oneDNN's small products, the only ones of torch's that do not round what comes out.
Tensor wide_times(const Tensor& x_in, const Tensor& weight) {
  check(x_in, weight);
  if (!multiplies_pairs(x_in)) {
    const auto wide = c10::promoteTypes(x_in.scalar_type(), at::kFloat);
    return times(x_in.to(wide), weight.to(wide));
  }
  const Tensor x = x_in.contiguous();
  const int64_t rows = x.size(0), inner = x.size(1), width = weight.size(1);
  Tensor out = at::empty({rows, width}, x.options().dtype(at::kFloat));
  const at::BFloat16* xp = x.const_data_ptr<at::BFloat16>();
  float* op = out.data_ptr<float>();
  at::parallel_for(0, (width + kPanel - 1) / kPanel, 1, [&](int64_t begin, int64_t end) {
    std::vector<at::BFloat16> panel(kPanel * inner);
    for (int64_t first = begin * kPanel; first < std::min(width, end * kPanel); first += kPanel) {
      const int64_t columns = std::min(kPanel, width - first);
      pack_pairs(weight, first, columns, panel.data());
      for (int64_t n = 0; n < rows; n += kBand) {
        at::native::cpublas::brgemm(std::min(kBand, rows - n), columns, inner, inner, columns, width, false,
                                    xp + n * inner, panel.data(), op + n * width + first);
      }
    }
    at::native::cpublas::brgemm_release();
  });
  return out;
}

Tensor& add_outer_(Tensor& into, const Tensor& rows, const Tensor& cols) {
  add_product(into, rows, cols);
  return into;
}

// Rows are rounded up: those of the next expert that come along are computed again with its own matrix.
Tensor grouped_times(const Tensor& x, const Tensor& weights, at::IntArrayRef counts) {
  check(x, weights);
  check(x, x, counts, weights.size(0));
  Tensor out = at::empty({x.size(0), weights.size(2)}, x.options());
  int64_t first = 0;
  for (const int64_t e : c10::irange(counts.size())) {
    const int64_t step = step_of(counts[e], kFew), rounded = (counts[e] + step - 1) / step * step;
    const int64_t rows = std::min(rounded, x.size(0) - first);
    multiply(out.narrow(0, first, rows), x.narrow(0, first, rows), weights.select(0, e), false);
    first += counts[e];
  }
  return out;
}

// Rows are rounded down, and the rest has a product of its own.
Tensor& add_grouped_(Tensor& into, const Tensor& rows, const Tensor& cols, at::IntArrayRef counts) {
  check(rows, cols, counts, into.size(0));
  int64_t first = 0;
  for (const int64_t e : c10::irange(counts.size())) {
    const int64_t rest = counts[e] % step_of(counts[e], kSome);
    for (const int64_t some : {counts[e] - rest, rest}) {
      add_product(into.select(0, e), rows.narrow(0, first, some), cols.narrow(0, first, some));
      first += some;
    }
  }
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
