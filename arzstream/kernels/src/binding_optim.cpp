// Python's view of the kernels of optimiser state; see binding.cpp.
#include "binding.h"

namespace arz_python {
namespace {

using namespace arz;

OptimRule rule_of(bool scaled, unsigned raw, unsigned halves, int base) {
  need(scaled ? raw >= 16 && raw <= 24 && halves == kHalfNone : raw <= 24 && halves <= kHalfIeee, "no such rule");
  need(base >= -4096 && base < 4096, "cells out of range");
  return {scaled, raw, halves, base};
}

OptimRefs refs_of(const OptimRule& rule, const In<uint8_t>& expected, const In<uint8_t>& before,
                  const In<uint8_t>& halves, size_t row_len, const In<uint8_t>& rows, const In<uint8_t>& cols) {
  const size_t count = expected.size() / 4;
  need(expected.size() % 4 == 0 && (before.size() == 0 || before.size() == expected.size()) &&
           halves.size() == (rule.halves == kHalfNone ? 0 : 2 * count),
       "references do not fit");
  need(row_len >= 1, "rows without elements");
  need((rows.size() == 0 || rows.size() == ceil_div(count, row_len)) &&
           (cols.size() == 0 || cols.size() >= (row_len < count ? row_len : count)),
       "scales do not fit");
  return {expected.data(), before.size() ? before.data() : nullptr, halves.data(),
          {row_len, rows.size() ? rows.data() : nullptr, cols.size() ? cols.data() : nullptr}};
}

void optim_predict(In<uint8_t> parent, In<uint8_t> moment, In<uint8_t> square, In<double> factors, Out<uint8_t> out) {
  need(out.size() % 4 == 0 && parent.size() == out.size() && (moment.size() == out.size() || moment.size() == 0) &&
           moment.size() == square.size() && factors.size() == 3,
       "references do not fit");
  OptimPredict job{};
  job.parent = parent.data();
  if (moment.size()) job.moment = moment.data(), job.square = square.data();
  for (size_t i = 0; i < 3; ++i) job.factors[i] = factors.data()[i];
  job.count = out.size() / 4;
  job.out = out.data();
  nb::gil_scoped_release unlocked;
  active().optim_predict(job);
}

void optim_ratios(In<uint8_t> data, In<uint8_t> squares, Out<uint16_t> fields) {
  need(data.size() == 4 * fields.size() && squares.size() == data.size(), "fields do not fit");
  nb::gil_scoped_release unlocked;
  active().optim_ratios(data.data(), squares.data(), fields.size(), fields.data());
}

void optim_count(In<uint8_t> data, In<uint8_t> expected, In<uint8_t> before, In<uint8_t> halves, bool scaled,
                 unsigned raw, unsigned kind, int base, size_t row_len, In<uint8_t> rows, In<uint8_t> cols,
                 Out<uint8_t> symbols, Out<uint16_t> cells, Out<uint32_t> counts) {
  const OptimRule rule = rule_of(scaled, raw, kind, base);
  const OptimRefs refs = refs_of(rule, expected, before, halves, row_len, rows, cols);
  need(data.size() == expected.size() && symbols.size() == data.size() / 4 && cells.size() == symbols.size() &&
           counts.size() == size_t{256} * kOptimCells,
       "symbols do not fit");
  nb::gil_scoped_release unlocked;
  active().optim_count(rule, refs, data.data(), symbols.size(), symbols.data(), cells.data(), counts.data());
}

size_t optim_raw(In<uint8_t> data, In<uint8_t> symbols, In<uint8_t> expected, In<uint8_t> before, In<uint8_t> halves,
                 bool scaled, unsigned raw, unsigned kind, int base, size_t row_len, In<uint8_t> rows,
                 In<uint8_t> cols, unsigned log_segment, Out<uint8_t> out, Out<uint32_t> raw_bytes) {
  const OptimRule rule = rule_of(scaled, raw, kind, base);
  const OptimRefs refs = refs_of(rule, expected, before, halves, row_len, rows, cols);
  need(data.size() == expected.size() && symbols.size() == data.size() / 4 && log_segment <= 31 &&
           raw_bytes.size() == segments(symbols.size(), log_segment),
       "symbols do not fit");
  size_t written;
  {
    nb::gil_scoped_release unlocked;
    written = active().optim_raw(rule, refs, data.data(), symbols.size(), log_segment, symbols.data(), out.data(),
                                 out.size(), raw_bytes.data());
  }
  need(written != SIZE_MAX, "raw streams do not fit");
  return written;
}

int optim_decode(In<uint8_t> payload, In<uint8_t> expected, In<uint8_t> before, In<uint8_t> halves, bool scaled,
                 unsigned raw, unsigned kind, int base, size_t row_len, In<uint8_t> rows, In<uint8_t> cols,
                 unsigned log_segment, In<uint8_t> classes, In<uint16_t> freqs, size_t symbols_at, size_t raw_at,
                 In<uint32_t> symbol_bytes, In<uint32_t> raw_bytes, Out<uint8_t> out) {
  OptimDecode job{};
  job.rule = rule_of(scaled, raw, kind, base);
  job.refs = refs_of(job.rule, expected, before, halves, row_len, rows, cols);
  job.count = expected.size() / 4;
  job.n_classes = freqs.size() / 256;
  need(out.size() == expected.size() && freqs.size() % 256 == 0 && job.n_classes >= 1 && job.n_classes <= 64,
       "tables do not fit");
  need(classes.size() == kOptimCells, "cells do not fit");
  for (size_t i = 0; i < classes.size(); ++i) need(classes.data()[i] < job.n_classes, "a class out of range");
  const size_t limit = size_t{31 - raw} << 3;  // symbols of a direction, spec/registry.md section 9
  for (size_t i = 0; i < freqs.size(); ++i)
    need(freqs.data()[i] == 0 || (scaled ? i % 128 < limit && i % 256 != 128 : i % 256 < limit), "a symbol out of range");
  job.classes = classes.data();
  job.freqs = freqs.data();
  job.payload = payload.data();
  job.payload_size = payload.size();
  need(log_segment >= 6 && log_segment <= 31 && symbol_bytes.size() == segments(job.count, log_segment) &&
           raw_bytes.size() == symbol_bytes.size(),
       "segments do not fit");
  job.log_segment = log_segment;
  job.symbols_at = symbols_at;
  job.raw_at = raw_at;
  job.symbol_bytes = symbol_bytes.data();
  job.raw_bytes = raw_bytes.data();
  job.out = out.data();
  Scratch scratch(kSlots * job.n_classes);
  job.scratch = scratch.get();
  nb::gil_scoped_release unlocked;
  return active().optim_decode(job);
}

}  // namespace

void bind_optim(nb::module_& m) {
  m.def("optim_predict", &optim_predict);
  m.def("optim_ratios", &optim_ratios);
  m.def("optim_count", &optim_count);
  m.def("optim_raw", &optim_raw);
  m.def("optim_decode", &optim_decode);
}

}  // namespace arz_python
