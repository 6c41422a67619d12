// Python's view of the kernels of records; see binding.cpp.
#include "binding.h"

namespace arz_python {
namespace {

using namespace arz;

void check_part(size_t data, size_t record, size_t at, size_t length, size_t part) {
  need(record >= 1 && data % record == 0 && at <= record && length <= record - at && part == data / record * length,
       "the part does not fit");
}

void take_part(In<uint8_t> data, size_t record, size_t at, size_t length, Out<uint8_t> out) {
  check_part(data.size(), record, at, length, out.size());
  nb::gil_scoped_release unlocked;
  active().take_part(data.data() + at, data.size() / record, record, length, out.data());
}

void put_part(In<uint8_t> part, size_t record, size_t at, size_t length, Out<uint8_t> data) {
  check_part(data.size(), record, at, length, part.size());
  nb::gil_scoped_release unlocked;
  active().put_part(part.data(), data.size() / record, record, length, data.data() + at);
}

void record_classes(In<uint8_t> data, size_t record, size_t row, size_t length, unsigned z_classes, unsigned e_classes,
                    int numerator, int denominator, int scale, unsigned z_shift, unsigned e_shift, int z_base,
                    int e_base, In<uint8_t> cols, Out<uint8_t> out) {
  need(record >= 2 || (numerator < 0 && denominator < 0 && scale < 0), "records without fields");
  need(record >= 1 && data.size() % record == 0 && row >= 1, "no whole records");
  const size_t count = data.size() / record;
  need(length <= record && out.size() == count * length, "classes do not fit");
  for (const int field : {numerator, denominator, scale})
    need(field >= -1 && (field < 0 || static_cast<size_t>(field) + 2 <= record), "a field outside its record");
  need(z_classes >= 1 && e_classes >= 1 && z_classes <= 256 && e_classes <= 256 && z_classes * e_classes <= 256 &&
           z_shift <= 15 && e_shift <= 15,
       "a rule out of range");
  const auto fits = [](int base) { return base >= -(1 << 15) && base < 1 << 15; };
  need(fits(z_base) && fits(e_base), "a base out of range");
  need(cols.size() == 0 || cols.size() == (row < count ? row : count) * length, "columns do not fit");
  const RecordRule rule{z_classes, e_classes, numerator, denominator, scale, z_shift, e_shift, z_base, e_base};
  const RecordClasses job{data.data(), count, record, row, length, rule, cols.size() ? cols.data() : nullptr, out.data()};
  nb::gil_scoped_release unlocked;
  active().record_classes(job);
}

void scale_codes(In<int8_t> codes, size_t group, In<float> scales, bool minus_zero, unsigned kind, Out<uint8_t> out) {
  need(kind <= kBinary16 && group >= 1 && scales.size() == ceil_div(codes.size(), group) &&
           out.size() == codes.size() * (kind == kBinary32 ? 4 : 2),
       "elements do not fit");
  const DequantJob job{codes.data(), codes.size(),  group, scales.data(), minus_zero, static_cast<FloatKind>(kind),
                       out.data()};
  nb::gil_scoped_release unlocked;
  active().scale_codes(job);
}

}  // namespace

void bind_records(nb::module_& m) {
  m.def("take_part", &take_part);
  m.def("put_part", &put_part);
  m.def("record_classes", &record_classes);
  m.def("scale_codes", &scale_codes);
}

}  // namespace arz_python
