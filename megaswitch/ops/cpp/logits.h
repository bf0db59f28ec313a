// Logits of runs of tokens: rows, jittered or as they are, by a router's matrix. T tokens, D d_model, E experts.
#pragma once

#include <functional>

#include "common.h"
#include "jitter.h"
#include "matrix_products.h"

namespace megaswitch {

// Writes the logits of tokens begin .. end.
using Score = std::function<void(int64_t begin, int64_t end)>;

constexpr int64_t kTogether = 64;  // tokens whose operands a thread has at the same time

// Sums, rounded to the product's type.
template <typename T>
void round_to(wide_t<T>* x, int64_t count) {
  if constexpr (!std::is_same_v<T, wide_t<T>>) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) x[i] = wide_t<T>(narrow<T>(x[i]));
  }
}

inline at::Tensor empty_logits(const at::Tensor& x, const at::Tensor& weight) {
  const auto wide = c10::promoteTypes(weight.scalar_type(), at::kFloat);
  return at::empty({x.size(0), weight.size(1)}, x.options().dtype(wide));
}

inline void check_states(const std::optional<at::Tensor>& states, int64_t tokens) {
  TORCH_CHECK(!states || (states->scalar_type() == at::kLong && states->numel() == tokens),
              "states: one int64 number a token");
}

// Calls `work` with a number of the tokens' type and one of the matrix's.
template <typename Work>
void with_types(at::ScalarType tokens, at::ScalarType matrix, Work work) {
  TORCH_CHECK(tokens == matrix || tokens == at::kBFloat16, "tokens are of the matrix's type or in bfloat16");
  MEGASWITCH_DISPATCH(matrix, "logits", [&] {
    tokens == matrix ? work(scalar_t(), scalar_t()) : work(c10::BFloat16(), scalar_t());
  });
}

// The product is of the matrix's type T. Operands of tokens, of type X, are numbers of T or, where the product is of
// wider ones, these.
template <typename X, typename T, int N>
class Logits {
  using E = operand_t<T>;
  using W = wide_t<T>;
  using Operand = std::conditional_t<kPairs<E>, T, E>;

 public:
  Logits(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& states, double size,
         const at::Tensor& out)
      : x_(x.contiguous()), states_(states ? states->contiguous() : at::Tensor()), size_(size), out_(out),
        depth_(x.size(1)), steps_(operands<E>(depth_)), width_(weight.size(1)), rooms_(kTogether * steps_),
        packed_(at::empty({padded<E, N>(width_) * steps_ * int64_t(sizeof(E))}, at::kByte)) {
    const bool either = weight.stride(0) == 1 || weight.stride(1) == 1;
    pack_columns<T, N>(Numbers<T>(either ? weight : weight.contiguous()), depth_, 0, width_, panels());
  }

  void operator()(int64_t begin, int64_t end) {
    W* to = out_.template mutable_data_ptr<W>() + begin * width_;
    for (int64_t t = begin; t < end; t += kTogether, to += kTogether * width_) {
      const int64_t rows = std::min(kTogether, end - t);
      const Matrix<E> left{as_they_are() ? reinterpret_cast<const E*>(token(t)) : operands_of(t, rows), steps_, 1};
      multiply_rows(rows, width_, depth_, left, Packed<E, N>{panels(), steps_}, to, width_);
      round_to<T>(to, rows * width_);
    }
  }

 private:
  E* panels() { return static_cast<E*>(packed_.mutable_data_ptr()); }

  const X* token(int64_t t) const { return x_.template const_data_ptr<X>() + t * depth_; }

  // Whether tokens are operands.
  bool as_they_are() const {
    return std::is_same_v<X, Operand> && !states_.defined() && depth_ % kNumbers<E> == 0;
  }

  const E* operands_of(int64_t first, int64_t rows) {
    E* room = rooms_.mine();
    for (int64_t i = 0; i < rows; ++i) {
      Operand* to = reinterpret_cast<Operand*>(room + i * steps_);
      to[steps_ * kNumbers<E> - 1] = Operand(0);  // after an odd number
      if (states_.defined()) {
        const auto state = static_cast<uint32_t>(states_.template const_data_ptr<int64_t>()[first + i]);
        jitter_row<T>(token(first + i), state, size_, to, depth_);
      } else {
        const X* from = token(first + i);
#pragma omp simd
        for (int64_t d = 0; d < depth_; ++d) to[d] = stored<Operand>(from[d]);
      }
    }
    return room;
  }

  at::Tensor x_, states_;
  double size_;
  at::Tensor out_;
  int64_t depth_, steps_, width_;
  Rooms<E> rooms_;
  at::Tensor packed_;
};

template <typename X, typename T>
Score score_by(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& states, double size,
               const at::Tensor& out) {
  const auto by = [](auto logits) { return [logits](int64_t begin, int64_t end) { (*logits)(begin, end); }; };
  constexpr int kNarrow = 2;  // vectors of a panel, where experts are few
  if (weight.size(1) <= kPanel<operand_t<T>, kNarrow>) {
    return by(std::make_shared<Logits<X, T, kNarrow>>(x, weight, states, size, out));
  }
  return by(std::make_shared<Logits<X, T, kWide>>(x, weight, states, size, out));
}

inline Score score_of(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& states,
                      double size, const at::Tensor& out) {
  TORCH_CHECK(x.size(1) > 0 && x.size(1) == weight.size(0), "a token has ", x.size(1), " numbers and the matrix ",
              weight.size(0));
  check_states(states, x.size(0));
  Score score;
  with_types(x.scalar_type(), weight.scalar_type(), [&](auto token, auto number) {
    score = score_by<decltype(token), decltype(number)>(x, weight, states, size, out);
  });
  return score;
}

}  // namespace megaswitch
