// What Python sees. Every function checks types and shapes here; what arrays hold is checked where it is used. The GIL is released
// while work is done.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <tuple>

#include "blend.h"
#include "index.h"
#include "rng.h"
#include "samples.h"

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

void build_epoch(const Int64s& lengths_N, std::uint64_t key, Int64s& order_N, Int64s& ends_N) {
  const py::ssize_t count = lengths_N.size();
  require(order_N.size() == count && ends_N.size() == count, "document arrays differ in length");
  const std::int64_t* lengths = lengths_N.data();
  std::int64_t *order = order_N.mutable_data(), *ends = ends_N.mutable_data();
  py::gil_scoped_release release;
  megaswitch::build_epoch(lengths, count, key, order, ends);
}

Int64s as_array(const std::vector<std::int64_t>& values) {
  return Int64s(static_cast<py::ssize_t>(values.size()), values.data());
}

std::tuple<Int64s, Int64s> pack(const Int64s& inputs_P, const Int64s& targets_P, std::int64_t room_s,
                                std::int64_t room_t, std::int64_t open) {
  require(inputs_P.size() == targets_P.size() && open > 0, "a sample has two sizes, and one row is open at least");
  const megaswitch::Sizes sizes{inputs_P.data(), targets_P.data(), inputs_P.size(), room_s, room_t};
  megaswitch::Packing packing;
  {
    py::gil_scoped_release release;
    packing = megaswitch::pack(sizes, open);
  }
  return {as_array(packing.order), as_array(packing.rows)};
}

void blend_fill(const Int64s& weights_K, Int64s& owed_K, Int64s& taken_K, Int32s& corpus_N, Int64s& within_N) {
  const py::ssize_t corpora = weights_K.size();
  require(corpora > 0 && owed_K.size() == corpora && taken_K.size() == corpora, "one weight and state a corpus");
  require(corpus_N.size() == within_N.size(), "outputs differ in length");
  for (py::ssize_t k = 0; k < corpora; ++k) require(weights_K.at(k) > 0, "weights are 1 or more");
  const std::int64_t* weights = weights_K.data();
  std::int64_t *owed = owed_K.mutable_data(), *taken = taken_K.mutable_data(), *within = within_N.mutable_data();
  std::int32_t* corpus = corpus_N.mutable_data();
  const py::ssize_t count = corpus_N.size();
  py::gil_scoped_release release;
  megaswitch::blend_fill(weights, corpora, owed, taken, count, corpus, within);
}

megaswitch::Tokens tokens_of(const py::array& tokens) {
  using megaswitch::Width;
  require(tokens.ndim() == 1 && (tokens.flags() & py::array::c_style) != 0, "tokens must be one contiguous dimension");
  const char kind = tokens.dtype().kind();
  const py::ssize_t width = tokens.itemsize();
  const bool plain = kind == 'u', negative = kind == 'i';
  Width found = Width::i64;
  if (plain && width == 1) {
    found = Width::u8;
  } else if (plain && width == 2) {
    found = Width::u16;
  } else if (negative && width == 1) {
    found = Width::i8;
  } else if (negative && width == 2) {
    found = Width::i16;
  } else if (negative && width == 4) {
    found = Width::i32;
  } else {
    require(negative && width == 8, "token ids of this type are not read");
  }
  return {tokens.data(), tokens.size(), found};
}

// One batch in the making: groups of rows are added, then all are made at once.
class Rows {
 public:
  Rows(Int64s inputs_BS, Int64s targets_BT, Int64s shifted_BT, const std::optional<Int64s>& segments_BS,
       const std::optional<Int64s>& segments_BT) {
    require(inputs_BS.ndim() == 2 && targets_BT.ndim() == 2, "batches have two dimensions");
    require(inputs_BS.shape(1) > 0 && targets_BT.shape(1) > 0, "rows have room for a token at least");
    require(inputs_BS.shape(0) == targets_BT.shape(0) && same(targets_BT, shifted_BT), "batch sizes differ");
    require(segments_BS.has_value() == segments_BT.has_value(), "segments are of both sides or of none");
    require(!segments_BS || (same(*segments_BS, inputs_BS) && same(*segments_BT, targets_BT)), "segment sizes differ");
    output_ = {inputs_BS.shape(0),        inputs_BS.shape(1), targets_BT.shape(1), inputs_BS.mutable_data(),
               targets_BT.mutable_data(), shifted_BT.mutable_data(), nullptr, nullptr};
    for (const py::array& array : {py::array(inputs_BS), py::array(targets_BT), py::array(shifted_BT)}) keep(array);
    if (!segments_BS) return;
    Int64s own_s = *segments_BS, own_t = *segments_BT;
    output_.segments_s = own_s.mutable_data();
    output_.segments_t = own_t.mutable_data();
    keep(own_s);
    keep(own_t);
  }

