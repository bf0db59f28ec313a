// The gradient of a router's tokens from that of their logits: a product, jitter as the tokens had it, and the tokens' type,
// in one pass. T tokens, D d_model, E experts.
#include <ATen/ops/empty.h>

#include "logits.h"

namespace megaswitch {
namespace {

using at::Tensor;

// Rows begin .. end of grad[T, E] by the panels of the matrix transposed. `room` has room for kTogether rows of sums, which
// narrower tokens take their gradient from.
template <typename X, typename T>
struct Pass {
  using E = operand_t<T>;
  using W = wide_t<T>;
  Matrix<E> grad;
  Packed<E, kWide> right;
  int64_t depth, width;
  const int64_t* states;
  double size;
  X* out;

  void operator()(int64_t begin, int64_t end, W* room) const {
    if constexpr (std::is_same_v<X, W>) room = out + begin * width;
    multiply_rows(end - begin, width, depth, grad.rows_from(begin), right, room, width);
    round_to<T>(room, (end - begin) * width);
    for (int64_t t = begin; t < end; ++t, room += width) {
      X* to = out + t * width;
      if (states) {
        jitter_row<T>(room, static_cast<uint32_t>(states[t]), size, to, width);
      } else if constexpr (!std::is_same_v<X, W>) {
#pragma omp simd
        for (int64_t d = 0; d < width; ++d) to[d] = stored<X>(room[d]);
      }
    }
  }
};

template <typename X, typename T>
void gradient(const Tensor& grad_in, const Tensor& weight, const Tensor& states, double size, const Tensor& out) {
  using E = operand_t<T>;
  using W = wide_t<T>;
  const auto [grad, across] = laid_out<T>(kPairs<E> ? grad_in : grad_in.to(wide_type<T>()), weight.t());
  const int64_t tokens = out.size(0), width = out.size(1), depth = grad.size(1), steps = operands<E>(depth);
  const Tensor packed = at::empty({padded<E, kWide>(width) * steps * int64_t(sizeof(E))}, at::kByte);
  E* panels = static_cast<E*>(packed.mutable_data_ptr());
  pack_columns<T>(Numbers<T>(across), depth, 0, width, panels);
  const Pass<X, T> pass{{static_cast<const E*>(grad.const_data_ptr()), steps, 1},
                        {panels, steps},
                        depth,
                        width,
                        states.defined() ? states.const_data_ptr<int64_t>() : nullptr,
                        size,
                        out.mutable_data_ptr<X>()};
  Rooms<W> rooms(std::is_same_v<X, W> ? 0 : kTogether * width);
  at::parallel_for(0, parts(tokens, kTogether), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      pass(i * kTogether, std::min(tokens, (i + 1) * kTogether), rooms.mine());
    }
  });
}

Tensor tokens_gradient(const Tensor& grad, const Tensor& weight, const std::optional<Tensor>& states, double size,
                       at::ScalarType type) {
  TORCH_CHECK(grad.scalar_type() == weight.scalar_type() && grad.size(1) == weight.size(1),
              "a gradient has ", grad.size(1), " experts and the matrix ", weight.size(1), ", of one type");
  check_states(states, grad.size(0));
  Tensor out = at::empty({grad.size(0), weight.size(0)}, grad.options().dtype(type));
  const Tensor rows = states ? states->contiguous() : Tensor();
  with_types(type, weight.scalar_type(), [&](auto token, auto number) {
    gradient<decltype(token), decltype(number)>(grad, weight, rows, size, out);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(megaswitch_cpp, CPU, m) { m.impl("tokens_gradient", tokens_gradient); }

}  // namespace megaswitch
