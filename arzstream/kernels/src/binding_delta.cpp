// Python's view of the kernels of differences to references; see binding.cpp.
#include <nanobind/stl/vector.h>

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

using References = const std::vector<In<uint8_t>>&;

DeltaKnown known_of(References references, unsigned itemsize, unsigned exponent_bits, unsigned mantissa_bits, size_t bytes,
                    size_t row_len, const In<uint8_t>& rows, const In<uint8_t>& cols, int base, int step_base) {
  need(!references.empty() && references.size() <= kMaxReferences, "an impossible number of references");
  need(base >= -4096 && base < 4096 && step_base >= -128 && step_base < 128, "cells out of range");
  DeltaKnown known{};
  for (size_t k = 0; k < references.size(); ++k) {
    const Chunk chunk = chunk_of(itemsize, exponent_bits, mantissa_bits, bytes, references[k].size());
    known.type = chunk.type, known.count = chunk.count, known.references[k] = references[k].data();
  }
  known.n_references = static_cast<unsigned>(references.size());
  known.scales = scales_of(rows, cols, row_len, known.count);
  known.base = base, known.step_base = step_base;
  return known;
}

void check_top(unsigned itemsize, unsigned top) {
  need(top < 8 && (8 * itemsize - top + 1) << top <= 128, "too many symbols");
}

void all_below(const In<uint8_t>& values, size_t limit) {
  need(values.size() == 0 || active().highest8(values.data(), values.size()) < limit, "a class out of range");
}

void delta_fields(In<uint8_t> data, In<uint8_t> parent, unsigned itemsize, unsigned exponent_bits,
                  unsigned mantissa_bits, Out<uint16_t> fields) {
  const Chunk chunk = chunk_of(itemsize, exponent_bits, mantissa_bits, data.size(), parent.size());
  need(fields.size() == chunk.count, "fields do not fit");
  nb::gil_scoped_release unlocked;
  active().delta_fields(chunk.type, data.data(), parent.data(), chunk.count, fields.data());
}

void delta_cells(In<uint8_t> data, References references, unsigned itemsize, unsigned exponent_bits,
                 unsigned mantissa_bits, unsigned top, size_t row_len, In<uint8_t> rows, In<uint8_t> cols, int base,
                 int step_base, Out<uint8_t> symbols, Out<uint16_t> cells) {
  check_top(itemsize, top);
  const DeltaKnown known = known_of(references, itemsize, exponent_bits, mantissa_bits, data.size(), row_len, rows, cols,
                                    base, step_base);
  need(symbols.size() == known.count && cells.size() == known.count, "symbols do not fit");
  nb::gil_scoped_release unlocked;
  active().delta_cells(known, data.data(), top, symbols.data(), cells.data());
}

size_t delta_classes(In<uint16_t> cells, In<uint8_t> class_of, In<uint16_t> freqs, In<uint8_t> stand_ins,
                     Out<uint8_t> symbols, Out<uint8_t> classes, Out<uint32_t> exceptions) {
  need(stand_ins.size() <= arz::kMaxDeltaClasses && freqs.size() == 256 * stand_ins.size() && symbols.size() == cells.size() && classes.size() == cells.size(),
       "classes do not fit");
  all_below(class_of, stand_ins.size());
  need(cells.size() == 0 || active().highest16(cells.data(), cells.size()) < class_of.size(), "a cell out of range");
  nb::gil_scoped_release unlocked;
  return active().delta_classes(cells.data(), cells.size(), class_of.data(), freqs.data(), stand_ins.data(),
                                stand_ins.size(), symbols.data(), classes.data(), exceptions.data(), exceptions.size());
}

bool rans_tables(In<uint16_t> freqs, bool halved, Out<uint32_t> slots) {
  const size_t classes = freqs.size() / 256;
  need(freqs.size() == 256 * classes && slots.size() == (kSlots >> halved) * classes, "tables do not fit");
  nb::gil_scoped_release unlocked;
  return active().rans_tables(freqs.data(), classes, halved, slots.data());
}

size_t delta_raw(In<uint8_t> data, In<uint8_t> parent, In<uint8_t> symbols, unsigned itemsize, unsigned exponent_bits,
                 unsigned mantissa_bits, unsigned top, size_t per_segment, Out<uint8_t> out,
                 Out<uint32_t> raw_bytes) {
  const Chunk chunk = chunk_of(itemsize, exponent_bits, mantissa_bits, data.size(), parent.size());
  check_top(itemsize, top);
  need(per_segment > 0 && symbols.size() == chunk.count && raw_bytes.size() == arz::ceil_div(chunk.count, per_segment),
       "symbols do not fit");
  const DeltaRaw job{chunk.type, data.data(), parent.data(), chunk.count, top, per_segment};
  size_t written;
  {
    nb::gil_scoped_release unlocked;
    written = active().delta_raw(job, symbols.data(), out.data(), out.size(), raw_bytes.data());
  }
  need(written != SIZE_MAX, "raw streams do not fit");
  return written;
}

int delta_decode(In<uint8_t> payload, References references, unsigned itemsize, unsigned exponent_bits,
                 unsigned mantissa_bits, unsigned top, size_t per_segment, size_t row_len, In<uint8_t> rows,
                 In<uint8_t> cols, int base, int step_base, In<uint8_t> classes, In<uint32_t> slots, bool halved,
                 size_t symbols_at, size_t raw_at, In<uint32_t> symbol_bytes, In<uint32_t> raw_bytes, Out<uint8_t> out) {
  check_top(itemsize, top);
  DeltaDecode job{};
  job.known = known_of(references, itemsize, exponent_bits, mantissa_bits, out.size(), row_len, rows, cols, base, step_base);
  const size_t per_class = kSlots >> halved;
  need(slots.size() >= per_class && slots.size() % per_class == 0, "tables do not fit");
  need(classes.size() == arz::delta_cells(job.known.n_references), "cells do not fit");
  all_below(classes, slots.size() / per_class);
  job.classes = classes.data();
  job.top = top;
  job.slots = slots.data();
  job.halved = halved;
  job.payload = payload.data();
  job.payload_size = payload.size();
  need(per_segment > 0 && per_segment % kLanes == 0 && raw_bytes.size() == symbol_bytes.size() &&
           symbol_bytes.size() == arz::ceil_div(job.known.count, per_segment),
       "segments do not fit");
  job.per_segment = per_segment;
  job.symbols_at = symbols_at;
  job.raw_at = raw_at;
  job.symbol_bytes = symbol_bytes.data();
  job.raw_bytes = raw_bytes.data();
  job.out = out.data();
  nb::gil_scoped_release unlocked;
  return active().delta_decode(job);
}

}  // namespace

void bind_delta(nb::module_& m) {
  m.def("delta_fields", &delta_fields);
  m.def("delta_cells", &delta_cells);
  m.def("delta_classes", &delta_classes);
  m.def("rans_tables", &rans_tables);
  m.def("delta_raw", &delta_raw);
  m.def("delta_decode", &delta_decode);
}

}  // namespace arz_python
