// What Python sees. Every function checks shapes here, so that the rest may trust them; the GIL is released while work is done.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <tuple>

#include "blend.h"
#include "rng.h"
#include "spans.h"
#include "stream.h"

namespace py = pybind11;
using Int64s = py::array_t<std::int64_t, py::array::c_style>;
using Int32s = py::array_t<std::int32_t, py::array::c_style>;
using UInt64s = py::array_t<std::uint64_t, py::array::c_style>;

namespace {

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

void shuffle(Int64s& values, std::uint64_t key) {
  require(values.ndim() == 1, "shuffle takes one dimension");
  std::int64_t* data = values.mutable_data();
  const py::ssize_t count = values.size();
  py::gil_scoped_release release;
  megaswitch::shuffle(data, count, key);
}

std::uint64_t bounded(std::uint64_t key, std::uint64_t counter, std::uint64_t bound) {
  require(bound > 0, "the bound must be 1 or more");
  return megaswitch::bounded(key, counter, bound);
}

void corrupt(const Int64s& raw_BL, const UInt64s& keys_B, std::int64_t noise, std::int64_t spans,
             std::int64_t first_sentinel, std::int64_t eos, Int64s& inputs_BS, Int64s& targets_BT) {
  require(raw_BL.ndim() == 2 && inputs_BS.ndim() == 2 && targets_BT.ndim() == 2 && keys_B.ndim() == 1,
          "corrupt takes two-dimensional batches and one key a sample");
  const py::ssize_t batch = raw_BL.shape(0), length = raw_BL.shape(1);
  const py::ssize_t room_s = inputs_BS.shape(1), room_t = targets_BT.shape(1);
  require(keys_B.size() == batch && inputs_BS.shape(0) == batch && targets_BT.shape(0) == batch, "batch sizes differ");
  require(room_s > 0 && room_t > 0 && length > 0, "lengths must be 1 or more");
  const py::ssize_t padded = length < 2 ? 2 : length;
  require(spans > 0 && spans <= noise && spans <= padded - noise, "there are more spans than tokens to hold them");
  const std::int64_t* raw = raw_BL.data();
  const std::uint64_t* keys = keys_B.data();
  std::int64_t* inputs = inputs_BS.mutable_data();
  std::int64_t* targets = targets_BT.mutable_data();
  const megaswitch::SpanRule rule{length, noise, spans, first_sentinel, eos};
  py::gil_scoped_release release;
  megaswitch::SpanScratch scratch;
  for (py::ssize_t b = 0; b < batch; ++b) {
    megaswitch::draw_mask(rule, keys[b], scratch);
    megaswitch::replace_runs(rule, raw + b * length, scratch.mask, 1, inputs + b * room_s, room_s);
    megaswitch::replace_runs(rule, raw + b * length, scratch.mask, 0, targets + b * room_t, room_t);
  }
}

template <typename T>
megaswitch::Gathered gather_as(const py::array& tokens, const megaswitch::Epoch& epoch, std::int64_t offset,
                               std::int64_t vocab, std::int64_t* out, std::int64_t room) {
  const T* data = static_cast<const T*>(tokens.data());
  const std::int64_t count = tokens.size();
  py::gil_scoped_release release;
  return megaswitch::gather(data, count, epoch, offset, vocab, out, room);
}

megaswitch::Gathered gather_any(const py::array& tokens, const megaswitch::Epoch& epoch, std::int64_t offset,
                                std::int64_t vocab, std::int64_t* out, std::int64_t room) {
  const char kind = tokens.dtype().kind();
  const py::ssize_t width = tokens.itemsize();
  if (kind == 'u' && width == 1) return gather_as<std::uint8_t>(tokens, epoch, offset, vocab, out, room);
  if (kind == 'u' && width == 2) return gather_as<std::uint16_t>(tokens, epoch, offset, vocab, out, room);
  if (kind == 'i' && width == 1) return gather_as<std::int8_t>(tokens, epoch, offset, vocab, out, room);
  if (kind == 'i' && width == 2) return gather_as<std::int16_t>(tokens, epoch, offset, vocab, out, room);
  if (kind == 'i' && width == 4) return gather_as<std::int32_t>(tokens, epoch, offset, vocab, out, room);
  if (kind == 'i' && width == 8) return gather_as<std::int64_t>(tokens, epoch, offset, vocab, out, room);
  throw std::invalid_argument("token ids of this type are not read");
}

std::tuple<std::int64_t, std::int64_t, std::int64_t> gather(const py::array& tokens, const Int64s& starts_N,
                                                            const Int64s& order_N, const Int64s& ends_N,
                                                            std::int64_t offset, std::int64_t vocab, Int64s& out) {
  require(tokens.ndim() == 1 && (tokens.flags() & py::array::c_style) != 0, "tokens must be one contiguous dimension");
  require(starts_N.size() == order_N.size() && ends_N.size() == order_N.size(), "document arrays differ in length");
  require(out.ndim() == 1 && offset >= 0 && vocab > 0, "offset and vocabulary must not be negative");
  const megaswitch::Epoch epoch{starts_N.data(), order_N.data(), ends_N.data(), order_N.size()};
  const auto result = gather_any(tokens, epoch, offset, vocab, out.mutable_data(), out.size());
  return {result.copied, result.bad_document, result.bad_id};
}

void blend_fill(const Int64s& weights_K, Int64s& owed_K, Int64s& taken_K, Int32s& corpus_N, Int64s& within_N) {
  const py::ssize_t corpora = weights_K.size();
  require(corpora > 0 && owed_K.size() == corpora && taken_K.size() == corpora, "one weight and state a corpus");
  require(corpus_N.size() == within_N.size(), "outputs differ in length");
  const std::int64_t* weights = weights_K.data();
  std::int64_t* owed = owed_K.mutable_data();
  std::int64_t* taken = taken_K.mutable_data();
  std::int32_t* corpus = corpus_N.mutable_data();
  std::int64_t* within = within_N.mutable_data();
  const py::ssize_t count = corpus_N.size();
  py::gil_scoped_release release;
  megaswitch::blend_fill(weights, corpora, owed, taken, count, corpus, within);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "C++ twins of megaswitch.data's numpy code; arrays are written in place and never converted.";
  m.attr("VERSION") = 1;
  m.def("shuffle", &shuffle, py::arg("values").noconvert(), py::arg("key"));
  m.def("bounded", &bounded, py::arg("key"), py::arg("counter"), py::arg("bound"));
  m.def("corrupt", &corrupt, py::arg("raw_BL").noconvert(), py::arg("keys_B").noconvert(), py::arg("noise"),
        py::arg("spans"), py::arg("first_sentinel"), py::arg("eos"), py::arg("inputs_BS").noconvert(),
        py::arg("targets_BT").noconvert());
  m.def("gather", &gather, py::arg("tokens").noconvert(), py::arg("starts_N").noconvert(),
        py::arg("order_N").noconvert(), py::arg("ends_N").noconvert(), py::arg("offset"), py::arg("vocab"),
        py::arg("out").noconvert());
  m.def("blend_fill", &blend_fill, py::arg("weights_K").noconvert(), py::arg("owed_K").noconvert(),
        py::arg("taken_K").noconvert(), py::arg("corpus_N").noconvert(), py::arg("within_N").noconvert());
}