  void add_stream(const Int64s& rows_M, const py::array& tokens, const Int64s& starts_N, std::int64_t vocab,
                  const std::vector<std::pair<Int64s, Int64s>>& epochs, const Int64s& epoch_M, const Int64s& offset_M,
                  const UInt64s& keys_M, const Int64s& rules, const Int64s& rule_M, std::int64_t first_sentinel,
                  std::int64_t eos) {
    auto group = std::make_unique<megaswitch::StreamGroup>();
    begin(*group, rows_M, {&epoch_M, &offset_M, &rule_M}, keys_M, rules, first_sentinel, eos);
    group->documents = {tokens_of(tokens), use(starts_N), starts_N.size(), vocab};
    for (const auto& [order_N, ends_N] : epochs) {
      require(order_N.size() == starts_N.size() && ends_N.size() == starts_N.size(), "document arrays differ in length");
      require(starts_N.size() > 0 && ends_N.at(starts_N.size() - 1) > 0, "an epoch holds a token at least");
      group->epochs.push_back({use(order_N), use(ends_N)});
    }
    group->epoch = use(epoch_M);
    group->offset = use(offset_M);
    group->rule = use(rule_M);
    group->keys = use(keys_M);
    group->rules = read_rules(rules);
    keep(tokens);
    groups_.push_back(std::move(group));
  }

  void add_packed(const Int64s& rows_M, const py::array& tokens, const Int64s& starts_N, std::int64_t vocab,
                  const Int64s& place_P, const Int64s& skip_P, const Int64s& length_P, const Int64s& first_M,
                  const Int64s& last_M, const UInt64s& keys_M, const Int64s& rules, std::int64_t first_sentinel,
                  std::int64_t eos) {
    auto group = std::make_unique<megaswitch::PackedGroup>();
    begin(*group, rows_M, {&first_M, &last_M}, keys_M, rules, first_sentinel, eos);
    require(place_P.size() == skip_P.size() && skip_P.size() == length_P.size(), "piece arrays differ in length");
    group->documents = {tokens_of(tokens), use(starts_N), starts_N.size(), vocab};
    group->place = use(place_P);
    group->skip = use(skip_P);
    group->length = use(length_P);
    group->pieces = place_P.size();
    group->first = use(first_M);
    group->last = use(last_M);
    group->keys = use(keys_M);
    group->rules = read_rules(rules);
    for (std::size_t i = 0; i < group->rules.size(); ++i) {
      require(group->rules[i].length == static_cast<std::int64_t>(i) + 1, "rules stand by length");
    }
    keep(tokens);
    groups_.push_back(std::move(group));
  }

  std::optional<std::tuple<std::int64_t, std::int64_t, std::int64_t>> make(int threads) {
    std::optional<megaswitch::BadId> bad;
    {
      py::gil_scoped_release release;
      bad = megaswitch::make_rows(groups_, output_, threads);
    }
    if (!bad) return std::nullopt;
    return std::make_tuple(bad->row, bad->place, bad->id);
  }

 private:
  static bool same(const Int64s& one, const Int64s& other) {
    return one.ndim() == 2 && other.ndim() == 2 && one.shape(0) == other.shape(0) && one.shape(1) == other.shape(1);
  }

