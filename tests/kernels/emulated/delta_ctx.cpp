#include "cases.h"

namespace cases {

bool codes_symbols(const arz::Kernels& kernels, const Bytes& symbols, const Bytes& classes,
                   const std::vector<uint16_t>& freqs, size_t per_segment, const Bytes& streams,
                   const std::vector<uint32_t>& symbol_bytes) {
  const size_t n_classes = freqs.size() / 256;
  Bytes out(arz::rans_capacity(symbols.size(), per_segment));
  std::vector<uint32_t> sizes(symbol_bytes.size()), scratch(512 * n_classes);
  const size_t start = kernels.rans_ctx_encode(symbols.data(), classes.data(), symbols.size(), per_segment, freqs.data(),
                                               n_classes, scratch.data(), out.data(), out.size(), sizes.data());
  return start <= out.size() && Bytes(out.begin() + static_cast<ptrdiff_t>(start), out.end()) == streams &&
         sizes == symbol_bytes;
}

bool delta_ctx(const arz::Kernels& kernels, Case c) {
  const auto next = [&c] { return static_cast<unsigned>(c.number()); };
  arz::Floats type;
  type.itemsize = next(), type.exponent_bits = next(), type.mantissa_bits = next();
  const unsigned top = next(), per_segment = next(), row_len = next();
  arz::DeltaKnown known{};
  known.type = type, known.base = c.number(), known.step_base = c.number(), known.n_references = next();
  const bool halved = next();
  const int32_t expected = c.number();

  const Bytes& data = c.bytes();
  known.count = data.size() / type.itemsize;
  for (unsigned k = 0; k < known.n_references; ++k) known.references[k] = c.bytes().data();
  const Bytes &rows = c.bytes(), &cols = c.bytes();
  known.scales = {row_len, data_of(rows), data_of(cols)};
  const Bytes& class_of = c.bytes();
  const std::vector<uint16_t> freqs = c.list<uint16_t>();
  const Bytes& stand_ins = c.bytes();
  const std::vector<uint32_t> slots = c.list<uint32_t>();
  const std::vector<uint16_t> fields = c.list<uint16_t>();
  const Bytes& symbols = c.bytes();
  const std::vector<uint16_t> cells = c.list<uint16_t>();
  const Bytes &coded = c.bytes(), &classes = c.bytes();
  const std::vector<uint32_t> exceptions = c.list<uint32_t>();
  const Bytes& streams = c.bytes();
  const std::vector<uint32_t> symbol_bytes = c.list<uint32_t>();
  const Bytes& raw = c.bytes();
  const std::vector<uint32_t> raw_bytes = c.list<uint32_t>();
  const Bytes &payload = c.bytes(), &decoded = c.bytes();
  const size_t count = known.count;

  std::vector<uint16_t> found_fields(count), found_cells(count);
  kernels.delta_fields(type, data.data(), known.references[0], count, found_fields.data());
  Bytes found(count), found_classes(count);
  kernels.delta_cells(known, data.data(), top, found.data(), found_cells.data());
  if (found_fields != fields || found != symbols || found_cells != cells) return false;

  std::vector<uint32_t> found_exceptions(exceptions.size());
  const auto classify = [&](size_t room) {
    found = symbols;
    return kernels.delta_classes(cells.data(), count, class_of.data(), freqs.data(), stand_ins.data(),
                                 stand_ins.size(), found.data(), found_classes.data(), found_exceptions.data(), room);
  };
  if (!exceptions.empty() && classify(exceptions.size() - 1) != SIZE_MAX) return false;
  if (classify(exceptions.size()) != exceptions.size()) return false;
  if (found != coded || found_classes != classes || found_exceptions != exceptions) return false;
  if (!codes_symbols(kernels, coded, classes, freqs, per_segment, streams, symbol_bytes)) return false;

  const arz::DeltaRaw job{type, data.data(), known.references[0], count, top, per_segment};
  Bytes made(raw.size());
  std::vector<uint32_t> sizes(raw_bytes.size());
  if (kernels.delta_raw(job, coded.data(), made.data(), made.size(), sizes.data()) != raw.size()) return false;
  if (made != raw || sizes != raw_bytes) return false;

  std::vector<uint32_t> tables(slots.size());
  if (!kernels.rans_tables(freqs.data(), freqs.size() / 256, halved, tables.data()) || tables != slots) return false;
  Bytes out(data.size(), 0xa5);
  arz::DeltaDecode decode{};
  decode.known = known;
  decode.classes = class_of.data();
  decode.top = top;
  decode.per_segment = per_segment;
  decode.slots = slots.data();
  decode.halved = halved;
  decode.payload = payload.data();
  decode.payload_size = payload.size();
  decode.symbols_at = 0;
  decode.raw_at = streams.size();
  decode.symbol_bytes = symbol_bytes.data();
  decode.raw_bytes = raw_bytes.data();
  decode.out = out.data();
  const int status = kernels.delta_decode(decode);
  return (status == arz::kOk) == (expected == arz::kOk) && (status != arz::kOk || out == decoded);
}

}  // namespace cases
