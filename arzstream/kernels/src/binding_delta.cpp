// Python's view of the kernels of differences to references; see binding.cpp.
#include "binding.h"

namespace arz_python {
namespace {

using namespace arz;

struct Chunk {
  Floats type;
  size_t count;
};

Chunk chunk_of(unsigned itemsize, unsigned exponent_bits, unsigned mantissa_bits, size_t bytes, size_t parent) {
  need(itemsize == 1 || itemsize == 2 || itemsize == 4, "elements of an impossible size");
  need(exponent_bits == 0 ? mantissa_bits == 0 : exponent_bits <= 8 && 8 * itemsize == exponent_bits + mantissa_bits + 1,
       "neither floats nor integers");
  need(bytes % itemsize == 0 && parent == bytes, "the parent does not fit");
  return {{itemsize, exponent_bits, mantissa_bits}, bytes / itemsize};
}

Scales scales_of(const In<uint8_t>& rows, const In<uint8_t>& cols, size_t row_len, size_t count) {
  need(row_len >= 1, "rows without elements");
  need((rows.size() == 0 || rows.size() == ceil_div(count, row_len)) &&
           (cols.size() == 0 || cols.size() >= (row_len < count ? row_len : count)),
       "scales do not fit");
  return {row_len, rows.size() ? rows.data() : nullptr, cols.size() ? cols.data() : nullptr};
}

DeltaCells cells_of(int base, unsigned first, unsigned exponents) {
  need(base >= -4096 && base < 4096 && first <= 255 && exponents >= 1 && exponents <= 16, "cells out of range");
  return {base, first, exponents};
}

void check_top(unsigned itemsize, unsigned top) {
  need(top < 8 && (8 * itemsize - top + 1) << top <= 128, "too many symbols");
}

void all_below(const In<uint8_t>& values, size_t limit) {
  for (size_t i = 0; i < values.size(); ++i) need(values.data()[i] < limit, "a class out of range");
}

void delta_fields(In<uint8_t> data, In<uint8_t> parent, unsigned itemsize, unsigned exponent_bits,
                  unsigned mantissa_bits, Out<uint16_t> fields) {
  const Chunk chunk = chunk_of(itemsize, exponent_bits, mantissa_bits, data.size(), parent.size());
  need(fields.size() == chunk.count, "fields do not fit");
  nb::gil_scoped_release unlocked;
  active().delta_fields(chunk.type, data.data(), parent.data(), chunk.count, fields.data());
}

void delta_count(In<uint8_t> data, In<uint8_t> parent, unsigned itemsize, unsigned exponent_bits,
                 unsigned mantissa_bits, unsigned top, size_t row_len, In<uint8_t> rows, In<uint8_t> cols, int base,
                 unsigned first, unsigned exponents, Out<uint8_t> symbols, Out<uint16_t> cells, Out<uint32_t> counts) {
  const Chunk chunk = chunk_of(itemsize, exponent_bits, mantissa_bits, data.size(), parent.size());
  check_top(itemsize, top);
  const DeltaCount job{chunk.type, data.data(), parent.data(), chunk.count, scales_of(rows, cols, row_len, chunk.count),
                       cells_of(base, first, exponents), top};
  need(symbols.size() == chunk.count && cells.size() == chunk.count &&
           counts.size() == size_t{256} * kScaleCells * exponents,
       "symbols do not fit");
  nb::gil_scoped_release unlocked;
  active().delta_count(job, symbols.data(), cells.data(), counts.data());
}

void delta_steps(In<uint8_t> parent, In<uint8_t> grandparent, unsigned itemsize, unsigned exponent_bits,
                 unsigned mantissa_bits, int step_base, In<uint8_t> groups, In<uint8_t> symbols, Out<uint16_t> cells,
                 Out<uint32_t> counts) {
  const Chunk chunk = chunk_of(itemsize, exponent_bits, mantissa_bits, parent.size(), grandparent.size());
  need(step_base >= -128 && step_base < 128, "steps out of range");
  need(symbols.size() == chunk.count && cells.size() == chunk.count && counts.size() % (256 * kStepCells) == 0 &&
           counts.size() <= 256 * 64 * kStepCells,
       "symbols do not fit");
  all_below(groups, counts.size() / (256 * kStepCells));
  uint16_t highest = 0;
  for (size_t i = 0; i < chunk.count; ++i) highest = cells.data()[i] > highest ? cells.data()[i] : highest;
  need(chunk.count == 0 || highest < groups.size(), "a cell out of range");
  const DeltaSteps job{chunk.type, parent.data(), grandparent.data(), chunk.count, step_base, groups.data()};
  nb::gil_scoped_release unlocked;
  active().delta_steps(job, symbols.data(), cells.data(), counts.data(), counts.size());
}

size_t delta_raw(In<uint8_t> data, In<uint8_t> parent, In<uint8_t> symbols, unsigned itemsize, unsigned exponent_bits,
                 unsigned mantissa_bits, unsigned top, unsigned log_segment, Out<uint8_t> out,
                 Out<uint32_t> raw_bytes) {
  const Chunk chunk = chunk_of(itemsize, exponent_bits, mantissa_bits, data.size(), parent.size());
  check_top(itemsize, top);
  need(log_segment <= 31 && symbols.size() == chunk.count && raw_bytes.size() == segments(chunk.count, log_segment),
       "symbols do not fit");
  const DeltaRaw job{chunk.type, data.data(), parent.data(), chunk.count, top, log_segment};
  size_t written;
  {
    nb::gil_scoped_release unlocked;
    written = active().delta_raw(job, symbols.data(), out.data(), out.size(), raw_bytes.data());
  }
  need(written != SIZE_MAX, "raw streams do not fit");
  return written;
}

int delta_decode(In<uint8_t> payload, In<uint8_t> parent, In<uint8_t> grandparent, unsigned itemsize,
                 unsigned exponent_bits, unsigned mantissa_bits, unsigned top, unsigned log_segment, size_t row_len,
                 In<uint8_t> rows, In<uint8_t> cols, int base, unsigned first, unsigned exponents, int step_base,
                 In<uint8_t> groups, In<uint8_t> classes, In<uint16_t> freqs, size_t symbols_at, size_t raw_at,
                 In<uint32_t> symbol_bytes, In<uint32_t> raw_bytes, Out<uint8_t> out) {
  const Chunk chunk = chunk_of(itemsize, exponent_bits, mantissa_bits, out.size(), parent.size());
  check_top(itemsize, top);
  const size_t n_classes = freqs.size() / 256, limit = size_t{8 * itemsize - top + 1} << (top + 1);
  need(freqs.size() % 256 == 0 && n_classes >= 1 && n_classes <= 64, "tables do not fit");
  for (size_t i = 0; i < freqs.size(); ++i)
    need(freqs.data()[i] == 0 || (i % 256 != 0 && i % 256 < limit), "a symbol out of range");
  DeltaDecode job{};
  job.type = chunk.type;
  job.count = chunk.count;
  job.parent = parent.data();
  job.scales = scales_of(rows, cols, row_len, chunk.count);
  job.cells = cells_of(base, first, exponents);
  need(groups.size() == kScaleCells * exponents, "cells do not fit");
  if (classes.size()) {
    need(grandparent.size() == out.size() && classes.size() % kStepCells == 0 && step_base >= -128 && step_base < 128,
         "steps do not fit");
    all_below(groups, classes.size() / kStepCells);
    all_below(classes, n_classes);
    job.grandparent = grandparent.data();
    job.classes = classes.data();
  } else {
    all_below(groups, n_classes);
  }
  job.groups = groups.data();
  job.step_base = step_base;
  job.top = top;
  job.freqs = freqs.data();
  job.n_classes = n_classes;
  job.payload = payload.data();
  job.payload_size = payload.size();
  need(log_segment >= 6 && log_segment <= 31 && symbol_bytes.size() == segments(chunk.count, log_segment) &&
           raw_bytes.size() == symbol_bytes.size(),
       "segments do not fit");
  job.log_segment = log_segment;
  job.symbols_at = symbols_at;
  job.raw_at = raw_at;
  job.symbol_bytes = symbol_bytes.data();
  job.raw_bytes = raw_bytes.data();
  job.out = out.data();
  Scratch scratch(kSlots * n_classes);
  job.scratch = scratch.get();
  nb::gil_scoped_release unlocked;
  return active().delta_decode(job);
}

}  // namespace

void bind_delta(nb::module_& m) {
  m.def("delta_fields", &delta_fields);
  m.def("delta_count", &delta_count);
  m.def("delta_steps", &delta_steps);
  m.def("delta_raw", &delta_raw);
  m.def("delta_decode", &delta_decode);
}

}  // namespace arz_python
