#include "cases.h"

namespace cases {

bool float_fast(const arz::Kernels& kernels, Case c) {
  const auto next = [&c] { return static_cast<unsigned>(c.number()); };
  arz::FloatFastDecode decode{};
  decode.type.itemsize = next(), decode.type.exponent_bits = next(), decode.type.mantissa_bits = next();
  decode.log_segment = next(), decode.lanes = next();
  const size_t max_escapes = next(), raw_bytes = next();
  const bool encoded = next() != 0;  // not if there are too many escapes, or bits were flipped
  const int32_t expected = c.number();
  const Bytes &data = c.bytes(), &streams = c.bytes(), &firsts = c.bytes(), &seconds = c.bytes(), &freqs = c.bytes();
  const std::vector<uint32_t> table = c.list<uint32_t>();
  size_t symbol_bytes = 0;
  for (size_t k = 0; k < table.size(); k += arz::kSegmentFields) symbol_bytes += table[k];

  Bytes out(data.size(), 0xa5);
  decode.palettes = {firsts.data(), seconds.data(), freqs.data(), static_cast<unsigned>(firsts.size()),
                     static_cast<unsigned>(seconds.size())};
  decode.payload = streams.data();
  decode.payload_size = streams.size();
  decode.count = data.size() / decode.type.itemsize;
  decode.raw_at = 0;
  decode.symbols_at = raw_bytes;
  decode.escapes_at = raw_bytes + symbol_bytes;
  decode.segments = table.data();
  decode.out = out.data();
  const int status = kernels.float_fast_decode(decode);
  if ((status == arz::kOk) != (expected == arz::kOk)) return false;  // of several faults any may be named
  if (status == arz::kOk && out != data) return false;
  if (!encoded) return true;

  const size_t segments = table.size() / arz::kSegmentFields;
  std::vector<uint32_t> made(table.size());
  Bytes coded(arz::float_fast_capacity(raw_bytes, decode.count, segments, decode.lanes, max_escapes));
  Bytes scratch(arz::float_fast_scratch(decode.count, decode.log_segment, decode.lanes, max_escapes));
  arz::FloatFastEncode encode{};
  encode.type = decode.type;
  encode.data = data.data();
  encode.count = decode.count;
  encode.log_segment = decode.log_segment;
  encode.lanes = decode.lanes;
  encode.palettes = decode.palettes;
  encode.max_escapes = max_escapes;
  encode.out = coded.data();
  encode.scratch = scratch.data();
  encode.segments = made.data();
  const size_t size = kernels.float_fast_encode(encode);
  return size == streams.size() && std::memcmp(coded.data(), streams.data(), size) == 0 && made == table;
}

}  // namespace cases
