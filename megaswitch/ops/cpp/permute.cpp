// Rows of tokens in the order of their experts, and back under their gates.
// T tokens, K choices a token, A = T K assignments, N rows of D numbers.
#include <cstring>
#include <vector>

#include "common.h"

namespace megaswitch {
namespace {

using at::Tensor;

template <typename T>
void scaled_row(const T* row, wide_t<T> gate, T* out, int64_t width) {
  using W = wide_t<T>;
#pragma omp simd
  for (int64_t d = 0; d < width; ++d) out[d] = narrow<T>(W(row[d]) * gate);
}

template <typename T>
void add_scaled_row(const T* row, wide_t<T> gate, wide_t<T>* sum, int64_t width) {
  using W = wide_t<T>;
#pragma omp simd
  for (int64_t d = 0; d < width; ++d) sum[d] += W(row[d]) * gate;
}

// out = gate x grad; the product of grad and row
template <typename T>
wide_t<T> backward_row(const T* grad, const T* row, wide_t<T> gate, T* out, int64_t width) {
  using W = wide_t<T>;
  W dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t d = 0; d < width; ++d) {
    dot += W(grad[d]) * W(row[d]);
    out[d] = narrow<T>(W(grad[d]) * gate);
  }
  return dot;
}

// Row by row of one token: the sum over its choices that have a row.
template <typename T>
void collect_token(const T* rows, const T* gate, const int64_t* place, int64_t choices, int64_t kept, T* out,
                   wide_t<T>* sum, int64_t width) {
  using W = wide_t<T>;
  if (choices == 1) {
    if (place[0] >= kept) {
      std::memset(out, 0, width * sizeof(T));
    } else if (gate) {
      scaled_row<T>(rows + place[0] * width, W(gate[0]), out, width);
    } else {
      std::memcpy(out, rows + place[0] * width, width * sizeof(T));
    }
    return;
  }
  std::fill(sum, sum + width, W(0));
  for (int64_t k = 0; k < choices; ++k) {
    if (place[k] < kept) add_scaled_row<T>(rows + place[k] * width, gate ? W(gate[k]) : W(1), sum, width);
  }
  for (int64_t d = 0; d < width; ++d) out[d] = narrow<T>(sum[d]);
}

void check(const Tensor& numbers, const char* name) {
  TORCH_CHECK(numbers.scalar_type() == at::kLong && numbers.dim() == 1, name, ": int64 in one dimension");
}

// [A / choices, D]: the sum over a token's choices of gate (1 where there are none) x its row; place is N or more
// where a choice has no row
Tensor collect_rows(const Tensor& rows_in, const std::optional<Tensor>& gate_in, const Tensor& place_in,
                    int64_t choices) {
  check(place_in, "place");
  const Tensor rows = rows_in.contiguous(), place = place_in.contiguous();
  const Tensor gate = gate_in ? gate_in->contiguous() : Tensor();
  const int64_t kept = rows.size(0), width = rows.size(1), tokens = place.numel() / choices;
  TORCH_CHECK(!gate_in || (gate.numel() == place.numel() && gate.scalar_type() == rows.scalar_type()),
              "gate: one number an assignment, of the rows' type");
  Tensor out = at::empty({tokens, width}, rows.options());
  MEGASWITCH_DISPATCH(rows.scalar_type(), "collect_rows", [&] {
    using T = scalar_t;
    const T *rp = rows.const_data_ptr<T>(), *gp = gate_in ? gate.const_data_ptr<T>() : nullptr;
    const int64_t* pp = place.const_data_ptr<int64_t>();
    T* op = out.data_ptr<T>();
    at::parallel_for(0, tokens, grain(width * choices), [&](int64_t begin, int64_t end) {
      std::vector<wide_t<T>> sum(choices > 1 ? width : 0);
      for (int64_t t = begin; t < end; ++t) {
        const int64_t at = t * choices;
        collect_token<T>(rp, gp ? gp + at : nullptr, pp + at, choices, kept, op + t * width, sum.data(), width);
      }
    });
  });
  return out;
}

// gradients of the rows and of the gates
std::tuple<Tensor, Tensor> collect_rows_backward(
    const Tensor& grad_in, const Tensor& rows_in, const Tensor& gate_in, const Tensor& place_in) {
  check(place_in, "place");
  const Tensor grad = grad_in.contiguous(), rows = rows_in.contiguous(), gate = gate_in.contiguous(),
               place = place_in.contiguous();
  const int64_t kept = rows.size(0), width = rows.size(1), tokens = gate.size(0), choices = gate.size(1);
  Tensor d_rows = at::empty(rows.sizes(), rows.options()), d_gate = at::empty(gate.sizes(), gate.options());
  MEGASWITCH_DISPATCH(rows.scalar_type(), "collect_rows_backward", [&] {
    using T = scalar_t;
    using W = wide_t<T>;
    const T *np = grad.const_data_ptr<T>(), *rp = rows.const_data_ptr<T>(), *gp = gate.const_data_ptr<T>();
    const int64_t* pp = place.const_data_ptr<int64_t>();
    T *op = d_rows.data_ptr<T>(), *dp = d_gate.data_ptr<T>();
    at::parallel_for(0, tokens, grain(width * choices), [&](int64_t begin, int64_t end) {
      for (int64_t a = begin * choices; a < end * choices; ++a) {
        W dot = 0;
        if (pp[a] < kept) {
          const int64_t at = pp[a] * width;
          dot = backward_row<T>(np + a / choices * width, rp + at, W(gp[a]), op + at, width);
        }
        dp[a] = narrow<T>(dot);
      }
    });
  });
  return {d_rows, d_gate};
}

}  // namespace

TORCH_LIBRARY_IMPL(megaswitch_cpp, CPU, m) {
  m.impl("collect_rows", collect_rows);
  m.impl("collect_rows_backward", collect_rows_backward);
}

}  // namespace megaswitch
