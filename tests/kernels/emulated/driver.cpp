// Runs the kernels of codec float_fast of every instruction set on cases that the NumPy reference made, for processors
// that can only be emulated: driver CASES. A case is the numbers of struct Case, then data, streams, and the palettes.
// Prints how many cases each instruction set passed; the exit status is 1 if one failed.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels.h"

namespace {

struct Case {
  uint32_t itemsize, exponent_bits, mantissa_bits, log_segment, lanes, firsts, seconds, max_escapes;
  uint32_t data_bytes, stream_bytes, raw_bytes, symbol_bytes, segments, encoded;  // encoded: 0 if there are too many escapes
  int32_t status;                                                                  // of decoding the streams
};

using Bytes = std::vector<uint8_t>;

Bytes take(std::FILE* file, size_t size) {
  Bytes bytes(size);
  if (size && std::fread(bytes.data(), 1, size, file) != size) std::exit(2);
  return bytes;
}

bool passes(const arz::Kernels& kernels, const Case& c, const Bytes& data, const Bytes& streams, const Bytes& palettes,
            const std::vector<uint32_t>& table) {
  const arz::Floats type{c.itemsize, c.exponent_bits, c.mantissa_bits};
  const uint8_t* firsts = palettes.data();
  const arz::Palettes of{firsts, firsts + c.firsts, firsts + c.firsts + c.seconds, c.firsts, c.seconds};
  const size_t count = c.data_bytes / c.itemsize;

  Bytes out(c.data_bytes, 0xa5);
  arz::FloatFastDecode decode{};
  decode.type = type;
  decode.payload = streams.data();
  decode.payload_size = streams.size();
  decode.count = count;
  decode.log_segment = c.log_segment;
  decode.lanes = c.lanes;
  decode.palettes = of;
  decode.raw_at = 0;
  decode.symbols_at = c.raw_bytes;
  decode.escapes_at = c.raw_bytes + c.symbol_bytes;
  decode.segments = table.data();
  decode.out = out.data();
  const int status = kernels.float_fast_decode(decode);
  if ((status == arz::kOk) != (c.status == arz::kOk)) return false;  // of several faults any may be named
  if (status == arz::kOk && out != data) return false;
  if (!c.encoded) return true;

  std::vector<uint32_t> made(table.size());
  Bytes coded(arz::float_fast_capacity(c.raw_bytes, count, c.segments, c.lanes, c.max_escapes));
  Bytes scratch(arz::float_fast_scratch(count, c.log_segment, c.lanes, c.max_escapes));
  arz::FloatFastEncode encode{};
  encode.type = type;
  encode.data = data.data();
  encode.count = count;
  encode.log_segment = c.log_segment;
  encode.lanes = c.lanes;
  encode.palettes = of;
  encode.max_escapes = c.max_escapes;
  encode.out = coded.data();
  encode.scratch = scratch.data();
  encode.segments = made.data();
  const size_t size = kernels.float_fast_encode(encode);
  return size == streams.size() && std::memcmp(coded.data(), streams.data(), size) == 0 && made == table;
}

}  // namespace

int main(int argc, char** argv) {
  std::FILE* file = argc == 2 ? std::fopen(argv[1], "rb") : nullptr;
  if (!file) return 2;
  std::vector<size_t> passed;
  size_t cases = 0;
  for (Case c; std::fread(&c, sizeof c, 1, file) == 1; ++cases) {
    const Bytes data = take(file, c.data_bytes), streams = take(file, c.stream_bytes);
    const Bytes palettes = take(file, 2 * c.firsts + c.seconds + 1), rows = take(file, c.segments * 12);
    std::vector<uint32_t> table(c.segments * 3);
    if (!rows.empty()) std::memcpy(table.data(), rows.data(), rows.size());
    size_t k = 0;
    for (const char* const* name = arz::isa_names(); *name; ++name, ++k) {
      if (passed.size() <= k) passed.push_back(0);
      if (passes(*arz::kernels_of(*name), c, data, streams, palettes, table))
        ++passed[k];
      else
        std::printf("case %zu fails with %s\n", cases, *name);
    }
  }
  bool all = cases > 0;
  for (size_t k = 0; k < passed.size(); ++k) {
    std::printf("%s %zu of %zu\n", arz::isa_names()[k], passed[k], cases);
    all = all && passed[k] == cases;
  }
  return all ? 0 : 1;
}
