// Python's view of the kernels of context-switched coding; see binding.cpp.
#include <vector>

#include "binding.h"

namespace arz_python {
namespace {

using namespace arz;

Cut cut_of(unsigned itemsize, unsigned exponent_bits, unsigned mantissa_bits, unsigned dropped, unsigned top,
           unsigned sign_mode, unsigned log_segment) {
  need(log_segment >= 6 && log_segment <= 31, "segments must have 2^6 to 2^31 elements");
  need((itemsize == 1 || itemsize == 2 || itemsize == 4 || itemsize == 8) && exponent_bits >= 1 && exponent_bits <= 15 &&
           8 * itemsize == exponent_bits + mantissa_bits + 1,
       "not a float");
  need(dropped <= mantissa_bits && top <= mantissa_bits - dropped && exponent_bits + top <= 15 && sign_mode <= kSignCoded,
       "a cut that does not fit");
  const Cut cut{itemsize, exponent_bits, mantissa_bits, dropped, top, sign_mode};
  need(cut.raw_bits() / 8 <= 6, "too many raw bits");
  return cut;
}

Scales scales_of(const In<uint8_t>& rows, const In<uint8_t>& cols, size_t row_len, size_t count) {
  need(row_len >= 1, "rows without elements");
  const size_t n = ceil_div(count, row_len);
  need((rows.size() == 0 || rows.size() == n) && (cols.size() == 0 || cols.size() >= (row_len < count ? row_len : count)),
       "scales do not fit");
  return {row_len, rows.size() ? rows.data() : nullptr, cols.size() ? cols.data() : nullptr};
}

SymbolMap map_of(int base, unsigned top, unsigned log_classes, unsigned mag_bits, unsigned sign_mode) {
  need(log_classes <= 3 && mag_bits <= 15 && top <= mag_bits && base >= -(1 << 15) && base < 1 << 15, "a map out of range");
  return {base, top, log_classes, mag_bits, sign_mode == kSignCoded};
}

size_t raw_size(const Cut& cut, size_t count, unsigned log_segment) {
  const size_t full = size_t{1} << log_segment, bits = cut.raw_bits();
  const auto segment = [&](size_t n) { return n * (bits / 8) + bits % 8 * ceil_div(n, 8); };
  return count / full * segment(full) + segment(count % full);
}

bool is_power(size_t n) { return n != 0 && (n & (n - 1)) == 0; }

void split_high(In<uint8_t> data, unsigned itemsize, unsigned exponent_bits, unsigned mantissa_bits, unsigned dropped,
                unsigned top, unsigned sign_mode, unsigned log_segment, Out<uint16_t> high, Out<uint8_t> raw) {
  const Cut cut = cut_of(itemsize, exponent_bits, mantissa_bits, dropped, top, sign_mode, log_segment);
  need(data.size() == high.size() * itemsize && raw.size() == raw_size(cut, high.size(), log_segment), "parts do not fit");
  int status;
  {
    nb::gil_scoped_release unlocked;
    status = active().split_high(data.data(), high.size(), cut, log_segment, high.data(), raw.data());
  }
  need(status == kOk, "no such cut");
}

Middle middle_of(unsigned highest, unsigned top, unsigned mag_bits) {
  need(mag_bits <= 15 && top <= mag_bits && highest <= 1u << 15, "magnitudes out of range");
  return {highest, top};
}

void row_sums(In<uint16_t> high, size_t row_len, unsigned highest, unsigned top, unsigned mag_bits, Out<uint64_t> sums) {
  need(row_len >= 1 && sums.size() == ceil_div(high.size(), row_len), "sums do not fit");
  const Middle middle = middle_of(highest, top, mag_bits);
  nb::gil_scoped_release unlocked;
  active().row_sums(high.data(), high.size(), row_len, middle, mag_bits, sums.data());
}

void col_sums(In<uint16_t> high, size_t row_len, unsigned highest, unsigned top, unsigned mag_bits, In<int16_t> adjust,
              Out<uint64_t> sums) {
  need(row_len >= 1 && sums.size() == row_len && adjust.size() == ceil_div(high.size(), row_len), "sums do not fit");
  const Middle middle = middle_of(highest, top, mag_bits);
  nb::gil_scoped_release unlocked;
  active().col_sums(high.data(), high.size(), row_len, middle, mag_bits, adjust.data(), sums.data());
}

nb::tuple ctx_cost(In<uint16_t> high, size_t row_len, In<uint8_t> rows, In<uint8_t> cols, unsigned top,
                   unsigned log_classes, unsigned sign_mode, unsigned mag_bits, In<int64_t> weights) {
  const SymbolMap map = map_of(0, top, log_classes, mag_bits, sign_mode);
  const Scales scales = scales_of(rows, cols, row_len, high.size());
  unsigned shift = 0;
  need(weights.size() != 0, "no weights");
  while (high.size() >> shift >= weights.size()) ++shift;
  Scratch scratch((kCostPlaces + 1) << log_classes);
  size_t used;
  uint64_t cost;
  {
    nb::gil_scoped_release unlocked;
    cost = active().ctx_cost(high.data(), high.size(), scales, map, weights.data(), shift, scratch.get(), used);
  }
  return nb::make_tuple(cost, used);
}

void move_costs(In<uint16_t> high, size_t row_len, In<uint8_t> rows, In<uint8_t> cols, int first, unsigned top,
                unsigned log_classes, unsigned mag_bits, In<uint32_t> lut, bool of_rows, Out<uint64_t> costs) {
  need(log_classes <= 3 && mag_bits <= 15 && top <= mag_bits && first > -(1 << 20) && first < 1 << 20, "a map out of range");
  const size_t entry = kMoves << log_classes;
  need(lut.size() != 0 && lut.size() % entry == 0 && lut.size() / entry < size_t{1} << 30, "costs do not fit");
  const Scales scales = scales_of(rows, cols, row_len, high.size());
  const size_t n = of_rows ? ceil_div(high.size(), row_len) : row_len;
  need(costs.size() == kMoves * n, "costs do not fit");
  const MoveCosts job{high.data(), high.size(), scales, first, top, log_classes, mag_bits, lut.data(), lut.size() / entry};
  nb::gil_scoped_release unlocked;
  active().move_costs(job, of_rows, costs.data());
}

size_t ctx_symbols(In<uint16_t> high, size_t row_len, In<uint8_t> rows, In<uint8_t> cols, int base, unsigned top,
                   unsigned log_classes, unsigned sign_mode, unsigned mag_bits, unsigned log_segment,
                   Out<uint8_t> symbols, Out<uint8_t> classes, Out<uint16_t> escapes, Out<uint32_t> escape_counts,
                   Out<uint32_t> counts) {
  const size_t count = high.size();
  const SymbolMap map = map_of(base, top, log_classes, mag_bits, sign_mode);
  const Scales scales = scales_of(rows, cols, row_len, count);
  need(log_segment >= 6 && log_segment <= 31, "segments must have 2^6 to 2^31 elements");
  need(symbols.size() == count && classes.size() == count && escapes.size() >= count &&
           escape_counts.size() == segments(count, log_segment) && counts.size() == size_t{256} << log_classes,
       "symbols do not fit");
  nb::gil_scoped_release unlocked;
  return active().ctx_symbols(high.data(), count, scales, map, log_segment, symbols.data(), classes.data(),
                              escapes.data(), escape_counts.data(), counts.data());
}

size_t tables_of(const In<uint16_t>& freqs) {
  const size_t n = freqs.size() / 256;
  need(freqs.size() % 256 == 0 && n >= 1 && n <= 64, "tables do not fit");
  return n;
}

size_t rans_ctx_encode(In<uint8_t> symbols, In<uint8_t> classes, size_t per_segment, In<uint16_t> freqs,
                       Out<uint8_t> out, Out<uint32_t> stream_bytes) {
  const size_t n = tables_of(freqs), count = symbols.size();
  need(per_segment != 0 && per_segment <= size_t{1} << 31 && classes.size() == count &&
           stream_bytes.size() == ceil_div(count, per_segment) && out.size() == rans_capacity(count, per_segment),
       "streams do not fit");
  Scratch scratch(512 * n);
  size_t start;
  {
    nb::gil_scoped_release unlocked;
    start = active().rans_ctx_encode(symbols.data(), classes.data(), count, per_segment, freqs.data(), n, scratch.get(),
                                     out.data(), out.size(), stream_bytes.data());
  }
  need(start != SIZE_MAX, "frequencies of a class do not sum to 4096, or a symbol has none");
  return start;
}

int rans_ctx_decode(In<uint8_t> streams, In<uint32_t> stream_bytes, size_t per_segment, In<uint8_t> classes,
                    In<uint16_t> freqs, Out<uint8_t> symbols) {
  const size_t n = tables_of(freqs), count = symbols.size();
  need(per_segment != 0 && classes.size() == count && stream_bytes.size() == ceil_div(count, per_segment),
       "streams do not fit");
  Scratch scratch(kSlots * n);
  nb::gil_scoped_release unlocked;
  return active().rans_ctx_decode(streams.data(), streams.size(), stream_bytes.data(), per_segment, classes.data(),
                                  freqs.data(), n, scratch.get(), count, symbols.data());
}

nb::bytes ctx_model_encode(In<uint8_t> rows, unsigned row_centre, unsigned row_k, In<uint8_t> cols, unsigned col_centre,
                           unsigned col_k, In<uint16_t> freqs, unsigned top, unsigned step, int base) {
  const size_t n = freqs.size() / 256;
  need(freqs.size() % 256 == 0 && n <= 64, "tables do not fit");
  need((step == 1 || step == 2) && top <= 15 && row_centre <= 255 && col_centre <= 255 && row_k <= 7 && col_k <= 7,
       "a model out of range");
  const ContextModel model{rows.size(), cols.size(), n, top, step, base, row_centre, row_k, col_centre, col_k};
  for (size_t i = 0; i < freqs.size(); ++i) need(freqs.data()[i] < kSlots, "a frequency out of range");
  std::vector<uint8_t> out(model_capacity(rows.size() + cols.size(), n));
  const size_t size = active().ctx_model_encode(model, rows.data(), cols.data(), freqs.data(), out.data());
  return nb::bytes(reinterpret_cast<const char*>(out.data()), size);
}

int ctx_model_decode(In<uint8_t> data, unsigned top, unsigned step, int base, Out<uint8_t> rows, Out<uint8_t> cols,
                     Out<uint16_t> freqs) {
  need(freqs.size() % 256 == 0 && (step == 1 || step == 2) && top <= 15, "a model out of range");
  const ContextModel model{rows.size(), cols.size(), freqs.size() / 256, top, step, base, 0, 0, 0, 0};
  nb::gil_scoped_release unlocked;
  return active().ctx_model_decode(data.data(), data.size(), model, rows.data(), cols.data(), freqs.data());
}

int float_ctx_decode(In<uint8_t> payload, unsigned itemsize, unsigned exponent_bits, unsigned mantissa_bits,
                     unsigned dropped, unsigned top, unsigned sign_mode, unsigned log_segment, size_t row_len,
                     In<uint8_t> rows, In<uint8_t> cols, unsigned log_classes, int base, In<uint16_t> freqs,
                     size_t raw_at, size_t symbols_at, size_t escapes_at, In<uint32_t> symbol_bytes,
                     In<uint32_t> escape_counts, Out<uint8_t> out) {
  FloatCtxDecode job{};
  job.cut = cut_of(itemsize, exponent_bits, mantissa_bits, dropped, top, sign_mode, log_segment);
  job.count = out.size() / itemsize;
  job.scales = scales_of(rows, cols, row_len, job.count);
  job.map = map_of(base, top, log_classes, job.cut.mag_bits(), sign_mode);
  job.payload = payload.data();
  job.payload_size = payload.size();
  job.log_segment = log_segment;
  job.freqs = freqs.data();
  job.raw_at = raw_at;
  job.symbols_at = symbols_at;
  job.escapes_at = escapes_at;
  job.symbol_bytes = symbol_bytes.data();
  job.escape_counts = escape_counts.data();
  job.out = out.data();
  const size_t n = segments(job.count, log_segment);
  need(out.size() % itemsize == 0 && freqs.size() == size_t{256} << log_classes && symbol_bytes.size() == n &&
           escape_counts.size() == n,
       "the chunk does not fit");
  Scratch scratch(size_t{kSlots} << log_classes);
  job.scratch = scratch.get();
  nb::gil_scoped_release unlocked;
  return active().float_ctx_decode(job);
}

}  // namespace

void bind_context(nb::module_& m) {
  m.def("split_high", &split_high);
  m.def("row_sums", &row_sums);
  m.def("col_sums", &col_sums);
  m.def("ctx_cost", &ctx_cost);
  m.def("move_costs", &move_costs);
  m.def("ctx_symbols", &ctx_symbols);
  m.def("rans_ctx_encode", &rans_ctx_encode);
  m.def("rans_ctx_decode", &rans_ctx_decode);
  m.def("ctx_model_encode", &ctx_model_encode);
  m.def("ctx_model_decode", &ctx_model_decode);
  m.def("float_ctx_decode", &float_ctx_decode);
}

}  // namespace arz_python