  void begin(megaswitch::Group& group, const Int64s& rows_M, std::initializer_list<const Int64s*> alike,
             const UInt64s& keys_M, const Int64s& rules, std::int64_t first_sentinel, std::int64_t eos) {
    require(keys_M.size() == rows_M.size(), "one key a row");
    for (const Int64s* array : alike) require(array->size() == rows_M.size(), "one number a row");
    for (py::ssize_t i = 0; i < rows_M.size(); ++i) {
      require(rows_M.at(i) >= 0 && rows_M.at(i) < output_.rows, "a row is outside the batch");
    }
    require(rules.ndim() == 2 && rules.shape(1) == 6, "a rule has six numbers");
    group.special = {first_sentinel, eos};
    group.rows = use(rows_M);
    group.count = rows_M.size();
  }

  static std::vector<megaswitch::Rule> read_rules(const Int64s& rules) {
    std::vector<megaswitch::Rule> read;
    for (py::ssize_t i = 0; i < rules.shape(0); ++i) {
      const auto number = [&](py::ssize_t j) { return rules.at(i, j); };
      require(number(0) >= 0 && number(0) <= 2, "a rule is of no known kind");
      read.push_back({static_cast<megaswitch::Kind>(number(0)), number(1), number(2), number(3), number(4), number(5)});
      require(megaswitch::is_possible(read.back()), "a rule asks for more spans than its tokens hold");
    }
    return read;
  }

  template <typename T>
  const T* use(const py::array_t<T, py::array::c_style>& array) {
    keep(array);
    return array.data();
  }

  void keep(const py::array& array) { kept_.push_back(array); }

  megaswitch::Output output_{};
  std::vector<std::unique_ptr<megaswitch::Group>> groups_;
  std::vector<py::array> kept_;
};

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "C++ twins of megaswitch.data's numpy code; arrays are written in place and never converted.";
  m.attr("VERSION") = 2;
  m.def("shuffle", &shuffle, py::arg("values").noconvert(), py::arg("key"));
  m.def("bounded", &bounded, py::arg("key"), py::arg("counter"), py::arg("bound"));
  m.def("build_epoch", &build_epoch, py::arg("lengths_N").noconvert(), py::arg("key"), py::arg("order_N").noconvert(),
        py::arg("ends_N").noconvert());
  m.def("pack", &pack, py::arg("inputs_P").noconvert(), py::arg("targets_P").noconvert(), py::arg("room_s"),
        py::arg("room_t"), py::arg("open"));
  m.def("blend_fill", &blend_fill, py::arg("weights_K").noconvert(), py::arg("owed_K").noconvert(),
        py::arg("taken_K").noconvert(), py::arg("corpus_N").noconvert(), py::arg("within_N").noconvert());
  py::class_<Rows>(m, "Rows")
      .def(py::init<Int64s, Int64s, Int64s, const std::optional<Int64s>&, const std::optional<Int64s>&>(),
           py::arg("inputs_BS").noconvert(), py::arg("targets_BT").noconvert(), py::arg("shifted_BT").noconvert(),
           py::arg("segments_BS").noconvert(), py::arg("segments_BT").noconvert())
      .def("add_stream", &Rows::add_stream, py::arg("rows_M").noconvert(), py::arg("tokens"),
           py::arg("starts_N").noconvert(), py::arg("vocab"), py::arg("epochs"), py::arg("epoch_M").noconvert(),
           py::arg("offset_M").noconvert(), py::arg("keys_M").noconvert(), py::arg("rules").noconvert(),
           py::arg("rule_M").noconvert(), py::arg("first_sentinel"), py::arg("eos"))
      .def("add_packed", &Rows::add_packed, py::arg("rows_M").noconvert(), py::arg("tokens"),
           py::arg("starts_N").noconvert(), py::arg("vocab"), py::arg("place_P").noconvert(),
           py::arg("skip_P").noconvert(), py::arg("length_P").noconvert(), py::arg("first_M").noconvert(),
           py::arg("last_M").noconvert(), py::arg("keys_M").noconvert(), py::arg("rules").noconvert(),
           py::arg("first_sentinel"), py::arg("eos"))
      .def("make", &Rows::make, py::arg("threads"));
}
