// What the two halves of the binding share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

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

void bind_context(nb::module_& m);
void bind_records(nb::module_& m);

}  // namespace arz_python
