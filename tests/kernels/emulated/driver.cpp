// Runs the kernels of every instruction set on cases that the NumPy reference made, for processors that can only be
// emulated: driver CASES. A case is the number of its codec, how many numbers and arrays it has, the numbers, and each
// array after its length in bytes. Prints how many cases each instruction set passed; the exit status is 1 if one
// failed.
#include <cstdio>
#include <cstdlib>

#include "cases.h"

namespace {

void read(std::FILE* file, void* to, size_t size) {
  if (size && std::fread(to, 1, size, file) != size) std::exit(2);
}

uint32_t read_u32(std::FILE* file) {
  uint32_t value;
  read(file, &value, sizeof value);
  return value;
}

cases::Case read_case(std::FILE* file) {
  cases::Case found;
  const uint32_t numbers = read_u32(file), arrays = read_u32(file);
  found.numbers.resize(numbers);
  read(file, found.numbers.data(), numbers * sizeof(int32_t));
  for (uint32_t k = 0; k < arrays; ++k) {
    found.arrays.emplace_back(read_u32(file));
    read(file, found.arrays.back().data(), found.arrays.back().size());
  }
  return found;
}

bool passes(uint32_t codec, const arz::Kernels& kernels, const cases::Case& given) {
  switch (codec) {
    case 4: return cases::float_fast(kernels, given);
    case 8: return cases::delta_ctx(kernels, given);
    case 9: return cases::optim_ctx(kernels, given);
  }
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  std::FILE* file = argc == 2 ? std::fopen(argv[1], "rb") : nullptr;
  if (!file) return 2;
  std::vector<size_t> passed;
  size_t cases = 0;
  for (uint32_t codec; std::fread(&codec, sizeof codec, 1, file) == 1; ++cases) {
    const cases::Case given = read_case(file);
    size_t k = 0;
    for (const char* const* name = arz::isa_names(); *name; ++name, ++k) {
      if (passed.size() <= k) passed.push_back(0);
      if (passes(codec, *arz::kernels_of(*name), given))
        ++passed[k];
      else
        std::printf("case %zu of codec %u fails with %s\n", cases, codec, *name);
    }
  }
  bool all = cases > 0;
  for (size_t k = 0; k < passed.size(); ++k) {
    std::printf("%s %zu of %zu\n", arz::isa_names()[k], passed[k], cases);
    all = all && passed[k] == cases;
  }
  return all ? 0 : 1;
}
