// Python's view of the kernels. Lengths are checked here once more, so that no mistake above can reach memory that is
// not the caller's; the lock is released while a kernel runs.
#include <nanobind/stl/string.h>

#include <string>

#include "binding.h"

namespace arz_python {
namespace {

using namespace arz;

const Kernels* in_use = nullptr;

}  // namespace

const Kernels& active() { return *in_use; }

namespace {

size_t raw_size(const Floats& type, size_t count, unsigned log_segment) {
  const size_t full = size_t{1} << log_segment, bits = type.mantissa_bits + 1;
  const size_t tail = count % full;
  const auto segment = [&](size_t n) { return n * (bits / 8) + bits % 8 * ceil_div(n, 8); };
  return count / full * segment(full) + segment(tail);
}

Alphabet alphabet(const In<uint8_t>& values, const In<uint16_t>& freqs) {
  need(values.size() == freqs.size() && values.size() <= 256, "values and frequencies must have one length up to 256");
  return {values.data(), freqs.data(), values.size()};
}

Floats floats(unsigned itemsize, unsigned exponent_bits, unsigned mantissa_bits, unsigned log_segment) {
  need(log_segment >= 6 && log_segment <= 31, "segments must have 2^6 to 2^31 elements");
  need(itemsize <= 8 && 8 * itemsize == exponent_bits + mantissa_bits + 1, "not a float");
  return {itemsize, exponent_bits, mantissa_bits};
}

void set_isa(const std::string& name) {
  const Kernels* found = kernels_of(name.c_str());
  need(found != nullptr, "this machine or this build lacks that instruction set");
  in_use = found;
}

nb::list isas() {
  nb::list names;
  for (const char* const* name = isa_names(); *name; ++name) names.append(nb::str(*name));
  return names;
}

void split_planes(In<uint8_t> data, unsigned stride, Out<uint8_t> planes) {
  need(stride != 0 && data.size() % stride == 0 && planes.size() == data.size(), "planes do not fit");
  nb::gil_scoped_release unlocked;
  active().split_planes(data.data(), data.size() / stride, stride, planes.data());
}

void merge_planes(In<uint8_t> planes, unsigned stride, Out<uint8_t> out) {
  need(stride != 0 && out.size() % stride == 0 && planes.size() == out.size(), "planes do not fit");
  nb::gil_scoped_release unlocked;
  active().merge_planes(planes.data(), out.size() / stride, stride, out.data());
}

void histogram(AnyIn symbols, Out<uint32_t> counts) {
  const bool wide = symbols.dtype() == nb::dtype<uint16_t>();
  need(wide || (symbols.dtype() == nb::dtype<uint8_t>() && counts.size() == 256), "counts do not fit the symbols");
  nb::gil_scoped_release unlocked;
  if (wide)
    active().histogram16(static_cast<const uint16_t*>(symbols.data()), symbols.size(), counts.data(), counts.size());
  else
    active().histogram8(static_cast<const uint8_t*>(symbols.data()), symbols.size(), counts.data());
}

size_t rans_encode(In<uint8_t> symbols, size_t per_segment, In<uint8_t> values, In<uint16_t> freqs, Out<uint8_t> out,
                   Out<uint32_t> stream_bytes) {
  const Alphabet a = alphabet(values, freqs);
  need(per_segment != 0 && per_segment <= size_t{1} << 31 && stream_bytes.size() == ceil_div(symbols.size(), per_segment) &&
           out.size() == rans_capacity(symbols.size(), per_segment),
       "streams do not fit");
  size_t start;
  {
    nb::gil_scoped_release unlocked;
    start = active().rans_encode(symbols.data(), symbols.size(), per_segment, a, out.data(), out.size(), stream_bytes.data());
  }
  need(start != SIZE_MAX, "frequencies do not sum to 4096, or a symbol has none");
  return start;
}

int rans_decode(In<uint8_t> streams, In<uint32_t> stream_bytes, size_t per_segment, In<uint8_t> values,
                In<uint16_t> freqs, Out<uint8_t> symbols) {
  const Alphabet a = alphabet(values, freqs);
  need(per_segment != 0 && stream_bytes.size() == ceil_div(symbols.size(), per_segment), "streams do not fit");
  nb::gil_scoped_release unlocked;
  return active().rans_decode(streams.data(), streams.size(), stream_bytes.data(), symbols.size(), per_segment, a,
                             symbols.data());
}

Palettes palettes(const In<uint8_t>& firsts, const In<uint8_t>& seconds, const In<uint8_t>& freqs) {
  need(firsts.size() >= 1 && firsts.size() <= 15 && seconds.size() <= 15 && freqs.size() == firsts.size() + 1,
       "palettes of a wrong size");
  return {firsts.data(), seconds.data(), freqs.data(), static_cast<unsigned>(firsts.size()),
          static_cast<unsigned>(seconds.size())};
}

void sample_exponents(In<uint8_t> data, unsigned itemsize, unsigned exponent_bits, unsigned mantissa_bits, size_t run,
                      size_t step, Out<uint32_t> counts) {
  const Floats type = floats(itemsize, exponent_bits, mantissa_bits, 6);
  need(data.size() % itemsize == 0 && counts.size() == 256 && run >= 1 && step >= run, "no such sample");
  nb::gil_scoped_release unlocked;
  active().sample_exponents(type, data.data(), data.size() / itemsize, run, step, counts.data());
}

size_t float_fast_encode(In<uint8_t> data, unsigned itemsize, unsigned exponent_bits, unsigned mantissa_bits,
                         unsigned log_segment, unsigned lanes, In<uint8_t> firsts, In<uint8_t> seconds,
                         In<uint8_t> freqs, size_t max_escapes, Out<uint8_t> out, Out<uint8_t> scratch,
                         Out<uint32_t> table) {
  FloatFastEncode job{};
  job.type = floats(itemsize, exponent_bits, mantissa_bits, log_segment);
  job.data = data.data();
  job.count = data.size() / itemsize;
  job.log_segment = log_segment;
  job.lanes = lanes;
  job.palettes = palettes(firsts, seconds, freqs);
  job.max_escapes = max_escapes;
  job.out = out.data();
  job.scratch = scratch.data();
  job.segments = table.data();
  const size_t n = segments(job.count, log_segment);
  need(data.size() % itemsize == 0 && (lanes == 32 || lanes == 128) && table.size() == n * kSegmentFields &&
           max_escapes <= job.count &&
           out.size() >= float_fast_capacity(raw_size(job.type, job.count, log_segment), job.count, n, lanes, max_escapes) &&
           scratch.size() >= float_fast_scratch(job.count, log_segment, lanes, max_escapes),
       "the chunk does not fit");
  nb::gil_scoped_release unlocked;
  return active().float_fast_encode(job);
}

int float_fast_decode(In<uint8_t> payload, unsigned itemsize, unsigned exponent_bits, unsigned mantissa_bits,
                      unsigned log_segment, unsigned lanes, In<uint8_t> firsts, In<uint8_t> seconds, In<uint8_t> freqs,
                      size_t raw_at, size_t symbols_at, size_t escapes_at, In<uint32_t> table, Out<uint8_t> out) {
  FloatFastDecode job{};
  job.type = floats(itemsize, exponent_bits, mantissa_bits, log_segment);
  job.payload = payload.data();
  job.payload_size = payload.size();
  job.count = out.size() / itemsize;
  job.log_segment = log_segment;
  job.lanes = lanes;
  job.palettes = palettes(firsts, seconds, freqs);
  job.raw_at = raw_at;
  job.symbols_at = symbols_at;
  job.escapes_at = escapes_at;
  job.segments = table.data();
  job.out = out.data();
  need(out.size() % itemsize == 0 && (lanes == 32 || lanes == 128) &&
           table.size() == segments(job.count, log_segment) * kSegmentFields,
       "the chunk does not fit");
  nb::gil_scoped_release unlocked;
  return active().float_fast_decode(job);
}

}  // namespace
}  // namespace arz_python

NB_MODULE(_native, m) {
  using namespace arz_python;
  const char* const* name = isa_names();
  while (name[1]) ++name;
  in_use = kernels_of(*name);
  m.def("isas", &isas);
  m.def("isa", [] { return std::string(active().name); });
  m.def("set_isa", &set_isa);
  m.def("set_gathers", [](bool on) { active().set_gathers(on); });
  m.def("split_planes", &split_planes);
  m.def("merge_planes", &merge_planes);
  m.def("histogram", &histogram);
  m.def("rans_encode", &rans_encode);
  m.def("rans_decode", &rans_decode);
  m.def("sample_exponents", &sample_exponents);
  m.def("float_fast_encode", &float_fast_encode);
  m.def("float_fast_decode", &float_fast_decode);
  bind_context(m);
  bind_delta(m);
  bind_optim(m);
  bind_records(m);
}
