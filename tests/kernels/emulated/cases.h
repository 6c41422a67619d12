// What the driver reads: cases that the NumPy reference made, and what of them every instruction set must repeat.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels.h"

namespace cases {

using Bytes = std::vector<uint8_t>;

// Numbers and arrays, which are taken in the order in which the test writes them.
class Case {
 public:
  std::vector<int32_t> numbers;
  std::vector<Bytes> arrays;

  int32_t number() { return numbers.at(number_++); }
  const Bytes& bytes() { return arrays.at(array_++); }
  template <class T>
  std::vector<T> list() {
    const Bytes& of = bytes();
    std::vector<T> found(of.size() / sizeof(T));
    if (!found.empty()) std::memcpy(found.data(), of.data(), of.size());
    return found;
  }

 private:
  size_t number_ = 0, array_ = 0;
};

inline const uint8_t* data_of(const Bytes& bytes) { return bytes.empty() ? nullptr : bytes.data(); }

// One function for each codec: does what these kernels do agree with the reference?
bool float_fast(const arz::Kernels&, Case);
bool delta_ctx(const arz::Kernels&, Case);
bool optim_ctx(const arz::Kernels&, Case);

// Both code symbols under classes.
bool codes_symbols(const arz::Kernels&, const Bytes& symbols, const Bytes& classes, const std::vector<uint16_t>& freqs,
                   size_t per_segment, const Bytes& streams, const std::vector<uint32_t>& symbol_bytes);

}  // namespace cases
