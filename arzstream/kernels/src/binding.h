// What the two halves of the binding share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <stdexcept>

#include "kernels.h"

namespace arz_python {

namespace nb = nanobind;

template <class T>
using In = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using AnyIn = nb::ndarray<nb::ro, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using AnyOut = nb::ndarray<nb::ndim<1>, nb::c_contig, nb::device::cpu>;

inline void need(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

inline size_t segments(size_t count, unsigned log_segment) { return arz::ceil_div(count, size_t{1} << log_segment); }

// The kernels in use.
const arz::Kernels& active();

// Memory for tables, aligned to a cache line.
class Scratch {
 public:
  explicit Scratch(size_t size) : memory_(new uint32_t[size + 16]) {
    const auto at = reinterpret_cast<uintptr_t>(memory_.get());
    begin_ = memory_.get() + (-at & 63) / sizeof(uint32_t);
  }
  uint32_t* get() { return begin_; }

 private:
  std::unique_ptr<uint32_t[]> memory_;
  uint32_t* begin_;
};

void bind_context(nb::module_& m);
void bind_delta(nb::module_& m);
void bind_optim(nb::module_& m);
void bind_records(nb::module_& m);

}  // namespace arz_python
