// Picks an instruction set at run time.
#include <cstring>

#include "kernels.h"

namespace arz {
namespace portable { extern const Kernels kernels; }
#ifdef ARZ_HAVE_NEON
namespace neon { extern const Kernels kernels; }
#endif
#ifdef ARZ_HAVE_AVX2
namespace avx2 { extern const Kernels kernels; }
#endif
#ifdef ARZ_HAVE_AVX512
namespace avx512 { extern const Kernels kernels; }
#endif

namespace {

const char* const* probe() {
  static const char* names[4] = {};
  size_t n = 0;
  names[n++] = "portable";
#ifdef ARZ_HAVE_NEON
  names[n++] = "neon";  // every AArch64 processor has it
#endif
#ifdef ARZ_HAVE_AVX2
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("popcnt");
  if (avx2) names[n++] = "avx2";
#ifdef ARZ_HAVE_AVX512
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2"))
    names[n++] = "avx512";
#endif
#endif
  return names;
}

}  // namespace

const char* const* isa_names() {
  static const char* const* names = probe();
  return names;
}

const Kernels* kernels_of(const char* isa) {
  for (const char* const* name = isa_names(); *name; ++name) {
    if (std::strcmp(*name, isa) != 0) continue;
#ifdef ARZ_HAVE_NEON
    if (std::strcmp(isa, "neon") == 0) return &neon::kernels;
#endif
#ifdef ARZ_HAVE_AVX2
    if (std::strcmp(isa, "avx2") == 0) return &avx2::kernels;
#endif
#ifdef ARZ_HAVE_AVX512
    if (std::strcmp(isa, "avx512") == 0) return &avx512::kernels;
#endif
    return &portable::kernels;
  }
  return nullptr;
}

}  // namespace arz
